"""Histograms against the raw data, and the logs that are made of them, read by the library that knows the format."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given
from hypothesis import strategies as st

from loadtest.hdrlog import to_log
from loadtest.histogram import Histogram, Sketch, bucket, highest, lowest
from tests.loadtest.reports import report

TIMES = st.one_of(st.integers(0, 4_000), st.integers(0, 10_000_000), st.integers(0, 3_600 * 1_000_000_000))
SHARES = (100, 250, 500, 750, 900, 950, 990, 999)


def of(times: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.extend(times)
    return histogram


def parts(histogram: Histogram | Sketch) -> tuple[object, ...]:
    wide = histogram.wide() if isinstance(histogram, Sketch) else histogram
    return wide.counts, wide.count, wide.total, wide.smallest, wide.largest


@given(TIMES)
def test_a_bucket_holds_its_times_within_a_thousandth(ns: int) -> None:
    index = bucket(ns)
    assert lowest(index) <= ns <= highest(index)
    assert bucket(lowest(index)) == bucket(highest(index)) == index
    assert bucket(highest(index) + 1) == index + 1
    assert highest(index) - ns <= ns / 1000


@given(st.lists(TIMES, min_size=1, max_size=300))
def test_percentiles_are_those_of_the_raw_data_within_a_thousandth(times: list[int]) -> None:
    times.sort()
    for share, told in zip(SHARES, of(times).ranked(SHARES), strict=True):
        raw = times[max(1, math.ceil(share * len(times) / 1000)) - 1]
        assert raw <= told <= raw * 1.001


def test_the_rank_of_a_percentile_is_exact() -> None:
    """In floats 99.9 % of 1000 is a little over 999."""
    assert of([*range(1, 999), 1_000, 2_000]).ranked((999,)) == [1_000]


@given(st.lists(TIMES, max_size=100), st.lists(TIMES, max_size=100))
def test_merging_is_recording_all_of_it(first: list[int], then: list[int]) -> None:
    merged = of(first)
    merged.merge(of(then))
    assert parts(merged) == parts(of(first + then))
    one, other, both = Sketch(), Sketch(), Sketch()
    one.take(of(first))
    other.take(of(then))
    one.take(other)
    both.take(of(first + then))
    assert parts(one) == parts(both)


@given(st.lists(TIMES, min_size=1, max_size=100))
def test_a_sketch_is_true_within_its_coarser_buckets(times: list[int]) -> None:
    times.sort()
    sketch = Sketch()
    sketch.take(of(times))
    (told,) = sketch.wide().ranked((500,))
    raw = times[math.ceil(len(times) / 2) - 1]
    assert raw <= told <= max(raw * 1.016, raw + 15)


def test_one_by_one_is_as_many_at_once() -> None:
    times = [3_000, 2_047, 2_048, 0, -5, 7_000_000]
    single = Histogram()
    for ns in times:
        single.record(ns)
    assert parts(single) == parts(of(times))
    assert (single.smallest, single.count) == (0, 6)


@given(st.lists(TIMES, min_size=1, max_size=100))
def test_eleven_bars_and_the_fastest_is_in_the_first(times: list[int]) -> None:
    bars = of(times).bars()
    assert len(bars) == 11
    assert sum(bar.count for bar in bars) == len(times)
    assert bars[0].count >= times.count(min(times))
    assert (bars[0].upto, bars[-1].upto) == pytest.approx((min(times) / 1e6, max(times) / 1e6))


def test_nothing_recorded_is_no_time() -> None:
    assert (Histogram().latency(), Histogram().bars()) == (None, ())


def test_a_log_is_read_back_by_the_library(tmp_path: Path) -> None:
    times = {name: [step * scale for step in range(1, 1_001)] for name, scale in (("response", 9_973), ("lag", 31))}
    file = tmp_path / "log.hdr"
    file.write_text(to_log(replace(report(), hdr={name: of(values).encoded() for name, values in times.items()})))
    reader = HistogramLogReader(str(file), HdrHistogram(1, 3_600_000_000_000, 3))
    read = {}
    while (one := reader.get_next_interval_histogram()) is not None:
        read[one.get_tag()] = one
    reader.close()
    assert set(read) == {"response", "lag"}
    for name, values in times.items():
        assert read[name].get_total_count() == len(values)
        for percent in (50, 90, 99):
            assert read[name].get_value_at_percentile(percent) == pytest.approx(values[percent * 10 - 1], rel=0.001)
