"""Folding, judging and rendering: all of it without a network."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import Histogram
from loadtest.metrics import OTHER, Metrics
from loadtest.model import ErrorKind, Outcome, Plan, PlanError, Report, RequestSpec, SelfCheck
from loadtest.verdict import judge, parse_condition

MS = 1_000_000


def outcome(
    status: int | None = 200,
    error: ErrorKind | None = None,
    service_ms: int = 10,
    attribute: str | None = None,
) -> Outcome:
    """Due at 0, taken up at 5 ms, written at 6 ms."""
    finished = (6 + service_ms) * MS
    done = None if error else status
    return Outcome(0, 0, done, error, 0, 5 * MS, 6 * MS, 7 * MS, finished, 100, attribute, "why" if error else "")


def report_of(*outcomes: Outcome, planned: int | None = None) -> Report:
    metrics = Metrics(0, closed=False)
    for each in outcomes:
        metrics.add(each)
    return metrics.snapshot().report(planned=planned, check=SelfCheck(12.5))


MIXED = report_of(
    *[outcome()] * 90,
    *[outcome(404)] * 5,
    *[outcome(503)] * 3,
    *[outcome(error=ErrorKind.DROPPED)] * 2,
    planned=120,
)


def test_fold() -> None:
    assert (MIXED.sent, MIXED.answered, MIXED.lost, MIXED.skipped) == (100, 98, 2, 20)
    assert MIXED.status == {200: 90, 404: 5, 503: 3}
    assert MIXED.examples == {ErrorKind.DROPPED: "why"}
    assert (MIXED.elapsed, MIXED.received) == (0.016, 10_000)
    assert MIXED.response is not None
    assert MIXED.service is not None
    assert MIXED.lag is not None
    assert (MIXED.response.p50, MIXED.service.p99, MIXED.lag.max) == (16, 10, 5)


@given(st.lists(st.integers(0, 4_000_000 * MS), min_size=1, max_size=200))
def test_histogram_is_true_within_three_digits(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    measured = histogram.latency()
    assert measured is not None
    values.sort()
    assert (measured.min, measured.max) == (values[0] / MS, values[-1] / MS)
    assert measured.mean == pytest.approx(sum(values) / len(values) / MS)
    if values[-1] < 3_600_000 * MS:
        median = values[(len(values) + 1) // 2 - 1] / MS
        assert measured.p50 == pytest.approx(median, rel=0.002, abs=0.002)
    assert measured.min <= measured.p10 <= measured.p50 <= measured.p99 <= measured.max
    assert sum(bar.count for bar in histogram.bars()) == len(values)


def test_attributes_are_bounded() -> None:
    report = report_of(*(outcome(attribute=f"v{number}") for number in range(1_500)))
    assert report.by_attribute[OTHER] == {200: 500}
    assert len(report.by_attribute) == 1_001


@pytest.mark.parametrize(
    ("report", "exit_status"),
    [
        (report_of(outcome(200), outcome(302), outcome(404)), 0),
        (report_of(outcome(200), outcome(500)), 1),
        (report_of(outcome(200), outcome(599)), 1),
        *((report_of(outcome(error=kind)), 1) for kind in ErrorKind),
    ],
)
def test_exit_status(report: Report, exit_status: int) -> None:
    assert judge(report).exit_status == exit_status


def test_a_run_that_the_generator_spoilt_fails_where_that_is_asked_for() -> None:
    spoilt = replace(MIXED, status={200: 1}, errors={}, self=SelfCheck(1.0, valid=False, why="too busy"))
    assert judge(spoilt).passed
    assert judge(spoilt, [parse_condition("invalid>0")]).reasons == ("invalid>0",)
    assert not parse_condition("invalid>0").holds(MIXED)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("lost>0", True),
        ("lost > 2", False),
        ("lost>=2%", True),
        ("dropped==2", True),
        ("refused>0", False),
        ("5xx>0", True),
        ("5xx>3%", False),
        ("404!=5", False),
        ("p99>50ms", False),
        ("p99>0.015s", True),
        ("p99<16001us", True),
        ("service.max>10", False),
        ("lag.p50>=5ms", True),
        ("rps<1000000", True),
        ("skipped>0", True),
        ("answered<98", False),
        ("errors>1", True),
        ("errors>2%", False),
        ("4xx>=8", False),
        ("4xx>0", True),
        ("resent>0", False),
        ("redirected>0", False),
        ("dial.p99<1", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    condition = parse_condition(text)
    assert condition.holds(MIXED) is holds
    assert (text in judge(MIXED, [condition]).reasons) is holds


def test_unknown_is_not_zero() -> None:
    nothing = report_of()
    assert parse_condition("p99>50ms").holds(nothing)
    assert parse_condition("lost>1%").holds(nothing)
    assert not parse_condition("lost>0").holds(nothing)


@pytest.mark.parametrize(
    "text",
    ["", "lost", "lots>0", "lost>0ms", "p99>5%", "rps<5s", "p98>1", "lost=>0", "x.p99>1", "errors>1ms", "dial>1"],
)
def test_conditions_that_mean_nothing(text: str) -> None:
    with pytest.raises(PlanError):
        parse_condition(text)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "ftp://a/",
        "http://",
        "http://a:b/",
        "http://a:99999/",
        "http://u:p@a/",
        "http://[::1/",
    ],
)
def test_urls_that_cannot_be_requested(url: str) -> None:
    with pytest.raises(PlanError):
        RequestSpec(url)


def test_target_is_encoded_once() -> None:
    assert RequestSpec("http://a").target == "/"
    assert RequestSpec("http://a/b c/%20?q=ü&r=[1]#part").target == "/b%20c/%20?q=%C3%BC&r=[1]"


def test_plans_that_cannot_be_run() -> None:
    spec = RequestSpec("http://a/")
    for wrong in (
        {"connections": 0},
        {"total": 0},
        {"duration": 0.0},
        {"timeout": -1.0},
        {"rate": float("inf")},
        {"rate": 1.0, "qps": 1.0},
        {"total": None},
        {"requests": ()},
        {"requests": (spec, RequestSpec("http://b/"))},
    ):
        with pytest.raises(PlanError):
            Plan(**{"requests": (spec,), **wrong})  # type: ignore[arg-type]
