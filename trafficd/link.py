"""The daemon's tie to Caddy: our services are in its configuration, and stay there.

Caddy is only told about services, once; traffic moves by slots, whatever becomes of this tie. So when Caddy cannot be
reached, nothing is decided here: it is said, and tried again. When somebody's reload has removed our slots, they
steer nothing any more: that is said loudly, a live rollout pauses before it believes a count that means nothing, and
the configuration is written again where it is ours to write and the service's section says that it may be.

A handler is adopted only when somebody stands behind the slots: until then it goes on as it is.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from proxy import maintenance
from proxy.admin import Admin
from proxy.admin_pool import AdminPool
from proxy.errors import (
    CaddyRefusedError,
    CaddyTooOldError,
    CaddyUnreachableError,
    ConfigConflictError,
    ProxyError,
    SlotsNotResolvedError,
)
from proxy.handler import Json, Route, static_places
from proxy.install import Household, Installed, install, maintenance_port
from proxy.maintenance import StaticAnswer
from proxy.pools import SlotPool
from proxy.server import CaddyServer
from proxy.sites import Sites
from proxy.ways import Adopted, Way
from trafficd.core import events as ev
from trafficd.core.model import Service
from trafficd.engine import Engine
from trafficd.errors import ConflictError, TrafficdError

log = logging.getLogger("trafficd.link")

_RETRY = 1.0  # s between attempts to reach Caddy
_WATCH_LIVE = 1.0  # s between looks at its configuration while a rollout is live, or something is missing in it
_WATCH_IDLE = 5.0
_OFFERED_AGAIN = 15.0  # s until Caddy is offered again what it refused, while nothing else changes


@dataclass(frozen=True)
class Linked:
    """A service, its way of standing in Caddy's configuration, and whether it is written there again when somebody
    has removed it."""

    way: Way
    restore: bool
    engine: Engine
    pool: SlotPool | AdminPool
    answer: StaticAnswer


@dataclass
class Link:
    """`root` is the directory of all slots, `root_in_caddy` the same as Caddy sees it, where that differs."""

    admin: Admin
    root: Path
    root_in_caddy: str | None = None
    managed: CaddyServer | None = None
    sites: Sites | None = None
    services: dict[str, Linked] = field(default_factory=dict)
    former: frozenset[str] = frozenset()  # services that had a route once
    taken: frozenset[int] = frozenset()  # ports that the configuration gives to somebody
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    _unfit: str | None = None  # the process of Caddy that was proved unfit
    _etag: str = ""  # of the configuration that was looked at last
    _again: dict[str, float] = field(default_factory=dict)  # when what Caddy refused is offered again (monotonic)
    _tied: set[str] = field(default_factory=set)  # seen in Caddy's configuration since the daemon began

    async def run(self) -> None:
        """Connect, then watch, for ever. Raises `ProxyError` when this Caddy cannot do what slots need."""
        if not self.services and not self.former:
            await self._idle()
        await self._connect()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            if self.managed is not None:
                group.create_task(self._keep(self.managed))

    async def _idle(self) -> None:
        """No service has a route: nothing is asked of Caddy, and there need not be one. For ever."""
        self.tried.set()
        if self.managed is not None:
            await self._keep(self.managed)
        await asyncio.Event().wait()

    async def _connect(self) -> None:
        """Bring Caddy to serve our services; again and again while it cannot be reached."""
        while True:
            wanted = {name for name, one in self.services.items() if not one.engine.state.left}
            try:
                if any(isinstance(self.services[name].way, Adopted) for name in wanted):
                    await self._try(wanted)
                else:
                    await self._install(wanted)  # what cannot be proved ends the daemon: nothing depends on it yet
            except (CaddyUnreachableError, ConfigConflictError) as error:
                self._say(str(error))
            else:
                await self._sites_back()
                return
            finally:
                self.tried.set()
            await asyncio.sleep(_RETRY)

    async def _install(self, names: Iterable[str]) -> None:
        """Write these services into Caddy's configuration, in one write, as far as they can be; say of the others what
        keeps them out of it."""
        wanted = {name: self.services[name] for name in names}
        refused = {name: _NOBODY_YET for name, one in wanted.items() if _must_wait(one)}
        ways = [one.way for name, one in wanted.items() if name not in refused]
        told = await self._written(ways)
        for name in told.refused:
            self._again[name] = time.monotonic() + _OFFERED_AGAIN
        if told.removed:
            log.warning(
                "taken out of Caddy's configuration, as their services are no more: %s", ", ".join(told.removed)
            )
        refused |= {name: text.removeprefix(f"services.{name}: ") for name, text in told.refused.items()}
        for name, one in wanted.items():
            for note in told.notes.get(name, ()):
                log.warning("%s: taken over: %s", name, note)
            if name in refused:
                await self._out(one, refused[name])
                continue
            self._tied.add(name)
            one.engine.trouble.say("caddy", "")
            one.engine.trouble.say("unlogged", told.unlogged.get(name, ""))
            if isinstance(one.pool, AdminPool):
                await one.pool.open()
                one.engine.wake()
            else:
                await one.pool.tidy()
        if placed := sorted(wanted.keys() - refused.keys()):
            what = "written into Caddy's configuration" if told.written else "in Caddy's configuration already"
            log.info("%s: %s", what, ", ".join(placed))

    async def _written(self, ways: Sequence[Way]) -> Installed:
        """One write for all of them; where Caddy refuses it, one for each, so that none keeps the others out."""
        path, port = self._slots_path, maintenance_port(self._slots_path, self.taken)
        household = Household(self.services.keys(), self.former, path, self._answers(), port, self.taken)
        try:
            return await install(self.admin, ways, self.root, self.root_in_caddy, household)
        except ConfigConflictError:
            raise
        except CaddyRefusedError as error:
            if len(ways) < 2:
                return Installed(refused={way.route.service: str(error) for way in ways})
        told = Installed()
        for way in ways:
            one = await self._written([way])
            told.written |= one.written
            told.notes |= one.notes
            told.unlogged |= one.unlogged
            told.refused |= one.refused
        return told

    @property
    def _slots_path(self) -> str:
        return self.root_in_caddy or str(self.root)

    def _answers(self) -> list[tuple[Route, StaticAnswer]]:
        return [(one.way.route, one.answer) for one in self.services.values()]

    def _say(self, text: str) -> None:
        for linked in self.services.values():
            linked.engine.trouble.say("caddy", text)

    # -- drift -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at Caddy's configuration again and again, and often while that matters."""
        seen, looked = "", time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_LIVE)
            pressing = not seen or any(linked.engine.state.live is not None for linked in self.services.values())
            if not pressing and time.monotonic() - looked < _WATCH_IDLE:
                continue
            looked = time.monotonic()
            try:
                changed = await self.admin.config_unless(seen)
                if changed is not None:
                    config, etag = changed
                    if etag != self._etag:
                        self._again.clear()  # what stood in the way may be gone
                        self._etag = etag
                    seen = etag if await self._settled(config) else ""
            except ProxyError as error:
                self._say(str(error))
                seen = ""

    async def _settled(self, config: Json | None) -> bool:
        """Compare a configuration that changed with what we need; whether it was all there."""
        present = {name for name, one in self.services.items() if one.way.present(config)}
        left = {name for name, one in self.services.items() if one.engine.state.left}
        for one in (self.services[name] for name in (present - left) & self._tied):
            one.engine.trouble.say("caddy", "")
            one.engine.trouble.say("unlogged", one.way.unlogged(config) or "")
        if fresh := present - left - self._tied:  # somebody else brought them there
            await self._try(fresh)
        for name in present & left:  # the daemon ended before it had left
            await self._leave_after_all(name)
        missing = self.services.keys() - present - left
        lost = {name for name in missing & self._tied if not self.services[name].restore}
        for name in lost:
            await self._out(self.services[name], _lost(name))
        if again := sorted(missing & self._tied - lost):
            log.error("somebody changed Caddy's configuration: written again, if it can be: %s", ", ".join(again))
        await self._try(missing - lost)
        for name, one in self.services.items():
            if one.engine.state.maintenance is not None and not maintenance.present(config):
                await self.maintenance(name)
        self._note_uncountable(config, self.services.keys() - missing - fresh)
        return await self._sites_back() and not missing

    def _note_uncountable(self, config: Json | None, names: Set[str]) -> None:
        """Say which addresses of these Caddy's configuration names itself too: of those it shows only its own count.
        What has been written since the look is not among them: a handler that is taken over named them until then."""
        places = static_places(config)
        for linked in (self.services[name] for name in names):
            state = linked.engine.state
            shared = [] if state.left else [u.dial for u in state.upstreams.values() if u.dial in places]
            text = "".join(
                f"{dial} is also named at {places[dial]} of Caddy's configuration, so what is open on it cannot be "
                "counted, and a drain would have to guess. Take it out there, or give the instance another port"
                for dial in shared[:1]
            )
            linked.engine.trouble.say("counts", text)

    async def _sites_back(self) -> bool:
        """Put back the sites that are gone; whether all are there. The routes come first: a site that Caddy refuses
        must not keep them out."""
        names = [name for name, one in self.services.items() if one.restore and not one.engine.state.left]
        faults: Mapping[str, str] = {}
        if self.sites is not None:
            try:
                faults = await self.sites.restore(names)
            except ProxyError as error:
                faults = dict.fromkeys(names, str(error))
        for name, one in self.services.items():
            one.engine.trouble.say("sites", faults.get(name, ""))
        return not faults

    async def _try(self, names: Set[str]) -> None:
        """Install these; but where this Caddy was proved unfit, not again: each attempt is a change of its
        configuration, and a handler that is taken over answers nobody until it is given back."""
        if self._unfit is not None and self._unfit != await self._process():
            self._unfit = None  # another Caddy by now, perhaps with the mount
        due = sorted(name for name in names if self._again.get(name, 0.0) <= time.monotonic())
        if not due or self._unfit is not None:
            return
        try:
            await self._install(due)
        except (SlotsNotResolvedError, CaddyTooOldError) as error:
            self._unfit = await self._process()
            for name in names:
                await self._out(self.services[name], f"{error}. Then restart Caddy, or trafficd")

    async def _process(self) -> str:
        return await self.admin.process_start() or "a Caddy that does not tell when it was started"

    async def _out(self, linked: Linked, text: str) -> None:
        """Say that the slots steer nothing, and let a live rollout wait."""
        linked.engine.trouble.say("caddy", text)
        live = linked.engine.state.live
        if live is None or live.paused:
            return

        def still_live(state: Service) -> bool:
            if state.live is None or state.live.id != live.id:
                raise ConflictError("the rollout has ended")
            return not state.live.paused

        try:
            await linked.engine.record(ev.Paused(linked.engine.name, live.id, "trafficd", text), still_live)
        except TrafficdError as error:
            log.error("%s: the rollout could not be paused: %s", linked.engine.name, error)

    # -- what operators ask for ------------------------------------------------------------------------

    async def leave(self, name: str) -> None:
        """Let Caddy go on with plain upstreams. Raises `ProxyError` when it cannot."""
        linked = self.services[name]
        self._tied.discard(name)
        written = await self.admin.edit(lambda config: linked.way.leave(config, linked.engine.in_the_open()))
        if written:
            log.warning("%s: left: Caddy goes on with plain upstreams, and trafficd steers nothing", name)

    async def _leave_after_all(self, name: str) -> None:
        try:
            await self.leave(name)
        except CaddyRefusedError as error:
            self.services[name].engine.trouble.say("caddy", str(error))

    async def join(self, name: str) -> None:
        """Steer the service again. Raises `ProxyError` when it cannot."""
        await self._install([name])

    async def maintenance(self, name: str) -> str:
        """The address of Caddy's own static answer for a service. Raises `ProxyError` where it cannot be given."""
        linked = self.services[name]
        address = ""
        port = maintenance_port(self._slots_path, self.taken)

        def change(config: Json | None) -> Json:
            nonlocal address
            if maintenance.speaks_tls(config, linked.way.route):
                raise CaddyRefusedError(_SPEAKS_TLS)
            edited: Json = copy.deepcopy(config) if config else {}
            address = maintenance.put(edited, port, self._answers())
            return edited

        await self.admin.edit(change)
        return address

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
                await self._settled((await self.admin.config())[0])
            except ProxyError as error:
                self._say(f"our Caddy was gone and is not serving again yet: {error}")


_NOBODY_YET = "not taken over yet: no upstream has passed a probe, so Caddy goes on serving it as before"
_SPEAKS_TLS = (
    "Caddy speaks TLS to the upstreams of this service, and its own static answer has no certificate for that; use "
    "`trafficd hold`, or answer from the Caddyfile"
)


def _must_wait(linked: Linked) -> bool:
    """A handler is taken over only when somebody stands behind its slots."""
    return isinstance(linked.way, Adopted) and not linked.pool.shares()


def _lost(name: str) -> str:
    return (
        f"Caddy's configuration no longer has our route of {name}: somebody reloaded or changed it, and the slots "
        "steer nothing now. Restart trafficd to have the route written again, or set "
        f"services.{name}.restore = true"
    )
