"""Evidence over time in a bounded number of points, however long it goes on. Pure.

Time is cut into pieces of equal length, and of each piece the point with the most evidence is kept, since that is the
one a FAIL depends on. Where there are too many pieces, they become twice as long. The newest point is always known.

Invariant: never more than `most` points and the newest, in the order of time; the highest evidence ever seen is among
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MOST = 300
SHORTEST = 1.0  # s of a piece at first: the judge's ticks are no shorter


@dataclass(frozen=True)
class Point:
    """The evidence at one moment (s since the epoch): of errors, the mean of all others, and those one by one."""

    at: float
    errors: float
    others: float
    metrics: Mapping[str, float]

    @property
    def highest(self) -> float:
        """What a FAIL depends on."""
        return max(self.errors, self.others)


@dataclass
class Series:
    """`piece` (s) is what a piece of time has grown to; give it, with the points, to go on with what was kept."""

    piece: float = SHORTEST
    most: int = MOST
    _points: list[Point] = field(default_factory=list)
    _newest: Point | None = None

    @classmethod
    def of(cls, points: Iterable[Point], piece: float, most: int = MOST) -> Series:
        """Go on with these."""
        series = cls(max(piece, SHORTEST), most)
        for point in points:
            series.add(point)
        return series

    @property
    def points(self) -> tuple[Point, ...]:
        newest = self._newest
        if newest is None or (self._points and self._points[-1].at >= newest.at):
            return tuple(self._points)
        return (*self._points, newest)

    def add(self, point: Point) -> None:
        """Take one; those that come are in the order of time."""
        self._newest = point
        self._put(self._points, point)
        while len(self._points) > self.most:
            self.piece *= 2
            points: list[Point] = []
            for one in self._points:
                self._put(points, one)
            self._points = points

    def _put(self, points: list[Point], point: Point) -> None:
        if points and point.at // self.piece <= points[-1].at // self.piece:
            if point.highest > points[-1].highest:
                points[-1] = point
        else:
            points.append(point)
