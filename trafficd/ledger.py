"""A service's state and the events it is the fold of: the one place where they are journalled.

An event is on disk before it is folded, and so before anything is done about it. An abort is the exception: it is in
force at once and journalled as soon as that can be, since sending traffic to what works must not wait for a disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from trafficd.core import events as ev
from trafficd.core.machine import advance, fold
from trafficd.core.model import Service
from trafficd.errors import TrafficdError
from trafficd.ports import Entry, Journal
from trafficd.trouble import Trouble

_RETRY = 0.5  # s before an event that has to be written is tried again
_PATIENCE = 2.0  # s that whoever aborts is kept waiting for the journal


class Ledger:
    """`state` is the fold of everything journalled so far, and of what is in force before it is."""

    def __init__(
        self, service: str, journal: Journal, trouble: Trouble, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.state = Service(service)
        self.changed = asyncio.Condition()
        self.revision = 0  # counts what `changed` tells of, so that nobody sleeps through a change
        self._journal = journal
        self._trouble = trouble
        self._on_change = on_change
        self._recording = asyncio.Lock()
        self._unwritten: list[ev.Event] = []
        self._late: asyncio.Task[None] | None = None

    def take(self, entries: Iterable[Entry]) -> None:
        """Fold what is in the journal already."""
        self.state = fold(self.state, ((entry.at, entry.event) for entry in entries))

    async def record(self, event: ev.Event, check: Callable[[Service], bool | None] | None = None) -> None:
        """Journal an event and fold it. Given the state of that moment, `check` may refuse it, by raising, or
        return False where there is nothing left to do."""
        async with self._recording:
            if check is not None and check(self.state) is False:
                return
            entry = await self._journal.append(event)
            self._trouble.say("journal", "")
            self.state = advance(self.state, entry.at, event)
            await self.notify()
        self._on_change()

    async def insist(self, event: ev.Event, check: Callable[[Service], bool | None] | None = None) -> None:
        """Like `record`, again and again until the journal takes it: for what has happened already."""
        while True:
            try:
                return await self.record(event, check)
            except TrafficdError as error:
                self._trouble.say("journal", str(error))
                await asyncio.sleep(_RETRY)

    async def first_in_line(self, event: ev.Event, route: Callable[[], Awaitable[None]]) -> str | None:
        """Fold an event and route by it before it is journalled: for an abort, which waits for nothing.

        Returns what went wrong with the journal, if anything; it is written as soon as it can be.
        """
        self.state = advance(self.state, time.time(), event)
        self._unwritten.append(event)
        await route()
        self._on_change()
        # Shielded: a write that is given up half way may be on disk all the same, and would be written again.
        if self._late is None or self._late.done():
            self._late = asyncio.create_task(self.write_late(), name=f"late write {self.state.name}")
            self._late.add_done_callback(_heard)
        try:
            await asyncio.wait_for(asyncio.shield(self._late), _PATIENCE)
        except (TrafficdError, TimeoutError) as error:
            return self.unwritten(str(error))
        return None

    def unwritten(self, reason: str = "") -> str | None:
        """What is in force and not in the journal yet, in words; None where all is."""
        if not self._unwritten:
            return None
        return f"the abort is in force but not in the journal yet: {reason or 'the disk does not answer'}"

    async def write_late(self) -> None:
        """Journal what is in force before it is."""
        async with self._recording:
            while self._unwritten:
                await self._journal.append(self._unwritten[0])
                self._unwritten.pop(0)
                self._trouble.say("journal", "")
                await self.notify()

    async def notify(self) -> None:
        """Tell whoever waits that something changed."""
        self.revision += 1
        async with self.changed:
            self.changed.notify_all()

    async def aclose(self) -> None:
        """Give up a write that is under way; the journal has it or has it not."""
        if self._late is not None:
            self._late.cancel()
            await asyncio.gather(self._late, return_exceptions=True)


def _heard(task: asyncio.Task[None]) -> None:
    """Take note of how a write ended that nobody may have waited for; the loop tries it again."""
    if not task.cancelled():
        task.exception()
