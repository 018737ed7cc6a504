"""Our counts are those of a server that misbehaves at random, kind by kind and request by request."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import uvloop

from loadtest.model import ErrorKind, Outcome, Plan, Report, RequestSpec
from loadtest.runner import run
from tests.loadtest.faulty import NUMBER, SCRIPTS, SURPLUS_STATUS, Deed, Mood, Record, faulty

SEED = 4
TIMEOUT = 2.5  # s: long for a busy machine, as no answer that is given may be missed


async def send(count: int, connections: int, mood: Mood, qps: float | None = None) -> tuple[Record, Report]:
    """However it is sent: no request is sent twice, and each of them ends as what was done to it means."""
    outcomes: list[Outcome] = []
    async with faulty(mood, SEED) as server:
        requests = tuple(RequestSpec(server.url(), headers=((NUMBER, str(number)),)) for number in range(count))
        plan = Plan(requests, connections, count, qps=qps, timeout=TIMEOUT if mood is Mood.VICIOUS else 20.0)
        report = await run(plan, on_outcome=outcomes.append)
    record = server.record
    assert (record.broken, record.again, record.strays) == ([], [], 0)
    got = {outcome.hit: outcome.error or outcome.status for outcome in outcomes}
    assert len(got) == len(outcomes) == report.sent == plan.total
    wrong = {hit: (deed, got[hit]) for hit, deed in record.deeds.items() if got[hit] != SCRIPTS[deed].means}
    assert wrong == {}
    assert [got[hit] for hit in got if hit not in record.deeds] == [ErrorKind.DROPPED] * record.slammed
    assert SURPLUS_STATUS not in report.status
    assert Counter(report.status) + Counter(report.errors) == record.expected()
    # A connection that was closed after its worker's last request was not wanted again.
    assert record.idle_closed - plan.connections <= report.idle_closed <= record.idle_closed
    # Not vacuous.
    assert set(mood.weights) <= set(record.deeds.values())
    assert record.slammed
    return record, report


def send_on_uvloop(count: int, connections: int) -> None:
    """Once is enough: the time-outs have to be waited for."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        record, _ = runner.run(send(count, connections, Mood.VICIOUS))
    assert Deed.RACED in record.deeds.values()


def test_counts_are_those_of_a_faulty_server() -> None:
    send_on_uvloop(2_000, 100)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_counts_are_those_of_a_faulty_server_over_100_000_requests() -> None:
    send_on_uvloop(100_000, 300)


async def test_connection_that_was_closed_while_idle_harms_no_request() -> None:
    _, report = await send(500, 25, Mood.HASTY, qps=50.0)
    assert report.idle_closed > 0
