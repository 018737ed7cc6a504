"""One HTTP/1.1 connection: one request at a time, and each of them written at most once.

What decides between the error kinds is what is known at the time. A close of the server that is known before
a request is written makes the connection unusable, and no request is harmed. From the first byte written on,
the request belongs to this connection: it is answered here or it is an error. Nothing here writes it again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic_ns
from typing import NamedTuple, cast

from loadtest.exchange import Failure, Requester
from loadtest.model import ErrorKind, Plan
from loadtest.response import BadResponseError, ResponseReader
from loadtest.wire import Wire

_CONTINUE_WAIT = 1.0  # s that a body waits for "100 Continue" at most (RFC 9110, 10.1.1, leaves it to the client)


class Limits(NamedTuple):
    """How long a connection is used."""

    lifetime_ns: int | None
    requests: int | None

    @classmethod
    def of(cls, plan: Plan, requests: int | None) -> Limits | None:
        """Those of a plan, with so many requests a connection; None: there are none."""
        if plan.lifetime is None and requests is None:
            return None
        return cls(None if plan.lifetime is None else round(plan.lifetime * 1e9), requests)

    def reached(self, age_ns: int, requests: int) -> bool:
        """A connection has one request at least, however long opening it took, or none would ever be sent."""
        too_old = self.lifetime_ns is not None and requests > 0 and age_ns >= self.lifetime_ns
        return too_old or (self.requests is not None and requests >= self.requests)


class Connection(asyncio.Protocol):
    __slots__ = (
        "_careful", "_expect", "_feed", "_first_byte_ns", "_held", "_held_timer", "_lane", "_limits", "_on_lost",
        "_opened_ns", "_plain_answer", "_reader", "_requests", "_send_at_once", "_transport", "_wire", "_write",
        "number", "open", "plain", "retired", "spoke_unasked",
    )  # fmt: skip
    _wire: Wire  # that was written last
    _careful: bool  # it, or a limit, may ask for the connection's end
    _plain_answer: bool  # neither does, and not a byte of the answer has come yet
    _write: Callable[[bytes], None]

    def __init__(
        self, attribute: str | None, on_lost: Callable[[Connection], None], limits: Limits | None = None
    ) -> None:
        self.number = -1  # set by who opened it
        self.open = False  # a request may be written, as far as the event loop has told us
        self.plain: socket.socket | None = None  # the socket, without TLS; set by who opened it
        self._send_at_once: Callable[[bytes], int] | None = None  # writes to it, as long as that takes all
        self.retired = False  # closed as it has reached a limit
        self._limits = limits
        self._opened_ns = 0
        self._requests = 0  # answered; counted with limits only
        self.spoke_unasked = False  # bytes came that answer no request
        self._on_lost = on_lost
        self._reader = ResponseReader(attribute)
        self._feed = self._reader.feed
        self._expect = self._reader.expect
        self._transport: asyncio.Transport | None = None
        self._lane: Requester | None = None  # whose request is under way
        self._first_byte_ns = 0
        self._plain_answer = False
        self._held = b""  # the body, while it waits for "100 Continue"
        self._held_timer: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        """Also False when the transport has met an error that it has yet to tell."""
        if self._limits is not None:
            self._retire_at(self._limits)
        return self.open and self._transport is not None and not self._transport.is_closing()

    def send(self, wire: Wire, lane: Requester) -> None:
        self._lane = lane
        if not self._plain_answer or wire is not self._wire:
            self._wire = wire
            self._careful = wire.special or self._limits is not None
            self._plain_answer = not self._careful
            self._first_byte_ns = 0
            self._expect(wire.head_only)
        data = wire.data
        if (send := self._send_at_once) is None:
            self._write(data)
        else:
            # The transport would wait until all that has just arrived is dealt with, which would count as the server's
            # time. What the socket does not take is the transport's, and so is its error.
            try:
                written = send(data)
            except OSError:
                written = 0
            if written < len(data):
                self._send_at_once = None  # what follows goes in order
                self._write(data[written:])
        if self._careful and wire.held:
            self._held = wire.held
            self._held_timer = asyncio.get_running_loop().call_later(_CONTINUE_WAIT, self._release_body)

    def give_up(self, lane: Requester, failure: Failure | None) -> None:
        if lane is self._lane:
            self._fail(failure)

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        self._write = self._transport.write
        self._send_at_once = None if self.plain is None else self.plain.send
        self._opened_ns = monotonic_ns()
        self.open = True

    def data_received(self, data: bytes) -> None:
        lane = self._lane
        reader = self._reader
        if data == reader.same and self._plain_answer and lane is not None:
            self._lane = None
            head = reader.same_head
            lane.answered(head, head.length or 0, 0)
            return
        self._plain_answer = False
        if lane is None:  # the next request could take it for its answer
            self.spoke_unasked = True
            self.abort()
            return
        try:
            complete = self._feed(data)
        except BadResponseError as error:
            self._first_byte_ns = self._first_byte_ns or monotonic_ns()
            self._fail(Failure(ErrorKind.PROTOCOL, str(error)))
            return
        if complete:
            self._lane = None
            if self._careful or not reader.keep:
                self._look_twice()
            lane.answered(reader.head, reader.size, self._first_byte_ns)
            return
        self._first_byte_ns = self._first_byte_ns or monotonic_ns()
        if self._held:  # "100 Continue", most likely; it may be sent whenever we like
            self._release_body()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._on_lost(self)

    # the state of the exchange

    def _look_twice(self) -> None:
        """Whether the connection is to be used again, after an answer."""
        if self._wire.special or not self._reader.keep:
            self._stay_open_if_possible()
        if self._limits is not None:
            self._requests += 1
            self._retire_at(self._limits)

    def _stay_open_if_possible(self) -> None:
        """An answer may come before the request was written whole: what is left of it would meet the next one."""
        assert self._transport is not None
        unwritten = self._wire.special and (bool(self._held) or self._transport.get_write_buffer_size() > 0)
        self._forget_body()
        if unwritten:
            self.abort()
        elif self._wire.closes or not self._reader.keep:
            self.close()

    def _retire_at(self, limits: Limits) -> None:
        if self.open and limits.reached(monotonic_ns() - self._opened_ns, self._requests):
            self.retired = True
            self.close()

    def _end(self, exc: Exception | None) -> None:
        """No more bytes will come: orderly when `exc` is None, which may be the end of a body."""
        self.open = False
        lane = self._lane
        if lane is None:
            return
        reason = "connection closed" if exc is None else str(exc) or type(exc).__name__
        if not self._reader.begun:
            self._fail(Failure(ErrorKind.DROPPED, f"{reason} before the first response byte"))
            return
        try:
            complete = self._reader.finish()
        except BadResponseError as error:
            self._fail(Failure(ErrorKind.PROTOCOL, str(error)))
            return
        if complete and exc is None:
            self._lane = None
            self._look_twice()
            lane.answered(self._reader.head, self._reader.size, self._first_byte_ns)
        else:
            self._fail(Failure(ErrorKind.TRUNCATED, f"{reason} within the response"))

    def _fail(self, failure: Failure | None) -> None:
        """None: nobody wants to know."""
        lane, self._lane = self._lane, None
        self._forget_body()
        self.abort()
        if lane is not None and failure is not None:
            lane.failed(failure, self._reader.size, self._first_byte_ns)

    def _release_body(self) -> None:
        body = self._held
        self._forget_body()
        if body and self.usable:
            self._write(body)

    def _forget_body(self) -> None:
        self._held = b""
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None
