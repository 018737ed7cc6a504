"""The evidence of a judged rollout over time, as one SVG: what a FAIL depends on, and under it the other metrics one by
one; on logarithmic scales, with the stages as bands and the evidence that fails as a line. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loadtest import scale
from loadtest.markup import Markup, tag
from loadtest.scale import Scale
from trafficd.api.report_schema import GapView, PointView, ReportView

STYLES = """
.band { fill: var(--soft); opacity: .07; } .band.odd { opacity: .15; } .band.gap { fill: var(--warn); opacity: .25; }
svg text.band { fill: var(--soft); opacity: 1; }
.line.errors { stroke: var(--c5xx); } .key.errors, .dot.errors { fill: var(--c5xx); }
.line.others { stroke: var(--p95); } .key.others, .dot.others { fill: var(--p95); }
.limit { stroke: var(--bad); stroke-width: 1.5; } svg text.limit { fill: var(--bad); stroke: none; text-anchor: end; }
.line.m0 { stroke: #3d7fc4; } .line.m1 { stroke: #2b8a8f; } .line.m2 { stroke: #b07a1e; } .line.m3 { stroke: #7a5bc7; }
.line.m4 { stroke: #b3123f; } .line.m5 { stroke: #5f8f2f; } .line.m6 { stroke: #8a6a5a; } .line.m7 { stroke: #667085; }
.key.m0, .dot.m0 { fill: #3d7fc4; } .key.m1, .dot.m1 { fill: #2b8a8f; } .key.m2, .dot.m2 { fill: #b07a1e; }
.key.m3, .dot.m3 { fill: #7a5bc7; } .key.m4, .dot.m4 { fill: #b3123f; } .key.m5, .dot.m5 { fill: #5f8f2f; }
.key.m6, .dot.m6 { fill: #8a6a5a; } .key.m7, .dot.m7 { fill: #667085; }
"""

_WIDTH, _LEFT, _RIGHT = 1000.0, 62.0, 14.0
_TITLE, _BANDS, _GAP = 30.0, 18.0, 16.0  # heights: of a title, of the names of stages, between panels
_HEIGHTS = (210.0, 150.0)
_LOWEST, _HIGHEST = 1e-3, 1e9  # what is beyond is drawn there
_COLOURS = 8
_LETTER = 6.6  # width, on average
_FEW = 45  # points, of which each gets a dot
_NAME = 24  # letters of a metric's name in the legend

Pick = Callable[[PointView], float | None]


@dataclass(frozen=True)
class _Frame:
    """One panel, and the time that all of them share."""

    top: float
    height: float
    axis: Scale
    time: Scale
    since: float

    def x(self, at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.0, max(0.0, self.time.place(at - self.since)))

    def y(self, evidence: float) -> float:
        part = self.axis.place(min(max(evidence, _LOWEST), _HIGHEST))
        return self.top + self.height * (1 - min(1.0, max(0.0, part)))

    @property
    def bottom(self) -> float:
        return self.top + self.height


def draw(report: ReportView, now: float) -> Markup:
    """Nothing where nothing was judged."""
    if report.judge is None or not report.judge.evidence.points:
        return Markup()
    evidence = report.judge.evidence
    points = evidence.points
    since, span = _span(report, now)
    time = scale.times(span)
    names = list(dict.fromkeys(name for point in points for name in point.metrics))
    both: list[tuple[str, str, Pick]] = [
        ("errors", "errors", lambda point: point.errors),
        ("mean of the others", "others", lambda point: point.others),
    ]
    single = [(name, f"m{number % _COLOURS}", _metric(name)) for number, name in enumerate(names)]
    first = _Frame(_TITLE + _BANDS, _HEIGHTS[0], _axis(points, both, evidence.needed), time, since)
    second = _Frame(first.bottom + _TITLE + _GAP, _HEIGHTS[1], _axis(points, single, None), time, since)
    frames = ((first, "Evidence against the new version", both), (second, "The others one by one", single))
    parts: list[Markup] = []
    for frame, title, lines in frames:
        parts += _bands(report, frame, now, named=frame is first)
        parts += _grid(frame, title, lines)
        if frame is first:
            parts += _limit(frame, evidence.needed)
        for _, style, pick in lines:
            parts += _line(frame, points, evidence.gaps, style, pick)
    parts += _failed(report, first, second.bottom)
    parts += _time_axis(second, span)
    height = second.bottom + 30
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH:g} {height:g}", role="img", aria_label="Evidence over time")


def _span(report: ReportView, now: float) -> tuple[float, float]:
    """When the picture begins, and how many seconds it shows."""
    assert report.judge is not None
    points, stages = report.judge.evidence.points, report.stages
    since = min([points[0].at, *(stage.begin for stage in stages)])
    end = max([points[-1].at, *(stage.end if stage.end is not None else now for stage in stages)])
    return since, max(end - since, 1.0)


def _metric(name: str) -> Pick:
    return lambda point: point.metrics.get(name)


def _axis(points: Sequence[PointView], lines: Sequence[tuple[str, str, Pick]], needed: float | None) -> Scale:
    found = [value for point in points for _, _, pick in lines if (value := pick(point)) is not None]
    high = max([*found, 10.0, 0.0 if needed is None else needed * 2])
    return scale.logarithmic(min(max(min([*found, 0.5]), _LOWEST), 0.5), min(high, _HIGHEST))


def _bands(report: ReportView, frame: _Frame, now: float, *, named: bool) -> Iterator[Markup]:
    for stage in report.stages:
        left, right = frame.x(stage.begin), frame.x(now if stage.end is None else stage.end)
        share = "among the others" if stage.percent is None else f"{stage.percent:g} %"
        verdict = "" if stage.judge is None else f" {stage.judge.verdict}"
        about = tag("title", f"stage {stage.number + 1}: {share}{verdict}")
        style = "band odd" if stage.number % 2 else "band"
        top, width = frame.top, max(right - left, 1.0)
        yield tag("rect", about, x=left, y=top, width=width, height=frame.height, class_=style)
        text = f"{share}{verdict}"
        if named and len(text) * _LETTER < width:
            yield tag("text", text, x=left + 4, y=top - 4, class_="tick band")
    for gap in report.judge.evidence.gaps if report.judge else ():
        left, right = frame.x(gap.since), frame.x(gap.until)
        about = tag("title", gap.why)
        yield tag(
            "rect", about, x=left, y=frame.top, width=max(right - left, 2.0), height=frame.height, class_="band gap"
        )


def _grid(frame: _Frame, title: str, lines: Sequence[tuple[str, str, Pick]]) -> Iterator[Markup]:
    head = frame.top - (_BANDS + 10)
    yield tag("text", title, x=_LEFT, y=head, class_="title")
    for tick in frame.axis.ticks:
        y = frame.y(tick)
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", f"{tick:g}", x=_LEFT - 8, y=y + 4, class_="tick y")
    yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=frame.bottom, y2=frame.bottom, class_="axis")
    x = _LEFT + len(title) * 7.4 + 24
    for name, style, _ in lines:
        name = name if len(name) <= _NAME else f"{name[:_NAME]}..."
        if x + len(name) * _LETTER > _WIDTH - _RIGHT:
            return  # the table has them all
        yield tag("rect", x=x, y=head - 9, width=10, height=10, rx=2, class_=f"key {style}")
        yield tag("text", name, x=x + 15, y=head, class_="tick")
        x += len(name) * _LETTER + 32


def _limit(frame: _Frame, needed: float) -> Iterator[Markup]:
    y = frame.y(needed)
    yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="limit")
    yield tag("text", f"FAIL at {needed:g}", x=_WIDTH - _RIGHT - 4, y=y - 5, class_="limit")


def _line(
    frame: _Frame, points: Sequence[PointView], gaps: Sequence[GapView], style: str, pick: Pick
) -> Iterator[Markup]:
    """A line through the points, broken where nobody judged."""
    for run in _runs(points, gaps, pick):
        places = [(frame.x(at), frame.y(value)) for at, value in run]
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield tag("path", d=path, class_=f"line {style}")
        if len(points) <= _FEW or len(run) == 1:
            yield from (tag("circle", cx=x, cy=y, r=2.2, class_=f"dot {style}") for x, y in places)


def _runs(points: Sequence[PointView], gaps: Sequence[GapView], pick: Pick) -> Iterator[list[tuple[float, float]]]:
    run: list[tuple[float, float]] = []
    for point in points:
        if run and any(run[-1][0] <= gap.since + 1e-3 and gap.until <= point.at + 1e-3 for gap in gaps):
            yield run
            run = []
        if (value := pick(point)) is not None:
            run.append((point.at, value))
    if run:
        yield run


def _failed(report: ReportView, frame: _Frame, bottom: float) -> Iterator[Markup]:
    if report.judge is None or (failure := report.judge.failure) is None:
        return
    x = frame.x(failure.at)
    yield tag("line", tag("title", failure.why), x1=x, x2=x, y1=frame.top, y2=bottom, class_="mark")


def _time_axis(frame: _Frame, span: float) -> Iterator[Markup]:
    for tick in frame.time.ticks:
        x = frame.x(frame.since + tick)
        yield tag("line", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 5, class_="axis")
        yield tag("text", scale.clock(tick, span), x=x, y=frame.bottom + 20, class_="tick x")
