"""WebSockets that are held in a process of their own."""

from __future__ import annotations

import asyncio

import pytest
from websockets.asyncio.server import ServerConnection, serve

from loadtest.holder import Cut, HolderError, hold_apart
from loadtest.websocket import WebSocketPlan, WebSocketReport


async def test_what_is_opened_cut_and_refused_is_told_as_it_happens() -> None:
    connections: list[ServerConnection] = []

    async def echo(connection: ServerConnection) -> None:
        connections.append(connection)
        async for message in connection:
            await connection.send(message)

    cuts: list[Cut] = []
    told: list[list[WebSocketReport]] = []
    stop = asyncio.Event()
    async with serve(echo, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        plans = [
            WebSocketPlan(f"ws://127.0.0.1:{port}/", connections=2, interval=0.02, message=None),
            WebSocketPlan("ws://127.0.0.1:9/", connections=1, interval=0.02),
        ]
        holding = asyncio.create_task(hold_apart(plans, stop=stop, on_cut=cuts.append, on_progress=told.append))
        async with asyncio.timeout(20):
            while len(connections) < 2 or not told or not told[-1][1].failed:
                await asyncio.sleep(0.01)
            connections[0].transport.abort()
            while not cuts or len(connections) < 3:
                await asyncio.sleep(0.01)
            stop.set()
            first, second = await holding
    assert (first.opened, first.cut, first.failed) == (3, 1, 0)
    assert 0 < first.echoed <= first.sent <= first.echoed + first.cut  # a ping may have met the cut
    assert (second.opened, second.failed > 0) == (0, True)
    (cut,) = cuts
    assert (cut.plan, cut.detail) == (0, first.cuts[0].detail)
    assert told[-1] == [first, second]


async def test_a_process_that_ends_by_itself_is_an_error() -> None:
    plan = WebSocketPlan("ws://127.0.0.1:9/", connections=1, reopen=None)  # and so there is nothing to hold
    with pytest.raises(HolderError, match="ended by itself"):
        await hold_apart([plan], stop=asyncio.Event())
