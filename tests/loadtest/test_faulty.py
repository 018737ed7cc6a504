"""Our counts are those of a server that misbehaves at random, kind by kind and request by request."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtest.model import ErrorKind, Outcome, Plan, Report, RequestSpec
from loadtest.runner import run
from tests.loadtest.faulty import MEANS, NUMBER, SURPLUS_STATUS, Deed, Record, deed_for, faulty

# The last requests get plain answers, so that every connection that was closed while idle is wanted once more.
SEED = 4


def numbered(url: str, count: int, connections: int) -> Plan:
    requests = tuple(RequestSpec(url, headers=((NUMBER, str(number)),)) for number in range(count))
    return Plan(requests, connections=connections, total=count, timeout=2.0)


def check(record: Record, report: Report, outcomes: list[Outcome]) -> None:
    assert (record.again, record.strays) == ([], 0)
    got = {outcome.hit: outcome.error or outcome.status for outcome in outcomes}
    assert len(got) == len(outcomes) == report.sent
    wrong = {hit: (deed, got[hit]) for hit, deed in record.deeds.items() if got[hit] != MEANS[deed]}
    assert wrong == {}
    # What never arrived met a close on accept.
    unseen = [got[hit] for hit in got if hit not in record.deeds]
    assert unseen == [ErrorKind.DROPPED] * record.slammed
    assert SURPLUS_STATUS not in report.status
    assert Counter(report.status) + Counter(report.errors) == record.expected()
    assert report.lost + report.answered == report.sent


@pytest.mark.parametrize(
    ("count", "connections"),
    [(2_000, 50), pytest.param(100_000, 250, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
)
async def test_closed_loop_counts_as_the_server_does(count: int, connections: int) -> None:
    outcomes: list[Outcome] = []
    async with faulty(SEED) as server:
        report = await run(numbered(server.url(), count, connections), on_outcome=outcomes.append)
    record = server.record
    assert report.sent == count
    check(record, report, outcomes)
    done = Counter(record.deeds.values())
    print(dict(done), record.slammed, record.idle_closed, report.idle_closed)
    assert {deed for deed in MEANS if deed is not Deed.RACED} <= set(done)
    assert record.slammed
