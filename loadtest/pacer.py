"""When the next request is due: pure functions of the time elapsed and the hits so far.

Times are whole nanoseconds since the start of the run. Invariants: no more than `planned` slots are given
out; the slots of a constant rate are due in order, and slot k at k / rate, however late earlier ones were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

from loadtest.model import Plan
from loadtest.poisson import Poisson
from loadtest.ramp import Ramp
from loadtest.slot import LATE, SECOND, Slot, slot

_TINY = 1e-9  # of a request: what floats may lose


class Pacer(Protocol):
    @property
    def planned(self) -> int | None:
        """How many slots there are in all; None when that depends on the answers."""
        ...

    def pace(self, elapsed: int, hits: int) -> Slot | None:
        """The slot after `hits` earlier ones; None when there is no more."""
        ...


@dataclass(frozen=True)
class ClosedLoop:
    """Whenever a worker is free, until `total` hits or `duration` ns."""

    total: int | None
    duration: int | None

    @property
    def planned(self) -> int | None:
        return self.total

    def pace(self, elapsed: int, hits: int) -> Slot | None:
        if self.total is not None and hits >= self.total:
            return None
        if self.duration is not None and elapsed >= self.duration:
            return None
        return Slot(elapsed, 0)


@dataclass(frozen=True)
class ConstantRate:
    """Slot k is due at k / rate. After `duration` ns what has not been sent is skipped, not made up for."""

    rate: float  # a second
    total: int | None
    duration: int | None

    @property
    def planned(self) -> int | None:
        if self.total is not None or self.duration is None:
            return self.total
        count = math.ceil(self.duration * self.rate / SECOND)
        while count and self._due(count - 1) >= self.duration:  # floats may round one slot over the end
            count -= 1
        while self._due(count) < self.duration:
            count += 1
        return count

    def pace(self, elapsed: int, hits: int) -> Slot | None:
        if self.total is not None and hits >= self.total:
            return None
        return slot(self._due(hits), elapsed, self.duration)

    def _due(self, hit: int) -> int:
        return math.floor(hit * SECOND / self.rate)


@dataclass(frozen=True)
class Ticks:
    """hey's -q: a worker sends on ticks, and of the ticks it missed only the latest is made up for."""

    qps: float

    def pace(self, elapsed: int, last: int) -> tuple[int, int]:
        """The tick to send on after tick `last` (-1 at first), and the ns to wait for it."""
        tick = max(last + 1, math.floor(elapsed * self.qps / SECOND))
        return tick, max(0, math.floor(tick * SECOND / self.qps) - elapsed)


@dataclass(frozen=True)
class Ramps:
    """Slot k is due when k requests are due by a rate that changes. After the last stage there are none."""

    ramp: Ramp
    total: int | None

    @cached_property
    def planned(self) -> int:
        due = math.ceil(self.ramp.area - _TINY)
        return due if self.total is None else min(due, self.total)

    def pace(self, elapsed: int, hits: int) -> Slot | None:
        if hits >= self.planned or elapsed - LATE >= round(SECOND * self.ramp.duration):
            return None
        at = math.floor(SECOND * self.ramp.due(hits))
        return Slot(at, max(0, at - elapsed))


def pacer(plan: Plan) -> Pacer:
    """The schedule of a plan. A duration takes the place of the total."""
    duration = None if plan.duration is None else round(plan.duration * SECOND)
    total = plan.total if duration is None else None
    if plan.stages:
        ramp = Ramp(plan.rate or 0.0, plan.stages)
        if plan.duration is not None:
            ramp = ramp.lasting(plan.duration)
        return Poisson(ramp.due, ramp.area, total, plan.seed) if plan.poisson else Ramps(ramp, total)
    if plan.rate is None:
        return ClosedLoop(total, duration)
    if plan.poisson:
        area = math.inf if duration is None else plan.rate * duration / SECOND
        return Poisson(partial(_evenly, plan.rate), area, total, plan.seed)
    return ConstantRate(plan.rate, total, duration)


def _evenly(rate: float, count: float) -> float:
    """When so many requests are due at a constant rate, in s."""
    return count / rate
