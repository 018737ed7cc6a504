"""A report as one page of HTML for people, which needs no network, no script and no other file. Pure but for reading
its frame, which comes with the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from itertools import islice
from string import Template
from typing import NamedTuple

from loadtest import chart
from loadtest.chart import Mark, milliseconds
from loadtest.markup import Markup, joined, table, tag
from loadtest.model import Latency, Loss, Plan, Report
from loadtest.verdict import Verdict, count_status

_TIMES = ("min", "mean", "p50", "p90", "p95", "p99", "p999", "max")
_MOST_ROWS = 1_000


class Listing(NamedTuple):
    """A table under a title of its own."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def to_html(
    report: Report,
    *,
    plan: Plan | None = None,
    verdict: Verdict | None = None,
    title: str = "Load test",
    marks: Sequence[Mark] = (),
    listings: Sequence[Listing] | None = None,
) -> str:
    """`marks`: seconds since the start of the run, and what began then: the phases of a deploy, say. `listings`: from
    who knows more of what was lost than the report does, in place of its list."""
    lost = _lost(report, marks) if listings is None else listings
    return framed(title, joined(_body(report, plan, verdict, title, sorted(marks), lost)))


def framed(title: str, body: Markup, styles: str = "") -> str:
    """A whole document around `body`. `styles`: more rules of CSS, which no user has a say in."""
    return _frame().substitute(title=joined([title]), body=body, styles=styles)


@cache
def _frame() -> Template:
    return Template(files("loadtest").joinpath("page.html").read_text(encoding="utf-8"))


def _body(
    report: Report,
    plan: Plan | None,
    verdict: Verdict | None,
    title: str,
    marks: Sequence[Mark],
    listings: Sequence[Listing],
) -> Iterator[Markup]:
    yield _header(report, plan, verdict, title)
    if verdict is not None and not verdict.passed:
        yield tag("p", f"Failed: {', '.join(verdict.reasons)}", class_="note bad")
    if not report.self.valid:
        yield tag("p", f"These figures are not valid: {report.self.why}", class_="note warn")
    yield tag("div", *_tiles(report), class_="tiles")
    if picture := chart.draw(report, marks):
        yield tag("section", tag("div", picture, class_="chart"))
    yield tag("div", *_tables(report, plan, marks), class_="columns")
    yield _section("Times", table(("", *_TIMES), _latencies(report)))
    for one in listings:
        yield _section(one.title, table(one.headings, one.rows, numbers=False))
    yield tag("footer", "Response time counts from when a request was due, service time from its first byte written.")


def _header(report: Report, plan: Plan | None, verdict: Verdict | None, title: str) -> Markup:
    parts = [tag("h1", title)]
    if verdict is not None:
        parts.append(tag("span", *(("passed",) if verdict.passed else ("failed",)), class_=_badge(verdict.passed)))
    told = [] if plan is None else [_load(plan)]
    if report.began_at:
        told.append(f"{datetime.fromtimestamp(report.began_at, UTC):%Y-%m-%d %H:%M:%S} UTC")
    told.append(f"{report.elapsed:.1f} s")
    return tag("header", *parts, tag("p", " · ".join(told)))


def _badge(good: bool) -> str:
    return f"badge {'good' if good else 'bad'}"


def _load(plan: Plan) -> str:
    first = plan.requests[0]
    more = f" and {len(plan.requests) - 1} more" if len(plan.requests) > 1 else ""
    loop = f"{plan.rate:g} a second" if plan.rate is not None else f"{plan.connections} workers"
    if plan.stages:
        loop = "in stages up to " + f"{max(stage.rate for stage in plan.stages):g} a second"
    return f"{first.method} {first.url}{more}, {loop}"


def _section(title: str, *content: Markup) -> Markup:
    return tag("section", tag("h2", title), *content)


def _tiles(report: Report) -> Iterator[Markup]:
    response = report.response
    yield _tile(f"{report.sent:,}", "sent")
    yield _tile(f"{report.answered:,}", "answered")
    yield _tile(f"{report.lost:,}", "lost", "bad" if report.lost else "good")
    if server_errors := count_status(report, "5xx"):
        yield _tile(f"{server_errors:,}", "5xx answers", "bad")
    if report.skipped:
        yield _tile(f"{report.skipped:,}", "skipped", "warn")
    yield _tile(f"{report.rps:,.0f}", "answers/s")
    for name, label in (("p50", "p50"), ("p99", "p99"), ("max", "slowest")):
        yield _tile("-" if response is None else milliseconds(getattr(response, name)), label)


