"""Holds WebSocket connections open, talks over them, and tells apart how each of them ended.

`cut`: it ended without a close frame from the server, or the server no longer answers pings, as happens when a host
or a route dies in silence. `closed`: the server sent a close frame. What we close ourselves at the end of the run is
neither.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from loadtest.dial import tls_context
from loadtest.model import PlanError


@dataclass(frozen=True)
class WebSocketPlan:
    """`connections` connections to one URL, held until the run is stopped. Times in seconds."""

    url: str  # ws:// or wss://
    connections: int = 10
    interval: float = 1.0  # between the messages of one connection
    message: str | None = "loadtest"  # sent with a number, an echo expected; None: pings
    timeout: float = 10.0  # of opening, of answers to pings, and of the last echoes at the end
    reopen: float | None = 0.2  # until an ended or refused connection is tried again; None: never
    verify_tls: bool = True
    dial: tuple[str, int] | None = None  # connect here instead of to the URL's host and port
    headers: tuple[tuple[str, str], ...] = ()
    authorities: str | None = None  # as in a Plan

    def __post_init__(self) -> None:
        """Raises PlanError."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise PlanError(f"URL {self.url!r} must begin with ws:// or wss:// and a host")
        if self.connections < 1 or self.interval <= 0 or self.timeout <= 0:
            raise PlanError("connections, interval and time-out must be over 0")


class Ending(NamedTuple):
    """How one connection ended that we did not close."""

    connection: int  # its number, from 0, in order of opening
    at_ns: int  # of the monotonic clock (time.monotonic_ns)
    detail: str


@dataclass
class WebSocketReport:
    opened: int = 0
    failed: int = 0  # attempts to open
    sent: int = 0
    echoed: int = 0
    cuts: list[Ending] = field(default_factory=list)
    closes: list[Ending] = field(default_factory=list)
    examples: dict[str, int] = field(default_factory=dict)  # why opening failed, and how often

    @property
    def cut(self) -> int:
        return len(self.cuts)

    @property
    def closed(self) -> int:
        return len(self.closes)


async def hold(
    plan: WebSocketPlan,
    *,
    stop: asyncio.Event,
    on_cut: Callable[[Ending], None] | None = None,
    on_change: Callable[[WebSocketReport], None] | None = None,
) -> WebSocketReport:
    """Hold the connections until `stop` is set, then wait for the last echoes and close them.

    `on_change` is called with the report so far when a connection was opened, could not be, or has ended.
    """
    holder = _Holder(plan, stop, on_cut, on_change)
    async with asyncio.TaskGroup() as group:
        for _ in range(plan.connections):
            group.create_task(holder.keep_open())
    return holder.report


class _Waiting:
    """The messages of one connection that are not answered yet."""

    def __init__(self) -> None:
        self.settled = asyncio.Event()  # there are none
        self.settled.set()
        self._tokens: set[str] = set()

    def add(self, token: str) -> None:
        self._tokens.add(token)
        self.settled.clear()

    def answered(self, token: str) -> bool:
        """Whether it was one of them."""
        if token not in self._tokens:
            return False
        self._tokens.discard(token)
        if not self._tokens:
            self.settled.set()
        return True


class _Holder:
    def __init__(
        self,
        plan: WebSocketPlan,
        stop: asyncio.Event,
        on_cut: Callable[[Ending], None] | None,
        on_change: Callable[[WebSocketReport], None] | None,
    ) -> None:
        self.report = WebSocketReport()
        self._plan = plan
        self._stop = stop
        self._on_cut = on_cut
        self._on_change = on_change
        secure = urlsplit(plan.url).scheme == "wss"
        self._tls: ssl.SSLContext | None = (
            tls_context(verify=plan.verify_tls, authorities=plan.authorities) if secure else None
        )

    async def keep_open(self) -> None:
        while not self._stop.is_set():
            try:
                socket = await self._open()
            except (OSError, WebSocketException) as error:
                self._failed(error)
            else:
                await self._hold(socket)
            if self._plan.reopen is None:
                return
            await self._stopped_within(self._plan.reopen)

    async def _open(self) -> ClientConnection:
        dial = self._plan.dial
        where: dict[str, Any] = {} if dial is None else {"host": dial[0], "port": dial[1]}
        return await connect(
            self._plan.url,
            additional_headers=list(self._plan.headers),
            ssl=self._tls,
            proxy=None,
            compression=None,
            open_timeout=self._plan.timeout,
            close_timeout=min(1, self._plan.timeout),
            max_size=None,  # or a large message would have us end the connection
            ping_interval=self._plan.timeout / 2,  # so that silence is noticed, whether echoes are due or not
            ping_timeout=self._plan.timeout,
            **where,
        )

    def _failed(self, error: Exception) -> None:
        self.report.failed += 1
        detail = str(error) or type(error).__name__
        self.report.examples[detail] = self.report.examples.get(detail, 0) + 1
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self.report)

    async def _hold(self, socket: ClientConnection) -> None:
        number = self.report.opened
        self.report.opened += 1
        self._changed()
        waiting = _Waiting()
        reader = asyncio.create_task(self._read(socket, waiting))
        try:
            await self._talk(socket, waiting, reader)
            ended = await reader if reader.done() else None
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await socket.close()
        if ended is not None:
            self._ended(number, ended)

    async def _read(self, socket: ClientConnection, waiting: _Waiting) -> ConnectionClosed:
        """Take in what comes until the connection ends; returns how it did."""
        while True:
            try:
                message = await socket.recv()
            except ConnectionClosed as ended:
                return ended
            if isinstance(message, str) and waiting.answered(message):
                self.report.echoed += 1

    async def _talk(self, socket: ClientConnection, waiting: _Waiting, reader: asyncio.Task[ConnectionClosed]) -> None:
        """Send at every interval until the run is stopped or the connection ends."""
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while not (reader.done() or stopped.done()):
                try:
                    await self._send(socket, waiting)
                except ConnectionClosed:  # the reader says how it ended
                    await reader
                    return
                await asyncio.wait((reader, stopped), timeout=self._plan.interval, return_when=asyncio.FIRST_COMPLETED)
            await self._await_echoes(waiting, reader)
        finally:
            stopped.cancel()

    async def _send(self, socket: ClientConnection, waiting: _Waiting) -> None:
        token = f"{self._plan.message or 'ping'} {self.report.sent}"
        if self._plan.message is None:
            pong = await socket.ping(token)
            waiting.add(token)
            pong.add_done_callback(lambda done: self._pong(done, token, waiting))  # type: ignore[attr-defined]
        else:
            waiting.add(token)
            await socket.send(token)
        self.report.sent += 1

    def _pong(self, done: asyncio.Future[float], token: str, waiting: _Waiting) -> None:
        if waiting.answered(token) and not done.cancelled() and done.exception() is None:
            self.report.echoed += 1

    async def _await_echoes(self, waiting: _Waiting, reader: asyncio.Task[ConnectionClosed]) -> None:
        settled = asyncio.create_task(waiting.settled.wait())
        await asyncio.wait((reader, settled), timeout=self._plan.timeout, return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()

    def _ended(self, number: int, ended: ConnectionClosed) -> None:
        ending = Ending(number, time.monotonic_ns(), str(ended))
        if ended.rcvd is not None:
            self.report.closes.append(ending)
        else:
            self.report.cuts.append(ending)
            if self._on_cut is not None:
                self._on_cut(ending)
        self._changed()

    async def _stopped_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass
