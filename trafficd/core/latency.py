"""When is a request slow? When it is slower than a quantile of the stable version, frozen before the canary came.

Frozen, since a canary that slows down what both share would else move its own yardstick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

QUANTILES = (0.5, 0.9, 0.99)
FEWEST = 100  # under a hundred durations p99 is no more than their greatest


class SlowerThan(NamedTuple):
    """A threshold in seconds, and the metric that it makes."""

    metric: str
    seconds: float


class Thresholds(NamedTuple):
    """Stable's quantiles, from the lowest up."""

    levels: tuple[SlowerThan, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(level.metric for level in self.levels)

    def slow(self, seconds: float) -> frozenset[str]:
        """The metrics by which a request of this duration is bad."""
        return frozenset(level.metric for level in self.levels if seconds > level.seconds)


def freeze(durations: Sequence[float]) -> Thresholds | None:
    """Stable's p50, p90 and p99 of `durations` (seconds, in any order); None where there are too few to tell."""
    if len(durations) < FEWEST:
        return None
    ordered = sorted(durations)
    return Thresholds(
        tuple(
            SlowerThan(f"slower_than_p{100 * quantile:g}", ordered[math.ceil(quantile * len(ordered)) - 1])
            for quantile in QUANTILES
        )
    )
