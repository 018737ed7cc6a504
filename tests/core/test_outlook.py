"""Which share is suggested, and for which canaries."""

from __future__ import annotations

import pytest

from trafficd.core.forecast import Traffic, seconds_to_fail, seconds_to_pass
from trafficd.core.outlook import outlook

ERRORS = 0.01 / 2 * 3 / 4  # what errors alone have of alpha, from the start


@pytest.mark.parametrize(("bad", "worse"), [(0.0, 0.01), (0.004, 0.014), (0.02, 0.06), (0.5, 1.0)])
def test_three_times_the_errors_and_at_least_a_point_more(bad: float, worse: float) -> None:
    assert outlook(50, bad, 300).worse_bad == pytest.approx(worse)


def test_each_share_has_the_time_of_its_own_traffic() -> None:
    found = outlook(200, 0.01, 300)
    assert [one.percent for one in found.shares] == [1, 5, 25, 50]
    of_five = found.shares[1]
    assert of_five.worse == seconds_to_fail(Traffic(200, 0.05, 0.01, 0.03), alpha=ERRORS)
    assert of_five.broken == seconds_to_fail(Traffic(200, 0.05, 0.01, 1.0), alpha=ERRORS)
    assert of_five.good == seconds_to_pass(Traffic(200, 0.05, 0.01, 0.01))


def test_the_smallest_share_that_is_in_time_is_suggested() -> None:
    found = outlook(50, 0.001, 300)
    assert found.suggested is not None
    assert 1 < found.suggested < 50
    for percent, in_time in ((found.suggested, True), (found.suggested - 1, False)):
        share = percent / 100
        times = (
            seconds_to_fail(Traffic(50, share, 0.001, 0.011), alpha=ERRORS),
            seconds_to_pass(Traffic(50, share, 0.001, 0.001)),
        )
        assert all(time is not None and time <= 300 for time in times) == in_time
    later, sooner = outlook(50, 0.001, 3000).suggested, outlook(50, 0.001, 60).suggested
    assert later is not None
    assert later < found.suggested
    assert sooner is None or sooner > found.suggested


def test_thin_traffic_has_no_share_that_is_enough() -> None:
    assert outlook(0.5, 0.01, 300).suggested is None


def test_no_share_is_less_than_a_slot() -> None:
    assert outlook(5000, 0.01, 300).suggested == 1
    assert outlook(5000, 0.01, 300, slots=10).suggested == 10


def test_a_smaller_alpha_takes_longer() -> None:
    strict, usual = (outlook(200, 0.01, 300, alpha=alpha).shares[1].worse for alpha in (0.001, 0.01))
    assert strict is not None
    assert usual is not None
    assert strict > usual
