"""How WebSocket connections end: cut and closed are told apart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve

from loadtest.model import PlanError
from loadtest.websocket import Ending, WebSocketPlan, hold
from tests.loadtest.servers import free_port


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
async def serving(handler: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        host, port = next(iter(server.sockets)).getsockname()[:2]
        yield f"ws://{host}:{port}/"


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


async def test_nothing_listens() -> None:
    plan = WebSocketPlan(f"ws://127.0.0.1:{free_port()}/", connections=2, reopen=None)
    report = await hold(plan, stop=asyncio.Event())
    assert (report.opened, report.failed, report.cut) == (0, 2, 0)
    assert sum(report.examples.values()) == 2


def test_plans_that_cannot_be_run() -> None:
    for url, connections in (("http://a/", 1), ("ws://", 1), ("ws://a/", 0)):
        with pytest.raises(PlanError):
            WebSocketPlan(url, connections=connections)
