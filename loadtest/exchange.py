"""What a lane and what carries its requests need of each other.

A lane has one request under way at most. It hands the request to a carrier, a connection that can be written to,
and is told once what became of it, by `answered` or by `failed`. No future and no task stands between the two: the
carrier calls, and the lane goes on within that call, which mostly means that it sends its next request. So a carrier
must have everything of the old exchange behind it before it calls, and must be ready for a `send` from within.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from loadtest import metrics
from loadtest.model import ErrorKind, Origin
from loadtest.wire import Wire


class Failure(NamedTuple):
    """Why a request got no complete answer."""

    kind: ErrorKind
    detail: str


class Head(metrics.Head, Protocol):
    """What a lane wants to know of a response."""

    @property
    def location(self) -> str | None: ...


class Dialled(NamedTuple):
    """What opening a connection took, in ns."""

    dns_ns: int = 0
    dial_ns: int = 0  # the look-up, connecting and the TLS handshake together
    tls_ns: int = 0


class Requester(Protocol):
    """A lane, as carriers and openers see it."""

    def opened(self, carrier: Carrier, dialled: Dialled) -> None:
        """The connection that was asked for. It may have been closed again already: see `usable`."""
        ...

    def not_opened(self, failure: Failure) -> None:
        """There is no connection to be had."""
        ...

    def answered(self, head: Head, size: int, first_byte_ns: int) -> None:
        """The answer is complete: `size` bytes of body. `first_byte_ns` (time.monotonic_ns): when its first byte
        came; 0 when all of it came at once, just now."""
        ...

    def failed(self, failure: Failure, size: int, first_byte_ns: int) -> None:
        """The answer will not be complete. `first_byte_ns` 0: not a byte of it came."""
        ...


class Carrier(Protocol):
    """A connection, for one request at a time (HTTP/1.1) or for many (HTTP/2)."""

    @property
    def number(self) -> int:
        """Of the connection, from 0, in order of opening."""
        ...

    @property
    def open(self) -> bool:
        """Whether `send` may be called within `answered` or `failed`. Cheap."""
        ...

    @property
    def usable(self) -> bool:
        """Whether `send` may be called after a pause: no close of the other side is known by now."""
        ...

    @property
    def retired(self) -> bool:
        """That it is no longer usable is not to be counted as closed while idle: we ended it ourselves (Plan.lifetime,
        Plan.per_connection), or another lane's carrier on the same connection says it."""
        ...

    def send(self, wire: Wire, lane: Requester) -> None:
        """Write a request, once; what becomes of it is told to `lane`, never from within this call."""
        ...

    def give_up(self, lane: Requester, failure: Failure | None) -> None:
        """The time of a lane's request is up: `lane.failed` is called at once, with `failure` and with what had come
        so far. With None nothing is told, as the run is over. Whatever comes later is no answer to anything."""
        ...

    def close(self) -> None:
        """In good order, and without a word to anyone; not with a request under way."""
        ...


class Opening(Protocol):
    """A connection being opened for a lane: an asyncio.Task or the like."""

    def cancel(self) -> object:
        """The lane will not be told any more."""
        ...


class Opener(Protocol):
    """Finds connections for lanes."""

    def open(self, lane: Requester, origin: Origin) -> Opening:
        """Find a carrier to `origin`; `lane.opened` or `lane.not_opened` is called later, not from within."""
        ...

    async def close(self) -> None:
        """Close what is open, and see it closed."""
        ...
