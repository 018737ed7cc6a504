"""Reads HTTP/1.1 responses from bytes, however they are cut into pieces. Pure.

Bodies are counted and not kept. Most responses of a load test look like the one before: a head that was seen already
is not parsed again, and a response that comes in one piece with such a head costs one search and one look-up.

Framing is that of RFC 9112. Where it leaves a choice, this reader takes what a careful client takes: line ends may be
a bare LF, equal Content-Lengths may be repeated, a chunked body wins over a length (and ends the connection); what is
ambiguous is no HTTP.
"""

from __future__ import annotations

import re

_HEAD_LIMIT = 256 * 1024  # bytes of a head, and of trailers
_LINE_LIMIT = 16 * 1024  # bytes of a line that begins a chunk
_MOST_HEADS = 64  # kept; they change with the Date header, once a second

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(rb"\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\r\n\0]*)?")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")

_SWITCHING_PROTOCOLS = 101

_HEADING, _LENGTHY, _CHUNK_SIZE, _CHUNK_DATA, _CHUNK_END, _TRAILERS, _ENDLESS, _DONE = range(8)


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


class ResponseReader:
    """One connection's responses, one after the other. `attribute` names the header whose value is wanted.

    `expect`, then `feed` until it says that the response is complete, then `expect` again; `finish` when the
    connection ends before that.
    """

    __slots__ = ("_attribute", "_bodiless", "_heads", "_left", "_rest", "_state", "begun", "head", "size", "surplus")

    def __init__(self, attribute: str | None = None) -> None:
        self._attribute = attribute.lower().encode() if attribute else None
        self._heads: dict[bytes, Head] = {}
        self.head = _NONE
        self.surplus = b""
        self.expect()

    def expect(self, *, head: bool = False) -> None:
        """A request was written; `head`: of method HEAD, whose answer has no body whatever it says."""
        self._bodiless = head
        self._state = _HEADING
        self._left = 0  # bytes of this body, or of this chunk, that are to come
        self._rest = b""  # what came of a line or head that is not whole yet
        self.begun = False
        self.head = _NONE
        self.size = 0

    @property
    def headed(self) -> bool:
        """Whether the head is there."""
        return self.head is not _NONE

    @property
    def keep(self) -> bool:
        """Whether the connection may be used again, after a complete response."""
        return self.head.keep and not self.surplus

    def feed(self, data: bytes) -> bool:
        """True once the response is complete; what came after it is `surplus`. Raises `BadResponseError`."""
        if self._state == _HEADING and not self._rest and not self._bodiless:
            end = data.find(b"\r\n\r\n") + 4
            head = self._heads.get(data[:end])
            if head is not None and head.length == len(data) - end:
                self.begun = True
                self.head = head
                self.size = head.length
                self._state = _DONE
                return True
        return self._read(data)

    def finish(self) -> bool:
        """The connection has ended. True when that completes the response, False when it was cut short.

        Raises `BadResponseError` when what came does not begin as HTTP does.
        """
        if self._state == _ENDLESS:
            self._state = _DONE
        elif self._state == _HEADING and self.begun and not self.headed and self._rest:
            self._require_http(self._rest)
        return self._state == _DONE

    # -- any pieces ------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> bool:
        """Take in what came, beside what was left of the piece before."""
        if data:
            self.begun = True
        known = max(0, len(self._rest) - 3)  # no line end before that, or it would have been found
        if self._rest:
            data, self._rest = self._rest + data, b""
        at = 0
        while self._state != _DONE:
            state = self._state
            if state in (_LENGTHY, _CHUNK_DATA):
                taken = min(self._left, len(data) - at)
                self.size += taken
                self._left -= taken
                at += taken
                if self._left:
                    return False
                self._state = _DONE if state == _LENGTHY else _CHUNK_END
            elif state == _ENDLESS:
                self.size += len(data) - at
                return False
            else:
                after = self._head(data, at, known) if state == _HEADING else self._line(data, at, known)
                if after < 0:
                    self._rest = data[at:]
                    return False
                at = after
        self.surplus = data[at:]
        return True

    def _head(self, data: bytes, at: int, known: int) -> int:
        """Read a head; the place after it, or -1 where it is not whole."""
        found = _HEAD_END.search(data, max(at, known))
        if found is None or found.end() - at > _HEAD_LIMIT:
            self._require_http(data[at : at + 16])
            if len(data) - at > _HEAD_LIMIT:
                raise BadResponseError(f"the head of the response is over {_HEAD_LIMIT} bytes")
            return -1
        text = data[at : found.end()]
        head = self._heads.get(text) or parse_head(text, self._attribute)
        if head.status < 200 and head.status != _SWITCHING_PROTOCOLS:
            return found.end()  # the response itself is to come
        self._keep_in_mind(text, head)
        self.head = head
        if self._bodiless or head.length == 0:
            self._state = _DONE
        elif head.length is not None:
            self._state, self._left = _LENGTHY, head.length
        else:
            self._state = _CHUNK_SIZE if head.chunked else _ENDLESS
        return found.end()

    def _keep_in_mind(self, text: bytes, head: Head) -> None:
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[text] = head

    def _line(self, data: bytes, at: int, known: int) -> int:
        """Read a line of a chunked body; the place after it, or -1 where it is not whole."""
        found = _LINE_END.search(data, max(at, known))
        if found is None:
            limit = 2 if self._state == _CHUNK_END else _LINE_LIMIT
            if len(data) - at >= limit:
                raise BadResponseError(f"a line of a chunked body is over {limit} bytes")
            return -1
        line = data[at : found.start()]
        if self._state == _CHUNK_END:
            if line:
                raise BadResponseError(f"after a chunk comes {line[:16]!r} and no line end")
            self._state = _CHUNK_SIZE
        elif self._state == _TRAILERS:
            self._left += len(line)
            if self._left > _HEAD_LIMIT:
                raise BadResponseError(f"the trailers are over {_HEAD_LIMIT} bytes")
            if not line:
                self._state = _DONE
        else:
            size = _CHUNK.fullmatch(line)
            if size is None:
                raise BadResponseError(f"{line[:32]!r} is no size of a chunk")
            self._left = int(size[1], 16)
            self._state = _CHUNK_DATA if self._left else _TRAILERS
        return found.end()

    @staticmethod
    def _require_http(text: bytes) -> None:
        if not text.startswith(b"HTTP/1.") and not b"HTTP/1.".startswith(text):
            raise BadResponseError(f"the response begins with {text[:16]!r} and not with HTTP/1.1")


