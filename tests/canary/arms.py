"""Instances that fail in ways of their own, and users at many addresses who ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

P99 = 4.605  # of an exponential distribution, in means
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@dataclass
class Instance:
    """Answers `/healthz` 200 always, and everything else by `mode`: "ok", "errors" (500, so often), "hang", "truncate",
    "slow" (0.3 s), "tail" (so often three times `pace`'s p99).

    `pace` (s) is the mean time of an answer, exponentially distributed; 0: at once.
    """

    mode: str = "ok"
    rate: float = 1.0  # of what is done by the mode; the rest is answered well
    seed: int = 7
    pace: float = 0.0
    seen: int = 0  # requests, health checks left out
    last_at: float = 0.0  # when the last of them came, by the loop's clock
    dial: str = ""
    _chance: random.Random = field(init=False)
    _server: asyncio.Server | None = None
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _connections: set[_Connection] = field(default_factory=set)
    _stopped: bool = False

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self._connections, self._serve), "127.0.0.1", 0)
        self.dial = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Nothing is left of it afterwards, also of connections that were accepted just now."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0.01)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        while self._connections:
            for connection in tuple(self._connections):
                connection.abort()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not self._stopped and await self._request(reader, writer):
                    pass
        finally:
            if self.mode == "hang" or self._stopped:
                writer.transport.abort()
            else:
                writer.close()  # what was written goes out first

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        mode = "ok"
        if not head.startswith(b"GET /healthz"):
            self.seen += 1
            self.last_at = asyncio.get_running_loop().time()
            if self._chance.random() < self.rate:
                mode = self.mode
        match mode:
            case "errors":
                writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
            case "hang":
                await asyncio.sleep(60)
            case "truncate":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello")
                await writer.drain()
                return False
            case "tail":
                await asyncio.sleep(3 * P99 * self.pace)
                writer.write(ANSWER)
            case "slow":
                await asyncio.sleep(0.3)
                writer.write(ANSWER)
            case _:
                if self.pace and not head.startswith(b"GET /healthz"):
                    await asyncio.sleep(self._chance.expovariate(1 / self.pace))
                writer.write(ANSWER)
        await writer.drain()
        return True


class _Connection(asyncio.StreamReaderProtocol):
    """One that is known from the moment in which it is made, and not only when its task has begun, until it is gone."""

    def __init__(self, known: set[_Connection], serve: Serve) -> None:
        super().__init__(asyncio.StreamReader(), serve)
        self._known = known
        self._made: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made = transport
        self._known.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._known.discard(self)

    def abort(self) -> None:
        cast(asyncio.Transport, self._made).abort()


@contextlib.asynccontextmanager
async def users(port: int, *, count: int = 50, rate: float = 200.0) -> AsyncIterator[Counter[str]]:
    """So many users, each at an address of its own, who ask for `rate` pages a second together; the answers by status,
    "lost" where there was none."""
    answers: Counter[str] = Counter()
    asking: set[asyncio.Task[None]] = set()
    visiting = [asyncio.create_task(_user(port, number, count / rate, answers, asking)) for number in range(count)]
    try:
        yield answers
    finally:
        for task in (*visiting, *asking):
            task.cancel()
        await asyncio.gather(*visiting, *asking, return_exceptions=True)
        await asyncio.sleep(0)


async def _user(port: int, number: int, pause: float, answers: Counter[str], asking: set[asyncio.Task[None]]) -> None:
    chance = random.Random(number)
    source = (f"127.1.{number // 200}.{number % 200 + 1}", 0)
    await asyncio.sleep(pause * chance.random())
    while True:
        asked = asyncio.create_task(_ask(port, source, answers))
        asking.add(asked)
        asked.add_done_callback(asking.discard)
        await asyncio.sleep(pause * (0.5 + chance.random()))


async def _ask(port: int, source: tuple[str, int], answers: Counter[str]) -> None:
    said = b""
    with contextlib.suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=source)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            said = await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.transport.abort()
    answers[said[9:12].decode() or "lost"] += 1
