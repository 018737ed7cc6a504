"""The composition root: from a configuration to a running daemon.

Order of the start: lock the state directory, open the journal, start a Caddy of our own if so configured,
mend the slots, fold the journal, decide and route, and only then show the routes to Caddy and the API to
people. Nothing of this is on the request path: while the daemon starts, hangs or is gone, Caddy serves by the
slots as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from proxy.admin import Admin
from proxy.admin_pool import AdminPool
from proxy.errors import ProxyError
from proxy.handler import Route, Transport
from proxy.install import prepare_root
from proxy.pools import OpenCounts, SlotPool
from proxy.server import CaddyServer
from proxy.slots import SlotDirectory
from trafficd.api.app import build
from trafficd.api.guard import Guard, read_token
from trafficd.config import Config, ServiceSection, load
from trafficd.core.reconcile import Configured, reconcile
from trafficd.engine import Engine, Parts
from trafficd.errors import ConfigError, ConflictError, StateError, TrafficdError
from trafficd.health.probe import Check, HttpProbe
from trafficd.link import Link, Linked
from trafficd.listen import inherited, tcp_socket, unix_socket
from trafficd.operate import Operator
from trafficd.ports import Driver, Pool
from trafficd.reload import refusals
from trafficd.retention import keep_short
from trafficd.store.sqlite import SqliteJournal, StateLock
from trafficd.swap.command import CommandDriver
from trafficd.swap.external import ExternalDriver
from trafficd.swap.hooks import Hooks
from trafficd.swap.process import CommandRunner

log = logging.getLogger("trafficd.daemon")

_GRACE = 2.0  # s that API requests under way have when the daemon stops


@dataclass
class Daemon:
    """One daemon on one state directory."""

    config: Config
    engines: dict[str, Engine] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    stop_caddy: bool = False
    path: str | None = None  # where the configuration was read from
    again: bool = False  # whether to be started again in place
    sockets: dict[str, socket.socket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state = self.config.daemon.state_dir
        self._lock = StateLock(state)
        self._journal = SqliteJournal(state / "journal.sqlite")
        self._admin = Admin(self.config.caddy.admin, timeout=self.config.caddy.timeout)
        self._counts = OpenCounts(self._admin)
        self._runner = CommandRunner(state / "commands")
        self._external = ExternalDriver()
        self._caddy: CaddyServer | None = None
        if self.config.caddy.managed:
            self._caddy = CaddyServer(state / "caddy", self.config.caddy.admin)
        self._pools: dict[str, SlotPool | AdminPool] = {}
        self._probes: list[HttpProbe] = []
        self._operators: dict[str, Operator] = {}

    async def run(self) -> None:
        """Run until `stop` is called. Raises `TrafficdError` or `ProxyError` when it cannot start."""
        async with contextlib.AsyncExitStack() as stack:
            self._open_state()
            stack.callback(self._lock.release)
            await self._journal.open()
            stack.push_async_callback(self._journal.close)
            stack.push_async_callback(self._admin.aclose)
            if self._caddy is not None:
                started = await self._caddy.start()
                log.info(
                    "our Caddy %s, admin API at %s", "started" if started else "runs already", self._caddy.admin_url
                )
                stack.push_async_callback(self._leave_caddy)
            await self._open_services()
            stack.push_async_callback(self._close_services)
            link = self._link()
            linking = asyncio.create_task(link.run())
            stack.push_async_callback(_cancel, [linking])
            await self._tied(link, linking)
            keeping = keep_short(self.engines.values(), self._journal, self.config.daemon.retention)
            stack.push_async_callback(_cancel, [asyncio.create_task(keeping)])
            runner = await self._serve()
            stack.push_async_callback(runner.cleanup)
            await self._until_stopped(linking)

    def reload(self) -> None:
        """Take up a changed configuration: end, to be started again in place.

        Raises `ConfigError` when it cannot be used, `ConflictError` when it must not be now.
        """
        if self.path is None:
            raise ConflictError("this daemon was started without a configuration file")
        wanted = load(self.path)
        live = {name: engine.state.live.id for name, engine in self.engines.items() if engine.state.live is not None}
        refused = refusals(self.config, wanted, live)
        if refused:
            raise ConflictError("; ".join(refused))
        log.info("%s is taken up", self.path)
        self.again = True
        self.stopping.set()

    def stop(self, *, with_caddy: bool = False) -> None:
        """End `run`. A Caddy of our own serves on unless `with_caddy`."""
        self.stop_caddy = self.stop_caddy or with_caddy
        self.stopping.set()

    # -- parts -----------------------------------------------------------------------------------------

    def _open_state(self) -> None:
        state = self.config.daemon.state_dir
        try:
            state.mkdir(parents=True, exist_ok=True)
            state.chmod(state.stat().st_mode | 0o011)  # Caddy's user passes through it to the slots
            (state / "journal.sqlite").touch(mode=0o600)
        except OSError as error:
            raise StateError(
                f"state_dir {state} cannot be used: {error.strerror}; make it, owned by trafficd's user"
            ) from error
        self._lock.acquire()

    async def _open_services(self) -> None:
        root = self._slots_root
        directories = {
            name: SlotDirectory(root, name, section.slots)
            for name, section in self.config.services.items()
            if section.control == "slots"
        }
        for note in await asyncio.to_thread(prepare_root, root, list(directories.values())):
            log.warning("slots: %s", note)
        for name, section in self.config.services.items():
            route = route_of(name, section, root)
            pool = await self._pool(route, directories.get(name))
            self._pools[name] = pool
            engine = Engine(name, self._parts(name, section, pool))
            await engine.load()
            await self._reconcile(engine, section)
            self.engines[name] = engine
            self._operators[name] = Operator(engine, section, self._external.replaced)
            engine.start()

    async def _pool(self, route: Route, directory: SlotDirectory | None) -> SlotPool | AdminPool:
        if directory is not None:
            slots = SlotPool(directory, self._counts, split_streams=route.splits_streams)
            await slots.open()
            return slots
        pool = AdminPool(self._admin, route, self._counts)
        log.warning("%s: %s", route.service, pool.cost)
        try:
            await pool.open()
        except ProxyError as error:
            log.error("%s: what has traffic now is not known: %s", route.service, error)
        return pool

    async def _reconcile(self, engine: Engine, section: ServiceSection) -> None:
        past = [entry.event for entry in await self._journal.load(engine.name)]
        wanted = [Configured(u.id, u.dial, u.version, u.spare_dial) for u in section.upstreams]
        changes = reconcile(engine.state, past, wanted)
        for note in changes.notes:
            log.warning("%s: %s", engine.name, note)
        for event in changes.events:
            await engine.record(event)

    def _parts(self, name: str, section: ServiceSection, pool: Pool) -> Parts:
        probe = HttpProbe(_check(section), verify=_verify(name, section))
        self._probes.append(probe)
        return Parts(
            pool=pool,
            driver=self._driver(section),
            probe=probe,
            hook=Hooks(self._runner, name, section.hooks.argv, section.hooks.timeout),
            journal=self._journal,
            interval=section.health.interval,
            rise=section.health.rise,
            fall=section.health.fall,
            min_healthy_time=section.rollout.min_healthy_time,
            healthy_deadline=section.rollout.healthy_deadline,
            terms=section.terms,
        )

    def _driver(self, section: ServiceSection) -> Driver:
        if section.swap.driver == "external":
            return self._external
        argv = {"swap": section.swap.command, "prepare": section.swap.prepare, "retire": section.swap.retire}
        return CommandDriver(self._runner, argv.get)

    @property
    def _slots_root(self) -> Path:
        return self.config.daemon.state_dir.absolute() / "slots"

    async def _close_services(self) -> None:
        self._runner.leave()  # commands go on; the next daemon finds them
        for engine in self.engines.values():
            await engine.stop()
        for pool in self._pools.values():
            await pool.aclose()
        for probe in self._probes:
            await probe.aclose()

    # -- Caddy -----------------------------------------------------------------------------------------

    def _link(self) -> Link:
        """What keeps our routes in Caddy."""
        root = self._slots_root
        services = {
            name: Linked(
                route_of(name, section, root), section.restore, self.engines[name], _admin_pool(self._pools[name])
            )
            for name, section in self.config.services.items()
        }
        elsewhere = [section.slots_path for section in self.config.services.values() if section.slots_path]
        return Link(self._admin, services, root, elsewhere[0] if elsewhere else None, self._caddy)

    async def _leave_caddy(self) -> None:
        if self._caddy is not None and self.stop_caddy:
            await self._caddy.stop()
            log.info("our Caddy is stopped")

    async def _tied(self, link: Link, linking: asyncio.Task[None]) -> None:
        """Return after the first attempt to reach Caddy, so that what is fatal is known before we serve."""
        waits = [asyncio.create_task(event.wait()) for event in (link.tried, self.stopping)]
        await asyncio.wait((linking, *waits), return_when=asyncio.FIRST_COMPLETED)
        await _cancel(waits)
        await asyncio.sleep(0)
        if linking.done():
            linking.result()

    async def _until_stopped(self, linking: asyncio.Task[None]) -> None:
        stopped = asyncio.create_task(self.stopping.wait())
        await asyncio.wait((linking, stopped), return_when=asyncio.FIRST_COMPLETED)
        await _cancel([stopped])
        if linking.done():
            linking.result()  # what is fatal ends the daemon

    # -- the API ---------------------------------------------------------------------------------------

    async def _serve(self) -> web.AppRunner:
        section = self.config.daemon
        guard = None
        if section.listen is not None and section.token_file is not None:
            guard = Guard(read_token(section.token_file), section.allowed_hosts, section.allowed_origins)
        app = build(self._operators, self._journal, guard, self.reload)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE, handler_cancellation=False)
        await runner.setup()
        try:
            self._listen(inherited(os.environ))
        except TrafficdError:
            await runner.cleanup()
            raise
        for place, listener in self.sockets.items():
            # A copy: the site closes what it is given, and the next life of the daemon wants the socket.
            await web.SockSite(runner, listener.dup()).start()
            log.info("listening on %s", place)
        return runner

    def _listen(self, found: dict[str, socket.socket]) -> None:
        section = self.config.daemon
        if section.socket is not None:
            place = str(section.socket)
            self.sockets[place] = found.pop(place) if place in found else unix_socket(section.socket)
        if section.listen is not None:
            place = section.listen
            self.sockets[place] = found.pop(place) if place in found else tcp_socket(place)
        for forgotten in found.values():
            forgotten.close()


def _admin_pool(pool: SlotPool | AdminPool) -> AdminPool | None:
    return pool if isinstance(pool, AdminPool) else None


def route_of(name: str, section: ServiceSection, root: Path) -> Route:
    """A service's route in Caddy."""
    transport = section.transport
    return Route(
        service=name,
        slots_path=f"{section.slots_path or root}/{name}/current",
        slots=section.slots,
        hosts=tuple(section.hosts),
        listen=tuple(section.listen),
        tls=section.tls_mode,
        affinity=section.affinity,
        try_duration=section.try_duration,
        try_interval=section.try_interval,
        stream_close_delay=section.stream_close_delay,
        transport=Transport(
            tls=transport.tls,
            server_name=transport.tls_server_name,
            insecure=transport.tls_insecure,
            ca=str(transport.tls_ca) if transport.tls_ca else None,
            h2c=transport.h2c,
            dial_timeout=transport.dial_timeout,
            response_header_timeout=transport.response_header_timeout,
            read_timeout=transport.read_timeout,
            write_timeout=transport.write_timeout,
            keepalive=transport.keepalive,
        ),
    )


