"""The response reader: every framing, every way to be cut into pieces, and what is no HTTP."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import NamedTuple

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.response import BadResponseError, ResponseReader, _remembered


class Seen(NamedTuple):
    """What became of one response: its end is "complete", "cut" or "bad"."""

    end: str
    status: int = 0
    size: int = 0
    keep: bool = False
    attribute: str | None = None
    surplus: bytes = b""


def read(pieces: list[bytes], *, head: bool = False, reader: ResponseReader | None = None) -> Seen:
    """Feed all the pieces, what comes after the end too, and then the end of the connection."""
    reader = reader or ResponseReader("X-Served-By")
    reader.expect(head=head)
    assert (reader.begun, reader.headed, reader.keep, reader.size) == (False, False, False, 0)
    complete = False
    try:
        for piece in pieces:
            before, complete = complete, reader.feed(piece)
            assert complete or not before, "what is complete stays so"
        complete = complete or reader.finish()
    except BadResponseError:
        assert reader.begun
        return Seen("bad")
    assert reader.begun == any(pieces)
    if not complete:
        assert not reader.surplus
        return Seen("cut", reader.head.status, reader.size)
    assert reader.finish()
    assert reader.keep == (reader.head.keep and not reader.surplus)
    return Seen("complete", reader.head.status, reader.size, reader.keep, reader.head.attribute, reader.surplus)


def forget_heads() -> None:
    _remembered.cache_clear()


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
        (OK + b"Content-Length: 5\r\n\r\nhello!", Seen("complete", 200, 5, False, None, b"!")),  # nobody's answer
        (OK + b"content-length:5 \r\n\r\nhello", Seen("complete", 200, 5, True)),
        (OK + b"Content-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello", Seen("complete", 200, 5, True)),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", Seen("bad")),
        (OK + b"Content-Length: -5\r\n\r\nhello", Seen("bad")),
        (OK + b"Content-Length: 0x5\r\n\r\nhello", Seen("bad")),
        (OK + b"Content-Length:\r\n\r\n", Seen("bad")),
        (OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", Seen("complete", 200, 5, False)),
        (OK + b"Content-Length: 99999999999999999999\r\n\r\n", Seen("bad")),
        (OK + b"Content-Length: 999999999999999999\r\n\r\nhello", Seen("cut", 200, 5)),
        (OK + b"Content-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", Seen("complete", 200, 5, True)),
        (OK + b"Content-Length: 5\r\nConnection: a\r\nConnection: close\r\n\r\nhello", Seen("complete", 200, 5, False)),
        (OK + b"Content-Length: 5\r\nConnection: x, Close\r\n\r\nhello", Seen("complete", 200, 5, False)),
        (OK + b"Content-Length: 1\r\nX-Served-By: a\r\nx-served-by: b\r\n\r\n.", Seen("complete", 200, 1, True, "b")),
        # -- without a length, the end of the connection is the end of the body
        (OK + b"\r\n", Seen("complete", 200, 0, False)),
        (OK + b"\r\nhello", Seen("complete", 200, 5, False)),
        (OK + b"Transfer-Encoding: gzip\r\n\r\nhello", Seen("complete", 200, 5, False)),
        (OK + b"Transfer-Encoding: chunked, gzip\r\nContent-Length: 1\r\n\r\nhello", Seen("complete", 200, 5, False)),
        # -- HTTP/1.0
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\nhello", Seen("complete", 200, 5, False)),
        (
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n0\r\n\r\n",
            Seen("complete", 200, 1, False),
        ),
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: x\r\nConnection: y ,KEEP-ALIVE\r\n\r\n.",
            Seen("complete", 200, 1, True),
        ),
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive, close\r\n\r\n.",
            Seen("complete", 200, 1, False),
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n.", Seen("complete", 200, 1, False)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\n.", Seen("complete", 200, 1, True)),
        # -- no body at all
        (b"HTTP/1.1 204 No Content\r\n\r\n", Seen("complete", 204, 0, True)),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", Seen("complete", 304, 0, True)),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Seen("complete", 101, 0, False)),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\0", Seen("complete", 101, 0, False, None, b"\x81\0")),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", Seen("complete", 204, 0, True)),
        (b"HTTP/1.1 204 No Content\r\n\r\nhello", Seen("complete", 204, 0, False, None, b"hello")),
        (b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", Seen("complete", 204, 0, False)),
        # -- what goes before the response
        (b"HTTP/1.1 100 Continue\r\n\r\nHELLO", Seen("bad")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + OK + b"Content-Length: 1\r\n\r\n.", Seen("complete", 200, 1, True)),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 x\r\n\r\n", Seen("complete", 204, 0, True)),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Seen("cut")),
        # -- chunks
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", Seen("complete", 200, 5, True)),
        (
            CHUNKED + b"A ;name=value\r\n0123456789\r\n00a \r\n0123456789\r\n000\r\n\r\n",
            Seen("complete", 200, 20, True),
        ),
        (CHUNKED + b"5\r\nhello\r\n0\r\nDigest: x\r\nOther: y\r\n\r\n", Seen("complete", 200, 5, True)),
        (CHUNKED + b"5\nhello\n0\n\n", Seen("complete", 200, 5, True)),
        (CHUNKED + b"5\r\nhello\r\n", Seen("cut", 200, 5)),
        (CHUNKED + b"5\r\nhel", Seen("cut", 200, 3)),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", Seen("cut", 200, 5)),
        (CHUNKED + b"5\r\nhelloworld", Seen("bad")),
        (CHUNKED + b"5\r\nhelloX\r\n", Seen("bad")),
        (CHUNKED + b"5\r\nhello\rX", Seen("bad")),
        (CHUNKED + b"5\r\nhello\r", Seen("cut", 200, 5)),
        (CHUNKED + b"\r\n", Seen("bad")),
        (CHUNKED + b"0\r\n\r\n0\r\n\r\n", Seen("complete", 200, 0, False, None, b"0\r\n\r\n")),
        (CHUNKED + b"0\r\nDigest: x\r\n y\r\n\r\n", Seen("complete", 200, 0, True)),
        (CHUNKED + b"0\r\nHTTP/1.1 200 OK\r\n", Seen("bad")),
        (CHUNKED + b"0\r\nX: " + b"a" * 262_138 + b"\r\n\r\n", Seen("bad")),
        (CHUNKED + b"0\r\nX: " + b"a" * 262_137 + b"\r\n\r\n", Seen("complete", 200, 0, True)),
        (CHUNKED + b"0\r\n" + b"X: aaaaaaaaaa\r\n" * 20_000, Seen("bad")),
        (CHUNKED + b"0\r\n" + b"a" * 300_000, Seen("bad")),
        (CHUNKED + b"1;" + b"x" * 16_380 + b"\r\n.\r\n0\r\n\r\n", Seen("complete", 200, 1, True)),
        (CHUNKED + b"1;" + b"x" * 16_381 + b"\r\n.\r\n0\r\n\r\n", Seen("bad")),
        (CHUNKED + b"1;" + b"x" * 16_382, Seen("cut", 200)),
        (CHUNKED + b"1;" + b"x" * 16_383, Seen("bad")),
        (CHUNKED + b"1_0\r\n", Seen("bad")),
        (CHUNKED + b"0x1\r\n", Seen("bad")),
        (CHUNKED + b"five\r\nhello", Seen("bad")),
        (CHUNKED + b"-1\r\n", Seen("bad")),
        (CHUNKED + b"FFFFFFFFFFFFFFFF\r\n", Seen("bad")),
        (CHUNKED + b"1" * 20_000, Seen("bad")),
        (OK + b"Transfer-Encoding: gzip, Chunked\r\n\r\n1\r\n.\r\n0\r\n\r\n", Seen("complete", 200, 1, True)),
        (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n0\r\n\r\n", Seen("complete", 200, 0, False)),
        (OK + b"Transfer-Encoding: CHUNKED\r\n\r\n1\r\n.\r\n0\r\n\r\n", Seen("complete", 200, 1, True)),
        (
            OK + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Seen("complete", 200, 0, True),
        ),
        (OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", Seen("bad")),
        # -- line ends and folds
        (b"HTTP/1.1 200 OK\nContent-Length: 1\r\n\n.", Seen("complete", 200, 1, True)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\n\r\n.", Seen("complete", 200, 1, True)),
        (b"HTTP/1.1 200 OK\n\n\r\n\r\n", Seen("complete", 200, 4, False)),
        (OK + b"X-Served-By: a\r\n\t b\r\nContent-Length: 0\r\n\r\n", Seen("complete", 200, 0, True, "a b")),
        (OK + b"Content-Length:\r\n 1\r\n\r\n.", Seen("complete", 200, 1, True)),
        (OK + b" X: a\r\nContent-Length: 1\r\n\r\n.", Seen("bad")),
        (OK + b"X: a\rb\r\n\r\n", Seen("bad")),
        (OK + b"X: a\r\r\n\r\n", Seen("bad")),
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\n.", Seen("complete", 200, 1, True)),
        (OK + b"X: a\r\n b\r\nContent-Length: 1\r\n\r\n.", Seen("complete", 200, 1, True)),
        # -- status lines
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Seen("complete", 200, 0, True)),
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", Seen("complete", 200, 0, True)),
        (b"HTTP/1.1 200 \xc3\x96K\r\nContent-Length: 0\r\n\r\n", Seen("complete", 200, 0, True)),
        (b"HTTP/1.1 099 OK\r\n\r\n", Seen("bad")),
        (b"HTTP/1.1  200 OK\r\n\r\n", Seen("bad")),
        (b"http/1.1 200 OK\r\n\r\n", Seen("bad")),
        (b"HTTP/1.10 200 OK\r\n\r\n", Seen("bad")),
        (b"HTTP/1.1 200\0\r\n\r\n", Seen("bad")),
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
        (OK + b": value\r\n\r\n", Seen("bad")),
        (
            OK + b"X-Content-Length: 3\r\nY: Content-Length: 4\r\nContent-Length: 1\r\n\r\n.",
            Seen("complete", 200, 1, True),
        ),
        (OK + b"X-Served-By: \xe4 b \r\nContent-Length: 0\r\n\r\n", Seen("complete", 200, 0, True, "\xe4 b")),
        (OK + b"X: " + b"a" * 262_120 + b"\r\n\r\n", Seen("complete", 200, 0, False)),
        (OK + b"X: " + b"a" * 262_121 + b"\r\n\r\n", Seen("bad")),
        (OK + b"X: " + b"a" * 300_000, Seen("bad")),
        (OK + b"X: " + b"a" * 300_000 + b"\r\n\r\n", Seen("bad")),
    ],
)
def test_each_framing_whole_and_byte_by_byte(text: bytes, seen: Seen) -> None:
    forget_heads()
    assert read([text]) == seen
    assert read([text]) == seen, "with its head seen before"
    step = 1 if len(text) < 1000 else 7_919
    assert read([text[at : at + step] for at in range(0, len(text), step)]) == seen


@pytest.mark.parametrize("fields", [b"Content-Length: 99\r\n", b"Transfer-Encoding: chunked\r\n", b""])
def test_the_answer_to_a_head_request_has_no_body(fields: bytes) -> None:
    text = OK + fields + b"\r\n"
    reader = ResponseReader()
    for _ in range(2):
        assert read([text], head=True, reader=reader) == Seen("complete", 200, 0, True)
        assert read([text], reader=reader).end == ("complete" if not fields else "cut"), (
            "the same head says more to a GET"
        )
    assert read([text, b"x"], head=True) == Seen("complete", 200, 0, False, None, b"x")
    assert read([b"HTTP/1.0 200 OK\r\n" + fields + b"\r\n"], head=True) == Seen("complete", 200, 0, False)


def test_what_comes_before_a_request_is_no_answer_to_it() -> None:
    text = OK + b"Content-Length: 1\r\n\r\n."
    reader = ResponseReader()
    assert not reader.feed(text)
    assert not reader.finish()
    assert (reader.surplus, reader.headed, reader.begun) == (text, False, False)
    for _ in range(2):  # its head seen before or not
        assert read([text], reader=reader) == Seen("complete", 200, 1, False, None, text), "the connection is not kept"


@pytest.mark.parametrize("begin", [b"HTTP/1.1 4", OK + b"X: a", CHUNKED + b"5;", CHUNKED + b"0\r\nX"])
def test_nothing_of_a_response_that_was_cut_is_left_for_the_next(begin: bytes) -> None:
    reader = ResponseReader()
    assert read([begin], reader=reader).end == "cut"
    assert read([OK + b"Content-Length: 1\r\n\r", b"\n."], reader=reader) == Seen("complete", 200, 1, True)


def test_a_large_body_is_counted_and_not_kept() -> None:
    reader, piece = ResponseReader(), bytes(1 << 20)
    reader.expect()
    assert not reader.feed(OK + b"Content-Length: %d\r\n\r\n" % (1000 << 20))
    assert [reader.feed(piece) for _ in range(1000)] == [False] * 999 + [True]
    assert (reader.size, reader.keep, reader._rest) == (1000 << 20, True, b"")


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


def test_the_same_bytes_again_are_the_same_response_whatever_came_between() -> None:
    reader, text = ResponseReader(), OK + b"Content-Length: 3\r\n\r\nabc"
    for _ in range(3):
        reader.expect()
        assert reader.feed(text)
        assert (reader.head.status, reader.size, reader.keep) == (200, 3, True)
    reader.expect(head=True)
    assert reader.feed(text)
    assert (reader.size, reader.surplus, reader.keep) == (0, b"abc", False)
    reader.expect()
    assert reader.feed(text)
    assert (reader.size, reader.keep) == (3, False), "what came unasked is not forgotten"


@pytest.mark.parametrize("text", [b"\n", b"\r\n", b"", b"HTTP/1.1 200 OK\r\n"])
def test_nothing_is_a_response_before_one_came(text: bytes) -> None:
    reader = ResponseReader()
    reader.expect()
    with contextlib.suppress(BadResponseError):
        assert not reader.feed(text)
    assert not reader.headed


def test_a_seen_head_with_another_amount_of_body_is_not_taken_for_whole() -> None:
    reader = ResponseReader()
    text = OK + b"Content-Length: 3\r\n\r\n"
    reader.expect()
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
    assert 0 < len(reader._known) <= 256
    reader.expect()
    assert reader.feed(OK + b"X: %s\r\nContent-Length: 0\r\n\r\n" % bytes(b"x" * 5000))
    assert max(map(len, reader._known)) < 5000


def test_readers_that_want_other_headers_share_nothing() -> None:
    text = OK + b"X-Served-By: a\r\nServer: b\r\nContent-Length: 0\r\n\r\n"
    for name, value in (
        ("X-Served-By", "a"),
        ("server", "b"),
        (None, None),
        ("X-Other", None),
        ("content-length", "0"),
    ):
        reader = ResponseReader(name)
        assert read([text], reader=reader) == Seen("complete", 200, 0, True, value)


def test_the_place_of_a_redirect() -> None:
    reader = ResponseReader()
    read([b"HTTP/1.1 302 Found\r\nlocation: /a b \r\nLocation: /c\r\nContent-Length: 0\r\n\r\n"], reader=reader)
    assert reader.head.location == "/a b"


# -- any pieces ----------------------------------------------------------------------------------------

BODIES = st.binary(max_size=40)
CUTS = st.lists(st.integers(0, 10_000), max_size=8)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"Server", b"X-Served-By", b"Set-Cookie", b"Connection", b"Date"]),
        st.sampled_from([b"", b"a", b"close", b"keep-alive", b"x; y=z", b"gzip"]),
    ),
    max_size=4,
)


class Good(NamedTuple):
    """A response, what it answers, and what is to be seen of it."""

    text: bytes
    head: bool
    seen: Seen


@st.composite
def chunks(draw: st.DrawFn, body: bytes) -> bytes:
    text, at = b"", 0
    while at < len(body):
        size = draw(st.integers(1, len(body) - at))
        text += b"%s%x%s\r\n" % (draw(st.sampled_from([b"", b"00"])), size, draw(st.sampled_from([b"", b";a=b"])))
        text += body[at : at + size] + b"\r\n"
        at += size
    return text + b"0\r\n" + draw(st.sampled_from([b"", b"Trailer: x\r\n"])) + b"\r\n"


@st.composite
def responses(draw: st.DrawFn) -> Good:
    """Good ones, of any framing."""
    early = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    status = draw(st.sampled_from([200, 201, 204, 304, 404, 500]))
    head = draw(st.booleans())
    fields = draw(FIELDS)
    options = {value for name, value in fields if name == b"Connection"}
    keep = b"close" not in options and (version == b"1.1" or b"keep-alive" in options)
    served = [value.decode() for name, value in fields if name == b"X-Served-By"]
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    body = sent = draw(BODIES)
    if framing == "length":
        fields.append((b"Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        fields.append((b"Transfer-Encoding", b"chunked"))
        sent = draw(chunks(body))
    if head or status in (204, 304):
        body = sent = b""
    else:
        keep = keep and (framing == "length" or (framing == "chunked" and version == b"1.1"))
    line_end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"]))
    lines = [b"HTTP/%s %d Reason" % (version, status), *(b"%s: %s" % field for field in fields), b"", b""]
    seen = Seen("complete", status, len(body), keep, served[-1] if served else None)
    return Good(early + line_end.join(lines) + sent, head, seen)


@st.composite
def damaged(draw: st.DrawFn) -> Good:
    """With some bytes taken out and others put in; what is to be seen of it is unknown."""
    good = draw(responses())
    at, drop = draw(st.integers(0, len(good.text))), draw(st.integers(0, 6))
    put = draw(
        st.binary(max_size=6) | st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"0\r\n", b": ", b"1", b","])
    )
    return Good(good.text[:at] + put + good.text[at + drop :], good.head, Seen("bad"))


def judge(text: bytes, cuts: list[int], *, head: bool) -> Seen:
    """What becomes of it, which is the same whole and in pieces, with its head seen before and not."""
    forget_heads()
    pieces = pieces_of(text, cuts)
    seen = read([text], head=head)
    assert read([text], head=head) == seen
    assert read(pieces, head=head) == seen
    forget_heads()
    assert read(pieces, head=head) == seen
    return seen


@given(st.lists(st.tuples(responses(), CUTS), max_size=5))
def test_responses_in_pieces_one_after_the_other(sequence: list[tuple[Good, list[int]]]) -> None:
    reader = ResponseReader("X-Served-By")
    for good, cuts in sequence:
        assert read(pieces_of(good.text, cuts), head=good.head, reader=reader) == good.seen
        if not good.seen.keep:
            reader = ResponseReader("X-Served-By")


@given(damaged(), CUTS)
def test_a_response_that_was_damaged_is_judged_alike_however_it_comes(bad: Good, cuts: list[int]) -> None:
    judge(bad.text, cuts, head=bad.head)


@given(st.binary(max_size=60), CUTS, st.sampled_from([b"", b"HTTP/1.1 ", OK, CHUNKED, CHUNKED + b"1\r\n"]))
def test_garbage_is_judged_alike_however_it_comes(garbage: bytes, cuts: list[int], begin: bytes) -> None:
    judge(begin + garbage, cuts, head=False)


# -- against an independent reader ---------------------------------------------------------------------


def h11_reads(text: bytes, *, head: bool) -> Seen:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)
    connection.send(h11.Request(method="HEAD" if head else "GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(text)
    connection.receive_data(b"")
    status = size = 0
    try:
        while True:
            match connection.next_event():
                case h11.InformationalResponse(status_code=code) if code != 101:
                    pass
                case h11.InformationalResponse(status_code=code) | h11.Response(status_code=code):
                    status = code
                case h11.Data(data=data):
                    size += len(data)
                case h11.EndOfMessage():
                    return Seen("complete", status, size, connection.our_state is h11.DONE)
                case _:
                    return Seen("cut")
    except h11.RemoteProtocolError:
        return Seen("bad")


@given(responses())
def test_h11_takes_a_good_response_alike(good: Good) -> None:
    other = h11_reads(good.text, head=good.head)
    assert (other.end, other.status, other.size) == (good.seen.end, good.seen.status, good.seen.size)
    reader = ResponseReader()
    reader.expect(head=good.head)
    # Of HTTP/1.0 h11 keeps none, and where the connection ended the body it does not say.
    if reader.feed(good.text) and b"HTTP/1.0 " not in good.text:
        assert other.keep == reader.keep == good.seen.keep


@given(damaged())
def test_what_both_take_for_complete_both_take_for_the_same(bad: Good) -> None:
    ours, other = read([bad.text], head=bad.head), h11_reads(bad.text, head=bad.head)
    if ours.end == other.end == "complete":
        assert (ours.status, ours.size) == (other.status, other.size)
