"""Renders a report: text for people, JSON for programs. Decides nothing.

The text is hey's, line by line, so that what reads hey's output reads ours; what hey leaves out comes after it. A time
that was not measured is NaN, as in hey, and not zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import orjson

from loadtest.model import Bar, Interval, Latency, Loss, Report, RequestSpec

_JSON_TIMES = ("min", "mean", "p50", "p90", "p95", "p99", "p999", "max")
_WIDEST_BAR = 40
_PHASES = {"DNS+dialup": "dial", "DNS-lookup": "dns", "req write": "write", "resp wait": "wait", "resp read": "read"}
_MOST_LINES = 20


def to_json(report: Report) -> str:
    """One object, times in milliseconds. A time is null when nothing was measured."""
    document = {
        "requests": {
            "planned": report.planned,
            "sent": report.sent,
            "answered": report.answered,
            "skipped": report.skipped,
        },
        "status": _by_status(report.status),
        "errors": _by_kind(report),
        "idle_closed": report.idle_closed,
        "rps": round(report.rps, 3),
        "latency": {
            "response": _times(report.response),
            "service": _times(report.service),
            "lag": _times(report.lag),
        },
        "self": {name: getattr(report.self, name) for name in ("cpu_us_per_request", "valid", "why")},
        "resent": report.resent,
        "redirected": report.redirected,
        "by": {value: _by_status(counts) for value, counts in sorted(report.by_attribute.items())},
        "phases": {name: _times(latency) for name, latency in report.phases.items()},
        "intervals": [_interval(interval) for interval in report.intervals],
        "lost": [_loss(loss) for loss in report.losses],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()


def _by_status(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(counts.items())}


def _by_kind(report: Report | Interval) -> dict[str, int]:
    return {kind.value: count for kind, count in report.errors.items()}


def _times(latency: Latency | None) -> dict[str, float | None]:
    return {name: None if latency is None else round(getattr(latency, name), 4) for name in _JSON_TIMES}


def _interval(interval: Interval) -> dict[str, object]:
    """`begin` and `seconds` in seconds, since the start."""
    return {
        "begin": round(interval.begin, 3),
        "seconds": round(interval.seconds, 3),
        "status": _by_status(interval.status),
        "errors": _by_kind(interval),
        "received": interval.received,
        "response": _times(interval.response),
    }


def _loss(loss: Loss) -> dict[str, object]:
    """`at` in seconds since the epoch."""
    return loss._asdict() | {"kind": loss.kind.value, "at": round(loss.at, 3)}


def to_text(report: Report, requests: Sequence[RequestSpec] = ()) -> str:
    """The summary hey prints, and then what hey leaves out. `requests`: those of the plan, where there are several."""
    return "\n".join((*_as_hey(report), *_besides(report, requests))) + "\n"


def _as_hey(report: Report) -> Iterator[str]:
    yield from ("", *_summary(report))
    yield from ("", "Response time histogram:", *_histogram(report.histogram), "")
    yield from ("", "Latency distribution:", *_distribution(report.response))
    yield from ("", "Details (average, fastest, slowest):")
    for name, phase in _PHASES.items():
        yield f"  {name}:\t{_three(report.phases.get(phase))}"
    yield from ("", "Status code distribution:")
    yield from (f"  [{status}]\t{count} responses" for status, count in sorted(report.status.items()))
    yield ""
    if report.errors:
        yield "Error distribution:"
        yield from (
            f"  [{count}]\t{kind}: {shown(report.examples.get(kind, ''))}" for kind, count in report.errors.items()
        )
    yield ""


def _summary(report: Report) -> Iterator[str]:
    yield "Summary:"
    yield f"  Total:\t{report.elapsed:.4f} secs"
    for label, name in (("Slowest", "max"), ("Fastest", "min"), ("Average", "mean")):
        yield f"  {label}:\t{_seconds(report.response, name)}"
    yield f"  Requests/sec:\t{report.rps:.4f}"
    yield "  "
    if report.received:
        yield f"  Total data:\t{report.received} bytes"
        yield f"  Size/request:\t{report.received // max(1, report.answered)} bytes"


def _histogram(bars: tuple[Bar, ...]) -> Iterator[str]:
    highest = max((bar.count for bar in bars), default=0)
    digits = _digits(bars)
    for bar in bars:
        marks = "■" * round(_WIDEST_BAR * bar.count / highest)
        yield f"  {bar.upto / 1000:.{digits}f} [{bar.count}]\t|{marks}"


def _digits(bars: tuple[Bar, ...]) -> int:
    """Three as in hey, or as many as tell the rows apart, up to microseconds."""
    step = (bars[-1].upto - bars[0].upto) / 1000 / max(1, len(bars) - 1) if bars else 0.0
    return min(6, max(3, math.ceil(-math.log10(step)))) if step > 0 else 3


def _distribution(latency: Latency | None) -> Iterator[str]:
    if latency is not None:
        for percent in (10, 25, 50, 75, 90, 95, 99):
            yield f"  {percent}% in {_seconds(latency, f'p{percent}')}"


def _three(latency: Latency | None) -> str:
    return ", ".join(_seconds(latency, name) for name in ("mean", "min", "max"))


def _seconds(latency: Latency | None, name: str) -> str:
    return "NaN secs" if latency is None else f"{getattr(latency, name) / 1000:.4f} secs"


def shown(text: str) -> str:
    """What a server said must not steer the terminal, nor make lines of its own."""
    return "".join(char if char.isprintable() else "?" for char in text)


# what hey leaves out


def _besides(report: Report, requests: Sequence[RequestSpec]) -> Iterator[str]:
    yield from _counts(report)
    yield from ("", "Times (average, 50%, 99%, 99.9%, slowest):")
    for name, latency in (("response", report.response), ("service", report.service), ("lag", report.lag)):
        if latency is not None:
            yield f"  {name}:\t" + ", ".join(_seconds(latency, each) for each in ("mean", "p50", "p99", "p999", "max"))
    if report.by_attribute:
        yield from ("", "Answers by attribute:", *_answers(sorted(report.by_attribute.items())))
    if len(requests) > 1:
        named = [(f"{spec.method} {spec.url}", report.by_request.get(n, {})) for n, spec in enumerate(requests)]
        yield from ("", "Answers by request:", *_answers(named))
    if report.losses:
        yield from ("", "Lost requests:", *_losses(report))
    if not report.self.valid:
        yield from ("", f"INVALID: {report.self.why}")
    elif report.self.why:
        yield from ("", f"Behind the schedule: {report.self.why}")


def _counts(report: Report) -> Iterator[str]:
    """What is nothing is left out, but for what was lost."""
    yield "Requests:"
    yield f"  {report.sent} sent, {report.answered} answered, {report.lost} lost"
    amounts = (
        (report.skipped, f"of {report.planned} planned were not sent in time"),
        (report.idle_closed, "connections the server had closed while they were idle; no request was harmed"),
        (report.redirected, "redirects followed"),
        (report.resent, "sent again, as kept-alive connections had dropped them (--retry-stale)"),
    )
    yield from (f"  {amount} {what}" for amount, what in amounts if amount)
    if report.self.cpu_us_per_request is not None:
        yield f"  {report.self.cpu_us_per_request:.1f} us of CPU for each, on our side"


def _answers(rows: Iterable[tuple[str, Mapping[int, int]]]) -> Iterator[str]:
    for number, (value, counts) in enumerate(rows):
        if number == _MOST_LINES:
            yield "  and more: see --json or --html"
            return
        yield f"  {shown(value)}:\t" + (
            ", ".join(f"{count} x {status}" for status, count in sorted(counts.items())) or "none"
        )


def _losses(report: Report) -> Iterator[str]:
    for loss in report.losses[:_MOST_LINES]:
        where = "" if loss.connection is None else f" on connection {loss.connection}"
        yield f"  +{loss.at - report.began_at:.3f} secs\t{loss.kind}, request {loss.hit}{where}: {shown(loss.detail)}"
    if report.lost > _MOST_LINES:
        yield f"  and {report.lost - _MOST_LINES} more: see --json or --html"
