"""Several processes are one run: nothing twice, nothing missing, and what died is said."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics import Metrics, Snapshot
from loadtest.model import ErrorKind, Loss, Outcome, Plan, RequestSpec, SelfCheck
from loadtest.runner import run, run_apart
from loadtest.verdict import judge
from loadtest.worker import Part
from tests.loadtest import servers
from tests.loadtest.servers import Peer, Received, serving


def plan_for(url: str, **changes: object) -> Plan:
    return replace(Plan((RequestSpec(url),), connections=4, total=101, timeout=5.0), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{}, {"rate": 400.0}], ids=["closed", "open"])
async def test_each_request_is_sent_once_by_one_of_them(changes: dict[str, object]) -> None:
    seen: Counter[str] = Counter()

    async def count(peer: Peer, request: Received) -> None:
        seen[request.headers["x-number"]] += 1
        await servers.answer(peer, request)

    async with serving(count) as server:
        plan = plan_for(server.url(), processes=2, sequence_header="X-Number", **changes)
        report = await run(plan)
    assert (report.planned, report.sent, report.status) == (101, 101, {200: 101})
    assert seen == Counter(str(number) for number in range(101))
    assert report.self.valid, report.self.why
    assert sum(interval.status.get(200, 0) for interval in report.intervals) == 101


@pytest.mark.parametrize("changes", [{}, {"rate": 200.0}], ids=["closed", "open"])
async def test_no_more_processes_than_connections(changes: dict[str, object]) -> None:
    """The slots of a process without a connection would be sent by nobody."""
    async with serving(servers.answer) as server:
        report = await run(plan_for(server.url(), connections=1, total=10, processes=3, **changes))
    assert (report.planned, report.sent, report.status) == (10, 10, {200: 10})
    assert server.connections == 1


async def test_losses_are_told_as_they_come_and_counted_once() -> None:
    async def every_second_one(peer: Peer, request: Received) -> None:
        await (servers.close_unanswered if peer.served % 2 else servers.answer)(peer, request)

    told: list[Loss] = []
    async with serving(every_second_one) as server:
        report = await run_apart(plan_for(server.url(), connections=1, total=20), on_loss=told.append)
    assert report.errors == {ErrorKind.DROPPED: 10}
    assert list(report.losses) == told
    assert report.status == {200: 10}


async def test_stopped_it_ends_in_good_order() -> None:
    stop, answers = asyncio.Event(), 0

    async def stop_at_twenty(peer: Peer, request: Received) -> None:
        nonlocal answers
        answers += 1
        if answers == 20:
            stop.set()
        await servers.answer(peer, request)

    async with serving(stop_at_twenty) as server:
        report = await run_apart(plan_for(server.url(), total=None, duration=60.0, rate=50.0), stop=stop, processes=2)
    assert 20 <= report.sent == answers < 3000
    assert report.lost == 0
    assert report.skipped == report.planned - report.sent


async def test_a_process_that_dies_makes_the_run_invalid() -> None:
    async def kill_who_asks(peer: Peer, request: Received) -> None:
        for child in os.listdir("/proc"):
            if child.isdigit() and _is_child(child):
                os.kill(int(child), signal.SIGKILL)

    async with serving(kill_who_asks) as server:
        report = await run_apart(plan_for(server.url()))
    assert not report.self.valid
    assert "process 0 died" in report.self.why
    assert any("process 0 died" in reason for reason in judge(report).reasons), "nobody takes that for a pass"


def _is_child(pid: str) -> bool:
    """Whether it is a generating process of this very test."""
    try:
        with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline") as line:  # noqa: PTH123 - of /proc
            return stat.read().rsplit(")", 1)[1].split()[1] == str(os.getpid()) and "loadtest.child" in line.read()
    except OSError:
        return False


def test_shares_add_up() -> None:
    for count in range(20):
        for of in range(1, 6):
            assert sum(Part(index, of).share(count) for index in range(of)) == count


OUTCOMES = st.builds(
    lambda at, took, status, error, part: (
        part,
        Outcome(
            hit=0,
            connection=None,
            status=None if error else status,
            error=error,
            scheduled_ns=at,
            started_ns=at + took // 3,
            written_ns=at + took // 2,
            first_byte_ns=None,
            finished_ns=at + took,
            size=took % 7,
            attribute="a" if status == 200 else None,
            detail="gone",
            request=status % 3,
        ),
    ),
    st.integers(0, 5_000_000_000_000),
    st.integers(0, 2_000_000_000),
    st.sampled_from([200, 404, 503]),
    st.sampled_from([None, None, ErrorKind.DROPPED, ErrorKind.TIMEOUT]),
    st.integers(0, 2),
)


@given(st.lists(OUTCOMES, max_size=60), st.booleans())
def test_the_sum_over_processes_is_what_one_would_have_counted(
    outcomes: list[tuple[int, Outcome]], closed: bool
) -> None:
    outcomes = sorted(outcomes, key=lambda pair: pair[1].finished_ns)

    def counted(*parts: int) -> Snapshot:
        metrics = Metrics(0, closed=closed)
        for part, outcome in outcomes:
            if part in parts:
                metrics.add(outcome)
        return metrics.snapshot()

    whole, (first, *others) = counted(0, 1, 2), [counted(part) for part in range(3)]
    for other in others:
        first.merge(other)
    told = [one.report(planned=None, check=SelfCheck(None)) for one in (whole, first)]
    bare = [replace(report, began_at=0.0, losses=()) for report in told]
    assert bare[0] == bare[1]
    assert sorted(loss.kind for loss in told[0].losses) == sorted(loss.kind for loss in told[1].losses)
    assert len(told[0].intervals) <= 600