def parse_head(text: bytes, attribute: bytes | None) -> Head:
    """A head with its blank line. `attribute`: the name of a header, in lower case. Raises `BadResponseError`."""
    status_line, *lines = _unfolded(text)
    found = _STATUS_LINE.fullmatch(status_line)
    if found is None:
        raise BadResponseError(f"{status_line[:64]!r} is no status line of HTTP/1.1")
    version, status = int(found[1]), int(found[2])
    headers: dict[bytes, list[bytes]] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BadResponseError(f"{line[:64]!r} is no header")
        headers.setdefault(header[1].lower(), []).append(header[2])
    length = _length(headers.get(b"content-length", ()))
    codings = _tokens(headers.get(b"transfer-encoding", ()))
    chunked = bool(codings) and codings[-1] == b"chunked"
    options = _tokens(headers.get(b"connection", ()))
    keep = (version > 0 or b"keep-alive" in options) and b"close" not in options
    if status < 200 or status in (204, 304):
        length, chunked, codings = 0, False, []
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


def _unfolded(text: bytes) -> list[bytes]:
    """The lines of a head; one that begins with a blank goes on with the one before."""
    lines: list[bytes] = []
    for line in _LINE_END.split(text.rstrip(b"\r\n")):
        if line[:1] in (b" ", b"\t") and len(lines) > 1:
            lines[-1] += b" " + line.strip(b" \t")
        else:
            lines.append(line)
    return lines


def _tokens(values: list[bytes] | tuple[()]) -> list[bytes]:
    return [token for value in values for part in value.split(b",") if (token := part.strip(b" \t").lower())]


def _length(values: list[bytes] | tuple[()]) -> int | None:
    given = set(_tokens(values)) if values else set()
    if not values:
        return None
    if len(given) != 1 or _LENGTH.fullmatch(only := given.pop()) is None:
        raise BadResponseError(f"Content-Length {b', '.join(values)[:64]!r} is not one number")
    return int(only)


_NONE = Head(0, None, chunked=False, keep=False, attribute=None, location=None)
