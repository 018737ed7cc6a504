"""Evidence over time stays small, in order, and keeps its peaks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trafficd.report.series import Point, Series

BEGAN = 1_700_000_000.0


def point(at: float, errors: float = 1.0, others: float = 1.0) -> Point:
    return Point(BEGAN + at, errors, others, {"in_flight": others})


@given(
    st.lists(st.tuples(st.floats(0.01, 500.0), st.floats(0.01, 1e6), st.floats(0.01, 1e6)), min_size=1, max_size=200),
    st.integers(1, 20),
    st.integers(0, 200),
)
def test_whatever_comes_it_is_bounded_and_keeps_the_highest_and_the_newest(
    steps: list[tuple[float, float, float]], most: int, pause: int
) -> None:
    series, at, added = Series(most=most), 0.0, []
    for number, (gap, errors, others) in enumerate(steps):
        if number == pause:  # kept, and gone on with
            series = Series.of(series.points, series.piece, most)
        at += gap
        added.append(point(at, errors, others))
        series.add(added[-1])
        kept = series.points
        assert len(kept) <= most + 1
        assert kept[-1] == added[-1]
        assert [one.at for one in kept] == sorted(one.at for one in kept)
        assert all(one in added for one in kept)
        assert max(one.highest for one in kept) == max(one.highest for one in added)


def test_a_piece_of_time_grows_with_what_there_is() -> None:
    series = Series(most=10)
    for quarter in range(4 * 100):
        series.add(point(quarter / 4))
    assert series.piece == 16.0
    assert 5 <= len(series.points) <= 11
    gaps = [later.at - one.at for one, later in zip(series.points, series.points[1:-1], strict=False)]
    assert min(gaps) >= 8
