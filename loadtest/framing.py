"""Frames of HTTP/2, and the library h2 as a load generator needs it.

h2 is given one frame at a time, for what it had read before a bad frame would be lost with its exception. GOAWAY is
to be read by `GoAway` and kept from it: it takes no frame afterwards, although the answers to earlier streams come.
"""

from __future__ import annotations

from typing import NamedTuple

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import Event
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from h2.settings import SettingCodes, Settings

from loadtest.fields import RememberingDecoder, RememberingEncoder

DATA, HEADERS, SETTINGS, GOAWAY = 0, 1, 4, 7  # types of frames (RFC 9113, 6)
LAST_STREAM = 2**31 - 1

_HEAD = 9  # bytes (RFC 9113, 4.1)
_GOAWAY_BYTES = _HEAD + 8  # as h2 writes it
_STREAM_WINDOW = 16 * 1024 * 1024  # bytes the server may send before it hears that they were taken in
_CONNECTION_WINDOW = 256 * 1024 * 1024
_MOST_FRAME = 256 * 1024  # bytes; with the usual 16 KiB a large body costs many more calls
_MOST_HEADER_BYTES = 256 * 1024


class MalformedError(Exception):
    """What came on one stream is no response; the connection goes on (RFC 9113, 8.1.1).

    `unsent` is still to be written.
    """

    def __init__(self, reason: str, unsent: bytes) -> None:
        super().__init__(reason)
        self.unsent = unsent


class Frame(NamedTuple):
    kind: int
    stream: int
    data: bytes  # all of it

    @property
    def size(self) -> int:
        """Of the payload, padding included, which is what counts for flow control."""
        return len(self.data) - _HEAD


class Frames:
    """Splits what comes into frames. The first must be the server's settings (RFC 9113, 3.4)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # how far it has been taken
        self._began = False

    def add(self, data: bytes) -> None:
        self._buffer += data

    def take(self) -> Frame | None:
        """The next frame, or None when there is no complete one. Raises ProtocolError."""
        buffer, at = self._buffer, self._at
        if len(buffer) - at >= _HEAD:
            kind = buffer[at + 3]
            if not self._began and kind != SETTINGS:
                raise ProtocolError(_no_preface(bytes(buffer)))
            end = at + _HEAD + int.from_bytes(buffer[at : at + 3], "big")
            if end - at > _HEAD + _MOST_FRAME:
                raise ProtocolError(f"the server sent a frame of {end - at:,} bytes")
            if len(buffer) >= end:
                self._began = True
                frame = Frame(kind, self.stream, bytes(buffer[at:end]))
                self._at = end
                return frame
        del buffer[:at]
        self._at = 0
        return None

    @property
    def stream(self) -> int:
        """The stream of the frame that is next, complete or not; 0: of none."""
        at = self._at
        return (
            int.from_bytes(self._buffer[at + 5 : at + 9], "big") & LAST_STREAM if len(self._buffer) - at >= _HEAD else 0
        )


def _no_preface(data: bytes) -> str:
    if data.startswith(b"HTTP/"):
        return "the server answered in HTTP/1"
    return f"the server does not speak HTTP/2: it began with {data[:20]!r}"


class GoAway(NamedTuple):
    """The server takes no further stream, and those over the last it names were not processed (RFC 9113, 6.8)."""

    last: int
    reason: str

    @classmethod
    def read(cls, frame: Frame) -> GoAway:
        """Raises ProtocolError."""
        payload = frame.data[_HEAD:]
        if len(payload) < 8:
            raise ProtocolError("the server sent a GOAWAY frame that is too short")
        return cls(int.from_bytes(payload[:4], "big") & LAST_STREAM, code_name(int.from_bytes(payload[4:8], "big")))


class Http(H2Connection):
    """The client's side."""

    MAX_CLOSED_STREAMS = 1024  # remembered; the 65,536 of h2 are 10 MB for each connection

    def __init__(self) -> None:
        super().__init__(
            H2Configuration(
                validate_outbound_headers=False,  # fields_of makes no others
                normalize_outbound_headers=False,
                validate_inbound_headers=False,  # a bad field would end the whole connection
                normalize_inbound_headers=False,
            )
        )
        self.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: _MOST_FRAME,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MOST_HEADER_BYTES,
            },
        )
        self.max_inbound_frame_size = _MOST_FRAME
        self.encoder = RememberingEncoder()
        self.decoder = RememberingDecoder(_MOST_HEADER_BYTES)

    def greet(self) -> None:
        self.initiate_connection()
        self.increment_flow_control_window(_CONNECTION_WINDOW)

    def receive(self, frame: Frame) -> list[Event]:
        """Raises MalformedError, and ProtocolError, after which nothing can be received."""
        try:
            return self.receive_data(frame.data)
        except InvalidBodyLengthError as error:  # which h2 takes for the end of the connection
            self.state_machine.state = ConnectionState.CLIENT_OPEN
            unsent = self.data_to_send()[:-_GOAWAY_BYTES]
            self.acknowledge_received_data(frame.size, frame.stream)
            raise MalformedError(str(error), unsent) from None

    def cancel(self, stream: int, code: ErrorCodes) -> None:
        """Reset a stream, unless it has come to its end."""
        known = self.streams.get(stream)
        if known is not None and not known.closed:
            self.reset_stream(stream, code)


def window_update(size: int) -> bytes:
    """A frame that gives the server back so much of the connection's window."""
    return b"\0\0\x04\x08\0\0\0\0\0" + size.to_bytes(4, "big")


def code_name(code: int | None) -> str:
    try:
        return ErrorCodes(code or 0).name
    except ValueError:
        return f"code {code}"
