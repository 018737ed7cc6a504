"""One HTTP/2 connection, which carries the requests of several lanes at a time. Framing and state are the library h2's.

Every request that was begun here ends here, as exactly one of:

- answered: the stream ended, and what came is a response;
- `reset_stream`: the server reset the stream (REFUSED_STREAM is one such reset), or it announced by GOAWAY that it
  did not process it;
- `dropped` or `truncated`: the connection went, before or after the first byte of this stream's response;
- `protocol`: what came is not HTTP/2, or not a response;
- given up by its lane: the stream is cancelled, and the connection goes on.

Nothing that was written is written again, though HTTP/2 would allow it for what was refused or not processed: the
client of a user would not have had to do so either, and who deploys wants to know.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from loadtest.connection import Limits
from loadtest.exchange import Failure, Requester
from loadtest.fields import Fields, fields_of
from loadtest.framing import (
    DATA,
    GOAWAY,
    HEADERS,
    Frame,
    Frames,
    GoAway,
    Http,
    MalformedError,
    code_name,
    window_update,
)
from loadtest.model import ErrorKind
from loadtest.wire import Wire

_MOST_REQUESTS = 2**30 - 1  # then a connection has no stream numbers left
_NO_CONTENT, _NOT_MODIFIED = 204, 304


class Head(NamedTuple):
    """What a lane wants to know of a response."""

    status: int
    attribute: str | None
    location: str | None
    length: int | None  # of the body, as the header says


class Seat:
    """A lane's place on a connection, for one request at a time: a `Carrier`."""

    __slots__ = ("_connection", "_failure", "_lane", "first_byte_ns", "head", "head_only", "size", "stream", "unsent")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lane: Requester | None = None  # while it has a request under way
        self._failure: Failure | None = None
        self.stream = 0
        self.unsent = memoryview(b"")  # of the body
        self.head: Head | None = None
        self.head_only = False  # the answer has no body
        self.size = 0
        self.first_byte_ns = 0

    @property
    def number(self) -> int:
        return self._connection.number

    @property
    def open(self) -> bool:
        return self._connection.usable

    @property
    def usable(self) -> bool:
        return self._connection.usable

    @property
    def retired(self) -> bool:
        """One seat alone says that the server closed the connection while it was idle, as that is one event."""
        return self._connection.closed_idle is not self

    def send(self, wire: Wire, lane: Requester) -> None:
        self._lane = lane
        self._failure = None
        self.unsent = memoryview(wire.message.body)
        self.head = None
        self.head_only = wire.head_only
        self.size = 0
        self.first_byte_ns = 0
        if wire.fields is None:
            wire.fields = fields_of(wire.message)
        self._connection.begin(self, wire.fields)

    def give_up(self, lane: Requester, failure: Failure | None) -> None:
        self._connection.cancel(self)
        if failure is None:
            self._lane = None
        else:
            self.end(failure)
            self.tell()

    def close(self) -> None:
        self._connection.leave(self)

    def end(self, failure: Failure | None) -> None:
        """What became of the request is known: None, it was answered."""
        self._failure = failure
        self.unsent = memoryview(b"")

    def tell(self) -> None:
        """Tell it to the lane, which may send its next request from within."""
        lane, self._lane = self._lane, None
        if lane is None:  # given up meanwhile
            return
        if self._failure is not None:
            lane.failed(self._failure, self.size, self.first_byte_ns)
        else:
            assert self.head is not None
            lane.answered(self.head, self.size, self.first_byte_ns)


