"""The ways to control a service's traffic. `SlotPool`: by slots, without touching Caddy's configuration."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from proxy import table
from proxy.admin import Admin, Row
from proxy.errors import ProxyError, SlotError
from proxy.handler import Json, static_dials
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


class SlotPool:
    """One service's traffic, by its slots.

    Raises `SlotError` when a shift cannot be written; the routing then stays as it was.
    """

    def __init__(self, directory: SlotDirectory, counts: OpenCounts, way: Way) -> None:
        self._directory = directory
        self._counts = counts
        self._way = way
        self._table: Table | None = None
        self._writing = asyncio.Lock()
        self._sweeping: asyncio.Future[None] | None = None
        self._later: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Learn the table in force, after `SlotDirectory.mend`."""
        self._table = await asyncio.to_thread(self._directory.read)
        self._sweep_later(random.uniform(*_FIRST))  # a shift after that finds its directory ready

    def shares(self) -> Mapping[str, int]:
        """Slots per address in the table in force."""
        return table.shares(self._table) if self._table is not None else {}

    async def shift(self, weights: Mapping[str, int]) -> bool:
        """Route by these weights per address; by none, requests wait. False when it was so already."""
        async with self._writing:
            wanted = table.build(weights, self._directory.slots, self._table)
            if wanted == self._table:
                return False
            if self._sweeping is not None:
                await self._sweeping
            try:
                await asyncio.to_thread(self._directory.write, wanted)
            except SlotError:
                # On a full disk the way back is still open: the generation before is there.
                if not await asyncio.to_thread(self._directory.restore_previous, wanted):
                    raise
            self._table = wanted
            self._sweep_later(_REST)
            return True

    def _sweep_later(self, rest: float) -> None:
        """Tidy up in a moment: shifts come in swarms, and each would have to wait for the tidying after the last."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(rest, self._sweep)

    def _sweep(self) -> None:
        self._later = None
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.get_running_loop().run_in_executor(_tidying, self._directory.sweep)

    async def in_flight(self, dials: Iterable[str]) -> Mapping[str, InFlight | None]:
        """What is open on each address now."""
        return await self._counts.read(dials, self._way)

    async def aclose(self) -> None:
        """Tidy up, and wait for it."""
        if self._later is not None:
            self._later.cancel()
            self._sweep()
        if self._sweeping is not None:
            await self._sweeping
