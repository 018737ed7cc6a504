"""The test of one metric: what it must say, what it may never say, and how long it takes."""

from __future__ import annotations

import math
from itertools import accumulate
from random import Random
from statistics import mean, quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.arms import judge_all, same, seconds_until
from trafficd.core.evidence import log_normaliser
from trafficd.core.judge import BETTER_BETS, WORSE_BETS, AbsoluteLimit, Judge, Verdict
from trafficd.core.renewal import HELD_BACK

Counts = tuple[int, int, int, int]

RAMP = [(300, 0, 5700, 30), (3000, 150, 3000, 150)]


def judged(*ticks: Counts, judge: Judge | None = None) -> Judge:
    judge = judge or Judge()
    for tick in ticks:
        judge.tick(*tick)
    return judge


@pytest.mark.parametrize(
    ("ticks", "evidence", "failed"),
    [
        ([(10, 0, 190, 0)] * 60, 1, False),
        ([(100, 3, 1900, 0)], 381, True),
        ([(100, 2, 1900, 0)], 38.1, False),
        ([(20, 4, 20, 0)], 7.87, False),
        ([(20, 6, 20, 0)], 28.6, False),
        ([(20, 8, 20, 0)], 124.6, True),
        (RAMP, 0.000235, False),
    ],
)
def test_the_cases_of_the_table(ticks: list[Counts], evidence: float, failed: bool) -> None:
    judge = judged(*ticks)
    assert judge.evidence == pytest.approx(evidence, rel=0.005)
    assert (judge.verdict is Verdict.FAIL) is failed


def test_pooling_the_ramp_would_have_failed_it() -> None:
    """The guard of the case above: one tick of the sums is a FAIL, so it is the conditioning that saves it."""
    assert judged((3300, 150, 8700, 180)).verdict is Verdict.FAIL


def test_fail_is_latched_while_the_evidence_moves_on() -> None:
    judge = judged((100, 3, 1900, 0), *[(100, 0, 1900, 20)] * 30)
    assert judge.evidence < 1
    assert judge.verdict is Verdict.FAIL
    judge.begin_step()
    assert judge.verdict is Verdict.FAIL


def test_nothing_and_one_arm_alone_is_hold() -> None:
    assert Judge().verdict is Verdict.HOLD
    silent = judged(*[(0, 0, 0, 0)] * 10_000)
    assert (silent.verdict, silent.evidence) == (Verdict.HOLD, 1.0)
    assert judged(*[(0, 0, 5000, 50)] * 100).verdict is Verdict.HOLD
    assert judged(*[(50, 50, 0, 0)] * 100).verdict is Verdict.HOLD, "nothing to compare with"
    assert judged(*[(10, 10, 190, 190)] * 100).verdict is Verdict.HOLD, "both arms are broken"


def test_pass_because_errors_are_rare() -> None:
    """The bets 0, p_max/4 and p_max/2 averaged take 363 requests where the bet 0 alone takes 299."""
    judge = Judge()
    needed = next(number for number in range(1, 1000) if judge.tick(1, 0, 19, 0) is Verdict.PASS)
    assert needed == 363
    relative, rare = judge.proofs
    assert rare.holds
    assert not relative.holds
    assert relative.evidence == 1


@pytest.mark.parametrize(("p_max", "requests"), [(0.005, 598), (0.01, 299), (0.02, 149), (0.05, 59)])
def test_the_bet_that_there_are_no_errors_at_all(p_max: float, requests: int) -> None:
    judge = judged(*[(1, 0, 1, 0)] * requests, judge=Judge(p_max=p_max))
    assert math.exp(judge._rare.logs[0]) == pytest.approx(20, rel=0.06)


def test_pass_because_the_odds_are_below_the_margin() -> None:
    """At 5 % errors in both arms only the comparison can prove anything."""
    judge = judged(*[(100, 5, 1900, 95)] * 20)
    assert judge.verdict is Verdict.PASS
    relative, rare = judge.proofs
    assert relative.holds
    assert rare.evidence < 1e-6


def test_a_pass_is_taken_back_and_asked_again_of_every_step() -> None:
    judge = judged(*[(10, 0, 190, 0)] * 60)
    seen = [judge.verdict]
    judge.begin_step()
    seen.append(judge.verdict)
    seen.append(judged(*[(10, 0, 190, 0)] * 37, judge=judge).verdict)
    seen.append(judged((10, 2, 190, 0), judge=judge).verdict)
    assert seen == [Verdict.PASS, Verdict.HOLD, Verdict.PASS, Verdict.HOLD]


def test_repeated_bad_requests_of_a_client_do_not_compare_but_are_not_rare() -> None:
    plain, repeated = Judge(), Judge()
    for _ in range(60):
        plain.tick(1000, 0, 1000, 0)
        repeated.tick(1000, 0, 1000, 0, canary_repeats=900)
    assert plain.verdict is Verdict.PASS
    assert (repeated.verdict, repeated.evidence) == (Verdict.HOLD, 1.0)


