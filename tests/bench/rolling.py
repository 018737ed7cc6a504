"""A rolling deploy over 4 upstreams, against the sum of the times it has to take."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.bench.figure import Figure
from tests.system.load import load
from trafficd.client import Json
from trafficd.demo.stage import Stage

SWAP, HEALTHY, QUIET, SLOW = 1.0, 2.0, 0.25, 0.8  # s; SLOW: the longest request of the load
SETTINGS = """
[services.web.rollout]
min_healthy_time = "2s"
drain_quiet = "250ms"
"""
# What a swap that takes one second does: replace the instance, then wait until the second is over.
SCRIPT = """#!/bin/sh
sleep 1 &
{python} -m trafficd.demo.replace {directory}/instances
wait
"""


async def measure() -> list[Figure]:
    rollout, troubles = await _deploy()
    assert rollout["state"] == "succeeded", rollout
    least = 4 * (SWAP + HEALTHY + QUIET + SLOW)
    return [
        Figure("rolling over 4 upstreams, wall time", rollout["seconds"], "s"),
        Figure("the same against 4 x (swap + min_healthy_time + drain_quiet + longest request)",
               rollout["seconds"] / least, "times", 1.1),
        Figure("requests lost or not 200 in it", troubles, "requests", 0),
    ]  # fmt: skip


async def _deploy() -> tuple[Json, int]:
    directory = Path(tempfile.mkdtemp(prefix="trafficd-"))
    script = directory / "swap.sh"
    script.write_text(SCRIPT.format(python=sys.executable, directory=directory))
    script.chmod(0o755)
    swap = f'driver = "command"\ncommand = ["{script}"]'
    stage = Stage(instances=4, settings=SETTINGS, swap=swap, directory=directory)
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        async with load(stage.url, gets=4, posts=4, slow=8, qps=10) as result:
            rollout = await asyncio.to_thread(_run, stage)
        return rollout, sum(result.troubles().values())
    finally:
        await stage.aclose()


def _run(stage: Stage) -> Json:
    client = stage.client()
    try:
        begun = client.call("POST", "/v1/services/web/rollouts", {"version": "v2"})
        for _ in client.events(begun["id"]):
            pass
        return client.call("GET", f"/v1/rollouts/{begun['id']}")
    finally:
        client.close()
