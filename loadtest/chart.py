"""What happened over time, as one SVG: throughput by status class, latency, and failures, under one another on one
time axis, with marks through all of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from loadtest import scale
from loadtest.markup import Markup, tag
from loadtest.model import Interval, Report
from loadtest.scale import Scale

Mark = tuple[float, str]  # seconds since the start, and what began then

CLASSES = {"2xx": 2, "3xx": 3, "4xx": 4, "5xx": 5}
PERCENTILES = ("p50", "p95", "p99")
_WIDTH = 1000.0
_LEFT = 62.0
_RIGHT = 14.0
_TITLE = 30.0  # height of a panel's title
_GAP = 14.0  # between two panels
_ROW = 17.0  # height of a row of labels
_MOST_ROWS = 5
_LETTER = 6.3  # width, on average
_FEW = 45  # intervals, of which each gets a dot
_LEAST_BAR = 3.0  # a single lost request must be seen


class Panel(NamedTuple):
    """The place of one chart; `top` of its plot."""

    top: float
    height: float

    def y(self, part: float) -> float:
        """`part`: 0 at the bottom, 1 at the top."""
        return self.top + self.height * (1 - part)


@dataclass(frozen=True)
class _Time:
    scale: Scale
    span: float

    def x(self, seconds: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.0, self.scale.place(seconds))


def draw(report: Report, marks: Sequence[Mark] = ()) -> Markup:
    """Nothing where nothing was measured over time."""
    intervals = filled(report)
    if not intervals:
        return Markup()
    span = max(intervals[-1].begin + intervals[-1].seconds, *(at for at, _ in marks), 0.001)
    time = _Time(scale.times(span), span)
    failed = any(_failures(each) for each in intervals)
    heights = (170.0, 170.0, 90.0 if failed else 26.0)
    _, top = _mark_strip(marks, time, 0)
    panels = []
    for height in heights:
        panels.append(Panel(top + _TITLE, height))
        top += _TITLE + height + _GAP
    throughput, latency, failures = panels
    bottom = failures.top + failures.height
    parts = (
        *_throughput(throughput, time, intervals),
        *_latency(latency, time, intervals),
        *_failure_bars(failures, time, intervals),
        *_time_axis(bottom, time),
        *_hovers(intervals, time, throughput.top, bottom),
        *_mark_strip(marks, time, bottom)[0],
    )
    return tag(
        "svg", *parts, viewBox=f"0 0 {_WIDTH:g} {bottom + 30:g}", role="img", aria_label="What happened over time"
    )


def filled(report: Report) -> list[Interval]:
    """The intervals without a gap: where nothing finished, there is one with nothing in it. The last one ends where
    the run does."""
    intervals: list[Interval] = []
    for each in sorted(report.intervals, key=lambda interval: interval.begin):
        end = intervals[-1].begin + intervals[-1].seconds if intervals else 0.0
        if each.begin - end > 1e-6:
            intervals.append(Interval(end, each.begin - end, {}, {}, 0, None))
        intervals.append(each)
    if intervals:
        last = intervals[-1]
        rest = max(report.elapsed - last.begin, last.seconds / 5)  # a moment's rate means nothing
        intervals[-1] = replace(last, seconds=min(last.seconds, rest))
    return intervals


def _of_class(interval: Interval, name: str) -> int:
    return sum(count for status, count in interval.status.items() if status // 100 == CLASSES[name])


def _lost(interval: Interval) -> int:
    return sum(interval.errors.values())


def _failures(interval: Interval) -> int:
    return _lost(interval) + _of_class(interval, "5xx")


# the panels


def _throughput(panel: Panel, time: _Time, intervals: list[Interval]) -> Iterator[Markup]:
    """Steps, stacked by status class."""
    totals = [sum(each.status.values()) / each.seconds for each in intervals]
    axis = scale.linear(max(*totals, 1.0))
    present = [name for name in CLASSES if any(_of_class(each, name) for each in intervals)]
    yield from _grid(panel, "Answers a second", axis, lambda value: f"{value:,.0f}")
    below = [0.0] * len(intervals)
    for name in present:
        above = [low + _of_class(each, name) / each.seconds for low, each in zip(below, intervals, strict=True)]
        edge = [*_steps(panel, time, axis, intervals, above), *reversed(_steps(panel, time, axis, intervals, below))]
        yield tag("path", d=_path(edge) + "Z", class_=f"area c{name}")
        below = above
    yield from _legend(panel, [(name, f"c{name}") for name in present])


def _steps(panel: Panel, time: _Time, axis: Scale, intervals: list[Interval], values: list[float]) -> list[Point]:
    points: list[Point] = []
    for each, value in zip(intervals, values, strict=True):
        y = panel.y(axis.place(value))
        points += [(time.x(each.begin), y), (time.x(each.begin + each.seconds), y)]
    return points


def _latency(panel: Panel, time: _Time, intervals: list[Interval]) -> Iterator[Markup]:
    measured = [each.response for each in intervals if each.response is not None]
    low = min((latency.p50 for latency in measured), default=0.0)
    high = max((latency.p99 for latency in measured), default=1.0)
    axis = scale.fitting(low, high)
    yield from _grid(panel, "Response time", axis, milliseconds)
    for name in PERCENTILES:
        for run in _runs(intervals, name):
            line = [(time.x(each.begin + each.seconds / 2), panel.y(axis.place(value))) for each, value in run]
            yield tag("path", d=_path(line), class_=f"line {name}")
            if len(intervals) <= _FEW or len(line) == 1:
                yield from (tag("circle", cx=x, cy=y, r=2.4, class_=f"dot {name}") for x, y in line)
    yield from _legend(panel, [(name, name) for name in PERCENTILES])


def _runs(intervals: list[Interval], name: str) -> Iterator[list[tuple[Interval, float]]]:
    """Stretches in which every interval has a value: nothing is drawn over the others."""
    run: list[tuple[Interval, float]] = []
    for each in intervals:
        if each.response is not None:
            run.append((each, getattr(each.response, name)))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _failure_bars(panel: Panel, time: _Time, intervals: list[Interval]) -> Iterator[Markup]:
    highest = max(_failures(each) for each in intervals)
    title = "Lost requests and 5xx answers"
    if not highest:
        yield tag("text", title, x=_LEFT, y=panel.top - 10, class_="title")
        yield tag("text", "none", x=_LEFT + 220, y=panel.top - 10, class_="none")
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=panel.y(0), y2=panel.y(0), class_="axis")
        return
    axis = scale.linear(highest, whole=True)
    yield from _grid(panel, title, axis, lambda value: f"{value:,.0f}")
    for each in intervals:
        base = panel.y(0)
        for count, name in ((_lost(each), "lost"), (_of_class(each, "5xx"), "c5xx")):
            if count:
                height = max(_LEAST_BAR, panel.height * axis.place(count))
                left, right = time.x(each.begin), time.x(each.begin + each.seconds)
                width = max(2.0, right - left - 1)
                yield tag("rect", x=left, y=base - height, width=width, height=height, class_=f"bar {name}")
                base -= height
    yield from _legend(panel, [("lost", "lost"), ("5xx", "c5xx")])


# what they have in common


Point = tuple[float, float]


def _path(points: list[Point]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _grid(panel: Panel, title: str, axis: Scale, text: Callable[[float], str]) -> Iterator[Markup]:
    yield tag("text", title, x=_LEFT, y=panel.top - 10, class_="title")
    for tick in axis.ticks:
        y = panel.y(axis.place(tick))
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="axis" if tick == axis.ticks[0] else "grid")
        yield tag("text", text(tick), x=_LEFT - 8, y=y + 4, class_="tick y")


def _legend(panel: Panel, entries: list[tuple[str, str]]) -> Iterator[Markup]:
    x = _WIDTH - _RIGHT - 58.0 * len(entries) + 12
    for name, style in entries:
        yield tag("rect", x=x, y=panel.top - 19, width=10, height=10, rx=2, class_=f"key {style}")
        yield tag("text", name, x=x + 15, y=panel.top - 10, class_="tick")
        x += 58


def _time_axis(bottom: float, time: _Time) -> Iterator[Markup]:
    for tick in time.scale.ticks:
        x = time.x(tick)
        yield tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="axis")
        yield tag("text", scale.clock(tick, time.span), x=x, y=bottom + 20, class_="tick x")


def _mark_strip(marks: Sequence[Mark], time: _Time, bottom: float) -> tuple[list[Markup], float]:
    """Lines down to `bottom` with labels at their tops, in rows so that none covers another, and the height the rows
    take. Where there is no place left for a label, the line has to do: its title says what it is."""
    ends = [0.0] * _MOST_ROWS
    drawn: list[Markup] = []
    for at, text in sorted(marks):
        x = time.x(at)
        width = len(text) * _LETTER + 10
        left = min(x + 4, _WIDTH - _RIGHT - width)
        row = next((row for row, end in enumerate(ends) if end <= left), None)
        if row is not None:
            ends[row] = left + width
            drawn.append(tag("text", text, x=left, y=_ROW * row + 12, class_="mark"))
        drawn.append(tag("line", tag("title", text), x1=x, x2=x, y1=_ROW * (row or 0) + 2, y2=bottom, class_="mark"))
    rows = sum(1 for end in ends if end)
    return drawn, rows * _ROW


def _hovers(intervals: list[Interval], time: _Time, top: float, bottom: float) -> Iterator[Markup]:
    """Over every interval a pane that says what it is made of when the pointer rests on it."""
    for each in intervals:
        x = time.x(each.begin)
        width = max(1.0, time.x(each.begin + each.seconds) - x)
        pane = tag("title", _told(each, time.span))
        yield tag("rect", pane, x=x, y=top, width=width, height=bottom - top, class_="pane")


def _told(interval: Interval, span: float) -> str:
    begin, end = (scale.clock(round(at, 1), span) for at in (interval.begin, interval.begin + interval.seconds))
    lines = [f"{begin} to {end}"]
    lines += [f"{status}: {count:,}" for status, count in sorted(interval.status.items())]
    lines += [f"{kind}: {count:,}" for kind, count in interval.errors.items()]
    if interval.response is not None:
        lines += [f"{name}: {milliseconds(getattr(interval.response, name))}" for name in PERCENTILES]
    return "\n".join(lines)


def milliseconds(value: float) -> str:
    """Three digits, in the unit that fits."""
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value >= 1 or not value else f"{value * 1000:.3g} us"