def test_tolerated_odds_leave_out_what_is_tolerated() -> None:
    ticks = [(100, 4, 1900, 40)] * 30
    assert judged(*ticks).verdict is Verdict.FAIL
    assert judged(*ticks, judge=Judge(tolerated_odds=2.0)).verdict is not Verdict.FAIL


def test_evidence_stays_finite() -> None:
    assert math.isfinite(judged(*[(5000, 5000, 5000, 0)] * 100).evidence)
    assert judged(*[(5000, 0, 5000, 5000)] * 100).evidence == 0


@pytest.mark.parametrize(
    ("tick", "named"),
    [
        ((3, 5, 10, 0), "canary_bad is 5, more than canary_total, which is 3"),
        ((3, 0, 10, 11), "stable_bad is 11, more than stable_total, which is 10"),
        ((-1, 0, 10, 0), "canary_total is -1, below zero"),
        ((3, 0, 10, -2), "stable_bad is -2, below zero"),
    ],
)
def test_a_wrong_tick_is_refused_and_changes_nothing(tick: Counts, named: str) -> None:
    judge = Judge()
    with pytest.raises(ValueError, match=named):
        judge.tick(*tick)
    assert judge.evidence == 1


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, but is 0"):
        Judge(alpha=0)
    with pytest.raises(ValueError, match="tolerated_odds <= margin"):
        Judge(tolerated_odds=3)
    with pytest.raises(ValueError, match="limit must lie between 0 and 1, but is 1"):
        AbsoluteLimit(1.0)
    with pytest.raises(ValueError, match="canary_repeats"):
        Judge().tick(3, 2, 3, 0, canary_repeats=2)


# --- the guarantee ---------------------------------------------------------------------------------------------------

arms = st.tuples(st.integers(1, 25), st.integers(1, 60))


def chances(odds: float, canary: int, stable: int, bad: int) -> dict[int, float]:
    """Fisher's noncentral hypergeometric distribution, by enumeration with exact choices."""
    weights = {
        x: math.comb(canary, x) * math.comb(stable, bad - x) * odds**x
        for x in range(max(0, bad - stable), min(canary, bad) + 1)
    }
    total = sum(weights.values())
    return {x: weight / total for x, weight in weights.items()}


@given(arms, st.data(), st.sampled_from([1.0, 2.0]), st.floats(0.05, 1.0))
def test_a_canary_that_is_no_worse_gains_nothing_on_average(
    arms: tuple[int, int], data: st.DataObject, tolerated: float, part: float
) -> None:
    """The mean factor is 1 where the odds are just those tolerated, and at most 1 below."""
    canary, stable = arms
    bad = data.draw(st.integers(0, canary + stable))

    def mean_factor(odds: float) -> float:
        return sum(
            chance * judged((canary, x, stable, bad - x), judge=Judge(tolerated_odds=tolerated)).evidence
            for x, chance in chances(odds, canary, stable, bad).items()
        )

    assert mean_factor(tolerated) == pytest.approx(1, rel=1e-9)
    assert mean_factor(tolerated * part) <= 1 + 1e-9


@given(arms, st.data(), st.floats(1.0, 10.0))
def test_a_canary_beyond_the_margin_gains_no_proof_on_average(
    arms: tuple[int, int], data: st.DataObject, part: float
) -> None:
    canary, stable = arms
    bad = data.draw(st.integers(0, canary + stable))
    for odds in (2.0, 2 * part):
        mean_factor = sum(
            chance * judged((canary, x, stable, bad - x)).proofs[0].evidence
            for x, chance in chances(odds, canary, stable, bad).items()
        )
        assert mean_factor <= 1 + 1e-9


@given(st.integers(0, 60), st.floats(0.01, 0.9))
def test_too_many_errors_gain_no_proof_on_average(total: int, rate: float) -> None:
    """And a rate below the limit gains no evidence against it."""

    def mean_of(evidence: dict[int, float], rate: float) -> float:
        return sum(math.comb(total, x) * rate**x * (1 - rate) ** (total - x) * evidence[x] for x in evidence)

    rare = {x: judged((total, x, 0, 0)).proofs[1].evidence for x in range(total + 1)}
    assert mean_of(rare, rate) <= 1 + 1e-9
    above = {}
    for x in range(total + 1):
        limit = AbsoluteLimit(0.05)
        limit.tick(total, x)
        above[x] = limit.evidence
    assert mean_of(above, min(rate, 0.05)) <= 1 + 1e-9


@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.data(),
    st.sampled_from([1.0, *WORSE_BETS, *BETTER_BETS, 60.0]),
)
def test_the_normaliser_is_the_sum_it_stands_for(arms: tuple[int, int], data: st.DataObject, odds: float) -> None:
    canary, stable = arms
    bad = data.draw(st.integers(0, canary + stable))
    exact = sum(
        math.comb(canary, y) * math.comb(stable, bad - y) * odds**y
        for y in range(max(0, bad - stable), min(canary, bad) + 1)
    )
    choices = math.comb(canary + stable, bad)
    ours = log_normaliser(odds, canary, stable, bad) - log_normaliser(1.0, canary, stable, bad)
    assert ours == pytest.approx(math.log(exact / choices), abs=1e-9)


