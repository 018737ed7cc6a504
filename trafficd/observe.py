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
WATCH_INTERVAL = 0.5  # s between probes of an instance that is watched
REFUSED_INTERVAL = 0.05  # s between probes at a gate while they fail, at least


class HealthMonitor:
    """Probes every watched upstream at its interval and folds the results; `on_change` wakes the engine."""

    def __init__(
        self, probe: Probe, *, interval: float, rise: int, fall: int, on_change: Callable[[str, Pulse], None]
    ) -> None:
        self._probe = probe
        self._interval, self._rise, self._fall = interval, rise, fall
        self._on_change = on_change
        self._pulses: dict[str, Pulse] = {}
        self._down: dict[str, float] = {}  # since when (s since the epoch)
        self._dials: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, dials: Mapping[str, str]) -> None:
        """Watch exactly these upstreams, id -> address. An upstream whose address changed begins anew; but what is
        known of an address stays known where only the names are exchanged."""
        known = {dial: self._pulses[name] for name, dial in self._dials.items() if name in self._pulses}
        for name in [name for name in self._tasks if dials.get(name) != self._dials.get(name)]:
            self._tasks.pop(name).cancel()
            self._dials.pop(name, None)
            self._pulses.pop(name, None)
        for name, dial in dials.items():
            if name not in self._tasks and dial in known:
                self._begin(name, dial, after=self._interval * random.random())
                self._pulses[name] = known[dial]
            elif name not in self._tasks:
                self._begin(name, dial, after=0.0)

    def assume_up(self, name: str, dial: str) -> None:
        """Take an upstream for up: it carries traffic already, or has just passed its gate.

        A probe under way is given up: it may have been sent to what ran there before. The next one comes at
        a random time within the interval, so that upstreams taken for up together are not probed together.
        """
        if name in self._tasks:
            self._tasks.pop(name).cancel()
        self._begin(name, dial, after=self._interval * random.random())
        self._pulses[name] = Pulse(Health.UP)

    def _begin(self, name: str, dial: str, *, after: float) -> None:
        self._dials[name] = dial
        self._tasks[name] = asyncio.create_task(self._loop(name, dial, after), name=f"probe {name}")

    def health(self) -> dict[str, Health]:
        return {name: pulse.health for name, pulse in self._pulses.items()}

    def down_since(self) -> dict[str, float]:
        """Since when (s since the epoch) those are down that are."""
        return {name: at for name, at in self._down.items() if self.pulse(name).health is Health.DOWN}

    def unreachable(self) -> frozenset[str]:
        """Those of them that nobody can connect to."""
        return frozenset(name for name, pulse in self._pulses.items() if pulse.unreachable)

    def pulse(self, name: str) -> Pulse:
        return self._pulses.get(name, Pulse())

    async def _loop(self, name: str, dial: str, after: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + after
        # An unknown upstream is probed at once; its second probe comes early, at random, so that upstreams
        # that began together do not go on together.
        early = self._interval * random.random() if after == 0.0 else 0.0
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._fold(name, await ask(self._probe, dial))
            # Late by more than the interval (a slow probe, a machine that slept): what was missed is missed.
            due = max(due + self._interval - early, loop.time())
            early = 0.0

    def _fold(self, name: str, failure: str | None) -> None:
        before = self.pulse(name)
        after = self._pulses[name] = before.probe(failure, rise=self._rise, fall=self._fall)
        if after.health is not before.health:
            self._down[name] = time.time()
            self._on_change(name, after)

    async def aclose(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(probe: Probe, dial: str) -> str | None:
    """One probe. A probe that breaks is a failed one: unknown is not healthy, and watching goes on."""
    try:
        return await probe(dial)
    except Exception as error:
        return f"the probe of {dial} broke: {type(error).__name__}: {error}"


def steady_clock() -> Callable[[], float]:
    """The time (s since the epoch) that runs evenly from now on, whatever is done to the system's clock."""
    offset = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset


async def drain(
    pool: Pool, dial: str, *, since: float, quiet: float, timeout: float, streams: bool = True
) -> tuple[DrainVerdict, Open | None]:
    """Sample what is open on `dial` until it is drained or time is up; the verdict and the last count.

    `since` is the time (s since the epoch) that the drain was journalled at. Without `streams`, only requests are
    waited for.
    """
    now = steady_clock()
    watch = DrainWatch(since=since, quiet=quiet, timeout=timeout)
    pause = min(SAMPLE_INTERVAL, max(0.005, quiet / 4))
    while True:
        count = await open_on(pool, dial)
        waited_for = count if streams or count is None else Open(count.requests, 0)
        verdict = watch.sample(now(), waited_for)
        if verdict is not DrainVerdict.WAITING:
            return verdict, count
        left = watch.left(now())
        # The last sample comes as the window ends; before it, one pause apart as all others.
        await asyncio.sleep(left if left is not None and 0 < left < pause else pause)


async def open_on(pool: Pool, dial: str) -> Open | None:
    """What is open on one address now; None when that cannot be known."""
    count = (await pool.in_flight([dial])).get(dial)
    return None if count is None else Open(count.requests, count.streams)


async def gate(probe: Probe, dial: str, *, since: float, min_healthy_time: float, deadline: float) -> str | None:
    """Probe `dial` until it passes its gate; None, or why it did not.

    Probes follow each other quickly, so that the gate costs little more than `min_healthy_time`.
    """
    now = steady_clock()
    watch = GateWatch(since=since, min_healthy_time=min_healthy_time, deadline=deadline)
    pause = min(GATE_INTERVAL, max(0.01, min_healthy_time / 20))
    while True:
        begun = now()
        failure = await ask(probe, dial)
        # A good answer speaks for the time it was asked for, a failure for the time it was seen.
        match watch.probe(begun if failure is None else now(), failure):
            case GateVerdict.PASSED:
                return None
            case GateVerdict.FAILED:
                return watch.explain()
            case GateVerdict.WAITING:
                await asyncio.sleep(_until(watch, pause, now()))


async def stay_up(probe: Probe, dial: str, *, since: float, watch_time: float, fall: int) -> str | None:
    """Probe `dial` for `watch_time`; None, or why it is down: so many bad probes in a row."""
    now = steady_clock()
    failures = 0
    while (left := since + watch_time - now()) > 0:
        failure = await ask(probe, dial)
        failures = 0 if failure is None else failures + 1
        if failure is not None and failures >= fall:
            return f"down while it was watched: {failure}"
        await asyncio.sleep(min(WATCH_INTERVAL, max(0.0, left)))
    return None


def _until(watch: GateWatch, pause: float, now: float) -> float:
    """Sleep a pause, or only until the count is full."""
    if watch.healthy_since is None:
        return max(pause, REFUSED_INTERVAL)
    return min(pause, max(0.0, watch.healthy_since + watch.min_healthy_time - now))
