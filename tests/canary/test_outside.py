"""Metrics from outside while a comparison runs: no window is lost or counted twice, and silence is no evidence."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
from aiohttp import web

from tests.canary.counters import serving
from trafficd.canary.compare import Arms, Comparison, Settings
from trafficd.canary.outside import Outside
from trafficd.config.metrics import MetricSection
from trafficd.core.analysis import ERRORS, Metric
from trafficd.core.judge import Verdict
from trafficd.core.model import Service, Upstream
from trafficd.trouble import Trouble

OLD, NEW = "10.0.0.1:80", "10.0.0.2:80"
STATE = Service(
    "web",
    upstreams={"a": Upstream("a", OLD, "v1", serving=OLD), "c": Upstream("c", NEW, "v2", serving=NEW)},
    stable="v1",
)


def comparison(*names: str, required: frozenset[str] = frozenset()) -> Comparison:
    settings = Settings(outside=names, required=required)
    return Comparison(Arms(frozenset({NEW}), frozenset({OLD})), time.time(), settings)


@asynccontextmanager
async def asking(judged: Comparison, *metrics: MetricSection) -> AsyncIterator[Trouble]:
    trouble = Trouble("web")
    outside = Outside(judged, lambda: STATE, trouble)
    tasks = outside.begin(list(metrics))
    try:
        yield trouble
    finally:
        outside.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not trouble.lines()


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def metric(name: str, **keys: object) -> MetricSection:
    return MetricSection.model_validate({"name": name, "interval": 0.1, **keys})


def known(judged: Comparison, name: str) -> Metric:
    return next(one for one in judged.analysis.metrics if one.name == name)


def told(canary: tuple[int, int], stable: tuple[int, int]) -> bytes:
    arms = {"canary": canary, "stable": stable}
    return orjson.dumps({arm: {"good": good, "bad": bad} for arm, (good, bad) in arms.items()})


async def test_a_canary_fails_by_what_a_program_counts_though_nothing_else_speaks(tmp_path: Path) -> None:
    (tmp_path / "counts").write_bytes(told((5, 15), (190, 10)))
    judged = comparison("conversion")
    async with asking(judged, metric("conversion", command=["cat", str(tmp_path / "counts")])):
        await until(lambda: judged.analysis.verdict is Verdict.FAIL)
    assert judged.analysis.why.startswith("conversion: of the canary's requests ")
    assert known(judged, ERRORS).canary.total == 0


async def test_windows_follow_each_other_and_a_failed_one_is_asked_again() -> None:
    judged, asked = comparison("sales"), []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append((body["since"], body["until"]))
        return web.Response(status=500) if len(asked) in (2, 3) else web.Response(body=told((1, 0), (2, 0)))

    async with serving(answer) as url, asking(judged, metric("sales", webhook=url)) as trouble:
        await until(lambda: len(asked) >= 3 and trouble.metrics)
        assert trouble.lines() == [trouble.metrics]
        assert trouble.metrics.startswith(f"metric sales: {url} answered 500, not 200")
        await until(lambda: len(asked) >= 6)
        assert not trouble.lines()
    assert asked[0][0] == judged.since
    good = [window for number, window in enumerate(asked, 1) if number not in (2, 3)]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(good)), asked
    assert {window[0] for window in asked[1:4]} == {asked[0][1]}, "since stays until an answer came"
    assert known(judged, "sales").canary.total <= len(good)


async def test_silence_is_no_evidence_and_a_required_metric_holds_the_pass_back() -> None:
    judged = comparison("sales", "mood", required=frozenset({"sales"}))

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"?")

    async with serving(answer) as url:
        asked = [metric("sales", webhook=url), metric("mood", command=["sh", "-c", "exec sleep 60"], timeout=0.1)]
        async with asking(judged, *asked) as trouble:
            await until(lambda: len(trouble.lines()) == 2)
            assert "metric sales: said no JSON" in trouble.metrics
            assert "metric mood: sh did not end within 0.1 s" in trouble.metrics
    assert judged.analysis.verdict is Verdict.HOLD
    assert judged.analysis.why == "no proof yet that the canary is as good by errors, sales"
    assert all(one.evidence == 1 for one in judged.analysis.metrics)


async def test_a_slow_source_keeps_nobody_waiting() -> None:
    judged = comparison("slow", "quick")

    async def answer(request: web.Request) -> web.Response:
        if (await request.json())["metric"] == "slow":
            await asyncio.sleep(60)
        return web.Response(body=told((10, 0), (10, 0)))

    async with serving(answer) as url, asking(judged, metric("slow", webhook=url), metric("quick", webhook=url)):
        await until(lambda: known(judged, "quick").canary.total >= 30)
    assert known(judged, "slow").canary.total == 0
