"""A distribution of times in bounded memory: three significant digits, up to one hour."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram

from loadtest.model import Bar, Latency

_MICROSECOND = 1_000
_MILLISECOND = 1_000_000
_HIGHEST_US = 3_600 * 1_000_000
_PERCENTILES = (10, 25, 50, 75, 90, 95, 99, 99.9)
_STEPS = 10


class Histogram:
    """Times are recorded in ns and told in ms. Extremes and the mean are exact."""

    def __init__(self) -> None:
        self._hdr = HdrHistogram(1, _HIGHEST_US, 3)
        self._count = 0
        self._sum = 0
        self._min = 0
        self._max = 0

    def record(self, ns: int) -> None:
        ns = max(0, ns)
        self._min = min(self._min, ns) if self._count else ns
        self._max = max(self._max, ns)
        self._count += 1
        self._sum += ns
        self._hdr.record_value(min(ns // _MICROSECOND, _HIGHEST_US))

    def latency(self) -> Latency | None:
        """None when nothing was recorded."""
        if not self._count:
            return None
        values = self._hdr.get_percentile_to_value_dict(_PERCENTILES)
        p10, p25, p50, p75, p90, p95, p99, p999 = (self._within(values[p]) for p in _PERCENTILES)
        low, high = self._min / _MILLISECOND, self._max / _MILLISECOND
        mean = self._sum / self._count / _MILLISECOND
        return Latency(low, mean, p10, p25, p50, p75, p90, p95, p99, p999, high)

    def bars(self) -> tuple[Bar, ...]:
        """Eleven rows as hey draws them: the fastest alone, then ten equal steps to the slowest."""
        if not self._count:
            return ()
        low, high = self._min / _MILLISECOND, self._max / _MILLISECOND
        edges = [low + (high - low) * step / _STEPS for step in range(_STEPS)] + [high]
        counts = [0] * len(edges)
        for item in self._hdr.get_recorded_iterator():
            value = self._within(item.value_iterated_to)
            row = next((row for row, edge in enumerate(edges) if value <= edge), _STEPS)
            counts[row] += item.count_added_in_this_iter_step
        return tuple(map(Bar, edges, counts))

    def _within(self, us: int) -> float:
        """A bucket's value in ms, which may lie outside what was really recorded."""
        return min(max(us * _MICROSECOND, self._min), self._max) / _MILLISECOND
