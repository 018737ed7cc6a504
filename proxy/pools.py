"""The ways to control a service's traffic. `SlotPool`: by slots, without touching Caddy's configuration."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from proxy import table
from proxy.admin import Admin, Row
from proxy.errors import ProxyError, SlotError
from proxy.handler import Json, Route, static_dials
from proxy.model import InFlight, Table, stream_alias
from proxy.slots import SlotDirectory
from proxy.ways import Way

log = logging.getLogger("proxy.pools")

_REST = 0.5  # s between a shift and the tidying after it
_FIRST = (5.0, 15.0)  # s after the start: not all services at once, and not while they begin

_CONFIG_AGE = 0.2  # s that a look at the configuration is believed: less than the quiet window of a drain


class OpenCounts:
    """What is open on each address of one Caddy.

    Not known, and said so: when the admin API does not answer; when the service is not in Caddy's configuration, so
    that its requests go elsewhere; of an address that the configuration also names itself (Caddy then lists only
    that other count); of one that is listed twice (a dynamic upstream).

    One hole remains, in Caddy: its counter of an address is removed at the moment it falls to 0, and a request
    that begins in that very moment is not seen until it ends. Drains therefore want 0 over a quiet window, and
    shift first, so that none begins.
    """

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._config: Json | None = None
        self._static: frozenset[str] = frozenset()
        self._present: dict[str, bool] = {}  # by the id of a service's route
        self._etag = ""
        self._read_at = float("-inf")
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[list[Row]] | None = None

    async def read(self, dials: Iterable[str], way: Way) -> dict[str, InFlight | None]:
        """What is open on each address of a service."""
        wanted = list(dials)
        try:
            await self._look()
            rows = await self._rows()
        except ProxyError as error:
            log.debug("in-flight counts not readable: %s", error)
            return dict.fromkeys(wanted)
        if not self._is_present(way):
            return dict.fromkeys(wanted)
        static, split = self._static, way.splits_streams
        found: dict[str, list[int]] = {}
        for row in rows:
            found.setdefault(row.address, []).append(row.num_requests)

        def count(address: str) -> int | None:
            listed = found.get(address, [0])
            return None if address in static or len(listed) > 1 else listed[0]

        counts: dict[str, InFlight | None] = {}
        for dial in wanted:
            alias = stream_alias(dial)
            requests, streams = count(dial), count(alias) if split and alias != dial else 0
            counts[dial] = None if requests is None or streams is None else InFlight(requests, streams)
        return counts

    async def _rows(self) -> list[Row]:
        """Caddy's list, not older than the question; those who ask while a call is under way share the next one."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask())
            self._next.add_done_callback(_heard)
        return await asyncio.shield(self._next)

    async def _ask(self) -> list[Row]:
        async with self._asking:
            self._next = None
            return await self._admin.upstreams()

    async def _look(self) -> None:
        """Look at the configuration, unless that was done a moment ago."""
        if time.monotonic() - self._read_at <= _CONFIG_AGE:
            return
        changed = await self._admin.config_unless(self._etag)
        if changed is not None:
            self._config, self._etag = changed
            self._static, self._present = static_dials(self._config), {}
        self._read_at = time.monotonic()

    def _is_present(self, way: Way) -> bool:
        known = self._present.get(way.route.id)
        if known is None:
            known = self._present[way.route.id] = way.present(self._config)
        return known


