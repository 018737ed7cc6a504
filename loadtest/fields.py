"""Header fields of HTTP/2: how a request becomes fields, and their compression, remembered.

Nearly all of a load test's header blocks repeat, but what one means may depend on the table that HPACK keeps on both
sides (RFC 7541, 2.3.2), which blocks also change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpack import Decoder, Encoder, HeaderTuple
from hpack.table import HeaderTable

from loadtest.wire import LENGTHY, Message, ascii_authority

Fields = tuple[tuple[bytes, bytes], ...]

_MOST_KNOWN = 64

# What belongs to an HTTP/1.1 connection and has no place in HTTP/2 (RFC 9113, 8.2.2); Host becomes :authority.
_LEFT_OUT = frozenset({b"host", b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})


def fields_of(message: Message) -> Fields:
    """A request as the header fields of HTTP/2 (RFC 9113, 8.3.1).

    `Expect: 100-continue` is sent as it is, but not waited for: a stream that is refused costs no connection.
    """
    names = {name.lower() for name, _ in message.headers}
    host = message.host if b"host" in names else ascii_authority(message.authority)
    fields = [
        (b":method", message.method.encode()),
        (b":scheme", b"https" if message.origin.tls else b"http"),
        (b":authority", host.strip()),
        (b":path", message.target.encode()),
    ]
    for name, value in message.headers:
        lower, bare = name.lower(), value.strip()
        if lower not in _LEFT_OUT and (lower != b"te" or bare.lower() == b"trailers"):
            fields.append((lower, bare))
    if b"content-length" not in names and (message.body or message.method in LENGTHY):
        fields.append((b"content-length", b"%d" % len(message.body)))
    return tuple(fields)


class _Table(HeaderTable):
    """One that says how it was used."""

    def __init__(self) -> None:
        super().__init__()
        self.watch()

    def watch(self) -> None:
        self.entries: list[tuple[bytes, bytes]] = []  # made since
        self.referred = False  # to an entry since

    def add(self, name: bytes, value: bytes) -> None:
        self.entries.append((name, value))
        super().add(name, value)

    def get_by_index(self, index: int) -> tuple[bytes, bytes]:
        self.referred |= index > HeaderTable.STATIC_TABLE_LENGTH
        return super().get_by_index(index)


class RememberingEncoder(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.header_table: _Table = _Table()
        self._known: dict[tuple[Any, ...], bytes] = {}

    def encode(self, headers: Iterable[Any], huffman: bool = True) -> bytes:
        key = tuple(headers)
        resized = self.header_table.resized  # which the next block has to say
        if not resized and key in self._known:
            return self._known[key]
        self.header_table.watch()
        block = super().encode(key, huffman)
        changed = resized or bool(self.header_table.entries)
        if changed or len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        if not changed:
            self._known[key] = block
        return block


class RememberingDecoder(Decoder):
    """Always raw, which is all that h2 asks for.

    A block that refers to no entry of the table means the same whatever is in there; only its own entries have to be
    made each time. One that does refer to some is remembered until the table changes.
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self.header_table: _Table = _Table()
        self._constant: dict[bytes, tuple[list[HeaderTuple], tuple[tuple[bytes, bytes], ...]]] = {}
        self._passing: dict[bytes, list[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = True) -> list[HeaderTuple]:
        constant = self._constant.get(data)
        if constant is not None:
            headers, entries = constant
            if entries:
                self._passing.clear()
                for name, value in entries:
                    HeaderTable.add(self.header_table, name, value)
            return headers
        return self._passing.get(data) or self._decode_anew(bytes(data))

    def _decode_anew(self, block: bytes) -> list[HeaderTuple]:
        table = self.header_table
        table.watch()
        headers = list(super().decode(block, raw=True))
        resized = block[:1] != b"" and block[0] & 0xE0 == 0x20  # RFC 7541, 6.3
        if resized or table.entries or len(self._passing) >= _MOST_KNOWN:
            self._passing.clear()
        if len(self._constant) >= _MOST_KNOWN:
            self._constant.clear()
        if not resized and not table.referred:
            self._constant[block] = headers, tuple(table.entries)
        elif not resized and not table.entries:
            self._passing[block] = headers
        return headers
