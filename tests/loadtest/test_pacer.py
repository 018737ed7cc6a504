from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadtest.model import Plan, RequestSpec
from loadtest.pacer import SECOND, ClosedLoop, ConstantRate, Ticks, pacer

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
