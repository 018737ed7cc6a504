"""Reading the access log and judging a canary by it: the CPU of a line, of a log that a real Caddy wrote."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from loadtest import runner
from loadtest.model import Plan, RequestSpec
from proxy.accesslog import Follower, Position
from tests.bench.figure import Figure
from trafficd.canary.compare import Arms, Comparison, Settings
from trafficd.demo.stage import Stage

SECONDS, CONNECTIONS = 10.0, 50
RATE = 5_000  # requests/s


async def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="trafficd-") as directory:
        return await _measure(Path(directory) / "access.log")


async def _measure(log: Path) -> list[Figure]:
    stage = Stage(instances=4, caddy=f'access_log = "{log}"')
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        await runner.run(Plan((RequestSpec(f"{stage.url}/"),), CONNECTIONS, None, SECONDS))
    finally:
        await stage.aclose()
    canary, *stable = (stage.dial(index) for index in range(4))
    lines, cpu = _judged(log, Arms(frozenset({canary}), frozenset(stable)))
    return [
        Figure("reading and judging the access log: lines of it", lines, "lines"),
        Figure("the same: CPU of a line", cpu / lines * 1e6, "us"),
        Figure(f"the same at {RATE:,} requests/s: share of a core", cpu / lines * RATE * 100, "%", 20),
    ]


def _judged(log: Path, arms: Arms) -> tuple[int, float]:
    """How many lines it has, and the seconds of CPU that it took to read and judge them."""
    follower = Follower(log, Position(log.stat().st_ino, 0))
    began, comparison, lines = time.process_time(), None, 0
    try:
        while answers := follower.read():
            comparison = comparison or Comparison(arms, answers[0].at, Settings())
            lines += len(answers)
            for answer in answers:
                comparison.take(answer)
            comparison.pass_time(answers[-1].at)
    finally:
        follower.close()
    return lines, time.process_time() - began