def _heard(task: asyncio.Task[list[Row]]) -> None:
    """Take note of an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


# Tidying is done by one thread for all services, so that it is never in the way of their shifts.
_tidying = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tidying")


class _Slots:
    """A directory of slots, and the table in force there."""

    def __init__(self, directory: SlotDirectory) -> None:
        self.directory = directory
        self.table: Table | None = None

    async def open(self) -> None:
        self.table = await asyncio.to_thread(self.directory.read)

    def shares(self) -> Mapping[str, int]:
        return table.shares(self.table) if self.table is not None else {}

    def wanted(self, weights: Mapping[str, int]) -> Table | None:
        """The table for these weights; None where it is in force."""
        wanted = table.build(weights, self.directory.slots, self.table)
        return None if wanted == self.table else wanted

    async def write(self, wanted: Table) -> None:
        """Raises `SlotError`."""
        try:
            await asyncio.to_thread(self.directory.write, wanted)
        except SlotError:
            # On a full disk the way back is still open: the generation before is there.
            if not await asyncio.to_thread(self.directory.restore_previous, wanted):
                raise
        self.table = wanted


class SlotPool:
    """One service's traffic, by its slots, and that of its pins, by theirs.

    Pins of the service's route that have no directory yet must be given one by `mend` first. Those that have one and
    are not in the route any more follow everybody until `tidy`: Caddy's configuration may still have them.

    Raises `SlotError` when a shift cannot be written; what could not be moved then stays as it was.
    """

    def __init__(self, directory: SlotDirectory, counts: OpenCounts, way: Way) -> None:
        self._directory = directory
        self._everybody = _Slots(directory)
        self._pins: dict[str, _Slots] = {}
        self._counts = counts
        self._way = way
        self._writing = asyncio.Lock()
        self._sweeping: asyncio.Future[None] | None = None
        self._later: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Learn the tables in force, after `SlotDirectory.mend`."""
        await self._everybody.open()
        directories = await asyncio.to_thread(pin_directories, self._directory, self._way.route)
        self._pins = {directory.name: _Slots(directory) for directory in directories}
        for pin in self._pins.values():
            await pin.open()
        self._sweep_later(random.uniform(*_FIRST))  # a shift after that finds its directories ready

    def shares(self) -> Mapping[str, int]:
        """Slots per address in the table in force for everybody."""
        return self._everybody.shares()

    def pinned(self) -> Mapping[str, Mapping[str, int]]:
        """The same of each pin."""
        return {name: pin.shares() for name, pin in self._pins.items()}

    async def shift(self, weights: Mapping[str, int], pins: Mapping[str, Mapping[str, int]] | None = None) -> bool:
        """Route by these weights per address; by none, requests wait. `pins`: the weights of pins that do not go where
        everybody does. False when all was so already."""
        async with self._writing:
            # Everybody first. What keeps one of them from being moved keeps no other.
            moved = False
            failed: SlotError | None = None
            if self._sweeping is not None:
                await self._sweeping
            for slots, wanted in self._changes(weights, pins or {}):
                try:
                    await slots.write(wanted)
                except SlotError as error:
                    failed = failed or error
                else:
                    moved = True
            if moved:
                self._sweep_later(_REST)
            if failed is not None:
                raise failed
            return moved

    def _changes(
        self, weights: Mapping[str, int], pins: Mapping[str, Mapping[str, int]]
    ) -> Iterator[tuple[_Slots, Table]]:
        own = {name: given for name, given in pins.items() if any(given.values())}
        for slots, given in ((self._everybody, weights), *((s, own.get(n, weights)) for n, s in self._pins.items())):
            wanted = slots.wanted(given)
            if wanted is not None:
                yield slots, wanted

    async def tidy(self) -> None:
        """Forget the pins that are not in the route, now that Caddy's configuration does not have them either."""
        async with self._writing:
            if self._sweeping is not None:
                await self._sweeping
            kept = {pin.name for pin in self._way.route.pins}
            self._pins = {name: pin for name, pin in self._pins.items() if name in kept}
            await asyncio.to_thread(self._directory.keep_pins, kept)

    def _sweep_later(self, rest: float) -> None:
        """Tidy up in a moment: shifts come in swarms, and each would have to wait for the tidying after the last."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(rest, self._sweep)

    def _sweep(self) -> None:
        self._later = None
        if self._writing.locked():
            self._sweep_later(_REST)
        elif self._sweeping is None or self._sweeping.done():
            directories = [slots.directory for slots in (self._everybody, *self._pins.values())]
            self._sweeping = asyncio.get_running_loop().run_in_executor(_tidying, _swept, directories)

    async def in_flight(self, dials: Iterable[str]) -> Mapping[str, InFlight | None]:
        """What is open on each address now."""
        return await self._counts.read(dials, self._way)

    async def aclose(self) -> None:
        """Tidy up, and wait for it."""
        async with self._writing:
            pass  # what is being written
        if self._later is not None:
            self._later.cancel()
            self._sweep()
        if self._sweeping is not None:
            await self._sweeping


def pin_directories(directory: SlotDirectory, route: Route) -> list[SlotDirectory]:
    """The slots of a service's pins: of those in its route, and of those that were there before. Blocks on the disk."""
    names = dict.fromkeys([*(pin.name for pin in route.pins), *directory.pins()])
    return [directory.pin(name, route.pin_slots) for name in names]


def _swept(directories: Iterable[SlotDirectory]) -> None:
    for directory in directories:
        directory.sweep()
