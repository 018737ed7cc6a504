"""What a judge says, and what the log says, become one record; a restart adds to it and counts nothing twice."""

from __future__ import annotations

import pytest

from trafficd.core.analysis import ERRORS, Analysis, Counts, Metric
from trafficd.core.judge import Verdict
from trafficd.report import course as module
from trafficd.report.course import ANEW, RESTARTED, Course, Failure, Worst, decode, encode

BEGAN = 1_700_000_000.0


def said(
    canary: tuple[int, int], stable: tuple[int, int], evidence: float = 1.0, verdict: Verdict = Verdict.HOLD
) -> Analysis:
    """What a judge says that has counted so much in all."""
    metrics = (
        Metric(ERRORS, evidence, Counts(*canary), Counts(*stable), ()),
        Metric("in_flight", 2.0, Counts(canary[0], 0), Counts(stable[0], 0), ()),
    )
    return Analysis(verdict, f"because of {canary[1]}", 200.0, evidence, 2.0, metrics)


def begun() -> Course:
    course = Course("r1", "web", BEGAN)
    course.anew(BEGAN, BEGAN)
    course.enter(0, 5.0, BEGAN)
    return course


def again(course: Course, at: float) -> Course:
    """What the next daemon makes of the file."""
    return Course.resume(decode(encode(course.record)), BEGAN + at)


def counts(course: Course) -> list[tuple[Counts, Counts]]:
    """Of errors, by stage."""
    return [(stage.metrics[0].canary, stage.metrics[0].stable) for stage in course.record.stages]


def ask(course: Course, client: str, began: float | None, ended: float, *, bad: bool = False) -> None:
    course.take(client, began=None if began is None else BEGAN + began, ended=BEGAN + ended, bad=bad)


# -- the judge ---------------------------------------------------------------------------------------------


def test_counts_are_those_of_each_stage_and_evidence_is_the_judges() -> None:
    course = begun()
    course.see(BEGAN + 1, said((10, 1), (100, 2)), None)
    assert course.see(BEGAN + 5, said((50, 2), (500, 5), 3.0, Verdict.PASS), None), "another verdict"
    assert course.enter(1, 25.0, BEGAN + 6)
    assert not course.enter(1, 25.0, BEGAN + 6)
    course.see(BEGAN + 9, said((250, 3), (700, 6), 4.0), None)
    course.leave(BEGAN + 10)
    first, second = course.record.stages
    assert counts(course) == [(Counts(50, 2), Counts(500, 5)), (Counts(200, 1), Counts(200, 1))]
    assert (first.end, first.verdict, first.why) == (BEGAN + 6, Verdict.PASS, "because of 2")
    assert (second.percent, second.end, second.verdict) == (25.0, BEGAN + 10, Verdict.HOLD)
    assert [one.metrics[0].evidence for one in (first, second)] == [3.0, 4.0]
    assert [(one.at - BEGAN, one.errors, one.others, one.metrics) for one in course.record.points] == [
        (1, 1.0, 2.0, {"in_flight": 2.0}),
        (5, 3.0, 2.0, {"in_flight": 2.0}),
        (9, 4.0, 2.0, {"in_flight": 2.0}),
    ]


def test_a_restart_in_a_stage_adds_to_its_counts_and_marks_the_gap() -> None:
    course = begun()
    course.see(BEGAN + 5, said((50, 2), (500, 5)), None)
    course.enter(1, 25.0, BEGAN + 6)
    course.see(BEGAN + 9, said((80, 2), (600, 5)), None)
    course = again(course, 30)
    course.anew(BEGAN + 30, BEGAN + 30)
    assert not course.enter(1, 25.0, BEGAN + 6)
    course.see(BEGAN + 31, said((10, 1), (20, 0)), None)
    course.enter(2, 100.0, BEGAN + 40)
    course.see(BEGAN + 41, said((15, 1), (20, 0)), None)
    assert counts(course) == [
        (Counts(50, 2), Counts(500, 5)),
        (Counts(30 + 10, 1), Counts(100 + 20, 0)),
        (Counts(5, 0), Counts(0, 0)),
    ]
    (gap,) = course.record.gaps
    assert (gap.since - BEGAN, gap.until - BEGAN, gap.why) == (9, 30, RESTARTED)


def test_a_judge_that_counts_the_stage_from_its_begin_takes_the_place_of_the_one_before() -> None:
    course = begun()
    course.see(BEGAN + 5, said((50, 2), (500, 5)), None)
    course.enter(1, 25.0, BEGAN + 6)
    course.see(BEGAN + 9, said((80, 2), (600, 5)), None)
    course = again(course, 30)
    course.anew(BEGAN + 30, BEGAN + 6)
    course.see(BEGAN + 31, said((45, 1), (130, 0)), None)
    assert counts(course) == [(Counts(50, 2), Counts(500, 5)), (Counts(45, 1), Counts(130, 0))]