class Connection(asyncio.Protocol):
    """`ready` is done once the server has said how many streams it takes, or with the reason why it never will."""

    def __init__(
        self, attribute: str | None, on_lost: Callable[[Connection], None], limits: Limits | None = None
    ) -> None:
        self.number = -1  # set by who opened it
        self.seats: dict[Seat, None] = {}
        self.closed_idle: Seat | None = None  # a seat, when the server ended it while no request was under way
        self.ready: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self._limits = limits
        self._limit = 0  # of streams at a time, which the server sets
        self._opened_ns = 0
        self._requests = 0
        self._attribute = attribute.lower().encode() if attribute else None
        self._on_lost = on_lost
        self._http = Http()
        self._frames = Frames()
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            ResponseReceived: self._on_head,
            DataReceived: self._on_data,
            StreamEnded: self._on_end,
            StreamReset: self._on_reset,
            WindowUpdated: self._on_window,
            RemoteSettingsChanged: self._on_settings,
            InformationalResponseReceived: self._on_interim,
        }
        self._transport: asyncio.Transport | None = None
        self._begun: dict[int, Seat] = {}  # seats with a request under way, by stream
        self._untold: list[Seat] = []  # whose request ended within the data that is being taken in
        self._corked = False  # what is to be written waits until that data has been taken in
        self._blocked = False  # the transport's buffer is full
        self._closing = False  # no further request may be written
        self._ended = False  # nothing more will come

    # for seats

    @property
    def usable(self) -> bool:
        """Whether a request may be written, as far as is known now."""
        return len(self._begun) < self.capacity

    @property
    def capacity(self) -> int:
        """Streams that the server takes at a time; 0 when no further one may be begun."""
        if self._limits is not None and self._limits.reached(time.monotonic_ns() - self._opened_ns, self._requests):
            self._closing = True
            self._close_if_done()
        if self._closing or self._transport is None or self._transport.is_closing():
            return 0
        return self._limit if self._requests < _MOST_REQUESTS else 0

    def take_seat(self) -> Seat:
        seat = Seat(self)
        self.seats[seat] = None
        return seat

    def begin(self, seat: Seat, fields: Fields) -> None:
        self._requests += 1
        seat.stream = self._http.get_next_available_stream_id()
        self._begun[seat.stream] = seat
        self._http.send_headers(seat.stream, fields, end_stream=not seat.unsent)
        if seat.unsent:
            self._send_body(seat)
        self._flush()

    def cancel(self, seat: Seat) -> None:
        if self._begun.get(seat.stream) is seat:
            del self._begun[seat.stream]
            self._http.cancel(seat.stream, ErrorCodes.CANCEL)
            self._close_if_done()
            self._flush()

    def leave(self, seat: Seat) -> None:
        """The last one to go closes the connection."""
        self.seats.pop(seat, None)
        if not self.seats:
            self.close()

    # for who opened it

    def close(self) -> None:
        """In good order; not with requests under way."""
        if not self._ended:
            self._closing = self._ended = True
            self._http.close_connection()
            self._write()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        self._opened_ns = time.monotonic_ns()
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._break("the server does not agree to HTTP/2 (ALPN)")
            return
        self._http.greet()
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._corked = True
        self._frames.add(data)
        try:
            while not self._ended and (frame := self._frames.take()) is not None:
                self._take(frame)
        except ProtocolError as error:
            self._break(str(error) or type(error).__name__)
        self._tell()
        self._corked = False
        self._flush()
        self._close_if_done()

    def eof_received(self) -> None:
        self._end("connection closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("connection closed" if exc is None else str(exc) or type(exc).__name__)
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._send_bodies()
        self._flush()

    # reading

    def _take(self, frame: Frame) -> None:
        """Raises ProtocolError."""
        kind, stream, _ = frame
        if kind == GOAWAY:
            self._go_away(GoAway.read(frame))
            return
        seat = self._begun.get(stream)
        if seat is None and kind == DATA and stream % 2 and stream <= self._http.highest_outbound_stream_id:
            self._ignore(frame)
            return
        if seat is not None and kind == HEADERS and not seat.first_byte_ns:
            seat.first_byte_ns = time.monotonic_ns()
        try:
            events = self._http.receive(frame)
        except MalformedError as error:
            self._put(error.unsent)
            self._malformed(stream, str(error))
            return
        for event in events:
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)

    def _ignore(self, frame: Frame) -> None:
        """Data of a stream that was given up. h2 would reset the stream with every such frame, which servers take for
        an attack; only the window of the connection has to be opened again."""
        if frame.size:
            self._write()
            self._put(window_update(frame.size))

    def _on_settings(self, event: RemoteSettingsChanged) -> None:
        self._limit = self._http.remote_settings.max_concurrent_streams
        self._send_bodies()  # the windows may be larger now
        if not self.ready.done():
            self.ready.set_result(None)

    def _on_window(self, event: WindowUpdated) -> None:
        self._send_bodies()

    def _on_interim(self, event: InformationalResponseReceived) -> None:
        if any(name == b":status" and value == b"101" for name, value in event.headers):  # there is none (8.6)
            self._malformed(event.stream_id, "status 101 over HTTP/2")

    def _on_data(self, event: DataReceived) -> None:
        self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        seat = self._begun.get(event.stream_id)
        if seat is not None:
            seat.size += len(event.data)

    def _on_head(self, event: ResponseReceived) -> None:
        seat = self._begun.get(event.stream_id)
        if seat is None:
            return
        status = b""
        attribute = location = length = None
        for name, value in event.headers:
            if name == b":status":
                status = value
            elif name == self._attribute:
                attribute = value.decode("latin-1")
            elif name == b"location":
                location = value.decode("latin-1")
            elif name == b"content-length":
                length = int(value) if value.isdigit() and len(value) < 20 else None
        if len(status) != 3 or not status.isdigit():
            self._malformed(event.stream_id, f"a response with the status {status.decode('latin-1')!r}")
            return
        seat.head = Head(int(status), attribute, location, length)

    def _on_end(self, event: StreamEnded) -> None:
        stream = event.stream_id
        seat = self._begun.get(stream)
        if seat is None:
            return
        assert seat.head is not None  # h2 takes no body before a head
        if _falls_short(seat.head, seat.size, head_only=seat.head_only):
            self._malformed(stream, f"the body ended after {seat.size} of {seat.head.length} bytes")
            return
        if seat.unsent:  # the answer did not wait for the whole body
            self._http.cancel(stream, ErrorCodes.CANCEL)
        self._finish(stream, None)

    def _on_reset(self, event: StreamReset) -> None:
        if event.remote_reset:
            failure = Failure(ErrorKind.RESET_STREAM, f"the server reset the stream: {code_name(event.error_code)}")
        else:  # by h2
            failure = Failure(ErrorKind.PROTOCOL, f"the stream broke the rules: {code_name(event.error_code)}")
        self._finish(event.stream_id, failure)

    def _malformed(self, stream: int, reason: str) -> None:
        seat = self._begun.get(stream)
        if seat is None:
            return
        self._http.cancel(stream, ErrorCodes.PROTOCOL_ERROR)
        if seat.head is not None and seat.head.status == _NOT_MODIFIED and not seat.size:
            self._finish(stream, None)  # its Content-Length is that of the body it does not have
        else:
            self._finish(stream, Failure(ErrorKind.PROTOCOL, reason))

    def _go_away(self, notice: GoAway) -> None:
        self._note_end()
        self._closing = True
        reason = f"GOAWAY before it was processed: {notice.reason}"
        for stream in [stream for stream in self._begun if stream > notice.last]:
            self._finish(stream, Failure(ErrorKind.RESET_STREAM, reason))
        self._set_unready(f"GOAWAY: {notice.reason}")

    # ends

    def _finish(self, stream: int, failure: Failure | None) -> None:
        seat = self._begun.pop(stream, None)
        if seat is not None:
            seat.end(failure)
            self._untold.append(seat)

    def _tell(self) -> None:
        """Only after all that came was taken in: no request is begun on what is known to end."""
        untold, self._untold = self._untold, []
        for seat in untold:
            seat.tell()

    def _break(self, reason: str) -> None:
        """What comes is not HTTP/2."""
        self._closing = self._ended = True
        self._set_unready(reason, ErrorKind.PROTOCOL)
        for stream in tuple(self._begun):
            self._finish(stream, Failure(ErrorKind.PROTOCOL, reason))
        self._write()
        if self._transport is not None:
            self._transport.close()

    def _end(self, reason: str) -> None:
        """No more bytes will come."""
        if self._ended:
            return
        self._note_end()
        self._closing = self._ended = True
        self._set_unready(reason)
        cut = self._frames.stream  # whose frame had begun to come
        for stream, seat in tuple(self._begun.items()):
            if seat.first_byte_ns or stream == cut:
                seat.first_byte_ns = seat.first_byte_ns or time.monotonic_ns()
                self._finish(stream, Failure(ErrorKind.TRUNCATED, reason))
            else:
                self._finish(stream, Failure(ErrorKind.DROPPED, f"{reason} before the first response byte"))
        self._tell()

    def _note_end(self) -> None:
        if not self._closing and not self._begun:
            self.closed_idle = next(iter(self.seats), None)

    def _set_unready(self, reason: str, kind: ErrorKind = ErrorKind.DROPPED) -> None:
        if not self.ready.done():
            self.ready.set_result(Failure(kind, reason))

    def _close_if_done(self) -> None:
        if self._closing and not self._begun and not self._corked:
            self.close()

    # writing

    def _send_bodies(self) -> None:
        for seat in tuple(self._begun.values()):
            if seat.unsent:
                self._send_body(seat)

    def _send_body(self, seat: Seat) -> None:
        """As much of it as the windows allow."""
        while seat.unsent and not self._blocked:
            window = self._http.local_flow_control_window(seat.stream)
            size = min(window, self._http.max_outbound_frame_size, len(seat.unsent))
            if size <= 0:
                return
            piece, seat.unsent = seat.unsent[:size], seat.unsent[size:]
            self._http.send_data(seat.stream, piece, end_stream=not seat.unsent)
            if seat.unsent:
                self._write()  # or a large body would be held twice, and `pause_writing` never heard

    def _flush(self) -> None:
        if not self._corked:
            self._write()

    def _write(self) -> None:
        self._put(self._http.data_to_send())

    def _put(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _falls_short(head: Head, size: int, *, head_only: bool) -> bool:
    """Whether a body that ended has not the length the header said; h2 looks only at those with a DATA frame."""
    if head.length is None or head_only or head.status in (_NO_CONTENT, _NOT_MODIFIED):
        return False
    return size != head.length
