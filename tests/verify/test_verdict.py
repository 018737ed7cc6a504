"""The verdict: what fails, what is certain before the end, and what chance explains."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.model import ErrorKind
from tests.verify.reports import Answers, report
from trafficd.verify.verdict import Measured, Sockets, Wanted, certain, improbable, judge, notes, unfit

HOME = Wanted("GET /")
ORDERS = Wanted("POST /orders", frozenset({201}))
OLD = Wanted("GET /old.js", frozenset({200, 304}), compatible=True)
ALL = (HOME, ORDERS, OLD)
FINE: Answers = {0: {200: 50}, 1: {201: 50}, 2: {200: 40, 304: 10}}

statuses = st.sampled_from([200, 201, 304, 404, 500, 503])
answers = st.fixed_dictionaries({number: st.dictionaries(statuses, st.integers(0, 30)) for number in range(3)})


def test_what_goes_on_as_in_the_warm_up_passes() -> None:
    measured = Measured(report(FINE), report(FINE), Sockets(opened=3, closed=2), {0: 10, 1: 10, 2: 10})
    assert judge(ALL, measured, 1.5) == []
    assert unfit(ALL, report(FINE), Sockets(opened=3)) == []


@pytest.mark.parametrize(
    ("during", "says"),
    [
        ({**FINE, 0: {200: 49, 404: 1}}, "GET / was answered 404 (1 time); in the warm-up it was 200"),
        ({**FINE, 1: {200: 50}}, "POST /orders was answered 200 (50 times); expected is 201"),
        (
            {**FINE, 2: {404: 50}},
            "GET /old.js (asked for by clients of the old version) was answered 404 (50 times); expected is 200 or 304",
        ),
        ({**FINE, 1: {201: 40, 503: 2}}, "2 answers 5xx, none in the warm-up: POST /orders 2 x 503"),
    ],
)
def test_other_statuses_fail_at_once_and_name_the_request(during: Answers, says: str) -> None:
    measured = Measured(report(FINE), report(during))
    assert certain(ALL, measured) == [says]
    assert judge(ALL, measured) == [says]


def test_a_5xx_that_is_expected_is_no_failure() -> None:
    wanted = (Wanted("GET /down", frozenset({503})),)
    assert judge(wanted, Measured(report({0: {503: 5}}), report({0: {503: 50}}))) == []
    assert certain(wanted, Measured(report({0: {503: 5}}), report({0: {503: 50, 500: 1}})))


@pytest.mark.parametrize("kind", ErrorKind)
def test_one_lost_request_fails_whatever_its_kind(kind: ErrorKind) -> None:
    measured = Measured(report(FINE), report(FINE, errors={kind: 1}))
    assert certain(ALL, measured) == [f"1 request was lost: 1 {kind}"]
    assert unfit(ALL, report(FINE, errors={kind: 1}), None), "in the warm-up too"


def test_websockets() -> None:
    fine = report(FINE)
    assert certain(ALL, Measured(fine, fine, Sockets(opened=3, cut=2))) == [
        "2 WebSockets were cut without a close frame"
    ]
    refused = Sockets(opened=3, failed=1, examples={"HTTP 502": 1})
    assert certain(ALL, Measured(fine, fine, refused)) == ["1 WebSocket was not opened: HTTP 502"]
    assert unfit(ALL, fine, Sockets()) == ["no WebSocket was opened in the warm-up: raise warm_up"]


def test_a_warm_up_that_is_no_ground_to_compare_with() -> None:
    wrong = unfit(ALL, report({0: {200: 5}, 1: {404: 5}}), None)
    assert wrong == [
        "POST /orders was answered 404 (5 times); expected is 201",
        f"{OLD.text} was never answered in the warm-up: raise rate or warm_up",
    ]


def test_what_was_not_asked_after_the_rollout_has_not_passed() -> None:
    reasons = judge(ALL, Measured(report(FINE), report(FINE), at_end={0: 50, 1: 10, 2: 10}))
    assert reasons == ["GET / was never answered after the rollout, so nothing is known of it: raise rate or cool_down"]


def test_latency_is_judged_only_where_there_is_a_limit() -> None:
    measured = Measured(report(FINE, p99=10.0), report(FINE, p99=31.0))
    assert judge(ALL, measured) == []
    assert judge(ALL, measured, 4.0) == []
    (reason,) = judge(ALL, measured, 3.0)
    assert reason == "p99 of the response time was 31.0 ms, over 3 times that of the warm-up (10.0 ms)"


def test_a_generator_that_missed_its_schedule_measured_no_latency() -> None:
    measured = Measured(report(FINE), report(FINE, why="machine too busy"))
    assert judge(ALL, measured) == []
    assert "machine too busy" in notes(measured)[0]
    assert judge(ALL, measured, 3.0) == ["the latency could not be measured: machine too busy"]


def more(first: Answers, second: Answers) -> Answers:
    return {number: dict(Counter(first[number]) + Counter(second[number])) for number in first}


@given(answers, answers, answers)
def test_what_is_certain_stays_so_whatever_comes_after(before: Answers, during: Answers, later: Answers) -> None:
    base = report(before)
    if certain(ALL, Measured(base, report(during))):
        assert certain(ALL, Measured(base, report(more(during, later))))
        assert judge(ALL, Measured(base, report(more(during, later))))


@given(answers, answers)
def test_an_answer_passes_only_if_it_is_expected(before: Answers, during: Answers) -> None:
    """Safety: whoever gets through the whole verdict has seen no status that nobody expected, and no new 5xx."""
    base, then = report(before), report(during)
    if judge(ALL, Measured(base, then)):
        return
    for number, one in enumerate(ALL):
        known = one.status or {status for status, count in before[number].items()}
        assert all(status in known or status >= 500 for status, count in during[number].items() if count)
        assert any(during[number].values()), "it was asked"
    if not any(count for found in before.values() for status, count in found.items() if status >= 500):
        assert not any(count for found in during.values() for status, count in found.items() if status >= 500)


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 12), st.integers(1, 40))
def test_more_5xx_than_chance_explains(bad_before: int, fine_before: int, bad_after: int, fine_after: int) -> None:
    before, after = bad_before + fine_before, bad_after + fine_after
    trials, share = bad_before + bad_after, after / (before + after)
    tail = sum(
        math.comb(trials, hits) * share**hits * (1 - share) ** (trials - hits) for hits in range(bad_after, trials + 1)
    )
    higher = bad_after * before > bad_before * after
    assert improbable(bad_before, before, bad_after, after) == (higher and tail < 0.01)


def test_where_the_warm_up_has_5xx_their_share_decides() -> None:
    base = report({0: {200: 240, 500: 10}})
    alike, worse = report({0: {200: 2400, 500: 110}}), report({0: {200: 2300, 500: 210}})
    assert judge((HOME,), Measured(base, alike)) == []
    assert certain((HOME,), Measured(base, worse)) == []
    (reason,) = judge((HOME,), Measured(base, worse))
    assert reason == "210 of 2510 answers 5xx, in the warm-up 10 of 250: GET / 210 x 500"
