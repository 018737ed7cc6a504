"""When the next request is due: pure functions of the time elapsed and the hits so far.

Times are whole nanoseconds since the start of the run. Invariants: no more than `planned` slots are given
out; the slots of a constant rate are due in order, and slot k at k / rate, however late earlier ones were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from loadtest.model import Plan

SECOND = 1_000_000_000


class Slot(NamedTuple):
    """Permission to send one request."""

    at: int  # ns since the start: when it is due
    wait: int  # ns from now until then; 0 when it is due already


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
        at = self._due(hits)
        if self.duration is not None and max(at, elapsed) >= self.duration:
            return None
        return Slot(at, max(0, at - elapsed))

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


def pacer(plan: Plan) -> Pacer:
    """The schedule of a plan. A duration takes the place of the total."""
    duration = None if plan.duration is None else round(plan.duration * SECOND)
    total = plan.total if duration is None else None
    if plan.rate is None:
        return ClosedLoop(total, duration)
    return ConstantRate(plan.rate, total, duration)
