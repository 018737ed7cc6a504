"""Drain and ready over the API, many times, while kept-alive connections POST without any resending."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.system.ask import configuration
from tests.system.conftest import Raise
from tests.system.load import load

CYCLES = 200


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_drain_and_ready_lose_nothing_and_leave_caddy_alone(raise_stage: Raise) -> None:
    stage = await raise_stage()
    drained_dial = stage.dial(0)
    base = "/v1/services/web/upstreams/a"
    transport = httpx.AsyncHTTPTransport(uds=str(stage.socket))
    spans: list[tuple[int, int]] = []
    served: list[tuple[int, int]] = []
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as api:
        _, etag = await configuration(stage.admin_url)
        # The WebSockets go to b and c: a is out while they are opened, and ready again before the cycles begin.
        assert (await api.post(f"{base}/drain")).status_code == 200
        async with load(stage.url, gets=0, posts=32, slow=0, sockets=6, qps=20) as result:
            await asyncio.sleep(0.3)
            assert (await api.post(f"{base}/ready")).status_code == 200
            for _ in range(CYCLES):
                answer = await api.post(f"{base}/drain")
                assert answer.json() == {"drained": True, "in_flight": 0, "cut": {"requests": 0, "streams": 0}}
                begun = time.monotonic_ns()
                await asyncio.sleep(0.05)
                spans.append((begun, time.monotonic_ns()))
                answer = await api.post(f"{base}/ready")
                assert answer.status_code == 200, answer.text
                assert answer.json()["ready"]
                begun = time.monotonic_ns()
                await asyncio.sleep(0.1)
                served.append((begun, time.monotonic_ns()))
        assert (await configuration(stage.admin_url))[1] == etag
    assert not result.troubles(), result.troubles()
    assert [report.idle_closed for report in result.reports] == [0], "not one kept-alive connection was closed"
    assert result.sockets is not None
    assert (result.sockets.opened, result.sockets.cut, result.sockets.closed) == (6, 0, 0)
    drained = sum((result.between(*span) for span in spans), start=type(result.troubles())())
    assert drained[drained_dial] == 0
    assert sum(drained.values()) > 10 * CYCLES
    ready = sum((result.between(*span) for span in served), start=type(result.troubles())())
    assert ready[drained_dial] / sum(ready.values()) == pytest.approx(1 / 3, abs=0.05)