def _tile(value: str, label: str, style: str | None = None) -> Markup:
    return tag("div", tag("b", value, class_=style), tag("span", label), class_="tile")


# tables


def _tables(report: Report, plan: Plan | None, marks: Sequence[Mark]) -> Iterator[Markup]:
    yield _section("Requests", table((), _summary(report)))
    yield _section("Answers", table(("Status", "Count", "Share"), _statuses(report)))
    if report.errors:
        rows = [(kind.value, f"{count:,}", report.examples.get(kind, "")) for kind, count in report.errors.items()]
        yield _section("Errors", table(("Kind", "Count", "The first of them"), rows, numbers=False))
    if report.by_attribute:
        rows_by = ((value, _counts(counts)) for value, counts in sorted(report.by_attribute.items()))
        name = (plan.attribute if plan is not None else None) or "attribute"
        yield _section("Who answered", table((name, "Answers by status"), rows_by))
    if plan is not None and len(plan.requests) > 1:
        answers = (
            (f"{spec.method} {spec.target}", report.by_request.get(n, {})) for n, spec in enumerate(plan.requests)
        )
        shown = [(name, _counts(counts)) for name, counts in islice(answers, _MOST_ROWS)]
        yield _section("By request", table(("Request", "Answers by status"), shown))
    if marks:
        yield _section("Phases", table(("Phase", "At"), [(text, f"{at:.2f} s") for at, text in marks]))


def _summary(report: Report) -> Iterator[tuple[str, str]]:
    amounts = (
        ("planned", report.planned),
        ("sent", report.sent),
        ("answered", report.answered),
        ("lost", report.lost),
        ("skipped: not sent in time", report.skipped),
        ("redirects followed", report.redirected),
        ("sent again (--retry-stale)", report.resent),
        ("connections closed while idle", report.idle_closed),
        ("bytes of bodies", report.received),
    )
    yield from ((label, f"{amount:,}") for label, amount in amounts)
    if report.self.cpu_us_per_request is not None:
        yield ("our CPU for each request", f"{report.self.cpu_us_per_request:.1f} us")


def _statuses(report: Report) -> Iterator[tuple[str, str, str]]:
    for status, count in sorted(report.status.items()):
        yield str(status), f"{count:,}", _share(count, report.sent)
    if report.lost:
        yield "none (lost)", f"{report.lost:,}", _share(report.lost, report.sent)


def _share(count: int, total: int) -> str:
    """Never rounded to nothing, nor to all."""
    percent = 100 * count / total if total else 0.0
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if 99.99 < percent < 100:
        return "> 99.99 %"
    return f"{percent:.2f} %"


def _counts(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{count:,} × {status}" for status, count in sorted(counts.items())) or "none"  # noqa: RUF001


def _latencies(report: Report) -> Iterator[list[str]]:
    named: list[tuple[str, Latency | None]] = [
        ("response", report.response),
        ("service", report.service),
        ("lag", report.lag),
        *report.phases.items(),
    ]
    for name, latency in named:
        if latency is not None:
            yield [name, *(milliseconds(getattr(latency, time)) for time in _TIMES)]


def clock(at: float) -> str:
    """A time of the day, in UTC, to the millisecond."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S.%f}"[:-3]


def _lost_title(report: Report) -> str:
    shown = min(len(report.losses), _MOST_ROWS)
    return "Lost requests" if shown == report.lost else f"Lost requests: the first {shown:,} of {report.lost:,}"


def _lost(report: Report, marks: Sequence[Mark]) -> Sequence[Listing]:
    if not report.losses:
        return ()
    headings = ["At", "Time (UTC)", "Kind", "Request", "Connection", *(["Phase"] if marks else []), "What happened"]
    rows = [tuple(_lost_row(loss, report, sorted(marks))) for loss in report.losses[:_MOST_ROWS]]
    return (Listing(_lost_title(report), headings, rows),)


def _lost_row(loss: Loss, report: Report, marks: Sequence[Mark]) -> Iterator[str]:
    since = loss.at - report.began_at
    yield f"{since:.3f} s"
    yield clock(loss.at)
    yield loss.kind.value
    yield f"{loss.hit:,}"
    yield "-" if loss.connection is None else str(loss.connection)
    if marks:
        yield next((text for at, text in reversed(marks) if at <= since), "before the first")
    yield loss.detail
