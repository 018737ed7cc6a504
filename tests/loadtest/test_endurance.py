"""Long runs: the schedule is kept, a freeze is seen, and memory stays what it is."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import uvloop

from loadtest.model import Outcome, Plan, Report, RequestSpec
from loadtest.runner import run
from tests.loadtest.faulty import NUMBER, Faulty, Mood, faulty

pytestmark = pytest.mark.slow


async def open_loop(server: Faulty) -> Report:
    spec = RequestSpec(server.url(), headers=((NUMBER, "0"),))
    return await run(Plan((spec,), connections=50, duration=10.0, rate=1_000.0))


async def test_a_thousand_a_second_for_ten_seconds_are_ten_thousand() -> None:
    async with faulty(Mood.FAITHFUL) as server:
        report = await open_loop(server)
    assert (report.planned, report.sent, report.skipped) == (10_000, 10_000, 0)
    assert (report.status, report.errors) == ({200: 10_000}, {})
    assert len(server.record.again) == 9_999, "all have the same number"


async def test_a_frozen_server_is_seen_from_the_schedule_and_only_from_there() -> None:
    """Of 10,000 requests 1,400 are due in the freeze, but only the 50 that are open then are slow by themselves."""

    async def freeze(pid: int) -> None:
        await asyncio.sleep(4.0)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(1.4)
        finally:
            os.kill(pid, signal.SIGCONT)

    async with faulty(Mood.FAITHFUL) as server:
        report, _ = await asyncio.gather(open_loop(server), freeze(server.pid))
    assert (report.sent, report.status) == (10_000, {200: 10_000})
    assert report.response is not None
    assert report.service is not None
    assert 1_000 < report.response.p99 <= report.response.max
    assert report.response.max > 1_350
    assert report.service.p99 < 500
    assert report.service.max > 1_350


@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_the_responses() -> None:
    early, late = 100_000, 300_000
    resident: dict[int, float] = {}
    count = 0

    def look(_: Outcome) -> None:
        nonlocal count
        count += 1
        if count in (early, late):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident[count] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    async def load() -> Report:
        async with faulty(Mood.FAITHFUL) as server:
            spec = RequestSpec(server.url(), headers=((NUMBER, "0"),))
            return await run(Plan((spec,), total=late), on_outcome=look)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(load())
    assert report.status == {200: late}
    assert resident[late] - resident[early] < 3
