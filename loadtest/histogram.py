"""A distribution of times in bounded memory: three significant digits, from 1 ns to hours. Pure.

The buckets are those of an HDR histogram: each power of two is cut into 1,024, so a value is told at most 0.1 % too
high. Recording is one look-up in a dict, and less for many times at once; two histograms are merged by adding their
counts, which loses nothing. Extremes and the mean are exact.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from hdrh.histogram import HdrHistogram

from loadtest.model import Bar, Latency

_MILLISECOND = 1_000_000
_LONGEST = 24 * 3_600 * 1_000_000_000  # ns that an exported histogram knows
_PER_MILLE = (100, 250, 500, 750, 900, 950, 990, 999)  # of the times, as a Latency tells them
_STEPS = 10


def bucket(ns: int) -> int:
    """The bucket of a time; those of larger times have larger numbers."""
    shift = _shift(ns)
    return (shift << 10) + (ns >> shift)


def _shift(ns: int) -> int:
    """How many bits of a time its bucket does not tell."""
    return max(0, ns.bit_length() - 11)


def lowest(index: int) -> int:
    """The smallest time of a bucket, in ns."""
    shift = max(0, (index >> 10) - 1)
    return (index - (shift << 10)) << shift


def highest(index: int) -> int:
    """The largest time of a bucket, in ns."""
    return lowest(index) + (1 << max(0, (index >> 10) - 1)) - 1


class Histogram:
    """Times are recorded in ns and told in ms. `counts`: by bucket. A time below 0 counts as 0."""

    __slots__ = ("count", "counts", "largest", "smallest", "total")

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.count = 0
        self.total = 0
        self.smallest = 0  # meaningful when something was recorded
        self.largest = 0

    def record(self, ns: int) -> None:
        ns = max(0, ns)
        self._grow(1, ns, ns, ns)
        self.counts[bucket(ns)] += 1

    def extend(self, times: Sequence[int]) -> None:
        """Record many times: what they have in common is done once, and most of the rest within C."""
        if not times:
            return
        times = sorted(times)
        if times[0] < 0:
            times = [max(0, ns) for ns in times]
        self._grow(len(times), sum(times), times[0], times[-1])
        begin = 0
        while begin < len(times):  # those of one power of two at a time: their buckets differ by nothing but the time
            shift = _shift(times[begin])
            end = bisect_left(times, 2048 << shift, begin)
            base = shift << 10
            self.counts.update([base + (ns >> shift) for ns in times[begin:end]])
            begin = end

    def merge(self, other: Histogram) -> None:
        self.add(other.counts.items(), other.count, other.total, other.smallest, other.largest)

    def add(self, counts: Iterable[tuple[int, int]], count: int, total: int, smallest: int, largest: int) -> None:
        """Take in what was counted elsewhere: by bucket, how many in all, their sum and their extremes."""
        if count:
            self._grow(count, total, smallest, largest)
            mine = self.counts
            for index, times in counts:
                mine[index] += times

    def _grow(self, count: int, total: int, smallest: int, largest: int) -> None:
        self.smallest = min(self.smallest, smallest) if self.count else smallest
        self.largest = max(self.largest, largest)
        self.count += count
        self.total += total

    def ranked(self, per_mille: Sequence[int]) -> list[int]:
        """Times in ns that so many of a thousand are no longer than. `per_mille` ascends; something was recorded."""
        ranks = [max(1, -(-share * self.count // 1000)) for share in per_mille]
        found: list[int] = []
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            while len(found) < len(ranks) and seen >= ranks[len(found)]:
                found.append(min(max(highest(index), self.smallest), self.largest))
        return found

    def latency(self) -> Latency | None:
        """None when nothing was recorded."""
        if not self.count:
            return None
        p10, p25, p50, p75, p90, p95, p99, p999 = (ns / _MILLISECOND for ns in self.ranked(_PER_MILLE))
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
            value = max(lowest(index), self.smallest) / _MILLISECOND  # the fastest is in the first row
            row = next((row for row, edge in enumerate(edges) if value <= edge), _STEPS)
            counts[row] += times
        return tuple(map(Bar, edges, counts))


class Sketch:
    """A histogram of which many are kept, one a second: times are told at most 1.6 % too high, in a few bytes a bucket.
    Merging two of them still loses nothing."""

    __slots__ = ("_buckets", "_times", "count", "largest", "smallest", "total")

    def __init__(self) -> None:
        self._buckets = array("I")  # sixteen of a histogram's, named for the last
        self._times = array("Q")
        self.count = self.total = self.smallest = self.largest = 0

    def take(self, other: Histogram | Sketch) -> None:
        mine = self.wide()
        mine.merge(other if isinstance(other, Histogram) else other.wide())
        found: Counter[int] = Counter()
        for index, times in mine.counts.items():
            found[index | 15] += times
        self._buckets, self._times = array("I", found.keys()), array("Q", found.values())
        self.count, self.total, self.smallest, self.largest = mine.count, mine.total, mine.smallest, mine.largest

    def wide(self) -> Histogram:
        """The same as a histogram."""
        wide = Histogram()
        pairs = zip(self._buckets, self._times, strict=True)
        wide.add(pairs, self.count, self.total, self.smallest, self.largest)
        return wide
