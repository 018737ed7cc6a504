from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.model import Plan, RequestSpec, Stage
from loadtest.pacer import ClosedLoop, ConstantRate, Pacer, Ramps, Ticks, pacer
from loadtest.poisson import Poisson
from loadtest.ramp import Ramp
from loadtest.slot import LATE, SECOND

elapsed_ns = st.integers(0, 3_600 * SECOND)
durations = st.integers(1, 100 * SECOND)
rates = st.floats(0.01, 100_000)


@given(st.integers(1, 1000), elapsed_ns)
def test_closed_loop_gives_exactly_its_total(total: int, elapsed: int) -> None:
    loop = ClosedLoop(total, None)
    assert loop.planned == total
    assert loop.pace(elapsed, total - 1) == (elapsed, 0)
    assert loop.pace(elapsed, total) is None


@given(durations, elapsed_ns, st.integers(0, 10**9))
def test_closed_loop_ends_with_its_duration(duration: int, elapsed: int, hits: int) -> None:
    assert (ClosedLoop(None, duration).pace(elapsed, hits) is None) == (elapsed >= duration)


@given(rates, elapsed_ns, st.integers(0, 10**6))
def test_slot_is_due_at_its_time_however_late_it_is_asked_for(rate: float, elapsed: int, hits: int) -> None:
    slot = ConstantRate(rate, 10**6 + 1, None).pace(elapsed, hits)
    assert slot is not None
    assert abs(slot.at - hits * SECOND / rate) <= 1
    assert slot.wait == max(0, slot.at - elapsed)


@given(rates, st.integers(1, 5 * SECOND))
def test_planned_is_the_number_of_slots_in_the_duration(rate: float, duration: int) -> None:
    paced = ConstantRate(rate, None, duration)
    planned = paced.planned
    assert planned is not None
    assert planned >= 1
    assert paced.pace(0, planned - 1) is not None
    assert paced.pace(0, planned) is None
    assert abs(planned - duration * rate / SECOND) <= 1


@given(st.floats(0.01, 10_000), st.lists(st.integers(0, SECOND), max_size=50))
def test_ticks_never_exceed_the_rate_and_make_up_for_one_at_most(qps: float, pauses: list[int]) -> None:
    ticks = Ticks(qps)
    now, last = 0, -1
    sent: list[int] = []
    for pause in pauses:
        tick, wait = ticks.pace(now, last)
        assert tick > last
        assert wait <= SECOND / qps + 1
        now, last = now + wait, tick
        sent.append(now)
        now += pause
    if sent:
        assert len(sent) <= sent[-1] * qps / SECOND + 2


def test_duration_takes_the_place_of_the_total() -> None:
    spec = RequestSpec("http://127.0.0.1/")
    assert pacer(Plan((spec,), total=7)) == ClosedLoop(7, None)
    assert pacer(Plan((spec,), total=7, duration=1.5)) == ClosedLoop(None, 1_500_000_000)
    assert pacer(Plan((spec,), total=7, rate=10.0)) == ConstantRate(10.0, 7, None)


# -- rates that change, and gaps that are not even -----------------------------------------------------------

STAGES = st.lists(
    st.builds(Stage, st.floats(0.1, 5), st.one_of(st.just(0.0), st.floats(0.5, 200))), min_size=1, max_size=4
)


def due(schedule: Pacer) -> list[int]:
    """When each slot is due, asked for at once."""
    found: list[int] = []
    while (slot := schedule.pace(0, len(found))) is not None:
        found.append(slot.at)
    return found


@given(st.floats(0, 100), STAGES)
def test_ramps_give_the_area_under_the_rate_in_order(begin: float, stages: list[Stage]) -> None:
    slots = due(Ramps(Ramp(begin, tuple(stages)), None))
    rates = [begin, *(stage.rate for stage in stages)]
    area = sum(stage.duration * (a + b) / 2 for stage, a, b in zip(stages, rates, rates[1:], strict=False))
    assert abs(len(slots) - area) < 1 + 1e-6
    assert slots == sorted(slots)
    assert all(0 <= at <= round(SECOND * sum(stage.duration for stage in stages)) for at in slots)


