"""A single instance replaced twenty times under 20 connections each of GET and POST: who waits, and how long."""

from __future__ import annotations

import asyncio

from tests.bench.figure import Figure
from tests.system.load import Load, load
from trafficd.client import Json
from trafficd.demo.stage import Stage

RESTARTS = 20
_SETTINGS = """
[services.web.rollout]
watch_time = "0s"
"""


async def measure() -> list[Figure]:
    stage = Stage(instances=1, settings=_SETTINGS)
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        async with load(stage.url, gets=20, posts=20, slow=0, qps=20) as result:
            rollouts = [await asyncio.to_thread(_replace, stage, number) for number in range(RESTARTS)]
        assert all(one["state"] == "succeeded" for one in rollouts)
    finally:
        await stage.aclose()
    times = sorted((o.finished_ns - o.written_ns) / 1e9 for o in result.outcomes if o.written_ns is not None)
    what = f"one instance replaced {RESTARTS} times (hold), 40 connections"
    return [
        Figure(f"{what}: requests lost or not 200", _lost(result), "requests", 0),
        Figure(f"{what}: requests that waited for over 0.2 s", 100 * sum(t > 0.2 for t in times) / len(times), "%"),
        Figure(f"{what}: p99 of all requests", times[int(0.99 * len(times))], "s"),
        Figure(f"{what}: the longest wait", times[-1], "s"),
    ]


def _lost(result: Load) -> int:
    return sum(result.troubles().values())


def _replace(stage: Stage, number: int) -> Json:
    client = stage.client()
    try:
        asked = {"version": f"v{number + 2}", "strategy": "hold", "watch_time": 0, "min_healthy_time": 0}
        begun = client.call("POST", "/v1/services/web/rollouts", asked)
        for _ in client.events(begun["id"]):
            pass
        return client.call("GET", f"/v1/rollouts/{begun['id']}")
    finally:
        client.close()