@pytest.mark.parametrize("odds", [1 / 4, 3.0, 60.0])
@pytest.mark.parametrize("bad", [1, 500, 9_000, 11_000, 19_999])
def test_a_tick_of_thousands_is_as_exact(bad: int, odds: float) -> None:
    """Ours stops early there; this sum does not."""
    canary = stable = 10_000
    choices = [0.0, *accumulate(math.log((stable - y) / (y + 1)) for y in range(stable))]
    weights = [choices[y] + choices[bad - y] for y in range(max(0, bad - stable), min(canary, bad) + 1)]
    low = max(0, bad - stable)
    at_odds = _log_sum([weight + (low + place) * math.log(odds) for place, weight in enumerate(weights)])
    ours = log_normaliser(odds, canary, stable, bad) - log_normaliser(1.0, canary, stable, bad)
    assert ours == pytest.approx(at_odds - _log_sum(weights), abs=1e-6)


def _log_sum(logs: list[float]) -> float:
    top = max(logs)
    return top + math.log(math.fsum(math.exp(log - top) for log in logs))


counts = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 80), st.integers(0, 80)).map(
    lambda tick: (tick[0], min(tick[0], tick[1]), tick[2], min(tick[2], tick[3]))
)


@given(st.lists(counts, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_ticks_does_not_matter_to_the_evidence(ticks: list[Counts], random: Random) -> None:
    shuffled = random.sample(ticks, len(ticks))
    assert math.log(judged(*ticks).evidence) == pytest.approx(math.log(judged(*shuffled).evidence), abs=1e-6)


@given(counts.filter(lambda tick: tick[0] > 0 and tick[2] > 0))
def test_one_more_bad_request_of_the_canary_never_speaks_for_it(tick: Counts) -> None:
    """Which arm a bad request is on decides the sign: moved from the stable to the canary, E does not fall."""
    canary, canary_bad, stable, stable_bad = tick
    if canary_bad < canary and stable_bad > 0:
        moved = judged((canary, canary_bad + 1, stable, stable_bad - 1))
        before = judged(tick)
        assert moved.evidence >= before.evidence * (1 - 1e-9)
        assert moved.proofs[0].evidence <= before.proofs[0].evidence * (1 + 1e-9)


@given(counts)
def test_calling_bad_good_mirrors_the_odds(tick: Counts) -> None:
    """Z of the good ones at 1/w is Z of the bad ones at w, but for w^canary."""
    canary, canary_bad, stable, stable_bad = tick
    bad, good = canary_bad + stable_bad, canary + stable - canary_bad - stable_bad
    for odds in (1.5, 30.0):
        ours = log_normaliser(odds, canary, stable, bad) - log_normaliser(1.0, canary, stable, bad)
        mirrored = log_normaliser(1 / odds, canary, stable, good) - log_normaliser(1.0, canary, stable, good)
        assert ours == pytest.approx(mirrored + canary * math.log(odds), abs=1e-8)


# --- the absolute limit ----------------------------------------------------------------------------------------------


def test_the_limit_sees_what_breaks_both_arms() -> None:
    limit = AbsoluteLimit(0.05)
    assert [limit.tick(10, bad) for bad in (0, 4, 5)] == [Verdict.HOLD, Verdict.HOLD, Verdict.FAIL]
    for _ in range(1000):
        limit.tick(10, 0)
    assert limit.evidence < 1e-3
    assert limit.verdict is Verdict.FAIL, "latched"


# --- how long it takes, and how often it is wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canary", "stable", "expected"),
    [
        ((10, 0.03), (190, 0.01), 48),
        ((50, 0.03), (150, 0.01), 13),
        ((10, 0.02), (190, 0.01), 157),
        ((10, 0.01), (190, 0.001), 51),
    ],
)
def test_the_mean_time_to_fail(canary: tuple[int, float], stable: tuple[int, float], expected: float) -> None:
    random = Random(1)
    times = [seconds_until(Verdict.FAIL, random, canary, stable) for _ in range(150)]
    assert mean(times) == pytest.approx(expected, rel=0.2)
    if expected == 48:
        assert quantiles(times, n=20)[18] == pytest.approx(111, rel=0.25)


def test_total_failure_fails_in_the_first_tick() -> None:
    random = Random(2)
    assert {seconds_until(Verdict.FAIL, random, (10, 1.0), (190, 0.01)) for _ in range(50)} == {1}


def false_alarms(canaries: int, seconds: int, held_back: float) -> list[int]:
    """The seeds of those A/A canaries that failed."""
    return [seed for seed in range(canaries) if judge_all(same(seed, seconds).ticks(), held_back).failed]


def test_false_alarms_are_rare_quickly() -> None:
    assert len(false_alarms(40, 120, 0.0)) <= 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_false_alarms_are_rare() -> None:
    """The simulation has teeth: with one bad request a client in each arm, and not over both, 756 of these fail."""
    assert len(false_alarms(1000, 600, HELD_BACK)) <= 15
