"""One HTTP/1.1 connection: one request at a time, and each of them written at most once.

What decides between the error kinds is what is known at the time. A close of the server that is known before
a request is written makes the connection unusable, and no request is harmed. From the first byte written on,
the request belongs to this connection: it is answered here or it is an error. Nothing here writes it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import h11

from loadtest.model import ErrorKind, PlanError, RequestSpec

_MOST_HEADER_BYTES = 256 * 1024
_SWITCHING_PROTOCOLS = 101


class Failure(NamedTuple):
    """Why a request got no complete answer."""

    kind: ErrorKind
    detail: str


class Wire(NamedTuple):
    """A request made ready once and sent many times."""

    head: h11.Request
    body: bytes


def prepare(spec: RequestSpec, *, keepalive: bool) -> Wire:
    """Raises PlanError when the request cannot be written as HTTP/1.1."""
    given = {name.lower() for name, _ in spec.headers}
    headers = [(name.encode(), value.encode()) for name, value in spec.headers]
    if "host" not in given:
        headers.insert(0, (b"Host", _host(spec)))
    expects_length = bool(spec.body) or spec.method in ("POST", "PUT", "PATCH")
    if expects_length and not given & {"content-length", "transfer-encoding"}:
        headers.append((b"Content-Length", str(len(spec.body)).encode()))
    if not keepalive and "connection" not in given:
        headers.append((b"Connection", b"close"))
    try:
        wire = Wire(h11.Request(method=spec.method, target=spec.target, headers=headers), spec.body)
        _serialise(h11.Connection(h11.CLIENT), wire)
    except h11.LocalProtocolError as error:
        raise PlanError(f"{spec.method} {spec.url} cannot be sent: {error}") from None
    return wire


def _host(spec: RequestSpec) -> bytes:
    try:
        return spec.authority.encode("ascii" if spec.authority.isascii() else "idna")
    except UnicodeError as error:
        raise PlanError(f"URL {spec.url!r} has no usable host name: {error}") from None


def _serialise(http: h11.Connection, wire: Wire) -> bytes:
    parts = [http.send(wire.head)]
    if wire.body:
        parts.append(http.send(h11.Data(data=wire.body)))
    parts.append(http.send(h11.EndOfMessage()))
    return b"".join(part for part in parts if part)


@dataclass
class Exchange:
    """One request and as much of its answer as there is yet. Times of the monotonic clock in ns."""

    done: asyncio.Future[None]
    written_ns: int
    head: bytes = b""  # how the response begins
    first_byte_ns: int | None = None
    status: int | None = None
    size: int = 0
    attribute: str | None = None
    failure: Failure | None = None  # None once done: the answer is complete
    finished_ns: int = 0

    def resolve(self) -> None:
        self.finished_ns = time.monotonic_ns()
        if not self.done.done():  # it is when the waiting task was cancelled
            self.done.set_result(None)


class Connection(asyncio.Protocol):
    def __init__(self, attribute: str | None, on_lost: Callable[[Connection], None]) -> None:
        self.number: int | None = None  # set by who opened it
        self._attribute = attribute.lower().encode() if attribute else None
        self._on_lost = on_lost
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEADER_BYTES)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._spent = False  # no further request may be written
        self.spoke_unasked = False  # bytes came that answer no request

    @property
    def usable(self) -> bool:
        """Whether a request may be written, as far as is known now."""
        return not self._spent and self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """Whether the last answer left it open: when it is not usable later, the server closed it."""
        return self._http.our_state is h11.IDLE

    async def exchange(self, wire: Wire, timeout: float | None) -> Exchange:
        """Write one request, on a usable connection, and wait for its complete answer or its failure.

        `timeout` in seconds; None: no limit.
        """
        assert self.usable
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        data = _serialise(self._http, wire)
        exchange = self._exchange = Exchange(loop.create_future(), time.monotonic_ns())
        timer = None if timeout is None else loop.call_later(max(0.0, timeout), self._expire, exchange)
        self._transport.write(data)
        try:
            await exchange.done
        finally:
            if timer is not None:
                timer.cancel()
            if self._exchange is exchange:  # cancelled: the answer would meet the next request
                self._exchange = None
                self.abort()
        return exchange

    def close(self) -> None:
        self._spent = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._spent = True
        if self._transport is not None:
            self._transport.abort()

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # the next request could take it for its answer
            self.spoke_unasked = True
            self.abort()
            return
        if exchange.first_byte_ns is None:
            exchange.first_byte_ns = time.monotonic_ns()
        if len(exchange.head) < len(b"HTTP/"):
            exchange.head += data[: len(b"HTTP/")]
        try:
            self._read(exchange, data)
        except h11.RemoteProtocolError as error:
            self._fail(exchange, ErrorKind.PROTOCOL, str(error))

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._on_lost(self)

    # the state of the exchange

    def _read(self, exchange: Exchange, data: bytes) -> None:
        self._http.receive_data(data)
        while True:
            match self._http.next_event():
                case h11.Data(data=body):
                    exchange.size += len(body)
                case h11.Response() as response:
                    exchange.status = response.status_code
                    exchange.attribute = self._attribute_of(response)
                case h11.InformationalResponse(status_code=status) if status == _SWITCHING_PROTOCOLS:
                    exchange.status = status
                    return self._complete(exchange)
                case h11.InformationalResponse():
                    pass
                case h11.EndOfMessage():
                    return self._complete(exchange)
                case _:
                    return None

    def _attribute_of(self, response: h11.Response) -> str | None:
        if self._attribute is None:
            return None
        values = [value for name, value in response.headers if name == self._attribute]
        return values[-1].decode("latin-1") if values else None

    def _complete(self, exchange: Exchange) -> None:
        self._exchange = None
        states = self._http.our_state, self._http.their_state
        surplus, _ = self._http.trailing_data
        if states == (h11.DONE, h11.DONE) and not surplus and not self._spent:
            self._http.start_next_cycle()
        else:
            self.close()
        exchange.resolve()

    def _end(self, exc: Exception | None) -> None:
        """No more bytes will come: orderly when `exc` is None, which may be the end of a body."""
        self._spent = True
        exchange = self._exchange
        if exchange is None:
            return
        reason = "connection closed" if exc is None else str(exc) or type(exc).__name__
        if exchange.first_byte_ns is None:
            self._fail(exchange, ErrorKind.DROPPED, f"{reason} before the first response byte")
            return
        if not b"HTTP/".startswith(exchange.head[:5]):
            self._fail(exchange, ErrorKind.PROTOCOL, "the response does not begin with HTTP/")
            return
        if exc is None:
            try:
                self._read(exchange, b"")
            except h11.RemoteProtocolError as error:
                reason = str(error)
        if self._exchange is not None:
            self._fail(exchange, ErrorKind.TRUNCATED, reason)

    def _expire(self, exchange: Exchange) -> None:
        if exchange is self._exchange:
            began = "no byte of the response" if exchange.first_byte_ns is None else "an incomplete response"
            self._fail(exchange, ErrorKind.TIMEOUT, f"{began} in time")

    def _fail(self, exchange: Exchange, kind: ErrorKind, detail: str) -> None:
        self._exchange = None
        self.abort()
        exchange.failure = Failure(kind, detail)
        exchange.resolve()
