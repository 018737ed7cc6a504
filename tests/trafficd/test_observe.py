"""Watching, over real but short times: what probes and counts make of an upstream."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from trafficd.core.drain import DrainVerdict, Open
from trafficd.core.health import Pulse
from trafficd.core.model import Health
from trafficd.observe import HealthMonitor, drain, gate

INTERVAL = 0.04


@dataclass
class ScriptedProbe:
    """A probe that answers as told: per address a sequence of results, the last of which stays.

    A result is None (healthy), a text (what is wrong), or an exception to raise. `takes`: seconds a probe.
    """

    script: Mapping[str, Sequence[str | Exception | None]] = field(default_factory=dict)
    takes: float = 0.0
    asked: list[tuple[str, float]] = field(default_factory=list)
    under_way: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0

    async def __call__(self, dial: str) -> str | None:
        number = self.count(dial)
        self.asked.append((dial, time.monotonic()))
        self.under_way[dial] += 1
        self.most_at_once = max(self.most_at_once, self.under_way.total())
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.under_way[dial] -= 1
        results = self.script.get(dial, [None])
        result = results[min(number, len(results) - 1)]
        if isinstance(result, Exception):
            raise result
        return result

    def count(self, dial: str) -> int:
        return len(self.times(dial))

    def times(self, dial: str) -> list[float]:
        return [at for asked, at in self.asked if asked == dial]


@dataclass
class Changes:
    """What a monitor reported, and a way to wait for it."""

    seen: list[tuple[str, Health]] = field(default_factory=list)

    def __call__(self, name: str, pulse: Pulse) -> None:
        self.seen.append((name, pulse.health))


@asynccontextmanager
async def monitoring(
    probe: ScriptedProbe, changes: Changes, *, interval: float = INTERVAL, rise: int = 2, fall: int = 3
) -> AsyncIterator[HealthMonitor]:
    monitor = HealthMonitor(probe, interval=interval, rise=rise, fall=fall, on_change=changes)
    try:
        yield monitor
    finally:
        await monitor.aclose()


async def until(holds: Callable[[], bool], within: float = 5.0) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.002)


# -- health ------------------------------------------------------------------------------------------------


async def test_one_good_probe_admits_then_rise_and_fall_decide() -> None:
    probe = ScriptedProbe({"h:1": [None, "x", "x", None, "x", "x", "x", "x", None, "x", None, None, None]})
    changes = Changes()
    async with monitoring(probe, changes) as monitor:
        monitor.watch({"a": "h:1"})
        assert monitor.health().get("a", Health.UNKNOWN) is Health.UNKNOWN
        await until(lambda: probe.count("h:1") > 7)
        assert changes.seen == [("a", Health.UP), ("a", Health.DOWN)]
        await until(lambda: probe.count("h:1") > 13)
    assert changes.seen == [("a", Health.UP), ("a", Health.DOWN), ("a", Health.UP)]


async def test_an_upstream_that_never_answered_is_unknown_then_down() -> None:
    changes = Changes()
    probe = ScriptedProbe({"h:1": ["refused"]})
    async with monitoring(probe, changes) as monitor:
        monitor.watch({"a": "h:1"})
        await until(lambda: probe.count("h:1") >= 2)
        assert monitor.health().get("a", Health.UNKNOWN) is Health.UNKNOWN
        await until(lambda: bool(changes.seen))
        assert monitor.health() == {"a": Health.DOWN}
        assert monitor.pulse("a").reason == "refused"
    assert changes.seen == [("a", Health.DOWN)]


async def test_a_probe_that_breaks_is_a_failed_one_and_watching_goes_on() -> None:
    """Health that is frozen at its last value would be taken for health."""
    changes = Changes()
    broken = RuntimeError("bug")
    probe = ScriptedProbe({"h:1": [None, broken, broken, broken, None]})
    async with monitoring(probe, changes) as monitor:
        monitor.watch({"a": "h:1"})
        await until(lambda: len(changes.seen) == 3)
    assert [health for _, health in changes.seen] == [Health.UP, Health.DOWN, Health.UP]


async def test_a_changed_address_begins_anew() -> None:
    probe = ScriptedProbe({"h:1": [None], "h:2": ["not yet"]})
    changes = Changes()
    async with monitoring(probe, changes) as monitor:
        monitor.watch({"a": "h:1", "b": "h:1"})
        await until(lambda: len(changes.seen) == 2)
        monitor.watch({"a": "h:2", "b": "h:1"})
        assert monitor.health() == {"b": Health.UP}
        await until(lambda: probe.count("h:2") >= 3)
        await asyncio.sleep(0.01)
        assert monitor.health() == {"a": Health.DOWN, "b": Health.UP}


async def test_a_late_answer_of_the_old_address_counts_for_nothing() -> None:
    probe = ScriptedProbe({"h:1": [None], "h:2": ["no"]}, takes=0.05)
    async with monitoring(probe, Changes(), interval=10.0) as monitor:
        monitor.watch({"a": "h:1"})
        await until(lambda: probe.count("h:1") == 1)
        monitor.watch({"a": "h:2"})
        await until(lambda: monitor.pulse("a") != Pulse())
        await asyncio.sleep(0.06)
        assert monitor.pulse("a") == Pulse(Health.UNKNOWN, -1, "no")
        assert probe.under_way.total() == 0


async def test_watching_the_same_again_disturbs_nothing() -> None:
    probe = ScriptedProbe()
    async with monitoring(probe, Changes(), interval=10.0) as monitor:
        for _ in range(50):
            monitor.watch({"a": "h:1"})
            await asyncio.sleep(0.001)
        assert probe.count("h:1") == 1


async def test_what_is_not_watched_is_not_probed() -> None:
    probe = ScriptedProbe()
    async with monitoring(probe, Changes()) as monitor:
        monitor.watch({"a": "h:1"})
        await until(lambda: probe.count("h:1") > 1)
        monitor.watch({})
        assert monitor.health() == {}
        before = probe.count("h:1")
        await asyncio.sleep(3 * INTERVAL)
        assert probe.count("h:1") == before
        monitor.watch({"a": "h:1"})
        await until(lambda: probe.count("h:1") > before)
    stopped = probe.count("h:1")
    await asyncio.sleep(3 * INTERVAL)
    assert probe.count("h:1") == stopped


async def test_the_interval_is_kept() -> None:
    """Counted from probe to probe, not from the end of one: a slow answer does not slow the watch."""
    probe = ScriptedProbe(takes=0.03)
    async with monitoring(probe, Changes(), interval=0.05) as monitor:
        monitor.watch({"a": "h:1"})
        await until(lambda: probe.count("h:1") == 12)
    times = probe.times("h:1")[1:]
    mean = (times[-1] - times[0]) / (len(times) - 1)
    assert mean == pytest.approx(0.05, rel=0.25)


async def test_probes_of_one_upstream_never_overlap_nor_pile_up() -> None:
    """Answers slower than the interval; once they are quick again, nothing is made up for."""
    probe = ScriptedProbe(takes=0.1)
    async with monitoring(probe, Changes(), interval=0.02) as monitor:
        monitor.watch({"a": "h:1"})
        await asyncio.sleep(0.45)
        assert probe.most_at_once == 1
        assert 3 <= probe.count("h:1") <= 5
        probe.takes = 0.0
        before = probe.count("h:1")
        await asyncio.sleep(0.2)
        assert probe.count("h:1") - before <= 13  # one under way, one at once, then ten to the interval


@pytest.mark.parametrize("known", [False, True], ids=["unknown at first", "taken for up"])
async def test_fifty_upstreams_are_not_probed_together(known: bool) -> None:
    """Not after the first round, and after a restart of the daemon not in the first one either."""
    dials = {f"u{number}": f"h:{number}" for number in range(50)}
    probe = ScriptedProbe(takes=0.001)
    async with monitoring(probe, Changes(), interval=0.4) as monitor:
        if known:
            monitor.watch(dials)
            for name, dial in dials.items():
                monitor.assume_up(name, dial)
        else:
            monitor.watch(dials)
        await asyncio.sleep(1.0)
    begun = probe.asked[0][1]
    times = [at - begun for _, at in probe.asked if known or at - begun > 0.4]
    slices = Counter(int(at / 0.04) for at in times)
    assert len(times) >= 50
    assert max(slices.values()) <= 20, slices


async def test_what_is_taken_for_up_is_up_until_probes_say_otherwise() -> None:
    probe = ScriptedProbe({"h:1": ["x"]})
    changes = Changes()
    async with monitoring(probe, changes) as monitor:
        monitor.assume_up("a", "h:1")
        monitor.watch({"a": "h:1"})
        assert monitor.health() == {"a": Health.UP}
        await until(lambda: bool(changes.seen))
        assert probe.count("h:1") == 3
    assert changes.seen == [("a", Health.DOWN)]


async def test_a_probe_of_before_the_gate_does_not_speak_against_the_new_instance() -> None:
    probe = ScriptedProbe({"h:1": ["the old one is gone", None]}, takes=0.03)
    async with monitoring(probe, Changes(), fall=1) as monitor:
        monitor.watch({"a": "h:1"})
        await until(lambda: probe.count("h:1") == 1)
        monitor.assume_up("a", "h:1")
        await asyncio.sleep(0.1)
        assert probe.count("h:1") >= 2
        assert monitor.health() == {"a": Health.UP}


# -- the gate ----------------------------------------------------------------------------------------------


async def test_a_gate_takes_little_more_than_the_healthy_time() -> None:
    begun = time.monotonic()
    probe = ScriptedProbe()
    failure = await gate(probe, "h:1", since=time.time(), min_healthy_time=0.2, deadline=5)
    took = time.monotonic() - begun
    assert failure is None
    assert 0.2 <= took < 0.3
    assert probe.count("h:1") >= 4  # healthy at both ends proves little


async def test_a_gate_without_a_healthy_time_asks_once() -> None:
    probe = ScriptedProbe()
    assert await gate(probe, "h:1", since=time.time(), min_healthy_time=0, deadline=5) is None
    assert probe.count("h:1") == 1


async def test_a_failure_starts_the_count_again() -> None:
    probe = ScriptedProbe({"h:1": [None] * 5 + ["hiccup"] + [None]})
    failure = await gate(probe, "h:1", since=time.time(), min_healthy_time=0.2, deadline=5)
    assert failure is None
    times = probe.times("h:1")
    assert times[-1] - times[6] >= 0.19
    assert times[6] - times[5] >= 0.04  # while it fails there is no hurry


async def test_the_healthy_time_counts_from_the_question_not_the_answer() -> None:
    """A good answer that is long in coming says nothing about the time it was waited for."""
    asked: list[float] = []

    async def slow_after_the_first(dial: str) -> str | None:
        asked.append(time.monotonic())
        await asyncio.sleep(0.3 if len(asked) > 1 else 0)
        return None

    await gate(slow_after_the_first, "h:1", since=time.time(), min_healthy_time=0.2, deadline=5)
    assert asked[-1] - asked[0] >= 0.2


async def test_a_gate_gives_up_at_its_deadline_and_says_why() -> None:
    begun = time.monotonic()
    probe = ScriptedProbe({"h:1": ["h:1/healthz answered 503, not 200"]})
    failure = await gate(probe, "h:1", since=time.time(), min_healthy_time=0.1, deadline=0.3)
    assert failure == "not healthy within 0.3 s: h:1/healthz answered 503, not 200"
    assert 0.3 <= time.monotonic() - begun < 0.5
    assert probe.count("h:1") <= 8


async def test_a_flapping_instance_never_passes() -> None:
    probe = ScriptedProbe({"h:1": [None, "x"] * 100})
    failure = await gate(probe, "h:1", since=time.time(), min_healthy_time=0.2, deadline=0.6)
    assert failure is not None
    assert "after it had been healthy" in failure or "without a break" in failure


async def test_the_deadline_counts_from_the_journalled_start() -> None:
    probe = ScriptedProbe({"h:1": ["x"]})
    assert await gate(probe, "h:1", since=time.time() - 100, min_healthy_time=0.1, deadline=90)
    assert probe.count("h:1") == 1


async def test_a_probe_that_breaks_does_not_break_the_gate() -> None:
    probe = ScriptedProbe({"h:1": [ValueError("odd"), None]})
    assert await gate(probe, "h:1", since=time.time(), min_healthy_time=0.05, deadline=5) is None
    probe = ScriptedProbe({"h:1": [ValueError("odd")]})
    failure = await gate(probe, "h:1", since=time.time(), min_healthy_time=0.05, deadline=0.1)
    assert failure is not None
    assert failure.endswith("the probe of h:1 broke: ValueError: odd")


# -- draining ----------------------------------------------------------------------------------------------

Counted = Open | None


@dataclass
class CountedPool:
    """A pool whose in-flight counts follow a script: what is open from which second on."""

    script: Sequence[tuple[float, Counted]]
    samples: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    async def prepare(self) -> Sequence[str]:
        return ()

    async def shift(self, weights: Mapping[str, int], pins: Mapping[str, Mapping[str, int]] | None = None) -> bool:
        raise AssertionError("draining shifts nothing")

    def shares(self) -> Mapping[str, int]:
        return {}

    def pinned(self) -> Mapping[str, Mapping[str, int]]:
        return {}

    async def in_flight(self, dials: Iterable[str]) -> Mapping[str, Counted]:
        at = time.monotonic() - self.begun
        self.samples.append(at)
        now = [count for since, count in self.script if since <= at][-1]
        return dict.fromkeys(dials, now)


async def drained(
    *script: tuple[float, Counted], quiet: float = 0.08, timeout: float = 0.4, ago: float = 0.0
) -> tuple[DrainVerdict, Counted, float]:
    pool = CountedPool(script)
    verdict, count = await drain(pool, "h:1", since=time.time() - ago, quiet=quiet, timeout=timeout)
    return verdict, count, time.monotonic() - pool.begun


async def test_an_idle_upstream_is_drained_after_the_quiet_window() -> None:
    verdict, count, took = await drained((0, Open(0, 0)))
    assert (verdict, count) == (DrainVerdict.DRAINED, Open(0, 0))
    assert 0.08 <= took < 0.15


async def test_what_is_open_is_waited_for() -> None:
    verdict, _, took = await drained((0, Open(3, 0)), (0.1, Open(0, 1)), (0.2, Open(0, 0)))
    assert verdict is DrainVerdict.DRAINED
    assert 0.28 <= took < 0.36


async def test_a_straggler_in_the_quiet_window_starts_it_again() -> None:
    verdict, _, took = await drained((0, Open(0, 0)), (0.05, Open(1, 0)), (0.1, Open(0, 0)))
    assert verdict is DrainVerdict.DRAINED
    assert took >= 0.18


async def test_what_is_open_at_the_timeout_is_counted() -> None:
    verdict, count, took = await drained((0, Open(5, 0)), (0.2, Open(2, 1)))
    assert (verdict, count) == (DrainVerdict.TIMED_OUT, Open(2, 1))
    assert 0.4 <= took < 0.5


async def test_an_unknown_count_is_not_zero() -> None:
    """It breaks the quiet window, and at the time-out it is waited for once more as long."""
    verdict, _, took = await drained((0, Open(0, 0)), (0.05, None), (0.1, Open(0, 0)))
    assert verdict is DrainVerdict.DRAINED
    assert took >= 0.18
    verdict, count, took = await drained((0, None), timeout=0.15)
    assert (verdict, count) == (DrainVerdict.UNKNOWN, None)
    assert 0.38 <= took < 0.5
    verdict, count, _ = await drained((0, None), (0.2, Open(0, 0)), timeout=0.15)
    assert verdict is not DrainVerdict.UNKNOWN


async def test_the_timeout_counts_from_the_journalled_start() -> None:
    verdict, _, took = await drained((0, Open(1, 0)), timeout=30, ago=100)
    assert verdict is DrainVerdict.TIMED_OUT
    assert took < 0.1


async def test_without_a_quiet_window_three_samples_are_taken_all_the_same() -> None:
    pool = CountedPool([(0, Open(0, 0))])
    verdict, _ = await drain(pool, "h:1", since=time.time(), quiet=0, timeout=1)
    assert verdict is DrainVerdict.DRAINED
    assert len(pool.samples) == 3
