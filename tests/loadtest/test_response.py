"""The response reader: every framing, every way to be cut into pieces, and what is no HTTP."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadtest.response import BadResponseError, ResponseReader


class Seen(NamedTuple):
    """What became of one response: its end is "complete", "cut" or "bad"."""

    end: str
    status: int = 0
    size: int = 0
    keep: bool = False
    attribute: str | None = None


def read(pieces: list[bytes], *, head: bool = False, attribute: str | None = "X-Served-By") -> Seen:
    """Feed the pieces and then the end of the connection."""
    reader = ResponseReader(attribute)
    reader.expect(head=head)
    try:
        complete = any(reader.feed(piece) for piece in pieces) or reader.finish()
    except BadResponseError:
        return Seen("bad")
    if not complete:
        return Seen("cut", reader.head.status, reader.size)
    return Seen("complete", reader.head.status, reader.size, reader.keep, reader.head.attribute)


def pieces_of(text: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[begin:end] for begin, end in pairwise(places)]


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", Seen("complete", 200, 5, True)),
        (OK + b"Content-Length: 0\r\n\r\n", Seen("complete", 200, 0, True)),
        (OK + b"Content-Length: 5\r\n\r\nhell", Seen("cut", 200, 4)),
        (OK + b"Content-Length: 5\r\n\r\nhello!", Seen("complete", 200, 5, False)),  # a surplus is nobody's answer
        (OK + b"content-length:5 \r\n\r\nhello", Seen("complete", 200, 5, True)),
        (OK + b"Content-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello", Seen("complete", 200, 5, True)),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", Seen("bad")),
        (OK + b"Content-Length: -5\r\n\r\nhello", Seen("bad")),
        (OK + b"Content-Length: 0x5\r\n\r\nhello", Seen("bad")),
        (OK + b"Content-Length:\r\n\r\n", Seen("bad")),
        (OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", Seen("complete", 200, 5, False)),
        (OK + b"Content-Length: 5\r\nConnection: x, Close\r\n\r\nhello", Seen("complete", 200, 5, False)),
        (OK + b"Content-Length: 1\r\nX-Served-By: a\r\nx-served-by: b\r\n\r\n.", Seen("complete", 200, 1, True, "b")),
        # -- without a length, the end of the connection is the end of the body
        (OK + b"\r\n", Seen("complete", 200, 0, False)),
        (OK + b"\r\nhello", Seen("complete", 200, 5, False)),
        (OK + b"Transfer-Encoding: gzip\r\n\r\nhello", Seen("complete", 200, 5, False)),
        # -- HTTP/1.0
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n.", Seen("complete", 200, 1, False)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\n.", Seen("complete", 200, 1, True)),
        # -- no body at all
        (b"HTTP/1.1 204 No Content\r\n\r\n", Seen("complete", 204, 0, True)),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", Seen("complete", 304, 0, True)),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Seen("complete", 101, 0, False)),
        # -- what goes before the response
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + OK + b"Content-Length: 1\r\n\r\n.", Seen("complete", 200, 1, True)),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 x\r\n\r\n", Seen("complete", 204, 0, True)),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Seen("cut")),
        # -- chunks
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", Seen("complete", 200, 5, True)),
        (CHUNKED + b"A;name=value\r\n0123456789\r\n00a \r\n0123456789\r\n000\r\n\r\n", Seen("complete", 200, 20, True)),
        (CHUNKED + b"5\r\nhello\r\n0\r\nDigest: x\r\nOther: y\r\n\r\n", Seen("complete", 200, 5, True)),
        (CHUNKED + b"5\nhello\n0\n\n", Seen("complete", 200, 5, True)),
        (CHUNKED + b"5\r\nhello\r\n", Seen("cut", 200, 5)),
        (CHUNKED + b"5\r\nhel", Seen("cut", 200, 3)),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", Seen("cut", 200, 5)),
        (CHUNKED + b"5\r\nhelloworld", Seen("bad")),
        (CHUNKED + b"five\r\nhello", Seen("bad")),
        (CHUNKED + b"-1\r\n", Seen("bad")),
        (CHUNKED + b"FFFFFFFFFFFFFFFF\r\n", Seen("bad")),
        (CHUNKED + b"1" * 20_000, Seen("bad")),
        (OK + b"Transfer-Encoding: gzip, Chunked\r\n\r\n1\r\n.\r\n0\r\n\r\n", Seen("complete", 200, 1, True)),
        (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n0\r\n\r\n", Seen("complete", 200, 0, False)),
        # -- line ends and folds
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\n.", Seen("complete", 200, 1, True)),
        (OK + b"X: a\r\n b\r\nContent-Length: 1\r\n\r\n.", Seen("complete", 200, 1, True)),
        # -- status lines
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Seen("complete", 200, 0, True)),
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", Seen("complete", 200, 0, True)),
        (b"HTTP/1.1 2000 OK\r\n\r\n", Seen("bad")),
        (b"HTTP/1.1 OK\r\n\r\n", Seen("bad")),
        (b"HTTP/2 200\r\n\r\n", Seen("bad")),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Seen("bad")),
        (b"HELLO", Seen("bad")),
        (b"\r\n\r\n", Seen("bad")),
        (b"HTTP/1.", Seen("cut")),
        (b"HT", Seen("cut")),
        (b"", Seen("cut")),
        # -- headers
        (OK + b"No colon\r\n\r\n", Seen("bad")),
        (OK + b"Name : value\r\n\r\n", Seen("bad")),
        (OK + b"X: a\0b\r\n\r\n", Seen("bad")),
        (OK + b"X: " + b"a" * 300_000, Seen("bad")),
        (OK + b"X: " + b"a" * 300_000 + b"\r\n\r\n", Seen("bad")),
    ],
)
def test_each_framing_whole_and_byte_by_byte(text: bytes, seen: Seen) -> None:
    assert read([text]) == seen
    step = 1 if len(text) < 1000 else 7_919
    single = read([text[at : at + step] for at in range(0, len(text), step)])
    # Bytes that come after the end are met by nobody who would wait for them.
    assert single._replace(keep=seen.keep) == seen


def test_the_answer_to_a_head_request_has_no_body() -> None:
    assert read([OK + b"Content-Length: 99\r\n\r\n"], head=True) == Seen("complete", 200, 0, True)
    assert read([CHUNKED], head=True) == Seen("complete", 200, 0, True)


def test_one_response_after_the_other_on_one_connection() -> None:
    reader = ResponseReader("X-Served-By")
    for text, size, served in (
        (OK + b"Content-Length: 3\r\nX-Served-By: a\r\n\r\nabc", 3, "a"),
        (OK + b"Content-Length: 3\r\nX-Served-By: a\r\n\r\nabc", 3, "a"),
        (CHUNKED + b"2\r\nab\r\n0\r\n\r\n", 2, None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 0, None),
        (OK + b"Content-Length: 3\r\nX-Served-By: a\r\n\r\nabc", 3, "a"),
    ):
        reader.expect()
        assert not reader.headed
        assert reader.feed(text)
        assert (reader.size, reader.head.attribute, reader.keep, reader.begun) == (size, served, True, True)


def test_a_seen_head_with_another_amount_of_body_is_not_taken_for_whole() -> None:
    reader = ResponseReader()
    text = OK + b"Content-Length: 3\r\n\r\n"
    assert reader.feed(text + b"abc")
    reader.expect()
    assert not reader.feed(text + b"ab")
    assert reader.feed(b"c")
    reader.expect()
    assert reader.feed(text + b"abcd")
    assert (reader.size, reader.surplus, reader.keep) == (3, b"d", False)


def test_what_goes_before_the_response_is_never_taken_for_it() -> None:
    early = b"HTTP/1.1 102 Processing\r\n\r\n"
    reader = ResponseReader()
    for _ in range(2):
        reader.expect()
        assert not any(reader.feed(early) for _ in range(3)), "seen before or not"
        assert reader.feed(OK + b"Content-Length: 0\r\n\r\n")
        assert reader.head.status == 200


def test_heads_that_never_repeat_take_no_more_memory() -> None:
    reader = ResponseReader()
    for number in range(1000):
        reader.expect()
        assert reader.feed(OK + b"X-Request: %d\r\nContent-Length: 0\r\n\r\n" % number)
    assert len(reader._heads) <= 64


# -- any pieces ----------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"Server", b"X-Served-By", b"Set-Cookie", b"Connection", b"Date"])
VALUES = st.sampled_from([b"", b"a", b"close", b"keep-alive", b"x; y=z", b"gzip"])
BODIES = st.binary(max_size=40)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """Good ones, of any framing."""
    early = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    status = draw(st.sampled_from([200, 201, 204, 304, 404, 500]))
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    body = draw(BODIES)
    if framing == "length":
        fields.append((b"Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        fields.append((b"Transfer-Encoding", b"chunked"))
        sizes = draw(st.lists(st.integers(1, 9), max_size=5))
        chunks, at = [], 0
        for size in sizes:
            part = body[at : at + size]
            at += size
            chunks += [b"%x\r\n%s\r\n" % (len(part), part)] if part else []
        body = b"".join(chunks) + b"0\r\n" + draw(st.sampled_from([b"", b"Trailer: x\r\n"])) + b"\r\n"
    head = b"HTTP/%s %d Reason\r\n" % (version, status)
    head += b"".join(b"%s: %s\r\n" % field for field in fields) + b"\r\n"
    return early + head + (b"" if status in (204, 304) else body)


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@given(responses(), CUTS)
def test_a_response_in_pieces_is_the_same_response(text: bytes, cuts: list[int]) -> None:
    whole = read([text])
    assert whole.end == "complete"
    assert read(pieces_of(text, cuts)) == whole


@given(responses(), CUTS, st.data())
@example(b"HTTP/1.1 200 OK\r\n\r\n", [1], None)
def test_a_response_that_was_damaged_is_judged_alike_however_it_comes(
    text: bytes, cuts: list[int], data: st.DataObject | None
) -> None:
    if data is not None:
        at = data.draw(st.integers(0, len(text)))
        drop = data.draw(st.integers(0, 6))
        text = text[:at] + data.draw(st.binary(max_size=6)) + text[at + drop :]
    whole = read([text])
    assert read(pieces_of(text, cuts))._replace(keep=whole.keep) == whole


@given(responses())
def test_what_h11_makes_of_it(text: bytes) -> None:
    """An independent reader of the same rules comes to the same status and the same size."""
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target="/", headers=[("Host", "a")])
    connection.send(request)
    connection.send(h11.EndOfMessage())
    connection.receive_data(text)
    connection.receive_data(b"")
    status = size = 0
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            size += len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            break
    seen = read([text])
    assert (seen.status, seen.size) == (status, size)
