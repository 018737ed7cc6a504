"""Bets that hold money back: what they may never gain on average, and how soon they tell what breaks late."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.arms import binomial, seconds_until
from tests.core.test_judge import chances
from trafficd.core.evidence import Bets
from trafficd.core.judge import WORSE_BETS, AbsoluteLimit, Judge, Verdict
from trafficd.core.renewal import HALF, HELD_BACK, STEP, RenewedBets

Tick = tuple[int, int, int]  # requests of the canary and of the stable version, and how many of all are bad

TICKS: tuple[Tick, ...] = ((2, 3, 2), (3, 3, 1), (1, 4, 3), (4, 2, 3), (2, 2, 2), (3, 5, 4))
LOGS = st.lists(st.floats(-3, 3), min_size=2, max_size=2)


# --- the invariant ---------------------------------------------------------------------------------------------------


@given(st.lists(LOGS | st.none(), max_size=30), st.sampled_from([0.0, 0.25, 0.9]))
def test_it_is_the_mixture_of_bets_that_begin_one_after_another(taken: list[list[float] | None], part: float) -> None:
    """None is a step. The starts are kept one by one here, and each with all of its bets."""
    ours, starts, counted = RenewedBets((2.0, 3.0), part), [(1 - part, Bets((2.0, 3.0)))], 0

    def left(ticks: int) -> float:
        return part * HALF / (HALF + ticks)

    for factors in taken:
        ticks = 1 if factors else STEP
        starts.append((left(counted) - left(counted + ticks), Bets((2.0, 3.0))))
        counted += ticks
        if factors is None:
            ours.stake(STEP)
            continue
        ours.multiply(factors)
        for _, bets in starts:
            bets.multiply(factors)
    mixed = sum(weight * bets.evidence for weight, bets in starts) + left(counted)
    assert ours.evidence == pytest.approx(mixed, rel=1e-9)
    assert ours.evidence >= (1 - part) * starts[0][1].evidence * (1 - 1e-9)
    if not part:
        assert ours.logs == starts[0][1].logs, "plain bets, to the last digit"


def outcomes(odds: float, judge: Judge, ticks: tuple[Tick, ...]) -> Iterator[tuple[float, float, float]]:
    """All that may happen in `ticks`, by enumeration: the chance, the evidence at the end, and the highest on the way.

    A step begins wherever the evidence before it is low or high: what was seen may decide when money is staked."""
    if not ticks:
        yield 1.0, judge.evidence, judge.evidence
        return
    (canary, stable, bad), now = ticks[0], judge.evidence
    for x, part in chances(odds, canary, stable, bad).items():
        then = copy.deepcopy(judge)
        if not 0.5 < now < 1.5:
            then.begin_step()
        then.tick(canary, x, stable, bad - x)
        for chance, last, highest in outcomes(odds, then, ticks[1:]):
            yield part * chance, last, max(now, highest)


@pytest.mark.parametrize("tolerated", [1.0, 2.0])
@pytest.mark.parametrize("held_back", [HELD_BACK, 0.9])
def test_no_canary_that_is_no_worse_gains_on_average_however_the_steps_fall(tolerated: float, held_back: float) -> None:
    """Exactly 1 at the tolerated odds, so that no money is lost either; and Ville's bound at every height."""
    judge = Judge(tolerated_odds=tolerated, held_back=held_back)
    found = list(outcomes(tolerated, judge, TICKS))
    assert sum(chance for chance, _, _ in found) == pytest.approx(1)
    assert sum(chance * last for chance, last, _ in found) == pytest.approx(1, rel=1e-9)
    assert len({last for _, last, _ in found}) > 100
    for needed in (1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0):
        assert sum(chance for chance, _, highest in found if highest >= needed) <= 1 / needed
    better = outcomes(tolerated / 2, judge, TICKS)
    assert sum(chance * last for chance, last, _ in better) < 1


