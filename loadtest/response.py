"""Reads HTTP/1.1 responses from bytes, however they are cut into pieces. Pure.

Bodies are counted and not kept. Most responses of a load test look like the one before: a head that was seen already
is not parsed again, a response that comes in one piece with such a head costs one search and one look-up, and a short
one that is byte for byte the one before costs one comparison.

Framing is that of RFC 9112. Where it leaves a choice, this reader takes what a careful client takes: line ends may be
a bare LF, equal Content-Lengths may be repeated, a chunked body wins over a length (and ends the connection); what is
ambiguous is no HTTP.

Invariants: what becomes of a response depends on its bytes and never on how they were cut, nor on what was read
before; and no byte that came before its request was written, or after the end of a response, is taken for an answer.
"""

from __future__ import annotations

import re
from functools import lru_cache

_HEAD_LIMIT = 256 * 1024  # bytes of a head, and of trailers
_LINE_LIMIT = 16 * 1024  # bytes of a line that begins a chunk
_MOST_HEADS = 256  # remembered; they change with the Date header, once a second
_LONGEST_REMEMBERED = 4096  # bytes of a head; with the limit above, a megabyte at most

_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:"
_REST_OF_LINE = rb"[^\r\n\0]*+\r?+\n"
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\r\n\0]*+)?+\r?+\n")
_FIELDS = re.compile(rb"(?:" + _NAME + _REST_OF_LINE + rb")*+")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*+(?:;[^\r\n\0]*+)?+\r?+\n")
_TRAILER = re.compile(rb"(?:" + _NAME + rb"|[ \t])" + _REST_OF_LINE + rb"|\r?\n")  # or the blank line after them
_LENGTH = re.compile(rb"[0-9]{1,18}")

_SWITCHING_PROTOCOLS = 101

# What is to come. _WAITING: the first byte of a response; it is 0, as the fast path asks for it.
_WAITING, _HEADING, _LENGTHY, _CHUNK_SIZE, _CHUNK_DATA, _CHUNK_END, _TRAILERS, _ENDLESS, _DONE = range(9)


class BadResponseError(Exception):
    """What came is not HTTP/1.1; the message says where."""


class Head:
    """Status line and header of one response.

    `length`: bytes of body; None: as many as the chunks say (`chunked`), or as come before the connection ends.
    `keep`: the connection may be used again after it, as far as the head tells.
    """

    __slots__ = ("attribute", "chunked", "keep", "length", "location", "status")

    def __init__(
        self, status: int, length: int | None, *, chunked: bool, keep: bool, attribute: str | None, location: str | None
    ) -> None:
        self.status = status
        self.length = length
        self.chunked = chunked
        self.keep = keep
        self.attribute = attribute
        self.location = location


_NONE = Head(0, None, chunked=False, keep=False, attribute=None, location=None)


