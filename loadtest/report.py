"""Renders a report: text for people, JSON for programs. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from loadtest.model import Bar, Latency, Report

_JSON_TIMES = ("min", "mean", "p50", "p90", "p95", "p99", "p999", "max")
_WIDEST_BAR = 40


def to_json(report: Report) -> str:
    """One object, times in milliseconds. A time is null when nothing was measured."""
    document = {
        "requests": {
            "planned": report.planned,
            "sent": report.sent,
            "answered": report.answered,
            "skipped": report.skipped,
        },
        "status": {str(status): count for status, count in report.status.items()},
        "errors": {kind.value: count for kind, count in report.errors.items()},
        "idle_closed": report.idle_closed,
        "rps": round(report.rps, 3),
        "latency": {
            "response": _times(report.response),
            "service": _times(report.service),
            "lag": _times(report.lag),
        },
        "self": {name: getattr(report.self, name) for name in ("cpu_us_per_request", "valid", "why")},
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()


def _times(latency: Latency | None) -> dict[str, float | None]:
    return {name: None if latency is None else round(getattr(latency, name), 4) for name in _JSON_TIMES}


def to_text(report: Report) -> str:
    """The summary hey prints, with what hey leaves out."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from _summary(report)
    if report.response is not None:
        yield from ("", "Response time histogram:", *_histogram(report.histogram))
        yield from ("", "Latency distribution:", *_distribution(report.response))
        yield from ("", "Details (average, fastest, slowest):", *_details(report))
    if report.status:
        yield from ("", "Status code distribution:")
        yield from (f"  [{status}]\t{count} responses" for status, count in report.status.items())
    if report.by_attribute:
        yield from ("", "Answers by:", *_attributes(report))
    if report.errors:
        yield from ("", "Error distribution:")
        yield from (f"  [{count}]\t{kind}: {report.examples[kind]}" for kind, count in report.errors.items())
    if not report.self.valid:
        yield from ("", f"INVALID: {report.self.why}")


def _summary(report: Report) -> Iterator[str]:
    yield "Summary:"
    yield f"  Total:\t{report.elapsed:.4f} secs"
    if report.response is not None:
        yield f"  Slowest:\t{_seconds(report.response.max)}"
        yield f"  Fastest:\t{_seconds(report.response.min)}"
        yield f"  Average:\t{_seconds(report.response.mean)}"
    yield f"  Requests/sec:\t{report.rps:.4f}"
    yield f"  Requests:\t{report.sent} sent, {report.answered} answered, {report.lost} lost"
    if report.skipped:
        yield f"  Skipped:\t{report.skipped} of {report.planned} planned"
    if report.idle_closed:
        yield f"  Idle closed:\t{report.idle_closed} connections"
    yield f"  Total data:\t{report.received} bytes"
    if report.answered:
        yield f"  Size/request:\t{report.received // report.answered} bytes"


def _histogram(bars: tuple[Bar, ...]) -> Iterator[str]:
    highest = max(bar.count for bar in bars)
    for bar in bars:
        marks = "■" * round(_WIDEST_BAR * bar.count / highest)
        yield f"  {bar.upto / 1000:.4f} [{bar.count}]\t|{marks}"


def _distribution(latency: Latency) -> Iterator[str]:
    for percent in (10, 25, 50, 75, 90, 95, 99):
        yield f"  {percent}% in {_seconds(getattr(latency, f'p{percent}'))}"
    yield f"  99.9% in {_seconds(latency.p999)}"


def _details(report: Report) -> Iterator[str]:
    for name, latency in (("response", report.response), ("service", report.service), ("lag", report.lag)):
        if latency is not None:
            times = ", ".join(map(_seconds, (latency.mean, latency.min, latency.max)))
            yield f"  {name}:\t{times}"


def _attributes(report: Report) -> Iterator[str]:
    for value, counts in sorted(report.by_attribute.items()):
        yield f"  {value}:\t" + ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.4f} secs"
