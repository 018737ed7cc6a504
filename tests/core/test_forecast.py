"""The forecast against the figures calculated for the judge, and against simulations of it."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from tests.core.arms import seconds_until
from trafficd.core.forecast import Traffic, at_odds, seconds_to_fail, seconds_to_pass
from trafficd.core.judge import Verdict


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
    for base in (0.001, 0.05):
        times = [seconds_until(Verdict.PASS, random, (10, base), (190, base)) for _ in range(150)]
        assert seconds_to_pass(Traffic(200, 0.05, base, base)) == pytest.approx(mean(times), rel=0.25)


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
