"""Seats lanes on HTTP/2 connections: as few connections as hold them at so many streams each, all equally full.

A lane keeps its seat from request to request. One whose connection takes no more requests asks again; the first to
do so has a new connection opened, and the others wait for that one or find a free seat elsewhere. A server that
takes fewer streams at a time than a connection was to have gets more connections.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from time import monotonic_ns

from loadtest.connection import Limits
from loadtest.dial import Connector, DialError, see_closed
from loadtest.exchange import Dialled, Failure, Requester
from loadtest.http2 import Connection, Seat
from loadtest.model import ErrorKind, Origin, Plan


class Booking:
    """A lane that is to be seated: an `Opening`."""

    __slots__ = ("lane", "opening", "origin")

    def __init__(self, lane: Requester, origin: Origin) -> None:
        self.lane: Requester | None = lane
        self.origin = origin
        self.opening: _Opening | None = None  # what it waits for

    def cancel(self) -> None:
        self.lane = None
        if self.opening is not None:
            self.opening.leave(self)

    def seated(self, seat: Seat, dialled: Dialled) -> None:
        if self.lane is None:
            seat.close()
        else:
            self.lane.opened(seat, dialled)


@dataclass(eq=False)
class _Opening:
    """A connection that is being opened, and who waits for it."""

    origin: Origin
    waiting: list[Booking] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def join(self, booking: Booking) -> None:
        booking.opening = self
        self.waiting.append(booking)

    def leave(self, booking: Booking) -> None:
        """Nobody waits for it any more: it is not opened."""
        if booking in self.waiting:
            self.waiting.remove(booking)
            if not self.waiting and self.task is not None:
                self.task.cancel()


class Seating:
    """The `Opener` of HTTP/2. `lanes`: how many there are in this process."""

    def __init__(self, plan: Plan, lanes: int) -> None:
        self._attribute = plan.attribute
        self._limits = Limits.of(plan, plan.per_connection if plan.keepalive else 1)
        self._connector = Connector(plan, alpn=("h2", "http/1.1"))  # a server without h2 then says so in good order
        self._most = math.ceil(lanes / plan.streams) if plan.keepalive else lanes  # connections to one origin
        self._each = math.ceil(lanes / self._most)  # seats on one connection
        self._opened = 0
        self._open: dict[Connection, Origin] = {}
        self._openings: set[_Opening] = set()

    def open(self, lane: Requester, origin: Origin) -> Booking:
        booking = Booking(lane, origin)
        self._place(booking)
        return booking

    async def close(self, grace: float = 1.0) -> None:
        """Close what is open, and see it closed: within `grace` seconds in good order, then by force."""
        for opening in self._openings:
            if opening.task is not None:
                opening.task.cancel()
        await see_closed(self._open, self._openings, grace)

    def _place(self, booking: Booking) -> None:
        origin = booking.origin
        openings = [opening for opening in self._openings if opening.origin == origin]
        connections = [
            known for known, where in self._open.items() if where == origin and known.number >= 0 and known.capacity
        ]
        free = [known for known in connections if len(known.seats) < self._room(known)]
        joinable = [opening for opening in openings if len(opening.waiting) < self._each]
        if len(connections) + len(openings) < self._most or not (free or joinable):
            self._begin(origin).join(booking)
        elif free:
            seat = min(free, key=lambda known: len(known.seats)).take_seat()
            asyncio.get_running_loop().call_soon(booking.seated, seat, Dialled())
        else:
            min(joinable, key=lambda opening: len(opening.waiting)).join(booking)

    def _room(self, connection: Connection) -> int:
        return min(self._each, connection.capacity)

    def _begin(self, origin: Origin) -> _Opening:
        opening = _Opening(origin)
        self._openings.add(opening)
        opening.task = asyncio.get_running_loop().create_task(self._open_connection(opening))
        opening.task.add_done_callback(lambda _: self._openings.discard(opening))
        return opening

    async def _open_connection(self, opening: _Opening) -> None:
        began = monotonic_ns()
        connection = Connection(self._attribute, self._lost, self._limits)
        self._open[connection] = opening.origin
        try:
            _, dialled = await self._connector.connect(opening.origin, lambda _: connection)
            failure = await connection.ready
        except DialError as error:
            self._lost(connection)
            failure, dialled = error.failure, Dialled()
        except BaseException:
            self._lost(connection)
            connection.abort()
            raise
        self._openings.discard(opening)
        waiting, opening.waiting = opening.waiting, []
        if failure is None and not connection.capacity:
            failure = Failure(ErrorKind.PROTOCOL, "the server takes no streams at all")
        if failure is not None:
            connection.abort()
            for booking in waiting:
                if booking.lane is not None:
                    booking.lane.not_opened(failure)
            return
        connection.number = self._opened
        self._opened += 1
        self._seat(waiting, connection, dialled._replace(dial_ns=monotonic_ns() - began))

    def _seat(self, waiting: list[Booking], connection: Connection, dialled: Dialled) -> None:
        room = self._room(connection)
        seated, others = waiting[:room], waiting[room:]
        seats = [connection.take_seat() for _ in seated]
        for booking, seat in zip(seated, seats, strict=True):
            booking.seated(seat, dialled)
        for booking in others:
            self._place(booking)

    def _lost(self, connection: Connection) -> None:
        self._open.pop(connection, None)
