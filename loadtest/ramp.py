"""The rate of a run as it changes with time, stage by stage. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from loadtest.model import Stage

_TINY = 1e-9  # of a request: what floats may lose


@dataclass(frozen=True)
class Ramp:
    """From `begin` requests a second evenly to the rate of the first stage, from there to that of the next, and so
    on."""

    begin: float
    stages: tuple[Stage, ...]

    def lasting(self, seconds: float) -> Ramp:
        """The same, cut off then, or going on at its last rate until then."""
        stages, left, rate = [], seconds, self.begin
        for stage in self.stages:
            part = min(1.0, left / stage.duration)
            rate += part * (stage.rate - rate)
            stages.append(Stage(part * stage.duration, rate))
            left -= stage.duration
            if left <= 0:
                return Ramp(self.begin, tuple(stages))
        return Ramp(self.begin, (*stages, Stage(left, rate)))

    @property
    def duration(self) -> float:
        """In s."""
        return self._pieces[-1].at + self._pieces[-1].duration

    @property
    def area(self) -> float:
        """How many requests are due in all."""
        return self._pieces[-1].before + self._pieces[-1].area

    def due(self, count: float) -> float:
        """When so many requests are due, in s: where the area under the rate is that. Up to `area`."""
        piece = next((one for one in self._pieces if count < one.before + one.area - _TINY), self._pieces[-1])
        return piece.due(count)

    @cached_property
    def _pieces(self) -> tuple[_Piece, ...]:
        pieces, at, count, rate = [], 0.0, 0.0, self.begin
        for stage in self.stages:
            piece = _Piece(at, count, stage.duration, rate, stage.rate)
            pieces.append(piece)
            at, count, rate = at + stage.duration, count + piece.area, stage.rate
        return tuple(pieces)


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

    def due(self, count: float) -> float:
        """The root of a quadratic, in the form that loses no digits."""
        wanted, slope = max(0.0, count - self.before), (self.until - self.rate) / self.duration
        root = self.rate + math.sqrt(max(0.0, self.rate * self.rate + 2 * slope * wanted))
        return self.at + (min(self.duration, 2 * wanted / root) if root else 0.0)