class ResponseReader:
    """One connection's responses, one after the other. `attribute` names the header whose value is wanted.

    `expect` when a request is written, then `feed` until it says that the response is complete, then `expect` again;
    `finish` when the connection ends before that. After a `BadResponseError` the connection is of no use.

    `same` is a response as it came before, in one piece; the connection was of use after it. To a request like that
    one, of whose answer nothing has come yet, these bytes and no others are that response again, with `same_head` and
    all of its body: who sees that need not `feed` them, and not `expect` the next one.
    """

    __slots__ = (
        "_answers", "_attribute", "_bare", "_bodiless", "_known", "_left", "_rest", "_searched", "_state", "head",
        "keep", "same", "same_head", "size", "surplus",
    )  # fmt: skip

    def __init__(self, attribute: str | None = None) -> None:
        self._attribute = attribute.lower().encode() if attribute else None
        self._answers = _remembered(self._attribute, False)
        self._bare = _remembered(self._attribute, True)
        self._known = self._answers  # heads by their bytes, of answers to the method that is expected
        self._bodiless = False
        self._state = _DONE
        self.same: bytes | None = None  # the response before, where it came in one piece and may come so again
        self.same_head = _NONE
        self._left = 0  # bytes that are to come of this body or chunk, or that may come of trailers
        self._rest = b""  # what came of a line or head that is not whole yet
        self._searched = 0  # bytes of it that no blank line begins in
        self.head = _NONE  # of the response, once it is there
        self.size = 0  # bytes of body so far
        self.keep = False  # once the response is complete: the connection may be used again
        self.surplus = b""  # what came and belongs to no response

    def expect(self, head: bool = False) -> None:
        """A request was written; `head`: of method HEAD, whose answer has no body whatever it says."""
        if head is not self._bodiless:
            self._bodiless = head
            self._known = self._bare if head else self._answers
            self.same = None
        self._state = _WAITING
        self.head = _NONE
        self.size = 0
        self.keep = False
        if self._rest:  # of a response that never was whole
            self._rest = b""
            self._searched = 0

    @property
    def headed(self) -> bool:
        """Whether the head is there."""
        return self.head is not _NONE

    @property
    def begun(self) -> bool:
        """Whether a byte of the response has come."""
        return self._state == _HEADING or self.headed

    def feed(self, data: bytes) -> bool:
        """True once the response is complete; what came after it is `surplus`. Raises `BadResponseError`."""
        if not self._state:
            end = data.find(b"\r\n\r\n") + 4
            head = self._known.get(data[:end])
            if head is not None:
                self.head = head
                if head.length == len(data) - end:
                    self.size = head.length
                    self.keep = head.keep and not self.surplus
                    self._state = _DONE
                    if self.keep and len(data) <= _LONGEST_REMEMBERED:
                        self.same, self.same_head = data, head
                    return True
                self._begin_body(head)
                return self._read(data, end)
        if self._rest:
            data, self._rest = self._rest + data, b""
        return self._read(data, 0)

    def finish(self) -> bool:
        """The connection has ended. True when that completes the response, False when it was cut short."""
        if self._state == _ENDLESS:
            self._state = _DONE
        return self._state == _DONE and self.headed

    # -- any pieces: each step takes what it can of `data`, from `at` on, and says where the next one goes on; a
    #    negative place: more must come, and what cannot be judged before that is in `_rest`

    def _read(self, data: bytes, at: int) -> bool:
        while self._state != _DONE:
            at = _STEPS[self._state](self, data, at)
            if at < 0:
                return False
        if at < len(data):
            self.surplus += data[at:]
            self.same = None
        self.keep = self.head.keep and not self.surplus
        return self.headed

    def _read_head(self, data: bytes, at: int) -> int:
        if at == len(data):
            return -1
        self._state = _HEADING
        end = _end_of_head(data, max(at, self._searched))
        size = (end or len(data)) - at
        if not end or size > _HEAD_LIMIT:
            begin = data[at : at + 16]
            if not begin.startswith(b"HTTP/1.") and not b"HTTP/1.".startswith(begin):
                raise BadResponseError(f"the response begins with {begin!r} and not with HTTP/1.1")
            if size > _HEAD_LIMIT:
                raise BadResponseError(f"the head of the response is over {_HEAD_LIMIT} bytes")
            self._searched = max(0, size - 2)
            return self._wait(data, at)
        self._searched = 0
        text = data[at:end]
        head = self._known.get(text) or parse_head(text, self._attribute, bodiless=self._bodiless)
        if head.status < 200 and head.status != _SWITCHING_PROTOCOLS:
            return end  # the response itself is to come; the fast path must not know this head
        if size <= _LONGEST_REMEMBERED:
            if len(self._known) >= _MOST_HEADS:
                self._known.clear()
            self._known[text] = head
        self.head = head
        self._begin_body(head)
        return end

    def _begin_body(self, head: Head) -> None:
        if head.length:
            self._state, self._left = _LENGTHY, head.length
        elif head.length == 0:
            self._state = _DONE
        else:
            self._state = _CHUNK_SIZE if head.chunked else _ENDLESS

    def _count_body(self, data: bytes, at: int) -> int:
        return self._count(data, at, _DONE)

    def _count_chunk(self, data: bytes, at: int) -> int:
        return self._count(data, at, _CHUNK_END)

    def _count(self, data: bytes, at: int, then: int) -> int:
        there = len(data) - at
        if there < self._left:
            self.size += there
            self._left -= there
            return -1
        self.size += self._left
        self._state = then
        return at + self._left

    def _count_to_the_end(self, data: bytes, at: int) -> int:
        self.size += len(data) - at
        return -1

    def _read_chunks(self, data: bytes, at: int) -> int:
        """Sizes, and the chunks that came whole with theirs."""
        while True:
            found = _CHUNK.match(data, at)
            if found is None:
                return self._wait_for_line(data, at, "size of a chunk", _LINE_LIMIT)
            begin = found.end()
            if begin - at > _LINE_LIMIT:
                raise BadResponseError(f"the size of a chunk takes over {_LINE_LIMIT} bytes")
            size = int(found[1], 16)
            if not size:
                self._state, self._left = _TRAILERS, _HEAD_LIMIT
                return begin
            at = begin + size
            if data[at : at + 2] != b"\r\n":
                self._state, self._left = _CHUNK_DATA, size
                return begin
            self.size += size
            at += 2

    def _end_chunk(self, data: bytes, at: int) -> int:
        end = data[at : at + 2]
        if end in (b"", b"\r"):
            return self._wait(data, at)
        if end != b"\r\n" and end[:1] != b"\n":
            raise BadResponseError(f"after a chunk comes {end!r} and no line end")
        self._state = _CHUNK_SIZE
        return at + (2 if end == b"\r\n" else 1)

    def _read_trailers(self, data: bytes, at: int) -> int:
        while self._state == _TRAILERS:
            found = _TRAILER.match(data, at)
            if found is None:
                return self._wait_for_line(data, at, "trailer", self._left)
            self._left -= found.end() - at
            if self._left < 0:
                raise BadResponseError(f"the trailers are over {_HEAD_LIMIT} bytes")
            at = found.end()
            if found[0] in (b"\r\n", b"\n"):
                self._state = _DONE
        return at

    def _wait_for_line(self, data: bytes, at: int, what: str, limit: int) -> int:
        """Where there is no line of the right form: it is not whole yet, or wrong."""
        if data.find(b"\n", at) >= 0:
            raise BadResponseError(f"{data[at : at + 32]!r} is no {what}")
        if len(data) - at > limit:
            raise BadResponseError(f"a {what} is over the {limit} bytes allowed")
        return self._wait(data, at)

    def _wait(self, data: bytes, at: int) -> int:
        self._rest = data[at:]
        return -1


