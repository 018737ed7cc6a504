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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from proxy.admin import Admin
from proxy.errors import ProxyError
from proxy.server import CaddyServer
from proxy.sites import Sites
from trafficd.api.app import build
from trafficd.api.guard import Guard, read_token
from trafficd.compose import Composer, check_files
from trafficd.config import Config, load
from trafficd.errors import ConfigError, ConflictError, ProxyUnavailableError, StateError, TrafficdError
from trafficd.link import Link
from trafficd.listen import inherited, tcp_socket, unix_socket
from trafficd.preview import Preview, caddyfile, preview
from trafficd.reload import refusals
from trafficd.report.shelf import Shelf
from trafficd.retention import keep_short
from trafficd.store.sqlite import SqliteJournal, StateLock
from trafficd.verify.verifier import Verifier
from trafficd.ways import ports_in, slots_root

log = logging.getLogger("trafficd.daemon")

_GRACE = 2.0  # s that API requests under way have when the daemon stops


@dataclass
class Daemon:
    """One daemon on one state directory."""

    config: Config
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    stop_caddy: bool = False
    path: str | None = None  # where the configuration was read from
    again: bool = False  # whether to be started again in place
    sockets: dict[str, socket.socket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state, caddy = self.config.daemon.state_dir, self.config.caddy
        self._lock = StateLock(state)
        self._journal = SqliteJournal(state / "journal.sqlite")
        self._admin = Admin(caddy.admin, timeout=caddy.timeout)
        self._sites = Sites(self._admin, state / "sites.json")
        self._caddy = CaddyServer(state / "caddy", caddy.admin) if caddy.managed else None
        self._link = Link(self._admin, slots_root(self.config), caddy.slots_path, self._caddy, self._sites)
        self._link.taken = ports_in(self.config)
        self._composer = Composer(self.config, self._admin, self._journal, self._link)
        self._verifier = Verifier(self._composer.operators, self._journal)
        self._shelf = Shelf(state / "reports")

    async def run(self) -> None:
        """Run until `stop` is called. Raises `TrafficdError` or `ProxyError` when it cannot start."""
        async with contextlib.AsyncExitStack() as stack:
            check_files(self.config)
            guard = self._guard()
            self._open_state()
            stack.callback(self._lock.release)
            # Before anything is written anywhere: where another daemon listens, it is that one's Caddy too.
            self._listen(inherited(os.environ))
            await self._journal.open()
            stack.push_async_callback(self._journal.close)
            stack.push_async_callback(self._admin.aclose)
            stack.push_async_callback(self._leave_caddy)
            starting = asyncio.create_task(self._start_caddy())
            stack.push_async_callback(_cancel, [starting])
            await self._composer.prepare()  # meanwhile
            await starting
            await self._composer.open()
            stack.push_async_callback(self._composer.close)
            linking = asyncio.create_task(self._link.run())
            stack.push_async_callback(_cancel, [linking])
            await self._tied(linking)
            stack.push_async_callback(self._verifier.aclose)
            await self._recover()
            if self.config.caddy.access_log is not None:
                from trafficd.canary.analyst import Analyst  # most daemons judge nothing

                analyst = Analyst(Path(self.config.caddy.access_log), self._composer.operators, self._shelf)
                stack.push_async_callback(_cancel, [asyncio.create_task(analyst.run())])
            engines, retention = self._composer.engines.values(), self.config.daemon.retention
            keeping = keep_short(engines, self._journal, retention, self._shelf.forget)
            stack.push_async_callback(_cancel, [asyncio.create_task(keeping)])
            runner = await self._serve(guard)
            stack.push_async_callback(runner.cleanup)
            await self._until_stopped(linking)

    def reload(self) -> None:
        """Take up a changed configuration: end, to be started again in place.

        Raises `ConfigError` when it cannot be used, `ConflictError` when it must not be now.
        """
        if self.path is None:
            raise ConflictError("this daemon was started without a configuration file")
        wanted = load(self.path)
        check_files(wanted, _token_faults(wanted))
        engines = self._composer.engines
        live = {name: engine.state.live.id for name, engine in engines.items() if engine.state.live is not None}
        left = {name for name, engine in engines.items() if engine.state.left}
        refused = refusals(self.config, wanted, live, left)
        refused += [
            f"verification {name} of {service} is live: wait for its end"
            for service, name in self._verifier.live.items()
        ]
        if refused:
            raise ConflictError("; ".join(refused))
        log.info("%s is taken up", self.path)
        self.again = True
        self.stopping.set()

    async def preview(self) -> Preview:
        """What a reload, or a start, would write into Caddy's configuration now. Raises `TrafficdError`."""
        wanted = self.config if self.path is None else load(self.path)
        left = frozenset(name for name, engine in self._composer.engines.items() if engine.state.left)
        try:
            return await preview(wanted, self._admin, left, await self._journal.services())
        except ProxyError as error:
            raise ProxyUnavailableError(str(error)) from error

    def caddyfile(self, service: str) -> str:
        """The snippet for a Caddyfile. Raises `TrafficdError`."""
        try:
            return caddyfile(self.config, service)
        except ProxyError as error:
            raise ConflictError(str(error)) from error

    def stop(self, *, with_caddy: bool = False) -> None:
        """End `run`. A Caddy of our own serves on unless `with_caddy`."""
        self.stop_caddy = self.stop_caddy or with_caddy
        self.stopping.set()

    async def _recover(self) -> None:
        """Finish up verifications that an earlier daemon was ended in the midst of; what cannot be now is no reason not
        to serve."""
        try:
            await self._verifier.recover()
        except TrafficdError as error:
            log.error("interrupted verifications: %s", error)

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
        self._make_log_directory()

    def _make_log_directory(self) -> None:
        """Caddy would make it for itself alone, and we could not read what it writes there."""
        log_file = self.config.caddy.access_log
        if log_file is None or Path(log_file).parent.exists():
            return
        try:
            Path(log_file).parent.mkdir(parents=True, mode=0o755)
        except OSError as error:
            raise StateError(
                f"caddy.access_log: {Path(log_file).parent} cannot be made: {error.strerror}; make it, so that Caddy's "
                "user may write there and trafficd's user may read"
            ) from error

    # -- Caddy -----------------------------------------------------------------------------------------

    async def _start_caddy(self) -> None:
        if self._caddy is not None:
            how = "started" if await self._caddy.start() else "runs already"
            log.info("our Caddy %s, admin API at %s", how, self._caddy.admin_url)

    async def _leave_caddy(self) -> None:
        if self._caddy is not None and self.stop_caddy:
            await self._caddy.stop()
            log.info("our Caddy is stopped")

    async def _tied(self, linking: asyncio.Task[None]) -> None:
        """Return after the first attempt to reach Caddy, so that what is fatal is known before we serve."""
        waits = [asyncio.create_task(event.wait()) for event in (self._link.tried, self.stopping)]
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

    def _guard(self) -> Guard | None:
        section = self.config.daemon
        if section.listen is None or section.token_file is None:
            return None
        return Guard(read_token(section.token_file), section.allowed_hosts, section.allowed_origins)

    async def _serve(self, guard: Guard | None) -> web.AppRunner:
        log_file = self.config.caddy.access_log
        app = build(
            self._composer.operators,
            self._journal,
            guard,
            self,
            self._sites,
            self._verifier,
            None if log_file is None else Path(log_file),
            self._shelf,
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE, handler_cancellation=False)
        await runner.setup()
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


def _token_faults(config: Config) -> list[str]:
    try:
        if config.daemon.token_file is not None:
            read_token(config.daemon.token_file)
    except ConfigError as error:
        return [str(error)]
    return []


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
    _on_hangup(loop, daemon)
    await daemon.run()
    if daemon.again and not daemon.stop_caddy:
        return daemon.sockets
    for listener in daemon.sockets.values():
        listener.close()
    return None


def _on_hangup(loop: asyncio.AbstractEventLoop, daemon: Daemon) -> None:
    """Reload at SIGHUP. Not by the loop's own handlers: those end with the loop, and the next SIGHUP would then end
    the process that is just about to begin anew."""

    def reload(*_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the next life reads the file anyway
            loop.call_soon_threadsafe(_reload, daemon)

    signal.signal(signal.SIGHUP, reload)
    # It was blocked over the exec, so that one that came meanwhile is not lost.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _reload(daemon: Daemon) -> None:
    try:
        daemon.reload()
    except TrafficdError as error:
        log.error("not reloaded, the configuration stays as it was: %s", error)
