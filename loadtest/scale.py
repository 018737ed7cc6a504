"""Axes: where a value lies on a line, and which values are worth a tick. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_ROUND_TIMES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
_TIME_TICKS = 9  # at most
_WIDE = 30.0  # the largest value so many times the smallest: a logarithmic axis


@dataclass(frozen=True)
class Scale:
    """`place` takes a value to 0..1."""

    place: Callable[[float], float]
    ticks: tuple[float, ...]


def linear(high: float, *, whole: bool = False) -> Scale:
    """From 0 to a round number that is not below `high`. `whole`: ticks at whole numbers only."""
    step = _round_step(max(high, 1e-9) / 4)
    if whole:
        step = max(1.0, step)
    count = max(1, math.ceil(high / step - 1e-9))
    top = count * step
    return Scale(lambda value: value / top, tuple(step * number for number in range(count + 1)))


def logarithmic(low: float, high: float) -> Scale:
    """From a round number that is not above `low` to one that is not below `high`; both over 0."""
    marks = [base * 10.0**power for power in range(-6, 10) for base in (1, 2, 5)]
    bottom = max((mark for mark in marks if mark <= low), default=marks[0])
    top = min((mark for mark in marks if mark >= high and mark > bottom), default=marks[-1])
    between = [mark for mark in marks if bottom <= mark <= top]
    if len(between) > 8:  # decades only
        between = [mark for mark in between if math.isclose(math.log10(mark), round(math.log10(mark)))]
    span = math.log(top / bottom)
    return Scale(lambda value: math.log(max(value, bottom) / bottom) / span, tuple(between))


def fitting(low: float, high: float) -> Scale:
    """Logarithmic where the values differ so much that the small ones could not be told apart else."""
    return logarithmic(low, high) if low > 0 and high / low > _WIDE else linear(high)


def times(high: float) -> Scale:
    """Seconds from 0 to `high`, which is the end of the axis as it is."""
    step = next((step for step in _ROUND_TIMES if high / step <= _TIME_TICKS), _ROUND_TIMES[-1])
    return Scale(
        lambda value: value / high, tuple(step * number for number in range(math.floor(high / step + 1e-9) + 1))
    )


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(base * power for base in (1, 2, 5, 10) if base * power >= least * (1 - 1e-9))


def clock(seconds: float, span: float) -> str:
    """A time on an axis of `span` seconds."""
    if span < 120:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    if span < 7200:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
