"""What the engine works with, without a Caddy and without instances: a pool, probes, a driver, a journal.

The pool builds its slot table with the same pure code as the real one, so shares are exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from proxy import table
from proxy.model import InFlight, Table
from trafficd.core.events import Event
from trafficd.core.model import StepKind
from trafficd.errors import JournalError
from trafficd.ports import Entry, Outcome, Said, Swap
from trafficd.store.sqlite import SqliteJournal

T = TypeVar("T")


@dataclass
class FakePool:
    """Records shifts; `open` is what a test says is in flight, None for what cannot be counted."""

    slots: int = 100
    shifts: list[dict[str, int]] = field(default_factory=list)
    open: dict[str, InFlight | None] = field(default_factory=dict)
    broken: str = ""  # why no shift can be written
    uncounted: str = ""  # why counting raises
    stalled: asyncio.Event | None = None  # counting waits for it
    frozen: asyncio.Event | None = None  # a change waits for it
    table: Table | None = None
    pins: dict[str, dict[str, int]] = field(default_factory=dict)  # of the last shift

    async def shift(self, weights: Mapping[str, int], pins: Mapping[str, Mapping[str, int]] | None = None) -> bool:
        await asyncio.sleep(0)
        if self.broken:
            raise OSError(self.broken)
        wanted = table.build(weights, self.slots, self.table)
        pinned = {name: dict(given) for name, given in (pins or {}).items()}
        if wanted == self.table and pinned == self.pins:
            return False
        if self.frozen is not None:
            await self.frozen.wait()
        self.table, self.pins = wanted, pinned
        self.shifts.append(dict(self.shares()))
        return True

    def shares(self) -> Mapping[str, int]:
        return table.shares(self.table) if self.table is not None else {}

    def pinned(self) -> Mapping[str, Mapping[str, int]]:
        return self.pins

    async def in_flight(self, dials: Iterable[str]) -> Mapping[str, InFlight | None]:
        if self.stalled is not None:
            await self.stalled.wait()
        if self.uncounted:
            raise OSError(self.uncounted)
        return {dial: self.open.get(dial, InFlight(0, 0)) for dial in dials}


class FakeTies:
    """A tie that does what it is asked, or refuses with `refusal`. `asked`: what, and of which service."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refusal: Exception | None = None

    async def _ask(self, what: str, service: str) -> None:
        self.asked.append((what, service))
        if self.refusal is not None:
            raise self.refusal

    async def leave(self, service: str) -> None:
        await self._ask("leave", service)

    async def join(self, service: str) -> None:
        await self._ask("join", service)

    async def maintenance(self, service: str) -> str:
        await self._ask("maintenance", service)
        return "127.0.0.1:2"


@dataclass
class FakeProbe:
    """Healthy, but for the addresses in `dead`, each with what is wrong there."""

    dead: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def __call__(self, dial: str) -> str | None:
        self.asked.append(dial)
        await asyncio.sleep(0)
        return self.dead.get(dial)


@dataclass
class FakeDriver:
    """Replaces nothing, at once. With `wait` set, a swap lasts until then, or one of an upstream in `slow` until that;
    `fails` names versions, and `names` the address where the new instance of an upstream runs."""

    swaps: list[Swap] = field(default_factory=list)
    wait: asyncio.Event | None = None
    slow: dict[str, asyncio.Event] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    says: dict[str, Said] = field(default_factory=dict)  # by upstream: what its instance says when it is asked
    cancelled: int = 0

    async def __call__(self, swap: Swap) -> Outcome:
        self.swaps.append(swap)
        try:
            wait = self.slow.get(swap.upstream, self.wait)
            if wait is not None:
                await wait.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        reason = self.fails.get(swap.version)
        return Outcome(ok=reason is None, reason=reason or "", dial=self.names.get(swap.upstream))

    async def explain(self, service: str, upstream: str, dial: str) -> Said | None:
        return self.says.get(upstream)


async def no_hook(kind: StepKind, name: str, environment: Mapping[str, str], since: float) -> Outcome:
    """No hook is configured; this one must never fail a rollout."""
    return Outcome(ok=True)


class FlakyJournal(SqliteJournal):
    """The real journal, on a disk that a test can fill (`full`), or make slow.

    While `slow` is not set, what is appended is on disk at once, but the disk does not say so yet. While `hung`
    is not set, nothing at all comes back from it.
    """

    full = ""
    slow: asyncio.Event | None = None
    hung: asyncio.Event | None = None

    async def append(self, event: Event) -> Entry:
        entry = await asyncio.shield(super().append(event))
        if self.slow is not None:
            await self.slow.wait()
        return entry

    async def _call(self, work: Callable[[], T]) -> T:
        if self.hung is not None:
            await self.hung.wait()
        if self.full:
            raise JournalError(self.full)
        return await super()._call(work)
