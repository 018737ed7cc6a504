"""The fold: what is counted in batches and intervals is what came, and takes no more memory the longer it runs."""

from __future__ import annotations

import pickle
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics import MOST_LOSSES, Metrics
from loadtest.model import ErrorKind, Outcome, SelfCheck
from loadtest.response import Head

SECOND = 1_000_000_000


def answer(metrics: Metrics, at: int, *, status: int = 200, attribute: str | None = None, request: int = 0) -> None:
    """Due 4 ms before `at`, taken up after 1 ms, written after another; 10 bytes."""
    head = Head(status, 10, chunked=False, keep=True, attribute=attribute, location=None)
    metrics.answered(head, request, 10, at - 4_000_000, at - 3_000_000, at - 2_000_000, at)


def failure(hit: int, at: int, kind: ErrorKind = ErrorKind.DROPPED) -> Outcome:
    return Outcome(hit, 3, None, kind, at - 9, at - 8, at - 7, None, at, 5, "a", f"detail {hit}", 2)


@given(
    st.lists(st.tuples(st.sampled_from([200, 404]), st.sampled_from([None, "a", "b"]), st.integers(0, 2)), max_size=40),
    st.integers(1, 40),
)
def test_answers_are_told_apart_however_they_alternate(kinds: list[tuple[int, str | None, int]], times: int) -> None:
    metrics = Metrics(0, closed=True)
    kinds = kinds * times  # also more than are counted at once
    for number, (status, attribute, request) in enumerate(kinds):
        answer(metrics, SECOND + number * 1_000_000, status=status, attribute=attribute, request=request)
    report = metrics.snapshot().report(planned=None, check=SelfCheck(None))
    assert report.sent == len(kinds)
    assert report.status == Counter(status for status, _, _ in kinds)
    by_attribute = Counter((attribute, status) for status, attribute, _ in kinds if attribute is not None)
    assert Counter({(a, s): n for a, one in report.by_attribute.items() for s, n in one.items()}) == by_attribute
    by_request = Counter((request, status) for status, _, request in kinds)
    assert Counter({(r, s): n for r, one in report.by_request.items() for s, n in one.items()}) == by_request
    intervals: Counter[int] = Counter()
    for interval in report.intervals:
        intervals.update(interval.status)
    assert intervals == report.status


def test_an_open_loop_has_three_times_and_a_closed_one_has_one() -> None:
    opened, closed = Metrics(0, closed=False), Metrics(0, closed=True)
    for number in range(1_000):
        for metrics in (opened, closed):
            answer(metrics, SECOND + number)
    report = opened.snapshot().report(planned=None, check=SelfCheck(None))
    times = [one and round(one.p50, 1) for one in (report.response, report.service, report.lag)]
    assert times == [4.0, 2.0, 1.0]
    assert set(opened.snapshot().encoded()) == {"response", "service", "lag"}
    report = closed.snapshot().report(planned=None, check=SelfCheck(None))
    assert report.service == report.response
    assert report.lag is not None
    assert report.lag.max == 0
    assert set(closed.snapshot().encoded()) == {"response"}


def test_a_snapshot_in_between_changes_nothing() -> None:
    asked, left = Metrics(0, closed=False), Metrics(0, closed=False)
    for number in range(2_000):
        for metrics in (asked, left):
            answer(metrics, SECOND + number * 10_000_000, status=200 + number % 2)
        if number % 7 == 0:
            asked.snapshot().report(planned=None, check=SelfCheck(None))
    one, other = (metrics.snapshot() for metrics in (asked, left))
    assert (one.sent, one.status, one.received) == (other.sent, other.status, other.received)
    assert [stretch.interval(index, 1) for index, stretch in one.stretches.items()] == [
        stretch.interval(index, 1) for index, stretch in other.stretches.items()
    ]
    assert one.response.counts == other.response.counts


def test_intervals_are_where_things_finished() -> None:
    metrics = Metrics(5 * SECOND, closed=True)
    for at, status in ((5.5, 200), (5.9, 200), (7.2, 503)):
        answer(metrics, round(at * SECOND), status=status)
    metrics.add(failure(3, round(7.3 * SECOND)))
    report = metrics.snapshot().report(planned=None, check=SelfCheck(None))
    assert [dict(interval.status) for interval in report.intervals] == [{200: 2}, {}, {503: 1}]
    assert [dict(interval.errors) for interval in report.intervals] == [{}, {}, {ErrorKind.DROPPED: 1}]
    assert [interval.begin for interval in report.intervals] == [0, 1, 2]
    assert [interval.received for interval in report.intervals] == [20, 0, 15]
    assert report.elapsed == 2.3


def test_losses_are_listed_up_to_a_number_and_counted_beyond() -> None:
    metrics = Metrics(0, closed=True)
    for hit in range(MOST_LOSSES + 50):
        metrics.add(failure(hit, SECOND + hit))
    report = metrics.snapshot().report(planned=None, check=SelfCheck(None))
    assert report.errors == {ErrorKind.DROPPED: MOST_LOSSES + 50}
    assert [loss.hit for loss in report.losses] == list(range(MOST_LOSSES))
    assert report.examples == {ErrorKind.DROPPED: "detail 0"}
    assert report.losses[0][2:] == (ErrorKind.DROPPED, 2, 3, "detail 0", "a")


def test_what_is_kept_does_not_grow_with_the_time() -> None:
    sizes = []
    metrics = Metrics(0, closed=False)
    for second in range(1, 4_801):
        for step in range(20):
            answer(metrics, second * SECOND + step * 1_000, attribute=f"v{step}")
        if second in (1_200, 4_800):
            sizes.append(len(pickle.dumps(metrics.snapshot())))
    assert sizes[1] < 1.1 * sizes[0]
    report = metrics.snapshot().report(planned=None, check=SelfCheck(None))
    assert (report.sent, sum(interval.status[200] for interval in report.intervals if interval.status)) == (96_000,) * 2
    assert 300 <= len(report.intervals) <= 601
