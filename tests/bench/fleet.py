"""A rolling deploy over 50 upstreams, one, three and a tenth of them at a time, against the waves it has to take.

Every turn takes the swap, min_healthy_time and drain_quiet; with so many at a time there have to be so many waves of
turns. The swap command only sleeps, and all instances are served by this process: what is measured is what the daemon
and Caddy add.
"""

from __future__ import annotations

import asyncio
import math
import os

from tests.bench.figure import Figure
from tests.bench.idle import UPSTREAMS, Idle, cpu_seconds
from trafficd.client import Json

SWAP, HEALTHY, QUIET = 1.0, 1.0, 0.25  # s
SETTINGS = """
[services.web.rollout]
min_healthy_time = "1s"
drain_quiet = "250ms"
"""
AT_ONCE: tuple[tuple[int | str, int], ...] = ((1, 1), (3, 3), ("10%", 5))


async def measure() -> list[Figure]:
    stage = Idle(
        instances=UPSTREAMS,
        settings=SETTINGS,
        swap=f'driver = "command"\ncommand = ["/bin/sleep", "{SWAP:g}"]',
    )
    await stage.listen()
    figures = []
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        assert stage.daemon is not None
        for number, (asked, at_once) in enumerate(AT_ONCE):
            load, before = os.getloadavg()[0], cpu_seconds(stage.daemon.pid)
            rollout = await asyncio.to_thread(_run, stage, f"v{number + 2}", asked)
            assert rollout["state"] == "succeeded", rollout
            seconds = rollout["seconds"]
            least = math.ceil(UPSTREAMS / at_once) * (SWAP + HEALTHY + QUIET)
            busy = 100 * (cpu_seconds(stage.daemon.pid) - before) / seconds
            what = f"rolling over {UPSTREAMS} upstreams, max_parallel {asked}"
            figures += [
                Figure(f"{what}: wall time against the {least:g} s it has to take", seconds / least, "times", 1.1),
                Figure("share of a core that the daemon took", busy, "%"),
                Figure("load of the machine when it began", load, "processes"),
            ]
    finally:
        await stage.aclose()
        stage.hang_up()
    return figures


def _run(stage: Idle, version: str, at_once: int | str) -> Json:
    client = stage.client()
    try:
        begun = client.call("POST", "/v1/services/web/rollouts", {"version": version, "max_parallel": at_once})
        for _ in client.events(begun["id"]):
            pass
        return client.call("GET", f"/v1/rollouts/{begun['id']}")
    finally:
        client.close()