_STEPS = {
    _WAITING: ResponseReader._read_head,
    _HEADING: ResponseReader._read_head,
    _LENGTHY: ResponseReader._count_body,
    _CHUNK_SIZE: ResponseReader._read_chunks,
    _CHUNK_DATA: ResponseReader._count_chunk,
    _CHUNK_END: ResponseReader._end_chunk,
    _TRAILERS: ResponseReader._read_trailers,
    _ENDLESS: ResponseReader._count_to_the_end,
}


@lru_cache(maxsize=16)
def _remembered(attribute: bytes | None, bodiless: bool) -> dict[bytes, Head]:
    """Heads that were parsed, by their bytes; all connections share them."""
    return {}


def _end_of_head(data: bytes, since: int) -> int:
    """The place after the first blank line; 0 when there is none. A head has a line before it."""
    after = data.find(b"\n\r\n", since)
    bare = data.find(b"\n\n", since, after + 1 if after >= 0 else len(data))
    if bare >= 0:
        return bare + 2
    return after + 3 if after >= 0 else 0


def parse_head(text: bytes, attribute: bytes | None, *, bodiless: bool = False) -> Head:
    """A head with its blank line. `attribute`: the name of a header, in lower case; `bodiless`: it answers a HEAD.

    Raises `BadResponseError`.
    """
    begin = _STATUS_LINE.match(text)
    if begin is None:
        raise BadResponseError(f"{text[:64]!r} begins with no status line of HTTP/1.1")
    version, status = int(begin[1]), int(begin[2])
    headers = _headers(text[begin.end() - 1 :], attribute)
    length = _length(headers.get(b"content-length"))
    codings = _tokens(headers.get(b"transfer-encoding"))
    if codings.count(b"chunked") > 1:
        raise BadResponseError("the body is chunked twice")
    chunked = codings[-1:] == [b"chunked"]
    options = _tokens(headers.get(b"connection"))
    keep = (version > 0 or b"keep-alive" in options) and b"close" not in options
    if bodiless or status < 200 or status in (204, 304):
        length, chunked = 0, False
        keep = keep and status != _SWITCHING_PROTOCOLS
    elif codings:
        # With a length as well, or in HTTP/1.0, somebody on the way may see another end of the body than we do.
        keep = keep and chunked and length is None and version > 0
        length = None
    elif length is None:
        keep = False
    values, places = headers.get(attribute or b""), headers.get(b"location")
    return Head(
        status,
        length,
        chunked=chunked,
        keep=keep,
        attribute=values[-1].decode("latin-1") if values else None,
        location=places[0].decode("latin-1") if places else None,
    )


def _headers(text: bytes, attribute: bytes | None) -> dict[bytes, list[bytes]]:
    """The values of the headers that matter, by name. `text`: a line end, and all lines after the status line."""
    if b"\n " in text or b"\n\t" in text:  # a line that goes on with the one before
        text = text[:1] + _FOLD.sub(b" ", text[1:])
    good = _FIELDS.match(text, 1)
    end = good.end() if good else 1
    if text[end:] not in (b"\r\n", b"\n"):
        raise BadResponseError(f"{text[end : end + 64]!r} is no header")
    headers: dict[bytes, list[bytes]] = {}
    for name, value in _wanted(attribute).findall(text):
        headers.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
    return headers


@lru_cache(maxsize=16)
def _wanted(attribute: bytes | None) -> re.Pattern[bytes]:
    """Finds the headers that matter among good ones."""
    names = (b"content-length", b"transfer-encoding", b"connection", b"location", *([attribute] if attribute else []))
    return re.compile(rb"(?i)\n(" + b"|".join(map(re.escape, names)) + rb"):[ \t]*([^\r\n]*)")


def _tokens(values: list[bytes] | None) -> list[bytes]:
    if not values:
        return []
    return [token for value in values for part in value.split(b",") if (token := part.strip(b" \t").lower())]


def _length(values: list[bytes] | None) -> int | None:
    if not values:
        return None
    if len(values) == 1 and _LENGTH.fullmatch(values[0]):
        return int(values[0])
    given = set(_tokens(values))
    if len(given) != 1 or _LENGTH.fullmatch(only := given.pop()) is None:
        raise BadResponseError(f"Content-Length {b', '.join(values)[:64]!r} is not one number")
    return int(only)
