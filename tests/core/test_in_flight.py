"""Cohorts of requests that started between two samples, and whether they ever end."""

from __future__ import annotations

import heapq
from random import Random

import pytest

from trafficd.core.in_flight import InFlight
from trafficd.core.judge import Judge, Verdict
from trafficd.core.ticks import Arm

NEVER = 1e9


class World:
    """Requests at 200/s with a share of 5 %, whose durations the arms decide."""

    def __init__(self, seed: int, rate: float = 200, share: float = 0.05, tolerated: float = 4.0) -> None:
        self.random, self.rate, self.share = Random(seed), rate, share
        self.watch = InFlight(Judge(0.005, tolerated, margin=4.0))
        self.open = dict.fromkeys(Arm, 0)
        self.ends: list[tuple[float, float, Arm]] = []
        self.at = 0.0

    def run(self, seconds: float, canary: float, stable: float, hang: float = 0.0) -> float | None:
        """Mean durations; `hang` is the part of the canary's requests that never end. When it failed, if it did."""
        until = self.at + seconds
        sample = self.at
        while self.at < until:
            self._finish(self.at)
            if self.at >= sample:
                sample += 0.25
                self.watch.sample(self.at, self.open[Arm.CANARY], self.open[Arm.STABLE])
                if self.watch.judge.failed:
                    return self.at
            arm = Arm.CANARY if self.random.random() < self.share else Arm.STABLE
            lasts = self.random.expovariate(1 / (canary if arm is Arm.CANARY else stable))
            if arm is Arm.CANARY and self.random.random() < hang:
                lasts = NEVER
            self.open[arm] += 1
            heapq.heappush(self.ends, (self.at + lasts, self.at, arm))
            self.at += self.random.expovariate(self.rate)
        return None

    def _finish(self, now: float) -> None:
        while self.ends and self.ends[0][0] <= now:
            ended, started, arm = heapq.heappop(self.ends)
            self.open[arm] -= 1
            self.watch.ended(arm, started, ended)


@pytest.mark.parametrize("stable", [0.005, 0.05, 0.5])
def test_a_canary_that_hangs_on_every_request_fails_within_seconds(stable: float) -> None:
    times = [World(seed).run(20, 0.05, stable, hang=1.0) for seed in range(5)]
    assert all(time is not None and time <= 5 for time in times)


def test_one_request_in_ten_that_hangs_fails_too() -> None:
    times = [World(seed).run(60, 0.05, 0.05, hang=0.1) for seed in range(5)]
    assert all(time is not None and time <= 20 for time in times)


def test_a_canary_that_begins_to_hang_after_minutes_fails_within_seconds() -> None:
    world = World(1)
    assert world.run(120, 0.05, 0.05) is None
    time = world.run(20, 0.05, 0.05, hang=1.0)
    assert time is not None
    assert time <= 126


@pytest.mark.parametrize("seconds", [0.05, 1.0, 5.0])
def test_the_same_version_stays_quiet_for_long_polls_too(seconds: float) -> None:
    """Tolerating nothing at all, so that chance alone would show."""
    worlds = [World(seed, rate=40, share=0.2, tolerated=1.0) for seed in range(20)]
    assert sum(world.run(100, seconds, seconds) is not None for world in worlds) <= 1


def test_a_rising_share_and_stalls_of_both_arms_are_no_growth() -> None:
    for seed in range(5):
        world = World(seed)
        for share in (0.01, 0.05, 0.25, 0.5):
            world.share = share
            assert world.run(15, 0.05, 0.05) is None
            assert world.run(5, 6.0, 6.0) is None, "both arms wait for the same database"
        assert world.watch.judge.evidence < 20


def test_a_cold_canary_four_times_as_slow_is_not_hanging() -> None:
    assert [World(seed).run(60, 0.4, 0.1) for seed in range(5)] == [None] * 5


def test_counts_are_of_cohorts_and_every_request_is_in_one() -> None:
    watch = InFlight(Judge())
    watch.sample(0.0, 2, 3)  # those were there before, and are nobody's
    watch.ended(Arm.CANARY, -5.0, 0.5)
    watch.ended(Arm.STABLE, 0.2, 0.4)
    assert watch.sample(1.0, 4, 5) == 0  # canary 3 started, stable 3, of which one has ended
    watch.ended(Arm.CANARY, 0.9, 1.5)
    watch.ended(Arm.STABLE, 0.8, 1.6)
    assert watch.sample(3.0, 3, 4) == 1
    assert (watch.canary, watch.canary_open, watch.stable, watch.stable_open) == (3, 2, 3, 1)


def test_an_unknown_count_judges_nothing_and_loses_nothing() -> None:
    watch = InFlight(Judge())
    watch.sample(0.0, 0, 0)
    assert [watch.sample(at, 5, None) for at in (1.0, 2.0, 9.0)] == [0, 0, 0]
    watch.ended(Arm.STABLE, 0.5, 0.6)
    watch.ended(Arm.STABLE, 9.5, 9.6)
    watch.sample(10.0, 5, 0)  # the cohort of these ten seconds
    watch.ended(Arm.CANARY, 1.0, 11.0)
    assert watch.sample(12.0, None, 0) == 0, "it is due, but the reader of the log may be behind"
    assert watch.sample(12.5, 4, 0) == 1
    assert (watch.canary, watch.canary_open, watch.stable, watch.stable_open) == (5, 4, 2, 0)


def test_silence_judges_nothing() -> None:
    watch = InFlight(Judge())
    for second in range(300):
        watch.sample(float(second), 7, 40)  # nothing starts, nothing ends
    assert watch.judge.verdict is Verdict.HOLD
    assert watch.judge.evidence == 1
    assert watch.canary == 0
