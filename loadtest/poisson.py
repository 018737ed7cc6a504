"""Gaps that are drawn and not counted, from a seed: the same for everybody who has that."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cached_property

from loadtest.slot import LATE, SECOND, Slot


class Poisson:
    """Slots as independent users make them: gaps are exponential, with a mean of one request by the rate of the time.

    `due`: when so many requests are due by the rate, in s; `area`: how many are in all, where there is an end. The
    same for the same seed, whoever asks; slots are asked for in order, and an earlier one again only by beginning anew.
    """

    def __init__(self, due: Callable[[float], float], area: float, total: int | None, seed: int) -> None:
        self._due, self._area, self._total, self._seed = due, area, total, seed
        self._end = math.inf if math.isinf(area) else SECOND * due(area)
        self._begin()

    def _begin(self) -> None:
        self._chance = random.Random(self._seed)
        self._hit, self._count = 0, 0.0

    @cached_property
    def planned(self) -> int | None:
        if math.isinf(self._area):
            return self._total
        again, count = Poisson(self._due, self._area, None, self._seed), 0
        while (self._total is None or count < self._total) and again._reach(count) < self._area:
            count += 1
        return count

    def pace(self, elapsed: int, hits: int) -> Slot | None:
        if self._total is not None and hits >= self._total:
            return None
        count = self._reach(hits)
        if count >= self._area or elapsed - LATE >= self._end:
            return None
        at = math.floor(SECOND * self._due(count))
        return Slot(at, max(0, at - elapsed))

    def _reach(self, hit: int) -> float:
        """How many requests would be due evenly by the time of this one."""
        if hit < self._hit:
            self._begin()
        while self._hit < hit:
            self._count += self._chance.expovariate(1.0)
            self._hit += 1
        return self._count