def test_a_ramp_from_nothing_is_half_of_its_end() -> None:
    slots = due(Ramps(Ramp(0, (Stage(10, 100),)), None))
    assert len(slots) == 500
    assert sum(at < 5 * SECOND for at in slots) == pytest.approx(125, abs=1)
    assert len(due(Ramps(Ramp(0, (Stage(10, 100),)), 7))) == 7


def test_a_steady_stage_is_a_constant_rate() -> None:
    steady, constant = due(Ramps(Ramp(8, (Stage(2, 8),)), None)), due(ConstantRate(8, None, 2 * SECOND))
    assert steady == pytest.approx(constant, abs=2)


def test_poisson_is_the_same_for_the_same_seed_whoever_asks() -> None:
    def schedule() -> Poisson:
        return Poisson(lambda count: count / 100, 1000, None, seed=5)

    whole = due(schedule())
    assert schedule().planned == len(whole)
    assert len(whole) == pytest.approx(1000, abs=150)
    assert whole == sorted(whole)
    for part in range(3):  # each process takes every third slot
        mine = schedule()
        slots = [mine.pace(0, hit) for hit in range(part, len(whole), 3)]
        assert [slot.at for slot in slots if slot is not None] == whole[part::3]
    gaps = [b - a for a, b in pairwise(whole)]
    assert min(gaps) < 0.1 * SECOND / 100 < 3 * SECOND / 100 < max(gaps), "they are not even"


def test_poisson_gaps_follow_a_rate_that_changes() -> None:
    ramp = Ramp(0, (Stage(10, 1000),))
    plan = Plan((RequestSpec("http://127.0.0.1/"),), duration=10, stages=ramp.stages, poisson=True, seed=3)
    slots = due(pacer(plan))
    assert pacer(plan).planned == len(slots) == pytest.approx(5000, abs=300)
    assert slots == sorted(slots)
    assert slots[-1] < 10 * SECOND
    assert sum(at < 5 * SECOND for at in slots) == pytest.approx(1250, abs=150)
    assert len(due(Poisson(ramp.due, ramp.area, 7, seed=3))) == 7


@given(st.floats(0, 100), STAGES, st.floats(0.1, 30))
def test_a_ramp_is_cut_off_or_goes_on_at_its_last_rate(begin: float, stages: list[Stage], seconds: float) -> None:
    whole = Ramp(begin, tuple(stages))
    fitted = whole.lasting(seconds)
    assert fitted.duration == pytest.approx(seconds)
    beyond = max(0.0, seconds - whole.duration) * stages[-1].rate
    if seconds >= whole.duration:
        assert fitted.area == pytest.approx(whole.area + beyond)
    else:
        assert fitted.area <= whole.area + 1e-6
        if fitted.area > 0.01:
            assert fitted.due(fitted.area / 2) == pytest.approx(whole.due(fitted.area / 2), abs=1e-3)


@pytest.mark.parametrize("shape", [{"rate": 100.0}, {"stages": (Stage(10, 50), Stage(5, 50))}])
def test_poisson_ends_with_the_schedule(shape: dict[str, Any]) -> None:
    plan = Plan((RequestSpec("http://127.0.0.1/"),), total=None, duration=15, poisson=True, **shape)
    schedule = pacer(plan)
    assert schedule.planned is not None
    last = schedule.planned - 1
    assert schedule.pace(15 * SECOND, last) is not None
    assert schedule.pace(15 * SECOND + LATE, last) is None
    assert schedule.pace(0, last + 1) is None


def test_what_is_due_before_the_end_may_be_sent_a_little_after_it() -> None:
    """Timers are coarse: the last slot of 1,000/s for 10 s is due 1 ms before the end."""
    steady = ConstantRate(1000, None, 10 * SECOND)
    for schedule in (
        steady,
        Ramps(Ramp(1000, (Stage(10, 1000),)), None),
        Poisson(lambda count: count / 1000, 10_000, None, seed=1),
    ):
        assert schedule.planned is not None
        last = schedule.planned - 1
        assert schedule.pace(10 * SECOND + LATE - 1, last) is not None
        assert schedule.pace(10 * SECOND + LATE, last) is None
        assert schedule.pace(0, last + 1) is None
