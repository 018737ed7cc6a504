"""What the engine needs from the world, as small Protocols. Adapters fit them by shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from trafficd.core.events import Event


class OpenCount(Protocol):
    """What is open on an address."""

    @property
    def requests(self) -> int: ...
    @property
    def streams(self) -> int: ...


class Pool(Protocol):
    """The way a service's traffic is controlled in the proxy."""

    async def shift(self, weights: Mapping[str, int], pins: Mapping[str, Mapping[str, int]] | None = None) -> bool:
        """Route by these weights per address; empty means nobody. `pins`: the weights of pins; one that is not in it,
        or has none, goes where everybody goes. False when it already was so."""
        ...

    def shares(self) -> Mapping[str, int]:
        """The proxy's present weights per address, empty when it has none."""
        ...

    def pinned(self) -> Mapping[str, Mapping[str, int]]:
        """The same of each pin that the proxy has."""
        ...

    async def in_flight(self, dials: Iterable[str]) -> Mapping[str, OpenCount | None]:
        """What is open on each address; None where it is not known."""
        ...


class Ties(Protocol):
    """What can be asked of the tie between a service and the proxy, by the service's name."""

    async def leave(self, service: str) -> None:
        """Let the proxy go on with plain upstreams."""
        ...

    async def join(self, service: str) -> None:
        """Steer the service again."""
        ...

    async def maintenance(self, service: str) -> str:
        """The address of the proxy's own static answer."""
        ...


class Entry(NamedTuple):
    """One line of the journal; `at` in seconds since the epoch."""

    seq: int
    at: float
    event: Event


class Journal(Protocol):
    """The durable truth. `append` returns only after the event is on disk."""

    async def append(self, event: Event) -> Entry: ...
    async def append_all(self, events: Sequence[Event]) -> list[Entry]: ...
    async def load(self, service: str) -> list[Entry]: ...
    async def load_all(self) -> dict[str, list[Entry]]: ...
    async def rollout(self, rollout: str, after: int = 0) -> list[Entry]: ...


class Probe(Protocol):
    """One health probe of one address; None when healthy, else what was wrong."""

    async def __call__(self, dial: str) -> str | None: ...


@dataclass(frozen=True)
class Swap:
    """What a driver is asked to do: target states, never deltas.

    `action` is "prepare", "swap" or "retire". `dial` is where `version` is to run (swap), or where the
    instance to stop runs (retire); None where the driver chooses the address itself.
    """

    action: str
    service: str
    upstream: str
    version: str
    previous_version: str | None
    dial: str | None
    previous_dial: str
    rollout: str
    timeout: float  # s, from `since`
    since: float  # s since the epoch: when the step was journalled
    resumed: bool = False  # the daemon was restarted since the step began


@dataclass(frozen=True)
class Outcome:
    """How a step ended. `dial` is set where the driver chose the address. `begun` is False only where it is certain
    that nothing was done."""

    ok: bool
    reason: str = ""
    output: str = ""
    dial: str | None = None
    begun: bool = True


class Driver(Protocol):
    """Replaces what runs behind an address. Cancelling the call ends the work that it started."""

    async def __call__(self, swap: Swap) -> Outcome: ...


class Said(NamedTuple):
    """What an instance itself says about why it is not well: in one line, and at length."""

    reason: str
    output: str = ""


@runtime_checkable
class Explains(Protocol):
    """A driver that can ask what it started. Never raises for what it cannot learn: then it has nothing to say."""

    async def explain(self, service: str, upstream: str, dial: str) -> Said | None: ...
