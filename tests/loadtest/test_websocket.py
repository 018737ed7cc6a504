"""How WebSocket connections end: cut and closed are told apart."""

from __future__ import annotations

import asyncio
import socket as sockets
import ssl
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from loadtest.model import PlanError
from loadtest.websocket import Ending, WebSocketPlan, WebSocketReport, hold
from tests.loadtest.servers import free_port
from tests.tls import server_context


async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(message)


async def echo_twice_then_close(socket: ServerConnection) -> None:
    for _ in range(2):
        await socket.send(await socket.recv())
    await socket.close(1001, "going away")


async def echo_twice_then_cut(socket: ServerConnection) -> None:
    for _ in range(2):
        await socket.send(await socket.recv())
    await asyncio.sleep(0.01)
    socket.transport.abort()


@asynccontextmanager
async def serving(
    handler: Callable[[ServerConnection], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    options = {"compression": None, "backlog": 512, "close_timeout": 0.1}
    async with serve(handler, "127.0.0.1", 0, ssl=tls, **options) as server:  # type: ignore[arg-type]
        host, port = next(iter(server.sockets)).getsockname()[:2]
        yield f"{'ws' if tls is None else 'wss'}://{host}:{port}/"


def stop_after(seconds: float) -> asyncio.Event:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return stop


@pytest.mark.parametrize("message", ["hello", None], ids=["echo", "ping"])
async def test_held_to_the_end(message: str | None) -> None:
    async with serving(echo) as url:
        plan = WebSocketPlan(url, connections=5, interval=0.02, message=message)
        report = await hold(plan, stop=stop_after(0.3))
    assert (report.opened, report.failed, report.cut, report.closed) == (5, 0, 0, 0)
    assert report.sent == report.echoed > 20


async def test_close_frame_is_no_cut() -> None:
    async with serving(echo_twice_then_close) as url:
        plan = WebSocketPlan(url, connections=5, interval=0.02, reopen=None)
        report = await hold(plan, stop=stop_after(2))
    assert (report.opened, report.cut, report.closed) == (5, 0, 5)
    assert report.echoed == 10


async def test_end_without_a_close_frame_is_a_cut() -> None:
    cuts: list[Ending] = []
    started = time.monotonic_ns()
    async with serving(echo_twice_then_cut) as url:
        plan = WebSocketPlan(url, connections=5, interval=0.02, reopen=None)
        report = await hold(plan, stop=stop_after(2), on_cut=cuts.append)
    assert (report.opened, report.cut, report.closed) == (5, 5, 0)
    assert report.cuts == cuts
    assert all(started < cut.at_ns < time.monotonic_ns() for cut in cuts)
    assert {cut.connection for cut in cuts} == set(range(5))


async def test_ended_connections_are_opened_again() -> None:
    async with serving(echo_twice_then_close) as url:
        plan = WebSocketPlan(url, connections=1, interval=0.01, reopen=0.01)
        report = await hold(plan, stop=stop_after(0.5))
    assert report.opened > 3
    assert report.opened - 1 <= report.closed <= report.opened


async def test_cut_is_seen_between_messages() -> None:
    async def cut_at_once(socket: ServerConnection) -> None:
        await socket.recv()
        socket.transport.abort()

    async with serving(cut_at_once) as url:
        started = time.monotonic()
        report = await hold(WebSocketPlan(url, connections=1, interval=30, reopen=None), stop=asyncio.Event())
    assert report.cut == 1
    assert (report.sent, report.echoed) == (1, 0)
    assert time.monotonic() - started < 2


def reset(socket: ServerConnection) -> None:
    """End it with RST in place of FIN."""
    end: sockets.socket = socket.transport.get_extra_info("socket")
    end.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    socket.transport.abort()


async def test_reset_is_a_cut() -> None:
    async def answer_then_reset(socket: ServerConnection) -> None:
        await socket.send(await socket.recv())
        reset(socket)

    async with serving(answer_then_reset) as url:
        plan = WebSocketPlan(url, connections=4, interval=0.02, reopen=None)
        report = await hold(plan, stop=asyncio.Event())
    assert (report.opened, report.cut, report.closed) == (4, 4, 0)


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4000])
async def test_close_frame_with_any_code_is_no_cut(code: int) -> None:
    async def close(socket: ServerConnection) -> None:
        await socket.close(code, "reason")

    async with serving(close) as url:
        report = await hold(WebSocketPlan(url, connections=2, reopen=None), stop=asyncio.Event())
    assert (report.cut, report.closed) == (0, 2)
    assert all(str(code) in ending.detail for ending in report.closes)


