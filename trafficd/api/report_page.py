"""The report of a rollout as one page of HTML, which needs no network, no script and no other file. Pure.

Versions, messages, routes and outputs are whatever somebody wrote: all text goes through `loadtest.markup`, which
escapes what was not made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from loadtest.html import clock, framed
from loadtest.markup import Markup, joined, table, tag
from trafficd.api.report_chart import STYLES, draw
from trafficd.api.report_schema import CountsView, ExposureView, JudgeView, ReportStageView, ReportView

_BADGES = {"succeeded": "good", "reverted": "warn", "failed": "bad", "stuck": "bad"}
_OUTPUT = 4_000  # characters of a program's output that are shown
_MORE = """
td:not(:last-child) { overflow-wrap: break-word; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; margin: 0; }
"""


def page(report: ReportView, now: float) -> str:
    """One self-contained document; `now` (s since the epoch) is where what goes on is shown to."""
    return framed(f"{report.service} to {report.asked.version}", joined(_body(report, now)), STYLES + _MORE)


def _body(report: ReportView, now: float) -> Iterator[Markup]:
    yield _header(report)
    if report.reason:
        yield tag("p", report.reason, class_=f"note {_BADGES.get(report.state, '')}".rstrip())
    yield from (tag("p", f"warning: {text}", class_="note warn") for text in report.warnings)
    judge = report.judge
    if judge is None:
        yield tag("p", f"Not judged: {report.not_judged}", class_="note")
    else:
        yield tag("div", *_tiles(judge), class_="tiles")
        if picture := draw(report, now):
            yield tag("section", tag("div", picture, class_="chart"))
    if report.stages:
        yield _section("Stages", _stages(report))
    if judge is not None:
        yield from _judged(report, judge)
    yield from _verified(report)
    yield _section("Steps", _steps(report))
    yield from _outputs(report)
    yield _section("What happened", _marks(report))
    yield _section("What was asked", _asked(report))
    yield tag("footer", f"trafficd, rollout {report.id}. Times of the day are UTC.")


def _section(title: str, *content: Markup) -> Markup:
    return tag("section", tag("h2", title), *content)


def _header(report: ReportView) -> Markup:
    began = datetime.fromtimestamp(report.started_at, UTC)
    by = f" by {report.asked.actor}" if report.asked.actor else ""
    told = [report.asked.strategy, f"{began:%Y-%m-%d %H:%M:%S} UTC{by}", f"{report.seconds:.1f} s", report.id]
    parts = [tag("h1", f"{report.service} to {report.asked.version}")]
    parts.append(tag("span", report.state, class_=f"badge {_BADGES.get(report.state, '')}".rstrip()))
    parts.append(tag("p", " · ".join(told)))
    if report.asked.message:
        parts.append(tag("p", report.asked.message))
    return tag("header", *parts)


# -- the judge ---------------------------------------------------------------------------------------------


def _tiles(judge: JudgeView) -> Iterator[Markup]:
    style = {"FAIL": "bad", "PASS": "good"}.get(judge.verdict)
    yield _tile(judge.verdict, "verdict", style)
    seen = judge.exposure
    yield _tile(f"{seen.requests:,}", "requests on it")
    yield _tile(f"{seen.bad:,}", "of them bad", "bad" if seen.bad else None)
    yield _tile(_clients(seen), "clients")
    yield _tile(f"{seen.seconds:,.1f} s", "had traffic")
    if (failure := judge.failure) is not None:
        yield _tile(f"{failure.requests_after:,}", "began after FAIL", "bad" if failure.requests_after else "good")


def _tile(value: str, label: str, style: str | None = None) -> Markup:
    return tag("div", tag("b", value, class_=style), tag("span", label), class_="tile")


def _clients(seen: ExposureView) -> str:
    return f"{'at least ' if seen.at_least else ''}{seen.clients:,}"


def _judged(report: ReportView, judge: JudgeView) -> Iterator[Markup]:
    rows = [("verdict", f"{judge.verdict}: {judge.why}")]
    if (worst := judge.worst_route) is not None:
        rows.append(("worst route", f"{worst.route}: {_of(worst.canary)}, of the stable version {_of(worst.stable)}"))
    if (failure := judge.failure) is not None:
        after = f"{failure.requests_after:,} requests began on the new version after it"
        last = "" if failure.last_after is None else f", the last one {failure.seconds:.3f} s later"
        cut = f"; {failure.cut_after:,} answers were cut short, begun who knows when" if failure.cut_after else ""
        rows.append((f"FAIL at {clock(failure.at)}", f"{after}{last}{cut}"))
    gaps = judge.evidence.gaps
    rows += [(f"gap at {clock(gap.since)}", f"{gap.why}, for {gap.until - gap.since:.1f} s") for gap in gaps]
    yield _section("Verdict", table((), rows, numbers=False))
    headings = ("Stage", "Metric", "Evidence", "Bad of the new version", "Bad of the stable version")
    metrics = [
        (_name(stage), one.name, f"{one.evidence:.3g}", _of(one.canary), _of(one.stable))
        for stage in report.stages
        if stage.judge is not None
        for one in stage.judge.metrics
    ]
    yield _section("Counts", table(headings, metrics, numbers=False))


def _of(counts: CountsView) -> str:
    return f"{counts.bad:,} of {counts.total:,}"


def _name(stage: ReportStageView) -> str:
    return "among the others" if stage.percent is None else f"{stage.number + 1}: {stage.percent:g} %"


def _stages(report: ReportView) -> Markup:
    headings = ("Stage", "Began", "Took", "Verdict", "Requests", "Bad", "Clients", "Had traffic", "Why")
    return table(headings, (_stage(stage) for stage in report.stages), numbers=False)


def _stage(stage: ReportStageView) -> Iterable[str]:
    yield from (_name(stage), clock(stage.begin), _took(stage.seconds))
    yield "not judged" if stage.judge is None else stage.judge.verdict
    if (seen := stage.exposure) is None:
        yield from "----"
    else:
        yield from (f"{seen.requests:,}", f"{seen.bad:,}", _clients(seen), f"{seen.seconds:.1f} s")
    yield "" if stage.judge is None else stage.judge.why


def _took(seconds: float | None) -> str:
    return "goes on" if seconds is None else f"{seconds:.1f} s"


# -- the rest ----------------------------------------------------------------------------------------------


def _verified(report: ReportView) -> Iterator[Markup]:
    found = report.verification
    if found is None:
        return
    rows = [(found.id, found.state), ("requests", f"{found.sent:,} sent, {found.lost:,} lost")]
    rows += [("failed because", reason) for reason in found.reasons]
    rows += [("note", note) for note in found.notes]
    yield _section("Verification", table((), rows, numbers=False))


def _steps(report: ReportView) -> Markup:
    headings = ("Step", "Upstream", "Began", "Took", "Cut", "")
    rows = []
    for step in report.steps:
        back = " (going back)" if step.direction == "revert" else ""
        cut = step.cut
        lost = f"{cut.requests:,} requests, {cut.streams:,} streams" if cut and (cut.requests or cut.streams) else ""
        result = f"failed: {step.reason}" if step.ok is False else step.reason
        upstream = step.upstream or "-"
        rows.append((f"{step.step}{back}", upstream, clock(step.started_at), _took(step.seconds), lost, result))
    return table(headings, rows, numbers=False)


def _outputs(report: ReportView) -> Iterator[Markup]:
    """What programs wrote whose steps failed."""
    for step in report.steps:
        if step.ok is False and step.output:
            yield _section(f"Output of {step.step} {step.upstream or ''}", tag("pre", step.output[-_OUTPUT:]))


def _marks(report: ReportView) -> Markup:
    rows = [(clock(one.at), one.what, one.actor, one.reason) for one in report.marks]
    return table(("At", "", "By", "Why"), rows, numbers=False)


def _asked(report: ReportView) -> Markup:
    rows = [("version", report.asked.version), ("strategy", report.asked.strategy), ("by", report.asked.actor or "-")]
    rows += [("message", report.asked.message)] if report.asked.message else []
    before = ", ".join(f"{name}: {version or 'unknown'}" for name, version in report.previous.items())
    rows += [("before", before or "-")]
    rows += [("asked: " + name, str(value)) for name, value in report.asked.overrides.items()]
    rows += [(name, _plain(value)) for name, value in report.asked.policy.items()]
    return table((), rows, numbers=False)


def _plain(value: object) -> str:
    match value:
        case list():
            return "; ".join(map(_plain, value)) or "none"
        case dict():
            return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
