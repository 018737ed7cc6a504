"""A distribution of times in bounded memory: three significant digits, from 1 ns to hours. Pure.

The buckets are those of an HDR histogram: each power of two is cut into 1,024, so a value is told at most 0.1 % too
high. Recording is one look-up in a dict; two histograms are merged by adding their counts, which loses nothing.
Extremes and the mean are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hdrh.histogram import HdrHistogram

from loadtest.model import Bar, Latency

_MILLISECOND = 1_000_000
_LONGEST = 24 * 3_600 * 1_000_000_000  # ns that an exported histogram knows
_PERCENTILES = (10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_STEPS = 10


def bucket(ns: int) -> int:
    """The bucket of a time; those of larger times have larger numbers."""
    shift = ns.bit_length() - 11
    return ns if shift <= 0 else (shift << 10) + (ns >> shift)


def highest(index: int) -> int:
    """The largest time of a bucket, in ns."""
    if index < 2048:
        return index
    shift = (index >> 10) - 1
    return ((index - (shift << 10) + 1) << shift) - 1


class Histogram:
    """Times are recorded in ns and told in ms. `counts`: by bucket."""

    __slots__ = ("count", "counts", "largest", "smallest", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.smallest = 0  # meaningful when something was recorded
        self.largest = 0

    def record(self, ns: int, times: int = 1) -> None:
        ns = max(0, ns)
        self.add({bucket(ns): times}, times, ns * times, ns, ns)

    def add(self, counts: Mapping[int, int], count: int, total: int, smallest: int, largest: int) -> None:
        """Take in what was counted elsewhere: by bucket, how many in all, their sum and their extremes."""
        if not count:
            return
        mine = self.counts
        for index, times in counts.items():
            mine[index] = mine.get(index, 0) + times
        self.smallest = min(self.smallest, smallest) if self.count else smallest
        self.largest = max(self.largest, largest)
        self.count += count
        self.total += total

    def merge(self, other: Histogram) -> None:
        self.add(other.counts, other.count, other.total, other.smallest, other.largest)

    def percentiles(self, wanted: Sequence[float]) -> list[int]:
        """Times in ns that so many per cent are no longer than. `wanted` ascends, and something was recorded."""
        found: list[int] = []
        ranks = iter([max(1, math.ceil(percent / 100 * self.count)) for percent in wanted])
        rank, seen = next(ranks), 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            while seen >= rank:
                found.append(min(max(highest(index), self.smallest), self.largest))
                try:
                    rank = next(ranks)
                except StopIteration:
                    return found
        raise AssertionError("the counts do not add up")

    def latency(self) -> Latency | None:
        """None when nothing was recorded."""
        if not self.count:
            return None
        p10, p25, p50, p75, p90, p95, p99, p999 = (ns / _MILLISECOND for ns in self.percentiles(_PERCENTILES))
        low, high = self.smallest / _MILLISECOND, self.largest / _MILLISECOND
        return Latency(low, self.total / self.count / _MILLISECOND, p10, p25, p50, p75, p90, p95, p99, p999, high)

    def encoded(self) -> str:
        """As an HdrHistogram of ns: V2, compressed, in base64."""
        other = HdrHistogram(1, _LONGEST, 3)
        for index, times in self.counts.items():
            other.record_value(min(highest(index), _LONGEST), times)
        return str(other.encode().decode("ascii"))

    def bars(self) -> tuple[Bar, ...]:
        """Eleven rows as hey draws them: the fastest alone, then ten equal steps to the slowest."""
        if not self.count:
            return ()
        low, high = self.smallest / _MILLISECOND, self.largest / _MILLISECOND
        edges = [low + (high - low) * step / _STEPS for step in range(_STEPS)] + [high]
        counts = [0] * len(edges)
        for index, times in self.counts.items():
            value = min(max(highest(index), self.smallest), self.largest) / _MILLISECOND
            row = next((row for row, edge in enumerate(edges) if value <= edge), _STEPS)
            counts[row] += times
        return tuple(map(Bar, edges, counts))


def coarse(counts: Mapping[int, int]) -> dict[int, int]:
    """The same counts in buckets that are told at most 1.6 % too high, for keeping many of them: each in the last of
    sixteen."""
    found: dict[int, int] = {}
    for index, times in counts.items():
        kept = index | 15
        found[kept] = found.get(kept, 0) + times
    return found
