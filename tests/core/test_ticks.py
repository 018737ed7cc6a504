"""When a tick closes, and what it counts."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.arms import ERROR, FINE, Same, judge_all
from trafficd.core.judge import Verdict
from trafficd.core.ticks import Arm, Bad, Request, Tick, Ticks


def feed(ticks: Ticks, *requests: tuple[float, Arm, str, bool]) -> list[Tick]:
    fed = [ticks.add(Request(at, arm, client, ERROR if bad else FINE)) for at, arm, client, bad in requests]
    return [tick for tick in fed if tick is not None]


def test_a_tick_closes_after_a_second_when_both_arms_are_in_it() -> None:
    ticks = Ticks(10.0)
    assert feed(ticks, (10.1, Arm.CANARY, "x", False), (10.2, Arm.STABLE, "y", True)) == []
    assert ticks.close(10.9) is None
    assert ticks.close(11.0) == Tick(10.0, 11.0, 1, 1, {"errors": Bad(stable=1)})
    assert ticks.close(12.0) is None, "nobody was in it"


def test_a_request_after_the_end_closes_the_tick_and_is_in_the_next() -> None:
    ticks = Ticks(0.0)
    closed = feed(ticks, (0.1, Arm.CANARY, "x", False), (0.2, Arm.STABLE, "y", False), (1.5, Arm.STABLE, "z", False))
    assert closed == [Tick(0.0, 1.5, 1, 1, {})]
    assert feed(ticks, (2.5, Arm.CANARY, "x", False), (2.6, Arm.CANARY, "x", False)) == [Tick(1.5, 2.6, 1, 1, {})]


def test_a_thin_arm_is_waited_for_a_minute_and_no_longer() -> None:
    ticks = Ticks(0.0)
    assert feed(ticks, *[(float(at), Arm.STABLE, "y", False) for at in range(60)]) == []
    assert ticks.close(60.0) == Tick(0.0, 60.0, 0, 60, {})
    assert feed(ticks, (70.0, Arm.STABLE, "y", False), (100.0, Arm.CANARY, "x", True)) == []
    assert ticks.close(100.5) == Tick(60.0, 100.5, 1, 1, {"errors": Bad(canary=1)})


def test_silence_makes_no_tick() -> None:
    ticks = Ticks(0.0)
    assert [ticks.close(float(at)) for at in range(300)] == [None] * 300


def test_a_client_has_one_bad_request_over_both_arms_its_first() -> None:
    ticks = Ticks(0.0)
    retries = [(0.3, Arm.CANARY, "x", True)] * 4 + [(0.4, Arm.STABLE, "x", True)] * 2
    feed(ticks, (0.1, Arm.STABLE, "x", True), *retries, (0.5, Arm.CANARY, "y", True))
    assert ticks.close(1.0) == Tick(0.0, 1.0, 5, 3, {"errors": Bad(canary=1, stable=1, canary_repeats=4)})
    feed(ticks, (1.1, Arm.CANARY, "x", True), (1.2, Arm.STABLE, "z", False))
    assert ticks.close(2.0) == Tick(1.0, 2.0, 1, 1, {"errors": Bad(canary=1)}), "the next tick is another matter"


def test_a_sticky_client_has_one_bad_request_for_good() -> None:
    ticks = Ticks(0.0, sticky=True)
    feed(ticks, (0.1, Arm.CANARY, "x", True), (0.2, Arm.STABLE, "y", False))
    assert ticks.close(1.0) == Tick(0.0, 1.0, 1, 1, {"errors": Bad(canary=1)})
    feed(ticks, (1.1, Arm.CANARY, "x", True), (1.2, Arm.STABLE, "y", False))
    assert ticks.close(2.0) == Tick(1.0, 2.0, 1, 1, {"errors": Bad(canary_repeats=1)})


def test_without_the_rule_of_clients_every_bad_request_counts() -> None:
    ticks = Ticks(0.0, by_client=False)
    feed(ticks, *[(0.3, Arm.CANARY, "x", True)] * 4, (0.4, Arm.STABLE, "x", True))
    assert ticks.close(1.0) == Tick(0.0, 1.0, 4, 1, {"errors": Bad(canary=4, stable=1)})


def test_every_metric_has_a_rule_of_its_own() -> None:
    ticks = Ticks(0.0)
    ticks.add(Request(0.1, Arm.CANARY, "x", frozenset({"errors", "slow"})))
    ticks.add(Request(0.2, Arm.CANARY, "x", frozenset({"slow"})))
    ticks.add(Request(0.3, Arm.STABLE, "x", frozenset()))
    bad = {"errors": Bad(canary=1), "slow": Bad(canary=1, canary_repeats=1)}
    assert ticks.close(1.0) == Tick(0.0, 1.0, 2, 1, bad)


requests = st.lists(
    st.tuples(st.floats(0, 300), st.sampled_from(Arm), st.sampled_from("abc"), st.booleans()), max_size=80
)


@given(requests)
def test_no_request_is_lost_or_counted_twice_and_counts_alone_close(
    requests: list[tuple[float, Arm, str, bool]],
) -> None:
    requests.sort(key=lambda request: request[0])
    ticks, nothing_bad = Ticks(0.0), Ticks(0.0)
    closed = [*feed(ticks, *requests), ticks.close(400.0)]
    good = [*feed(nothing_bad, *[(at, arm, client, False) for at, arm, client, _ in requests]), nothing_bad.close(400)]
    seen = [tick for tick in closed if tick is not None]
    assert sum(tick.canary for tick in seen) == sum(arm is Arm.CANARY for _, arm, _, _ in requests)
    assert sum(tick.stable for tick in seen) == sum(arm is Arm.STABLE for _, arm, _, _ in requests)
    assert [tick[:4] for tick in seen] == [tick[:4] for tick in good if tick is not None]
    assert all(tick.end - tick.begin >= 1 for tick in seen)
    for tick in seen:
        bad = tick.bad.get("errors", Bad())
        assert bad.canary + bad.canary_repeats <= tick.canary
        assert bad.canary + bad.stable <= 3, "no more than there are clients"


def test_thin_traffic_is_not_blind() -> None:
    """0.3 requests/s, 5 % share, a canary that fails always: with ticks of a fixed second never noticed in 600 s."""
    failed = 0
    for seed in range(40):
        random, ticks, at = Random(seed), Ticks(0.0), 0.0
        seen = []
        while (at := at + random.expovariate(0.3)) < 600:
            arm = Arm.CANARY if random.random() < 0.05 else Arm.STABLE
            seen += feed(ticks, (at, arm, str(at), arm is Arm.CANARY))
        failed += judge_all(iter(seen)).verdict is Verdict.FAIL
    assert failed >= 36


@pytest.mark.parametrize("sticky", [False, True])
def test_clients_that_try_again_do_not_fail_a_canary(sticky: bool) -> None:
    runs = [Same(Random(seed), 60, 20, 0.03, 30, sticky) for seed in range(40)]
    assert sum(judge_all(run.ticks()).failed for run in runs) <= 1
