"""Header blocks that are remembered mean what they meant."""

from __future__ import annotations

from hpack import Decoder, Encoder, HeaderTuple
from hypothesis import given
from hypothesis import strategies as st

from loadtest.fields import RememberingDecoder, RememberingEncoder, fields_of
from loadtest.model import Origin
from loadtest.wire import Message

NAMES = st.sampled_from([b":status", b"server", b"date", b"x-a", b"x-b", b"content-length"])
VALUES = st.sampled_from([b"200", b"a", b"bb", b"c" * 100])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
SIZES = st.sampled_from([None, None, None, 0, 40, 100, 4096])  # of the table, which change it on the way
BLOCKS = st.lists(st.tuples(FIELDS, SIZES), max_size=12)
WASTEFUL = [b"\x88", b"\x88\x76\x05nginx", b"\x88\x76\x05nginx\x5c\x0212", b"\x20\x3f\xe1\x1f\x88", b"\x40\x01a\x01b"]


@given(BLOCKS, st.booleans())
def test_remembered_or_not_a_block_is_decoded_alike(
    blocks: list[tuple[list[tuple[bytes, bytes]], int | None]], sensitive: bool
) -> None:
    encoder, decoder, plain = Encoder(), RememberingDecoder(1 << 20), Decoder(1 << 20)
    for fields, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        for _ in range(3):
            block = encoder.encode([(name, value, sensitive) for name, value in fields])
            assert decoder.decode(block) == list(plain.decode(block, raw=True)) == fields
            assert decoder.header_table.dynamic_entries == plain.header_table.dynamic_entries


@given(st.lists(st.sampled_from([*WASTEFUL, b"\xbe", b"\xbf"]), max_size=40))
def test_blocks_that_make_entries_and_blocks_that_refer_to_them(blocks: list[bytes]) -> None:
    decoder, plain = RememberingDecoder(1 << 16), Decoder()
    for block in blocks:
        if len(plain.header_table.dynamic_entries) < block[0] - 0xBD and block[0] >= 0xBE:
            continue  # a reference to nothing
        assert decoder.decode(block) == list(plain.decode(block, raw=True))
        assert decoder.header_table.dynamic_entries == plain.header_table.dynamic_entries


@given(BLOCKS)
def test_what_is_encoded_is_understood(blocks: list[tuple[list[tuple[bytes, bytes]], int | None]]) -> None:
    encoder, decoder = RememberingEncoder(), Decoder(1 << 20)
    for fields, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        for _ in range(3):
            assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields


def test_wasteful_encoder_that_makes_the_same_entries_each_time() -> None:
    """As nginx does: each block makes entries and refers to none."""
    decoder, plain = RememberingDecoder(1 << 16), Decoder()
    block = b"\x88" + b"\x76\x05nginx" + b"\x5c\x0212"
    for _ in range(200):
        assert decoder.decode(block) == list(plain.decode(block, raw=True))
        assert decoder.header_table.dynamic_entries == plain.header_table.dynamic_entries
    assert decoder.decode(b"\xbe") == [HeaderTuple(b"content-length", b"12")]


def test_name_that_is_not_ascii_is_sent_as_idna() -> None:
    message = Message("GET", Origin(True, "bücher.test", 443), "bücher.test", "/", (), b"")
    assert dict(fields_of(message))[b":authority"] == b"xn--bcher-kva.test"
