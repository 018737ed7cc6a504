"""Exports the distributions as an HdrHistogram log, the format its tools read (version 1.3; histograms V2). Values are
nanoseconds, the column of the largest value is in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from loadtest.model import Report

_COLUMNS = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'


def to_log(report: Report) -> str:
    """One line for each of response, service and lag, told apart by its tag."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    began = datetime.fromtimestamp(report.began_at, UTC)
    yield "#[Logged with loadtest]"
    yield "#[Histogram log format version 1.3]"
    yield f"#[StartTime: {report.began_at:.3f} (seconds since epoch), {began:%a %b %d %H:%M:%S UTC %Y}]"
    yield _COLUMNS
    for name in ("response", "service", "lag"):
        latency, encoded = getattr(report, name), report.hdr.get(name)
        if latency is not None and encoded is not None:
            yield f"Tag={name},0.000,{report.elapsed:.3f},{latency.max:.3f},{encoded}"