def test_another_judge_in_the_same_life_is_marked_too() -> None:
    course = begun()
    course.see(BEGAN + 5, said((50, 2), (500, 5)), None)
    course.anew(BEGAN + 8, BEGAN + 8)
    course.see(BEGAN + 9, said((5, 0), (50, 0)), None)
    assert counts(course) == [(Counts(55, 2), Counts(550, 5))]
    assert [gap.why for gap in course.record.gaps] == [ANEW]


def test_a_fail_stays_whatever_a_judge_says_after_a_restart() -> None:
    course = begun()
    course.see(BEGAN + 5, said((50, 20), (500, 5), 300.0, Verdict.FAIL), None)
    course = again(course, 10)
    course.anew(BEGAN + 10, BEGAN + 10)
    course.see(BEGAN + 11, said((5, 0), (50, 0)), None)
    assert (course.record.verdict, course.record.why) == (Verdict.FAIL, "because of 20")
    assert course.record.failure == Failure(BEGAN + 5, "because of 20")


def test_the_worst_route_is_the_worst_of_all_judges() -> None:
    bad, better = Worst("GET /a", 10, 5, 100, 0), Worst("GET /b", 10, 5, 100, 20)
    assert bad.excess == 5
    assert better.excess == 3
    course = begun()
    course.see(BEGAN + 1, said((1, 0), (1, 0)), bad)
    course.see(BEGAN + 2, said((1, 0), (1, 0)), better)
    assert course.record.worst == better, "of one judge the newest, who knows all that the one before did"
    for _ in range(2):
        course = again(course, 5)
        course.anew(BEGAN + 5, BEGAN + 5)
        course.see(BEGAN + 6, said((1, 0), (1, 0)), None)
        assert course.record.worst == better
    course.see(BEGAN + 7, said((1, 0), (1, 0)), bad)
    assert course.record.worst == bad


def test_restarts_without_end_do_not_make_it_grow() -> None:
    course = begun()
    for second in range(200):
        course = again(course, second)
    assert len(course.record.gaps) == module.MOST_GAPS


# -- the log -----------------------------------------------------------------------------------------------


def test_each_request_is_exposed_in_the_stage_in_which_it_began() -> None:
    course = begun()
    ask(course, "alice", 1.0, 1.1)
    course.enter(1, 25.0, BEGAN + 10)
    ask(course, "alice", 12.0, 12.5, bad=True)
    ask(course, "bob", 9.5, 13.0)
    ask(course, "bob", 15.0, 15.1)
    first, second = (stage.exposure for stage in course.record.stages)
    everything = course.record.exposure
    assert (first.requests, first.clients, first.bad, first.seconds) == (2, 2, 0, 8.5)
    assert (second.requests, second.clients, second.bad, second.seconds) == (2, 2, 1, 3.0)
    assert (everything.requests, everything.clients, everything.bad, everything.seconds) == (4, 2, 1, 14.0)
    assert not everything.at_least


def test_more_clients_than_can_be_told_apart_are_at_least_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CLIENTS", 3)
    course = begun()
    for number in range(3):
        ask(course, f"c{number}", number, number + 0.1)
    ask(course, "c0", 4, 4.1)
    assert (course.record.exposure.clients, course.record.exposure.at_least) == (3, False)
    ask(course, "c9", 5, 5.1)
    assert (course.record.exposure.clients, course.record.exposure.at_least) == (3, True)
    assert course.record.exposure.requests == 5


def test_what_was_counted_before_a_restart_is_not_counted_again() -> None:
    course = begun()
    ended = [1.1, 1.2, 1.3]
    for at in ended:
        ask(course, f"c{at}", at - 0.1, at)
    course = again(course, 5)
    for at in (*ended, 4.0, 3.9):  # the log is read again, and goes on; not quite in order
        ask(course, f"c{at}", at - 0.1, at)
    seen = course.record.exposure
    assert (seen.requests, seen.clients, seen.at_least) == (5, 3, True), "nobody knows who of them came again"


def test_after_a_restart_without_a_request_nothing_is_less_certain() -> None:
    course = begun()
    ask(course, "alice", 1.0, 1.1)
    assert again(again(course, 5), 6).record.exposure == course.record.exposure


def test_what_began_after_the_verdict_is_told_apart_from_what_only_ended_then() -> None:
    course = begun()
    ask(course, "alice", 1.0, 1.1, bad=True)
    course.see(BEGAN + 2, said((50, 20), (500, 5), 300.0, Verdict.FAIL), None)
    ask(course, "alice", 1.9, 4.0, bad=True)
    ask(course, "bob", 2.05, 2.1, bad=True)
    ask(course, "carol", 2.2, 2.3, bad=True)
    ask(course, "dave", None, 2.4, bad=True)
    ask(course, "erin", None, 1.95, bad=True)
    failure = again(course, 9).record.failure
    assert failure is not None
    assert (failure.began, failure.cut) == (2, 1)
    assert failure.last_at == pytest.approx(BEGAN + 2.2)