def _check(section: ServiceSection) -> Check:
    health = section.health
    return Check(
        path=health.path,
        host=health.host or (section.hosts[0] if section.hosts and "*" not in section.hosts[0] else None),
        headers=health.headers,
        status=frozenset(health.status),
        timeout=health.timeout,
        tls=section.transport.tls,
        server_name=section.transport.tls_server_name,
    )


def _verify(name: str, section: ServiceSection) -> ssl.SSLContext | bool:
    if not section.transport.tls or section.transport.tls_insecure:
        return False
    try:
        return ssl.create_default_context(cafile=section.transport.tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"services.{name}.transport.tls_ca: {section.transport.tls_ca}: {error}") from error


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run(config: Config, path: str) -> dict[str, socket.socket] | None:
    """Run a daemon until SIGTERM (a Caddy of our own serves on) or SIGINT (it ends too).

    After a reload (SIGHUP, or asked for by the API): the sockets for the next life of the process.
    """
    daemon = Daemon(config, path=path)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, daemon.stop)
    loop.add_signal_handler(signal.SIGINT, lambda: daemon.stop(with_caddy=True))
    loop.add_signal_handler(signal.SIGHUP, _reload, daemon)
    await daemon.run()
    if daemon.again and not daemon.stop_caddy:
        return daemon.sockets
    for listener in daemon.sockets.values():
        listener.close()
    return None


def _reload(daemon: Daemon) -> None:
    try:
        daemon.reload()
    except TrafficdError as error:
        log.error("not reloaded, the configuration stays as it was: %s", error)
