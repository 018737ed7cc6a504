"""How soon a drain is noticed: from the end of the last request to the answer, less drain_quiet."""

from __future__ import annotations

import asyncio
import statistics
import time

import httpx

from tests.bench.figure import Figure
from trafficd.demo.stage import Stage

ROUNDS = 15
QUIET = 0.25  # s: the default drain_quiet
SETTINGS = """
[services.web.rollout]
drain_quiet = "250ms"
"""


async def measure() -> list[Figure]:
    stage = Stage(settings=SETTINGS)
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        late = [await _once(stage) for _ in range(ROUNDS)]
    finally:
        await stage.aclose()
    return [
        Figure("drain noticed after drain_quiet, median", statistics.median(late) * 1e3, "ms", 50.0),
        Figure("drain noticed after drain_quiet, worst", max(late) * 1e3, "ms"),
    ]


async def _once(stage: Stage) -> float:
    transport = httpx.AsyncHTTPTransport(uds=str(stage.socket))
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as api,
        httpx.AsyncClient(timeout=30, trust_env=False) as client,
    ):
        # Nine requests at once, round robin: some of them are on a.
        ends: dict[str, float] = {}

        async def ask() -> None:
            answer = await client.get(f"{stage.url}/slow?seconds=0.6")
            ends[answer.headers["X-App-Instance"]] = time.monotonic()  # the last one counts

        asking = [asyncio.create_task(ask()) for _ in range(9)]
        await asyncio.sleep(0.2)
        answer = await api.post("/v1/services/web/upstreams/a/drain")
        answered = time.monotonic()
        assert answer.json()["drained"], answer.text
        await asyncio.gather(*asking)
        ready = await api.post("/v1/services/web/upstreams/a/ready")
        assert ready.json()["ready"], ready.text
    return answered - ends[stage.dial(0)] - QUIET
