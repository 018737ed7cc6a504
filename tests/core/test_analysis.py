"""All metrics together: who may fail a canary, what a PASS needs, and the numbers behind either."""

from __future__ import annotations

import json
from random import Random

import pytest

from tests.core.arms import binomial
from trafficd.core.analysis import Analysis, Counts, Panel
from trafficd.core.judge import Verdict
from trafficd.core.latency import SlowerThan, Thresholds, freeze
from trafficd.core.ticks import Arm, Bad, Tick

LATENCY = ("slower_than_p50", "slower_than_p90", "slower_than_p99")
BASE = (0.5, 0.1, 0.01)


def tick(second: float, canary: int = 10, stable: int = 190, **bad: Bad) -> Tick:
    return Tick(second, second + 1, canary, stable, bad)


def drive(panel: Panel, random: Random, seconds: int, errors: tuple[float, float], slow: tuple[float, ...]) -> int:
    """Seconds until FAIL, or `seconds`: rates of errors in both arms, and of the canary's slow requests."""
    for second in range(seconds):
        bad = {"errors": Bad(binomial(random, 10, errors[0]), binomial(random, 190, errors[1]))}
        for name, ours, base in zip(LATENCY, slow, BASE, strict=True):
            bad[name] = Bad(binomial(random, 10, ours), binomial(random, 190, base))
        if panel.tick(Tick(second, second + 1, 10, 190, bad)).verdict is Verdict.FAIL:
            return second + 1
    return seconds


def test_nothing_seen_is_hold_and_says_what_is_missing() -> None:
    analysis = Panel(0.0, latency=LATENCY).analyse()
    assert analysis.verdict is Verdict.HOLD
    assert analysis.why == "no proof yet that the canary is as good by errors"
    assert [metric.name for metric in analysis.metrics] == ["errors", *LATENCY, "in_flight"]
    assert {metric.evidence for metric in analysis.metrics} == {1.0}
    assert (analysis.needed, analysis.errors, analysis.others) == (200, 1, 1)


def test_errors_fail_alone_and_the_numbers_are_told() -> None:
    panel = Panel(0.0, latency=LATENCY)
    analysis = panel.tick(tick(0, 100, 1900, errors=Bad(canary=3)))
    assert analysis.verdict is Verdict.FAIL
    # Three quarters of 381, which a judge that holds nothing back has, and the quarter that is held back.
    assert analysis.why == "errors: of the canary's requests 3 of 100 were bad, of the stable 0 of 1900 (E = 286)"
    assert analysis.metrics[0].canary == Counts(100, 3)
    for second in range(60):
        analysis = panel.tick(tick(second, errors=Bad(stable=20)))
    assert analysis.verdict is Verdict.FAIL, "latched"
    assert analysis.errors < 1
    assert "3 of 100 were bad" in analysis.why, "the reason is that of the moment"
    assert analysis.metrics[0].stable == Counts(1900 + 60 * 190, 60 * 20)


def test_half_of_alpha_is_for_errors() -> None:
    """2 bad of 100 and one more later: E = 121, which a judge with all of alpha would fail."""
    panel = Panel(0.0)
    panel.tick(tick(0, 100, 1900, errors=Bad(canary=2)))
    analysis = panel.tick(tick(1, 40, 160, errors=Bad(canary=1)))
    assert 100 < analysis.errors < 200
    assert analysis.verdict is Verdict.HOLD


def test_pass_names_its_proof() -> None:
    panel = Panel(0.0)
    analyses = [panel.tick(tick(second)) for second in range(40)]
    assert [analysis.verdict for analysis in analyses].index(Verdict.PASS) == 36
    assert analyses[-1].why.startswith("errors: less than 1 % bad requests (E = ")
    panel.begin_step()
    assert panel.analyse().verdict is Verdict.HOLD


def test_a_pass_waits_while_another_metric_leans_towards_fail() -> None:
    panel = Panel(0.0, outside=("orders",))
    for second in range(60):
        panel.tick(tick(second))
    analysis = panel.count("orders", Counts(100, 3), Counts(1900, 0))
    assert analysis.others == pytest.approx((286 + 1) / 2, rel=0.01)
    assert analysis.verdict is Verdict.HOLD
    assert analysis.why == "orders leans towards a canary that is worse (E = 286)"
    analysis = panel.count("orders", Counts(100, 3), Counts(1900, 0))
    assert analysis.verdict is Verdict.FAIL
    assert analysis.why.startswith("orders: of the canary's requests 6 of 200 were bad, of the stable 0 of 3800")


