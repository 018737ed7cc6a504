"""How many requests a run sends, how fast, when it ends, and what it says about itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from loadtest.histogram import Histogram
from loadtest.metrics import Snapshot
from loadtest.model import Latency, Outcome, Plan, PlanError, RequestSpec
from loadtest.runner import run
from loadtest.selfcheck import Watched, self_check, stalled
from tests.loadtest import servers
from tests.loadtest.servers import Peer, Received, serving


def plan_for(url: str, **changes: Any) -> Plan:
    return replace(Plan((RequestSpec(url),), connections=4, total=20, timeout=5), **changes)


@pytest.mark.parametrize(("total", "connections"), [(100, 30), (3, 50), (1, 1), (97, 8)])
async def test_exactly_n_are_sent(total: int, connections: int) -> None:
    async with serving(servers.answer) as server:
        report = await run(plan_for(server.url(), total=total, connections=connections))
    assert (report.planned, report.sent, report.answered, report.skipped) == (total, total, total, 0)
    assert sum(server.delivered.values()) == total
    assert server.connections <= connections


async def test_duration_takes_the_place_of_the_total_and_lets_requests_finish() -> None:
    async def slow(peer: Peer, request: Received) -> None:
        await asyncio.sleep(0.2)
        await peer.send(servers.RESPONSE)

    async with serving(slow) as server:
        report = await run(plan_for(server.url(), total=1, duration=0.3))
    assert report.status == {200: 8}
    assert (report.planned, report.skipped) == (8, 0)
    assert sum(server.delivered.values()) == 8
    assert 0.39 < report.elapsed < 1


async def test_open_loop_keeps_its_rate_and_measures_from_the_schedule() -> None:
    async def slow(peer: Peer, request: Received) -> None:
        await asyncio.sleep(0.03)
        await peer.send(servers.RESPONSE)

    outcomes: list[Outcome] = []
    async with serving(slow) as server:
        plan = plan_for(server.url(), rate=100, duration=0.5, connections=20)
        report = await run(plan, on_outcome=outcomes.append)
    assert (report.planned, report.sent, report.status) == (50, 50, {200: 50})
    first = min(outcome.scheduled_ns for outcome in outcomes)
    assert sorted(o.scheduled_ns - first for o in outcomes) == [k * 10_000_000 for k in range(50)]
    assert report.service is not None
    assert report.service.min >= 28, "30 ms, by timers of whole milliseconds that may be early"


async def test_open_loop_with_too_few_connections_skips_and_says_whose_fault_that_is() -> None:
    async def slow(peer: Peer, request: Received) -> None:
        await asyncio.sleep(0.1)
        await peer.send(servers.RESPONSE)

    async with serving(slow) as server:
        report = await run(plan_for(server.url(), rate=100, duration=0.5, connections=1))
    assert report.planned == 50
    assert 0 < report.sent == sum(server.delivered.values()) < 10
    assert report.skipped == 50 - report.sent
    assert report.self.valid, "the generator was on time, the server was not"
    assert "all 1 connections were busy" in report.self.why
    assert report.response is not None
    assert report.service is not None
    assert report.response.max > report.service.max + 100


async def test_rate_of_each_worker() -> None:
    async with serving(servers.answer) as server:
        started = time.monotonic()
        report = await run(plan_for(server.url(), qps=20, connections=2, total=10))
    assert report.status == {200: 10}
    assert 0.19 < time.monotonic() - started < 0.6  # ticks at 0, 50, ... 200 ms of two workers


async def test_rate_of_each_worker_with_a_duration_ends_in_time() -> None:
    async with serving(servers.answer) as server:
        started = time.monotonic()
        report = await run(plan_for(server.url(), qps=0.5, duration=0.2))
    assert report.status == {200: 4}
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("changes", [{}, {"rate": 50.0}, {"qps": 10.0}], ids=["closed", "open", "throttled"])
async def test_stop_ends_the_run_and_says_what_was_skipped(changes: dict[str, Any]) -> None:
    async def slow(peer: Peer, request: Received) -> None:
        await asyncio.sleep(0.02)
        await peer.send(servers.RESPONSE)

    stop = asyncio.Event()
    async with serving(slow) as server:
        asyncio.get_running_loop().call_later(0.2, stop.set)
        report = await run(plan_for(server.url(), total=10_000, **changes), stop=stop)
    assert 0 < report.sent == report.answered == sum(server.delivered.values()) < 200
    assert (report.planned, report.skipped) == (10_000, 10_000 - report.sent)
    assert report.elapsed < 1


async def test_stopped_before_the_start_sends_nothing() -> None:
    stop = asyncio.Event()
    stop.set()
    async with serving(servers.answer) as server:
        report = await run(plan_for(server.url()), stop=stop)
    assert (report.sent, server.connections) == (0, 0)
    assert (report.response, report.self.cpu_us_per_request) == (None, None)


async def test_fault_of_the_caller_is_not_swallowed() -> None:
    def fail(_: Outcome) -> None:
        raise RuntimeError("from the callback")

    async with serving(servers.answer) as server:
        with pytest.raises(RuntimeError, match="from the callback"):
            await run(plan_for(server.url()), on_outcome=fail)


async def test_cancelled_run_leaves_nothing_open() -> None:
    async with serving(servers.stall) as server:
        task = asyncio.create_task(run(plan_for(server.url())))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    "spec",
    [
        RequestSpec("http://127.0.0.1/", headers=(("X", "a\r\nY: b"),)),
        RequestSpec("http://127.0.0.1/", headers=(("X Y", "a"),)),
        RequestSpec("http://127.0.0.1/", headers=(("Content-Length", "3"),), body=b"longer"),
        RequestSpec("http://127.0.0.1/", method="GE T"),
        RequestSpec("http://127.0.0.1/", headers=(("Host", "a"), ("Host", "b"))),
    ],
)
async def test_request_that_cannot_be_written_is_refused_before_the_run(spec: RequestSpec) -> None:
    with pytest.raises(PlanError):
        await run(Plan((spec,)))


def latency(milliseconds: float) -> Latency:
    histogram = Histogram()
    histogram.record(round(milliseconds * 1e6))
    measured = histogram.latency()
    assert measured is not None
    return measured


def test_self_check_blames_whoever_was_late() -> None:
    opened = Plan((RequestSpec("http://127.0.0.1/"),), rate=10)

    def why(lag_ms: int, loop_ms: float, share: float = 0.5, plan: Plan = opened) -> str:
        counted = Snapshot(0, closed=not plan.open_loop)
        counted.lag.record(lag_ms * 1_000_000)
        check = self_check(plan, counted, Watched(loop_lag_ms=loop_ms, cpu_share=share))
        return f"{'' if check.valid else 'INVALID: '}{check.why}"

    assert not why(99, 1)
    assert why(150, 1).startswith("schedule lag p99 is 150 ms: all 50 connections were busy")
    assert why(150, 60).startswith("INVALID: the generator's event loop ran 60 ms late")
    assert why(150, 1, 0.99).startswith("INVALID: the generator needed 99 % of a core")
    assert not why(500, 500, plan=replace(opened, rate=None))
    assert "died" in self_check(opened, Snapshot(0, closed=False), Watched(), ("process 1 died",)).why


def test_what_was_skipped_counts_where_it_would_show_in_a_percentile() -> None:
    opened = Plan((RequestSpec("http://127.0.0.1/"),), rate=10)
    counted = Snapshot(0, closed=False, sent=990)
    assert not self_check(opened, counted, Watched(), skipped=9).why
    assert self_check(opened, counted, Watched(), skipped=10).why.startswith("10 skipped: all 50 connections")
    assert not self_check(opened, counted, Watched(cpu_share=0.99), skipped=10).valid


def test_a_standstill_counts_as_all_the_looks_that_were_due_in_it() -> None:
    assert list(stalled(70, 20)) == [70, 50, 30, 10]
    assert list(stalled(5, 20)) == [5]
    assert list(stalled(0, 20)) == list(stalled(-3, 20)) == [0]
    lag = Histogram()
    for _ in range(430):
        lag.extend(stalled(0, 20_000_000))
    assert lag.latency() == Latency(*(0.0,) * 11)
    lag.extend(stalled(1_400_000_000, 20_000_000))  # one look of 431, but 1.4 s of 10
    measured = lag.latency()
    assert measured is not None
    assert measured.p99 > 1_000
