"""The forecast against the figures calculated for the judge, and against simulations of it."""

from __future__ import annotations

from random import Random
from statistics import mean, median

import pytest

from tests.core.arms import seconds_in_ticks, seconds_until
from trafficd.core.forecast import Traffic, at_odds, seconds_to_fail, seconds_to_pass
from trafficd.core.judge import Judge, Verdict
from trafficd.core.renewal import HELD_BACK


@pytest.mark.parametrize(
    ("traffic", "calculated"),
    [
        (Traffic(200, 0.05, 0.01, 0.03), 48),
        (Traffic(200, 0.25, 0.01, 0.03), 13),
        (Traffic(200, 0.05, 0.01, 0.02), 157),
        (Traffic(200, 0.05, 0.001, 0.01), 51),
    ],
)
def test_the_time_to_fail_is_the_calculated_one(traffic: Traffic, calculated: float) -> None:
    assert seconds_to_fail(traffic) == pytest.approx(calculated, rel=0.1)


def test_the_time_to_pass_is_that_of_simulations() -> None:
    random = Random(3)
    assert seconds_to_pass(Traffic(200, 0.05, 0.0, 0.0)) == 37  # 363 requests
    # With 1 in 1,000 bad, two of three runs see none in those, and the mean of all is the time of hardly any.
    for base, middle in ((0.001, median), (0.05, mean)):
        times = [seconds_until(Verdict.PASS, random, (10, base), (190, base)) for _ in range(150)]
        assert seconds_to_pass(Traffic(200, 0.05, base, base)) == pytest.approx(middle(times), rel=0.25)


def _thin(*more: tuple[float, float, float]) -> list[object]:
    """Requests a second, share, and part of bad ones; those after the first few take longer to simulate."""
    quick = [(2, 0.25, 0.05), (20, 0.25, 0.01)]
    return [*quick, *(pytest.param(*one, marks=pytest.mark.slow) for one in more)]


@pytest.mark.parametrize(
    ("rate", "share", "base"),
    _thin((0.3, 0.5, 0.0), (0.3, 0.25, 0.01), (2, 0.05, 0.01), (2, 0.5, 0.001), (20, 0.01, 0.05), (200, 0.05, 0.01)),
)
@pytest.mark.parametrize("case", ["worse", "broken", "good"])
def test_thin_traffic_takes_the_time_that_simulations_take(case: str, rate: float, share: float, base: float) -> None:
    """Ticks of a few requests, which close late, tell less a request than great ones. The judge is that of errors in a
    panel, which holds a part of its evidence back: for the forecast it is as if that part of alpha were not there."""
    bad = {"worse": max(3 * base, base + 0.01), "broken": 1.0, "good": base}[case]
    traffic = Traffic(rate, share, base, bad)
    verdict = Verdict.PASS if case == "good" else Verdict.FAIL
    told = seconds_to_pass(traffic) if case == "good" else seconds_to_fail(traffic, alpha=0.005 * (1 - HELD_BACK))
    assert told is not None
    random = Random(f"{case} {rate} {share} {base}")
    rates, parts, most = (rate * share, rate * (1 - share)), (bad, base), int(8 * told) + 10
    judges = (Judge(0.005, held_back=HELD_BACK) for _ in range(61))
    times = [seconds_in_ticks(verdict, random, rates, parts, judge, most) for judge in judges]
    assert told / 1.5 <= median(times) <= 1.5 * told, (told, median(times))


def test_total_failure_takes_a_tick_and_thin_traffic_long_ticks() -> None:
    assert seconds_to_fail(Traffic(200, 0.05, 0.01, 1.0)) == 1
    thin = seconds_to_fail(Traffic(0.3, 0.05, 0.0, 1.0))
    assert thin is not None
    assert 60 <= thin <= 600


def test_what_never_comes_is_none() -> None:
    assert seconds_to_fail(Traffic(200, 0.05, 0.01, 0.01)) is None
    assert seconds_to_fail(Traffic(200, 0.05, 0.01, at_odds(0.01, 1.5)), tolerated_odds=2.0) is None
    assert seconds_to_pass(Traffic(200, 0.05, 0.05, at_odds(0.05, 2.5))) is None


def test_more_traffic_and_a_greater_share_are_sooner() -> None:
    slow, fast, wide = (
        seconds_to_fail(Traffic(rate, share, 0.01, 0.03)) for rate, share in ((20, 0.05), (200, 0.05), (20, 0.5))
    )
    assert slow is not None
    assert fast is not None
    assert wide is not None
    assert fast < slow
    assert wide < slow


def test_at_odds() -> None:
    assert at_odds(0.5, 3.0) == pytest.approx(0.75)
    assert at_odds(0.0, 3.0) == 0
    assert at_odds(0.01, 1.0) == pytest.approx(0.01)


def test_impossible_traffic_is_refused() -> None:
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        seconds_to_fail(Traffic(200, 1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="rate must be above 0"):
        seconds_to_pass(Traffic(0, 0.5, 0.0, 0.0))
    with pytest.raises(ValueError, match="stable_bad must lie from 0 to 1"):
        seconds_to_pass(Traffic(1, 0.5, 1.5, 0.0))