def test_a_limit_gains_nothing_at_its_own_rate() -> None:
    mean_evidence = 0.0
    for bads in itertools.product(range(4), repeat=4):
        limit = AbsoluteLimit(0.1, held_back=HELD_BACK)
        chance = 1.0
        for bad in bads:
            if limit.evidence < 0.9:
                limit.begin_step()
            limit.tick(3, bad)
            chance *= math.comb(3, bad) * 0.1**bad * 0.9 ** (3 - bad)
        mean_evidence += chance * limit.evidence
    assert mean_evidence == pytest.approx(1, rel=1e-9)


def test_a_canary_of_a_year_keeps_a_little_and_stays_in_the_range_of_a_float() -> None:
    bets = RenewedBets(WORSE_BETS)
    assert bets.evidence == 1
    bets.stake(365 * 86_400)
    assert bets.evidence == pytest.approx(1, rel=1e-9)
    bets.multiply([-1e6] * len(WORSE_BETS))
    assert bets.evidence == pytest.approx(bets.reserve)
    assert 0 < bets.reserve < 1e-5
    bets.multiply([1e4] * len(WORSE_BETS))
    assert math.isfinite(bets.evidence)


@pytest.mark.parametrize("held_back", [1.0, -0.1])
def test_all_or_less_than_nothing_cannot_be_held_back(held_back: float) -> None:
    with pytest.raises(ValueError, match="held_back must be at least 0 and less than 1"):
        RenewedBets((2.0,), held_back)


# --- how soon --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canary", "stable"),
    [((10, 0.03), (190, 0.01)), ((50, 0.03), (150, 0.01)), ((10, 0.02), (190, 0.01)), ((10, 0.01), (190, 0.001))],
)
def test_what_is_broken_from_the_start_is_told_hardly_later(
    canary: tuple[int, float], stable: tuple[int, float]
) -> None:
    plain, renewed = (
        mean(seconds_until(Verdict.FAIL, Random(seed), canary, stable, judge=judge()) for seed in range(60))
        for judge in (Judge, renewing)
    )
    assert renewed <= 1.15 * plain


def renewing() -> Judge:
    return Judge(held_back=HELD_BACK)


@pytest.mark.parametrize(
    ("minutes", "at_most"), [(1, 14.0), (10, 15.0), pytest.param(60, 18.0, marks=pytest.mark.slow)]
)
def test_what_breaks_late_is_told_soon(minutes: int, at_most: float) -> None:
    """10 % errors, 5 % of 200 requests a second. Errors in a panel have half of alpha."""
    assert mean(late(minutes, HELD_BACK)) <= at_most


def test_and_bets_that_hold_nothing_back_tell_it_late() -> None:
    assert mean(late(10, 0.0)) >= 25


def late(minutes: int, held_back: float) -> list[int]:
    times = []
    for seed in range(20):
        random, judge = Random(seed), Judge(0.005, held_back=held_back)
        for _ in range(60 * minutes):
            judge.tick(10, binomial(random, 10, 0.01), 190, binomial(random, 190, 0.01))
        assert not judge.failed
        times.append(seconds_until(Verdict.FAIL, random, (10, 0.1), (190, 0.01), judge=judge))
    return times


def test_total_failure_after_minutes_fails_at_once() -> None:
    random, judge = Random(3), Judge(0.005, held_back=HELD_BACK)
    for _ in range(600):
        judge.tick(10, binomial(random, 10, 0.01), 190, binomial(random, 190, 0.01))
    assert seconds_until(Verdict.FAIL, random, (10, 1.0), (190, 0.01), judge=judge) <= 2


def test_a_step_that_breaks_it_is_told_sooner() -> None:
    quiet, stepped = (Judge(0.005, held_back=HELD_BACK) for _ in range(2))
    for judge in (quiet, stepped):
        for _ in range(600):
            judge.tick(10, 0, 190, 4)
    stepped.begin_step()
    assert stepped.evidence == pytest.approx(quiet.evidence), "a step by itself says nothing"
    took = [
        next(number for number in range(1, 100) if judge.tick(10, 1, 190, 2) is Verdict.FAIL)
        for judge in (quiet, stepped)
    ]
    assert took[1] < took[0]
