"""A rolling deploy over 4 upstreams, against the sum of the times it has to take.

Those are, for each upstream: the swap, min_healthy_time, drain_quiet, and the longest request open on it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.bench.figure import Figure
from tests.system.load import load
from trafficd.client import Json
from trafficd.demo.stage import Stage

SWAP, HEALTHY, QUIET, SLOW = 1.0, 2.0, 0.25, 0.8  # s
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
    figures = []
    for slow, longest, name in ((0, 0.0, "short requests"), (8, SLOW, f"requests of {SLOW} s")):
        rollout, troubles = await _deploy(slow)
        assert rollout["state"] == "succeeded", rollout
        least = 4 * (SWAP + HEALTHY + QUIET + longest)
        figures += [
            Figure(f"rolling over 4 upstreams, {name}: wall time", rollout["seconds"], "s"),
            Figure(f"the same against the {least:g} s it has to take", rollout["seconds"] / least, "times", 1.1),
            Figure("requests lost or not 200 in it", troubles, "requests", 0),
        ]
    return figures


async def _deploy(slow: int) -> tuple[Json, int]:
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
        async with load(stage.url, gets=4, posts=4, slow=slow, qps=10) as result:
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
