"""How soon a canary that is worse loses its traffic: 5 % of 200 requests a second, from users at many addresses."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import tempfile
from pathlib import Path

from tests.bench.figure import Figure
from tests.canary.arms import Instance, users
from tests.system.ask import call, until
from trafficd.demo.stage import Stage

SIDE_BY_SIDE, ROUNDS = 4, 2
TAILS = 2  # side by side, where times are judged: with four this process itself is what makes them wait
_BASE = 0.01  # errors of the stable version
PACE = 0.05  # s, of the answers whose times are judged: this machine adds some 10 ms to one or the other
_PATIENCE = 600.0  # s for one verdict; one that does not come by then counts as infinitely late
_SERVICE = "/v1/services/web"
_SETTINGS = """
[services.web.health]
interval = "500ms"
rise = 1
"""


async def measure() -> list[Figure]:
    worse = [await _round("errors", 0.03, number) for number in range(ROUNDS)]
    broken = [await _round("errors", 1.0, number) for number in range(ROUNDS)]
    hanging = [await _round("hang", 1.0, number) for number in range(ROUNDS)]
    cut = [await _round("truncate", 1.0, 0)]
    # Median as before; beyond the stable version's p99 are 4 % of the answers, in place of 1 %.
    tail = [await _round("tail", 0.03, number, PACE, TAILS) for number in range(ROUNDS)]
    what = f"canary with 5 % of 200 requests/s, {SIDE_BY_SIDE * ROUNDS} runs"
    return [
        Figure(f"{what}: 3 % errors beside 1 %, until its traffic is away, median", _median(worse), "s", 80.0),
        Figure(f"{what}: the longest", max(map(max, worse)), "s"),
        Figure(f"{what}: all answers are errors, median", _median(broken), "s", 2.0),
        Figure(f"{what}: no answer comes, median", _median(hanging), "s"),
        Figure(f"the same, {SIDE_BY_SIDE} runs: all answers are cut short, median", _median(cut), "s"),
        Figure(
            f"the same, {TAILS * ROUNDS} runs: p99 three times as long, median unchanged: median", _median(tail), "s"
        ),
    ]


def _median(rounds: list[list[float]]) -> float:
    return statistics.median(took for one in rounds for took in one)


async def _round(mode: str, rate: float, number: int, pace: float = 0.0, at_once: int = SIDE_BY_SIDE) -> list[float]:
    """So many daemons side by side; how long each of them took, in s."""
    seeds = [1_000 * number + 10 * beside for beside in range(at_once)]
    took = list(await asyncio.gather(*(_once(Instance(mode, rate, seed, pace), seed) for seed in seeds)))
    print(f"  {mode}, {rate:.0%}: {', '.join(f'{one:.1f} s' for one in took)}", flush=True)
    return took


async def _once(canary: Instance, seed: int) -> float:
    base = 0.0 if canary.pace else _BASE
    stable = [Instance("errors", base, seed + 1 + number, canary.pace) for number in range(2)]
    log = Path(tempfile.mkdtemp(prefix="trafficd-")) / "access.log"
    stage = Stage(instances=1, settings=_SETTINGS, caddy=f'access_log = "{log}"')
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        for number, instance in enumerate([*stable, canary]):
            await instance.start()
            version = "v2" if instance is canary else stage.version
            await call(
                stage, "POST", "/v1/services/web/upstreams", id=f"x{number}", dial=instance.dial, version=version
            )
        await until(stage, lambda view: all(one["health"] == "up" for one in view["upstreams"]), _PATIENCE)
        await call(stage, "DELETE", f"{_SERVICE}/upstreams/{stage.upstream_id(0)}")
        async with users(stage.public, count=100):
            await asyncio.sleep(20 if canary.pace else 5)  # what is slow is learned from the answers before
            began = asyncio.get_running_loop().time()
            await call(stage, "PUT", f"{_SERVICE}/canary", percent=5)
            with contextlib.suppress(AssertionError):
                await until(stage, lambda view: view["canary_percent"] == 0, _PATIENCE)
                return asyncio.get_running_loop().time() - began
            return math.inf
    finally:
        for instance in (*stable, canary):
            await instance.stop()
        await stage.aclose()