def test_a_required_metric_needs_its_own_proof() -> None:
    panel = Panel(0.0, outside=("orders",), required=frozenset({"errors", "orders"}))
    for second in range(60):
        analysis = panel.tick(tick(second))
    assert analysis.why == "no proof yet that the canary is as good by orders"
    for _ in range(30):
        analysis = panel.count("orders", Counts(100, 50), Counts(1900, 950))
    assert analysis.verdict is Verdict.PASS
    assert "orders: odds of a bad request below 2 times the stable's" in analysis.why


def test_cold_caches_are_left_out_for_half_a_minute() -> None:
    panel = Panel(0.0, latency=LATENCY)
    for second in range(30):
        analysis = panel.tick(tick(second, slower_than_p99=Bad(canary=10, stable=2)))
    assert (analysis.others, analysis.metrics[3].canary) == (1, Counts())
    analysis = panel.tick(tick(30, slower_than_p99=Bad(canary=10, stable=2)))
    assert analysis.verdict is Verdict.FAIL
    assert analysis.why.startswith("slower_than_p99: of the canary's requests 10 of 10 were bad")


def test_a_slow_tail_fails_and_a_host_a_little_slower_does_not() -> None:
    """p99 tripled by a tail that is slow for 8 % of all requests; and a canary with 1.5 times the odds throughout."""
    times = [
        drive(Panel(0.0, latency=LATENCY), Random(seed), 300, (0.01, 0.01), (0.5, 0.12, 0.08)) for seed in range(8)
    ]
    assert max(times) < 120
    healthy = (0.6, 0.143, 0.015)
    times = [drive(Panel(0.0, latency=LATENCY), Random(seed), 300, (0.01, 0.01), healthy) for seed in range(8)]
    assert times == [300] * 8


def test_the_same_version_passes_and_does_not_fail() -> None:
    failed = 0
    for seed in range(30):
        panel = Panel(0.0, latency=LATENCY, limit=0.05)
        failed += drive(panel, Random(seed), 120, (0.02, 0.02), BASE) < 120
    assert failed == 0


def test_the_trip_wire_keeps_its_speed_among_all_metrics() -> None:
    panel = Panel(0.0, latency=LATENCY, outside=("a", "b", "c"), limit=0.05)
    assert drive(panel, Random(1), 10, (1.0, 0.01), BASE) == 1


def test_a_limit_sees_what_breaks_both_arms() -> None:
    panel = Panel(0.0, limit=0.05)
    for second in range(5):
        analysis = panel.tick(tick(second, errors=Bad(canary=5, stable=95)))
    assert analysis.errors < 2, "a comparison sees nothing"
    assert analysis.verdict is Verdict.FAIL
    assert analysis.why.startswith("error_limit: of the canary's requests ")


def test_a_hanging_canary_fails_by_its_in_flight_count() -> None:
    panel = Panel(0.0)
    for second in range(5):
        for number in range(190):
            panel.in_flight.ended(Arm.STABLE, second + number / 190 - 0.01, second + number / 190)
        analysis = panel.sample(float(second), 10 * second, 2)
    assert analysis.verdict is Verdict.FAIL
    assert analysis.why.startswith("in_flight: of the canary's requests ")


def test_an_analysis_is_json() -> None:
    analysis: Analysis = Panel(0.0, latency=LATENCY).tick(tick(0, 100, 1900, errors=Bad(3, 0, 2)))
    again = json.loads(json.dumps(analysis, allow_nan=False))
    assert again[0] == "FAIL"


def test_wrong_panels_are_refused() -> None:
    with pytest.raises(ValueError, match="a name of its own"):
        Panel(0.0, outside=("errors",))
    with pytest.raises(ValueError, match="no metric orders that a PASS could require"):
        Panel(0.0, required=frozenset({"orders"}))
    with pytest.raises(ValueError, match="orders is not a metric from outside; those are: none"):
        Panel(0.0).count("orders", Counts(), Counts())
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        Panel(0.0, alpha=2.0)


# --- slow requests ---------------------------------------------------------------------------------------------------


def test_thresholds_are_the_stables_quantiles() -> None:
    thresholds = freeze([number / 1000 for number in range(1000, 0, -1)])
    assert thresholds == Thresholds(
        (SlowerThan(LATENCY[0], 0.5), SlowerThan(LATENCY[1], 0.9), SlowerThan(LATENCY[2], 0.99))
    )
    assert thresholds is not None
    assert thresholds.metrics == LATENCY
    assert thresholds.slow(0.5) == frozenset()
    assert thresholds.slow(0.95) == frozenset(LATENCY[:2])


def test_too_few_durations_have_no_p99() -> None:
    assert freeze([0.1] * 99) is None
    assert freeze([0.1] * 100) is not None
