"""Watching: the health of every upstream, and the in-flight count of one that drains."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping

from trafficd.core.drain import DrainVerdict, DrainWatch, Open
from trafficd.core.gate import GateVerdict, GateWatch
from trafficd.core.health import Pulse
from trafficd.core.model import Health
from trafficd.ports import Pool, Probe

SAMPLE_INTERVAL = 0.02  # s between in-flight samples of a draining upstream
GATE_INTERVAL = 0.1  # s between probes at a gate, at most


class HealthMonitor:
    """Probes every watched upstream at its interval and folds the results; `on_change` wakes the engine."""

    def __init__(
        self, probe: Probe, *, interval: float, rise: int, fall: int, on_change: Callable[[str, Pulse], None]
    ) -> None:
        self._probe = probe
        self._interval, self._rise, self._fall = interval, rise, fall
        self._on_change = on_change
        self._pulses: dict[str, Pulse] = {}
        self._dials: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, dials: Mapping[str, str]) -> None:
        """Watch exactly these upstreams, id -> address. An upstream whose address changed begins anew."""
        for name in [name for name in self._tasks if dials.get(name) != self._dials.get(name)]:
            self._tasks.pop(name).cancel()
            self._dials.pop(name, None)
            self._pulses.pop(name, None)
        for name, dial in dials.items():
            if name not in self._tasks:
                self._dials[name] = dial
                self._tasks[name] = asyncio.create_task(self._loop(name, dial), name=f"probe {name}")

    def assume_up(self, name: str, dial: str) -> None:
        """Take an upstream for up: it carries traffic already, or has just passed its gate."""
        self.watch({**self._dials, name: dial})
        self._pulses[name] = Pulse(Health.UP)

    def health(self) -> dict[str, Health]:
        return {name: pulse.health for name, pulse in self._pulses.items()}

    def pulse(self, name: str) -> Pulse:
        return self._pulses.get(name, Pulse())

    async def _loop(self, name: str, dial: str) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            failure = await self._probe(dial)
            before = self.pulse(name)
            after = before.probe(failure, rise=self._rise, fall=self._fall)
            self._pulses[name] = after
            if after.health is not before.health:
                self._on_change(name, after)
            # The first interval is cut short at random, so that fifty probes do not fall together.
            due = max(loop.time(), due + self._interval) if due > loop.time() - 60 else loop.time()
            if before == Pulse():
                due -= self._interval * random.random()
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def aclose(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def drain(
    pool: Pool, dial: str, *, since: float, quiet: float, timeout: float
) -> tuple[DrainVerdict, Open | None]:
    """Sample what is open on `dial` until it is drained or time is up; the verdict and the last count.

    `since` is the time (s since the epoch) that the drain was journalled at.
    """
    watch = DrainWatch(since=since, quiet=quiet, timeout=timeout)
    pause = min(SAMPLE_INTERVAL, max(0.005, quiet / 4))
    while True:
        count = await open_on(pool, dial)
        verdict = watch.sample(time.time(), count)
        if verdict is not DrainVerdict.WAITING:
            return verdict, count
        await asyncio.sleep(pause)


async def open_on(pool: Pool, dial: str) -> Open | None:
    """What is open on one address now; None when that cannot be known."""
    count = (await pool.in_flight([dial])).get(dial)
    return None if count is None else Open(count.requests, count.streams)


async def gate(
    probe: Probe, dial: str, *, since: float, min_healthy_time: float, deadline: float
) -> str | None:
    """Probe `dial` until it passes its gate; None, or why it did not.

    Probes follow each other quickly, so that the gate costs little more than `min_healthy_time`.
    """
    watch = GateWatch(since=since, min_healthy_time=min_healthy_time, deadline=deadline)
    pause = min(GATE_INTERVAL, max(0.01, min_healthy_time / 20))
    while True:
        begun = time.time()
        failure = await probe(dial)
        # A good answer speaks for the time it was asked for, a failure for the time it was seen.
        match watch.probe(begun if failure is None else time.time(), failure):
            case GateVerdict.PASSED:
                return None
            case GateVerdict.FAILED:
                return watch.explain()
            case GateVerdict.WAITING:
                await asyncio.sleep(_until(watch, pause))


def _until(watch: GateWatch, pause: float) -> float:
    """Sleep a pause, or only until the count is full."""
    if watch.healthy_since is None:
        return pause
    left = watch.healthy_since + watch.min_healthy_time - time.time()
    return min(pause, max(0.0, left))
