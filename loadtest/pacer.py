"""When the next request is due: pure functions of the time elapsed and the hits so far.

Times are whole nanoseconds since the start of the run. Invariants: no more than `planned` slots are given
out; the slots of a constant rate are due in order, and slot k at k / rate, however late earlier ones were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from loadtest.model import Plan, Stage
from loadtest.poisson import Poisson
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
    """Stages, in each of which the rate goes evenly to another: slot k is due when k requests are due by the area
    under the rate. After the last stage there are none."""

    begin: float  # a second, before the first stage
    stages: tuple[Stage, ...]
    total: int | None

    @cached_property
    def planned(self) -> int:
        due = math.ceil(sum(piece.area for piece in self._pieces) - _TINY)
        return due if self.total is None else min(due, self.total)

    @cached_property
    def _pieces(self) -> tuple[_Piece, ...]:
        pieces, at, count, rate = [], 0.0, 0.0, self.begin
        for stage in self.stages:
            piece = _Piece(at, count, stage.duration, rate, stage.rate)
            pieces.append(piece)
            at, count, rate = at + stage.duration, count + piece.area, stage.rate
        return tuple(pieces)

    def pace(self, elapsed: int, hits: int) -> Slot | None:
        if hits >= self.planned:
            return None
        piece = next((one for one in self._pieces if hits < one.before + one.area - _TINY), self._pieces[-1])
        at = math.floor(SECOND * piece.due(hits))
        end = self._pieces[-1]
        if elapsed - LATE >= round(SECOND * (end.at + end.duration)):
            return None
        return Slot(at, max(0, at - elapsed))


class _Piece(NamedTuple):
    """A stage, where it begins: after `at` s and `before` requests. Rates a second."""

    at: float
    before: float
    duration: float
    rate: float
    until: float

    @property
    def area(self) -> float:
        """How many requests are due in it."""
        return self.duration * (self.rate + self.until) / 2

    def due(self, hit: int) -> float:
        """When so many requests are due, in s: the root of a quadratic, in the form that loses no digits."""
        wanted, slope = max(0.0, hit - self.before), (self.until - self.rate) / self.duration
        root = self.rate + math.sqrt(max(0.0, self.rate * self.rate + 2 * slope * wanted))
        return self.at + (min(self.duration, 2 * wanted / root) if root else 0.0)


def pacer(plan: Plan) -> Pacer:
    """The schedule of a plan. A duration takes the place of the total."""
    duration = None if plan.duration is None else round(plan.duration * SECOND)
    total = plan.total if duration is None else None
    if plan.stages:
        return Ramps(plan.rate or 0.0, plan.stages, total)
    if plan.rate is None:
        return ClosedLoop(total, duration)
    if plan.poisson:
        return Poisson(plan.rate, total, duration, plan.seed)
    return ConstantRate(plan.rate, total, duration)
