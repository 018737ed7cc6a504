"""The daemon's tie to Caddy: our routes are in its configuration, and stay there.

Caddy is only told about routes, once; traffic moves by slots, whatever becomes of this tie. So when Caddy cannot be
reached, nothing is decided here: it is said, and tried again. When somebody's reload has removed our routes, the slots
steer nothing any more: that is said loudly, a live rollout pauses before it believes a count that means nothing, and
the routes are written again where the configuration says that they may be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy import admin_route
from proxy.admin import Admin
from proxy.admin_pool import AdminPool
from proxy.errors import CaddyUnreachableError, ConfigConflictError, ProxyError
from proxy.handler import Json, Route, present
from proxy.install import install
from proxy.server import CaddyServer
from proxy.sites import Sites
from trafficd.core import events as ev
from trafficd.core.model import Service
from trafficd.engine import Engine
from trafficd.errors import ConflictError, TrafficdError

log = logging.getLogger("trafficd.link")

_RETRY = 1.0  # s between attempts to reach Caddy
_WATCH_LIVE = 1.0  # s between looks at its configuration while a rollout is live
_WATCH_IDLE = 5.0


@dataclass(frozen=True)
class Linked:
    """A service's route, and whether it is written again when somebody has removed it."""

    route: Route
    restore: bool
    engine: Engine
    pool: AdminPool | None = None  # control = "admin": the pool writes the route, with the addresses in it

    def present(self, config: Json | None) -> bool:
        """Whether the configuration has the route."""
        return present(config, self.route) if self.pool is None else admin_route.present(config, self.route)


@dataclass
class Link:
    """`root` is the directory of all slots, `root_in_caddy` the same as Caddy sees it, where that differs."""

    admin: Admin
    services: Mapping[str, Linked]
    root: Path
    root_in_caddy: str | None = None
    managed: CaddyServer | None = None
    sites: Sites | None = None
    tried: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Connect, then watch, for ever. Raises `ProxyError` when this Caddy cannot do what slots need."""
        await self._connect()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            if self.managed is not None:
                group.create_task(self._keep(self.managed))

    async def _connect(self) -> None:
        """Bring Caddy to serve our routes; again and again while it cannot be reached."""
        while True:
            try:
                written = await self._install()
            except (CaddyUnreachableError, ConfigConflictError) as error:
                self._say(str(error))
            else:
                self._say("")
                await self._sites_back(self.services)
                what = "our routes were written into Caddy's configuration" if written else "Caddy has our routes"
                log.info("%s", what)
                return
            finally:
                self.tried.set()
            await asyncio.sleep(_RETRY)

    async def _install(self, names: Iterable[str] | None = None) -> bool:
        wanted = [self.services[name] for name in (self.services if names is None else names)]
        written = False
        routes = [linked.route for linked in wanted if linked.pool is None]
        if routes:
            written = await install(self.admin, routes, self.root, self.root_in_caddy)
        for linked in wanted:
            if linked.pool is not None:
                written |= await linked.pool.install(linked.engine.decide().weights)
                linked.engine.wake()
        return written

    def _say(self, text: str) -> None:
        for linked in self.services.values():
            linked.engine.troubled("caddy", text)

    # -- drift -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at Caddy's configuration again and again, and often while a rollout is live."""
        seen, looked = "", time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_LIVE)
            live = any(linked.engine.state.live is not None for linked in self.services.values())
            if not live and time.monotonic() - looked < _WATCH_IDLE:
                continue
            looked = time.monotonic()
            try:
                config, etag = await self.admin.config()
                if etag != seen:
                    seen = etag if await self._settled(config) else ""
            except ProxyError as error:
                self._say(str(error))
                seen = ""

    async def _settled(self, config: Json | None) -> bool:
        """Compare a configuration that changed with what we need; whether there is nothing left to do."""
        missing = [name for name, linked in self.services.items() if not linked.present(config)]
        lost = [name for name in missing if not self.services[name].restore]
        if restored := [name for name in missing if name not in lost]:
            log.error("somebody changed Caddy's configuration: written again: the routes of %s", ", ".join(restored))
            await self._install(restored)
        faults = await self._sites_back([name for name in self.services if self.services[name].restore])
        for name, linked in self.services.items():
            if name in lost:
                await self._lost(linked)
            else:
                linked.engine.troubled("caddy", faults.get(name, ""))
        return not missing and not faults

    async def _sites_back(self, names: Collection[str]) -> Mapping[str, str]:
        """Put back the sites of these services that are gone; why one cannot be, by service. The routes come first:
        a site that Caddy refuses must not keep them out."""
        if self.sites is None:
            return {}
        try:
            return await self.sites.restore(names)
        except ProxyError as error:
            return dict.fromkeys(names, str(error))

    async def _lost(self, linked: Linked) -> None:
        name = linked.engine.name
        text = (
            f"Caddy's configuration no longer has our route of {name}: somebody reloaded or changed it, and the slots "
            "steer nothing now. Restart trafficd to have the route written again, or set "
            f"services.{name}.restore = true"
        )
        linked.engine.troubled("caddy", text)
        live = linked.engine.state.live
        if live is None or live.paused:
            return

        def still_live(state: Service) -> bool:
            if state.live is None or state.live.id != live.id:
                raise ConflictError("the rollout has ended")
            return not state.live.paused

        try:
            await linked.engine.record(ev.Paused(name, live.id, "trafficd", text), still_live)
        except TrafficdError as error:
            log.error("%s: the rollout could not be paused: %s", name, error)

    # -- a Caddy of our own ----------------------------------------------------------------------------

    async def _keep(self, caddy: CaddyServer) -> None:
        """Start our own Caddy again when it is gone."""
        while True:
            await asyncio.sleep(_RETRY)
            if caddy.pid() is not None:
                continue
            log.error("our Caddy is gone; it is started again")
            try:
                await caddy.start()
                await self._install()
                self._say("")
                await self._sites_back(self.services)
            except ProxyError as error:
                self._say(f"our Caddy was gone and is not serving again yet: {error}")
