"""Hands the slots of a schedule to the lanes of one process.

A lane that has nothing to do asks with `take`. Either it gets its next hit at once, or it is parked, and is started
when a slot is due; a feed that is `over` starts none any more. A slot is given out once or, when it comes too late,
to nobody.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Protocol

from loadtest.model import Plan
from loadtest.pacer import Pacer, Ticks, pacer
from loadtest.slot import SECOND

_NEVER = sys.maxsize


class Parked(Protocol):
    """A lane, as a feed sees it. Times of the monotonic clock in ns."""

    hit: int
    due_ns: int

    def start(self, now: int) -> None: ...


class Feed(Protocol):
    @property
    def over(self) -> bool:
        """No lane that is parked will be started."""
        ...

    def take(self, lane: Parked, now: int) -> bool:
        """True: the lane has its next `hit` and `due_ns`. False: it is parked."""
        ...

    def halt(self) -> None:
        """Give out nothing from now on."""
        ...


class ClosedLoop:
    """Whenever a lane is free: hits `index`, `index + step` and so on."""

    __slots__ = ("_end", "_next", "_step", "until")

    over = True  # who is parked stays so

    def __init__(self, index: int, step: int, total: int | None, until: int | None) -> None:
        self._next = index
        self._step = step
        self._end = _NEVER if total is None else total
        self.until = _NEVER if until is None else until

    def take(self, lane: Parked, now: int) -> bool:
        hit = self._next
        if hit >= self._end or now >= self.until:
            return False
        self._next = hit + self._step
        lane.hit = hit
        lane.due_ns = now
        return True

    def halt(self) -> None:
        self._end = 0


class Throttled:
    """A closed loop in which each lane sends on ticks of its own (hey's -q)."""

    def __init__(self, loop: ClosedLoop, ticks: Ticks, start: int, on_over: Callable[[], None]) -> None:
        self._closed = loop
        self._ticks = ticks
        self._start = start
        self._on_over = on_over
        self._last: dict[Parked, int] = {}  # the tick a lane has used last
        self._timers: dict[Parked, asyncio.TimerHandle] = {}
        self._halted = False

    @property
    def over(self) -> bool:
        return not self._timers

    def take(self, lane: Parked, now: int) -> bool:
        if self._halted:
            return False
        self._last[lane], wait = self._ticks.pace(now - self._start, self._last.get(lane, -1))
        if not wait:
            return self._claim(lane, now)
        if now + wait < self._closed.until:
            self._arm(lane, now + wait, now)
        return False

    def halt(self) -> None:
        self._halted = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._on_over()

    def _arm(self, lane: Parked, at: int, now: int) -> None:
        self._timers[lane] = _call_after(at - now, self._tick, lane, at)

    def _tick(self, lane: Parked, at: int) -> None:
        now = monotonic_ns()
        if now < at:
            self._arm(lane, at, now)
            return
        del self._timers[lane]
        if self._claim(lane, now):
            lane.start(now)

    def _claim(self, lane: Parked, now: int) -> bool:
        if self._closed.take(lane, now):
            return True
        self.halt()  # the others wait for ticks that they have no use for
        return False


class OpenLoop:
    """Slots are due whatever the answers do: slots `index`, `index + step` and so on of the schedule.

    A slot that no lane was free for within `patience` ns, or before the schedule's end, is skipped.
    """

    def __init__(
        self, schedule: Pacer, index: int, step: int, start: int, patience: int | None, on_over: Callable[[], None]
    ) -> None:
        self._schedule = schedule
        self._step = step
        self._start = start
        self._patience = _NEVER if patience is None else patience
        self._on_over = on_over
        self._idle: deque[Parked] = deque()  # whoever has waited longest is next, so that all connections are used
        self._timer: asyncio.TimerHandle | None = None
        self._hit = index
        self._at = _NEVER  # when slot `_hit` is due
        self.over = False
        self._look(start)

    def take(self, lane: Parked, now: int) -> bool:
        if self._at <= now and self._claim(lane, now):
            return True
        self._idle.append(lane)
        self._arm(now)
        return False

    def halt(self) -> None:
        self._at = _NEVER
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._on_over()

    def _claim(self, lane: Parked, now: int) -> bool:
        """Give the lane the first slot that is due and not too old."""
        while self._at <= now and self._look(now):
            hit, at = self._hit, self._at
            self._hit += self._step
            self._look(now)
            if now - at <= self._patience:
                lane.hit = hit
                lane.due_ns = at
                return True
        return False

    def _look(self, now: int) -> bool:
        """When the next slot is due; False: there is none any more."""
        slot = None if self.over else self._schedule.pace(now - self._start, self._hit)
        if slot is None:
            if not self.over:
                self.halt()
            return False
        self._at = self._start + slot.at
        return True

    def _arm(self, now: int) -> None:
        if self._timer is None and self._at != _NEVER:
            self._timer = _call_after(self._at - now, self._release)

    def _release(self) -> None:
        """Start parked lanes with the slots that are due."""
        self._timer = None
        now = monotonic_ns()
        while self._idle and self._at <= now:
            lane = self._idle[0]
            if not self._claim(lane, now):
                break
            self._idle.popleft()
            lane.start(now)
        if self._idle:
            self._arm(now)


def feed(plan: Plan, index: int, of: int, start: int, on_over: Callable[[], None]) -> Feed:
    """The feed of process `index` of `of`, for a run that starts at `start`."""
    if plan.open_loop:
        patience = None if plan.timeout is None else round(plan.timeout * SECOND)
        return OpenLoop(pacer(plan), index, of, start, patience, on_over)
    until = None if plan.duration is None else start + round(plan.duration * SECOND)
    closed = ClosedLoop(index, of, plan.total if plan.duration is None else None, until)
    return closed if plan.qps is None else Throttled(closed, Ticks(plan.qps), start, on_over)


def _call_after(ns: int, callback: Callable[..., None], *arguments: object) -> asyncio.TimerHandle:
    """uvloop's timers are whole milliseconds and may fire early: round up, and look at the clock when called."""
    return asyncio.get_running_loop().call_later(math.ceil(max(0, ns) / 1e6) / 1e3, callback, *arguments)
