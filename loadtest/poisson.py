"""Gaps that are drawn and not counted, from a seed: the same for everybody who has that."""

from __future__ import annotations

import math
import random
from functools import cached_property

from loadtest.slot import SECOND, Slot, slot


class Poisson:
    """Gaps as independent users make them: exponential, of a mean of 1 / `rate`. The same for the same seed, whoever
    asks; slots are asked for in order, and an earlier one again only by beginning anew."""

    def __init__(self, rate: float, total: int | None, duration: int | None, seed: int) -> None:
        self._rate, self._total, self._duration, self._seed = rate, total, duration, seed
        self._begin()

    def _begin(self) -> None:
        self._chance = random.Random(self._seed)
        self._hit, self._at = 0, 0.0

    @cached_property
    def planned(self) -> int | None:
        if self._total is not None or self._duration is None:
            return self._total
        again, count = Poisson(self._rate, None, None, self._seed), 0
        while again._due(count) < self._duration:
            count += 1
        return count

    def pace(self, elapsed: int, hits: int) -> Slot | None:
        if self._total is not None and hits >= self._total:
            return None
        return slot(self._due(hits), elapsed, self._duration)

    def _due(self, hit: int) -> int:
        if hit < self._hit:
            self._begin()
        while self._hit < hit:
            self._at += self._chance.expovariate(self._rate)
            self._hit += 1
        return math.floor(self._at * SECOND)
