"""Our counts are those of a server that misbehaves at random, kind by kind and request by request."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from dataclasses import replace
from typing import Any

import orjson
import pytest
import uvloop

from loadtest.model import ErrorKind, Outcome, Plan, Report, RequestSpec
from loadtest.runner import run
from tests.loadtest.faulty import NUMBER, SCRIPTS, SURPLUS_STATUS, Deed, Mood, Record, faulty

SEED = 4
TIMEOUT = 2.5  # s: long for a busy machine, as no answer that is given may be missed


async def send(count: int, connections: int, mood: Mood, **changes: Any) -> tuple[Record, Report]:
    """However it is sent: no request is sent twice, and each of them ends as what was done to it means."""
    outcomes: list[Outcome] = []
    async with faulty(mood, SEED) as server:
        timeout = TIMEOUT if mood is Mood.VICIOUS else 20.0
        plan = Plan((RequestSpec(server.url()),), connections, count, timeout=timeout, sequence_header=NUMBER)
        plan = replace(plan, **changes)
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
    assert report.idle_closed <= record.idle_closed
    # Not vacuous.
    assert set(mood.weights) <= set(record.deeds.values())
    assert record.slammed
    return record, report


def send_on_uvloop(count: int, connections: int) -> None:
    """Once is enough: the time-outs have to be waited for."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        record, report = runner.run(send(count, connections, Mood.VICIOUS))
    assert record.idle_closed - connections <= report.idle_closed, "all but those after a worker's last request"
    assert Deed.RACED in record.deeds.values()


def test_counts_are_those_of_a_faulty_server() -> None:
    send_on_uvloop(2_000, 100)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_counts_are_those_of_a_faulty_server_over_100_000_requests() -> None:
    send_on_uvloop(100_000, 300)


async def test_connection_that_was_closed_while_idle_harms_no_request() -> None:
    record, report = await send(500, 25, Mood.HASTY, qps=50.0)
    assert max(1, record.idle_closed - 25) <= report.idle_closed


@pytest.mark.parametrize(
    "limit",
    [{"per_connection": 3}, {"lifetime": 0.00001}, {"keepalive": False}],
    ids=["requests", "age", "one request"],
)
async def test_connections_of_limited_use_change_nothing(limit: dict[str, Any]) -> None:
    record, _ = await send(500, 25, Mood.HASTY, **limit)
    assert record.connections > 150


async def test_what_is_sent_again_is_what_a_kept_connection_dropped_and_is_told() -> None:
    outcomes: list[Outcome] = []
    async with faulty(Mood.HASTY, SEED) as server:
        plan = Plan((RequestSpec(server.url()),), 50, 1_000, retry_stale=True, sequence_header=NUMBER)
        report = await run(plan, on_outcome=outcomes.append)
    record = server.record
    assert (record.broken, record.strays) == ([], 0)
    assert set(Counter(record.again).values()) == {1}
    got = {outcome.hit: outcome.error or outcome.status for outcome in outcomes}
    assert len(got) == len(outcomes) == report.sent == 1_000
    assert {hit: (deed, got[hit]) for hit, deed in record.deeds.items() if got[hit] != SCRIPTS[deed].means} == {}
    # What was sent again and met a close on accept did not arrive a second time.
    unseen = [hit for hit in got if hit not in record.deeds]
    assert report.resent == len(record.again) + record.slammed - len(unseen)
    assert set(record.again) <= {outcome.hit for outcome in outcomes if outcome.resent}
    assert report.resent == sum(outcome.resent for outcome in outcomes)


def test_two_processes_count_as_a_faulty_server_does() -> None:
    async def load() -> tuple[Record, Any]:
        async with faulty(Mood.HASTY, SEED) as server:
            flags = ["-n", "2000", "-c", "100", "-cpus", "2", "--sequence-header", NUMBER]
            argv = [sys.executable, "-m", "loadtest", *flags, "--json", server.url()]
            process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE)
            out, _ = await process.communicate()
        return server.record, orjson.loads(out)

    record, told = asyncio.run(load())
    assert (record.broken, record.again, record.strays) == ([], [], 0)
    assert len(record.deeds) + record.slammed == 2_000
    assert set(record.deeds) <= set(range(2_000))
    assert told["requests"] == {"planned": 2_000, "sent": 2_000, "answered": sum(told["status"].values()), "skipped": 0}
    assert told["status"] | told["errors"] == {str(outcome): count for outcome, count in record.expected().items()}
