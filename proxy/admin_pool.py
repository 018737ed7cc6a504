"""The second way to control a service's traffic, for those who cannot share files with their Caddy.

`AdminPool` keeps the upstreams in Caddy's configuration, and every change of them is a change of that. It costs
what `COST` says; slots cost nothing, so they are the normal way.

What holds:
- One change is one write with If-Match, upstreams and weights together. Somebody else's write in between is not
  lost: 412, read again, changed again. Nothing is written where nothing changes.
- The configuration is read at every shift, so what somebody else did to our upstreams is put right by it. A route
  that is gone is not put back by a shift: that is for whoever watches the configuration to say, and to decide.
- A change breaks off what waits at the proxy (502), whoever makes it. So requests that came while nobody was ready
  wait in vain: the shift that lets somebody in again fails them, and only what comes after it is answered. An
  address that stays in the list while its one instance restarts needs no change, and its requests wait with success.
- What begins after a shift returned goes by the new list, but for stragglers of some milliseconds, as with slots.
  Measured (2.11.7, HTTP/1.1): the old servers read no further request. A connection that was idle is closed at once;
  one that was opened before and has sent nothing yet is closed within 6 s, and if a request comes on it before that,
  without an answer: such a request is lost, and not delivered to the old upstream.
- What is open on an address is known while it is in the list, after it left, and after it came back while old
  requests were still open: see `proxy.admin_route`. Unknown is what `proxy.pools.OpenCounts` calls so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

from proxy import admin_route, table
from proxy.admin import Admin
from proxy.model import InFlight, Table
from proxy.ways import ByAdmin, Way

COST = (
    'control = "admin": each change of weights replaces Caddy\'s whole configuration. It loses the requests that are '
    "just arriving on kept-alive connections, of every service of that Caddy (measured: about 13 a change with 32 "
    'busy connections, 451 to 615 in 40 changes; control = "slots": 0), fails those that wait at the proxy, cuts the '
    "streams of other handlers without stream_close_delay, and makes Caddy forget its own health checks' results"
)


class Counts(Protocol):
    """What is open on each address of one Caddy, as `proxy.pools.OpenCounts` reads it."""

    async def read(self, dials: Iterable[str], way: Way) -> dict[str, InFlight | None]: ...


class AdminPool:
    """One service's traffic, by Caddy's admin API alone.

    The route's `slots` bounds how many turns the list has; its `slots_path` is not used. Raises `ProxyError` when a
    change cannot be made; where Caddy's answer was lost it may have been made, and the next shift finds out.
    """

    cost = COST

    def __init__(self, admin: Admin, way: ByAdmin, counts: Counts) -> None:
        self._admin = admin
        self._way = way
        self._route = way.route
        self._counts = counts
        self._table: Table | None = None
        self._writing = asyncio.Lock()

    async def open(self) -> None:
        """Learn the turns in force."""
        config, _ = await self._admin.config()
        self._table = admin_route.read(config, self._route)

    def shares(self) -> Mapping[str, int]:
        """Turns per address in the list in force."""
        return table.shares(self._table) if self._table is not None else {}

    def pinned(self) -> Mapping[str, Mapping[str, int]]:
        """There are no pins here: each would be another change of Caddy's configuration."""
        return {}

    async def shift(self, weights: Mapping[str, int], pins: Mapping[str, Mapping[str, int]] | None = None) -> bool:
        """Route by these weights per address; by none, requests wait. False when it was so already."""
        wanted = admin_route.turns(weights, self._route)
        async with self._writing:
            written = await self._admin.edit(lambda config: admin_route.move(config, self._route, wanted))
            changed, self._table = wanted != self._table, wanted
            return written or changed  # also where an answer was lost, and the change had been made

    async def in_flight(self, dials: Iterable[str]) -> Mapping[str, InFlight | None]:
        """What is open on each address now."""
        return await self._counts.read(dials, self._way)

    async def aclose(self) -> None:
        """Nothing is left to tidy up; the routing stays as it is."""