@pytest.mark.parametrize("message", ["hello", None], ids=["echo", "ping"])
async def test_silent_death_is_a_cut_within_a_bounded_time(message: str | None) -> None:
    over = asyncio.Event()

    async def die(socket: ServerConnection) -> None:
        await socket.send(await socket.recv()) if message else None
        socket.transport.pause_reading()  # whatever the client sends stays unread, pings too
        await over.wait()
        socket.transport.abort()

    started = time.monotonic()
    async with asyncio.timeout(20), serving(die) as url:
        plan = WebSocketPlan(url, connections=3, interval=0.05, message=message, timeout=0.3, reopen=None)
        report = await hold(plan, stop=asyncio.Event())
        took = time.monotonic() - started
        over.set()
    assert (report.opened, report.cut, report.closed) == (3, 3, 0)
    assert all("ping timeout" in ending.detail for ending in report.cuts)
    assert 0.3 < took < 10


async def test_server_that_does_not_echo_is_not_dead() -> None:
    async def listen(socket: ServerConnection) -> None:
        async for _ in socket:
            pass

    async with serving(listen) as url:
        plan = WebSocketPlan(url, connections=2, interval=0.05, timeout=0.1)
        report = await hold(plan, stop=stop_after(0.5))
    assert (report.opened, report.cut, report.closed, report.echoed) == (2, 0, 0, 0)
    assert report.sent > 2


async def test_over_tls_with_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = tmp_path / "authority.pem"
    async with serving(echo_twice_then_cut, server_context("127.0.0.1", authority)) as url:
        plan = WebSocketPlan(url, connections=3, interval=0.02, reopen=None)
        distrusted = await hold(plan, stop=asyncio.Event())
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        trusted = await hold(plan, stop=asyncio.Event())
    assert (distrusted.opened, distrusted.failed) == (0, 3)
    assert all("certificate" in reason for reason in distrusted.examples)
    assert (trusted.opened, trusted.failed, trusted.cut, trusted.echoed) == (3, 0, 3, 6)


async def test_many_are_held_and_each_ending_is_told_apart() -> None:
    count = 500
    endings: Counter[str] = Counter()

    async def by_turns(socket: ServerConnection) -> None:
        number = sum(endings.values())
        endings["closed" if number % 5 == 0 else "reset" if number % 5 == 1 else "held"] += 1
        await socket.send(await socket.recv())
        if number % 5 == 0:
            await socket.close(1001)
        elif number % 5 == 1:
            reset(socket)
        else:
            await echo(socket)

    cuts: list[Ending] = []
    stop = asyncio.Event()

    def look(report: WebSocketReport) -> None:
        if report.opened == count and report.cut + report.closed == 2 * count // 5:
            asyncio.get_running_loop().call_later(0.4, stop.set)  # longer than the interval: those held talk on

    async with asyncio.timeout(60), serving(by_turns) as url:
        plan = WebSocketPlan(url, connections=count, interval=0.3, reopen=None, timeout=50)
        report = await hold(plan, stop=stop, on_cut=cuts.append, on_change=look)
    assert (report.opened, report.failed) == (count, 0)
    assert (report.closed, report.cut) == (endings["closed"], endings["reset"]) == (count // 5, count // 5)
    assert cuts == report.cuts
    assert len({ending.connection for ending in (*report.cuts, *report.closes)}) == 2 * count // 5
    assert report.echoed > count


async def test_nothing_listens() -> None:
    plan = WebSocketPlan(f"ws://127.0.0.1:{free_port()}/", connections=2, reopen=None)
    report = await hold(plan, stop=asyncio.Event())
    assert (report.opened, report.failed, report.cut) == (0, 2, 0)
    assert sum(report.examples.values()) == 2


def test_plans_that_cannot_be_run() -> None:
    for url, connections in (("http://a/", 1), ("ws://", 1), ("ws://a/", 0)):
        with pytest.raises(PlanError):
            WebSocketPlan(url, connections=connections)
