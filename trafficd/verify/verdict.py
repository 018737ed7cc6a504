"""Did it pass? From what was measured to reasons why not. Pure.

A verification fails on any lost request, on any cut or refused WebSocket, on an answer with another status than the
expected one, and on more 5xx than in its own warm-up; on latency only where a limit is configured. A request without
an expected status must be answered as in the warm-up. What was never asked has not passed: unknown is not zero.

Most of these can only become worse while the load goes on. Those are `certain` as soon as they are there, so that a
bad version need not be waited for; shares and latencies are judged at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from loadtest.model import Report

_CHANCE = 0.01  # how improbable more 5xx must be, where the warm-up has some already


class State(StrEnum):
    """How a verification stands."""

    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # the daemon ended in its midst

    @property
    def ended(self) -> bool:
        return self is not State.RUNNING


@dataclass(frozen=True)
class Wanted:
    """One request, and the statuses that it may be answered with; empty: those of the warm-up.

    `compatible`: only clients of the old version still send it.
    """

    request: str
    status: frozenset[int] = frozenset()
    compatible: bool = False

    @property
    def text(self) -> str:
        return f"{self.request} (asked for by clients of the old version)" if self.compatible else self.request


@dataclass(frozen=True)
class Sockets:
    """What became of the WebSockets. `cut`: ended without a close frame from the server."""

    opened: int = 0
    closed: int = 0
    cut: int = 0
    failed: int = 0  # attempts to open
    examples: Mapping[str, int] = field(default_factory=dict)  # why opening failed, and how often


@dataclass(frozen=True)
class Measured:
    """What was measured in the warm-up, from then on, and (as far as it had come) when the rollout had ended."""

    before: Report
    during: Report
    sockets: Sockets | None = None
    at_end: Mapping[int, int] = field(default_factory=dict)  # answers to each request when the rollout had ended


def unfit(wanted: Sequence[Wanted], before: Report, sockets: Sockets | None) -> list[str]:
    """Why the warm-up is no ground to compare with; then nothing is touched."""
    reasons = [*_lost(before), *_sockets(sockets)]
    if sockets is not None and not (sockets.opened or sockets.failed):
        reasons.append("no WebSocket was opened in the warm-up: raise warm_up")
    for number, one in enumerate(wanted):
        found = before.by_request.get(number, {})
        other = {status: count for status, count in found.items() if one.status and status not in one.status}
        if other:
            reasons.append(_unexpected(one, other, one.status))
        elif not found and not before.lost:
            reasons.append(f"{one.text} was never answered in the warm-up: raise rate or warm_up")
    return reasons


def certain(wanted: Sequence[Wanted], measured: Measured) -> list[str]:
    """Why it has failed, whatever comes after."""
    reasons = [*_lost(measured.during), *_sockets(measured.sockets), *_statuses(wanted, measured)]
    bad, earlier = server_errors(wanted, measured.during), server_errors(wanted, measured.before)
    if bad and not earlier:
        reasons.append(f"{bad.total()} answers 5xx, none in the warm-up: {_by_request(wanted, bad)}")
    return reasons


def judge(wanted: Sequence[Wanted], measured: Measured, p99_factor: float | None = None) -> list[str]:
    """Why it has failed, at its end; empty when it passed."""
    found = bad(wanted, measured, p99_factor)
    return found or [*_never_asked(wanted, measured), *_unmeasured(measured, p99_factor)]


def bad(wanted: Sequence[Wanted], measured: Measured, p99_factor: float | None = None) -> list[str]:
    """What speaks against the version: a reason to take it back. That something is not known is none."""
    return [*certain(wanted, measured), *_more_errors(wanted, measured), *_slower(measured, p99_factor)]


def notes(measured: Measured) -> list[str]:
    """What a reader should know of the figures, and is no failure."""
    return [
        f"in the {where} the load generator missed its schedule, so the latencies say little: {report.self.why}"
        for where, report in (("warm-up", measured.before), ("rollout", measured.during))
        if not report.self.valid
    ]


def server_errors(wanted: Sequence[Wanted], report: Report) -> Counter[tuple[int, int]]:
    """Answers 5xx that were not asked for, by request and status."""
    return Counter(
        {
            (number, status): count
            for number, found in report.by_request.items()
            for status, count in found.items()
            if status >= 500 and count and status not in wanted[number].status
        }
    )


# -- the single reasons --------------------------------------------------------------------------------


def _lost(report: Report) -> Iterator[str]:
    if report.lost:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.errors.items() if count)
        yield f"{report.lost} {'request was' if report.lost == 1 else 'requests were'} lost: {kinds}"


def _sockets(sockets: Sockets | None) -> Iterator[str]:
    if sockets is None:
        return
    if sockets.cut:
        yield f"{_some(sockets.cut, 'WebSocket')} cut without a close frame"
    if sockets.failed:
        why = next(iter(sockets.examples), "no reason is known")
        yield f"{_some(sockets.failed, 'WebSocket')} not opened: {why}"


def _some(count: int, what: str) -> str:
    return f"{count} {what} was" if count == 1 else f"{count} {what}s were"


def _statuses(wanted: Sequence[Wanted], measured: Measured) -> Iterator[str]:
    """Answers of another status, but for 5xx, which are counted apart."""
    for number, one in enumerate(wanted):
        known = one.status or frozenset(measured.before.by_request.get(number, {}))
        found = measured.during.by_request.get(number, {})
        other = {status: count for status, count in found.items() if count and status not in known and status < 500}
        if other:
            yield _unexpected(one, other, known)


def _unexpected(one: Wanted, other: Mapping[int, int], known: frozenset[int]) -> str:
    answers = ", ".join(
        f"{status} ({count} {'time' if count == 1 else 'times'})" for status, count in sorted(other.items())
    )
    expected = " or ".join(str(status) for status in sorted(known)) or "no answer at all"
    source = "expected is" if one.status else "in the warm-up it was"
    return f"{one.text} was answered {answers}; {source} {expected}"


def _more_errors(wanted: Sequence[Wanted], measured: Measured) -> Iterator[str]:
    """5xx where the warm-up has some as well: by their share, and beyond chance."""
    earlier, bad = (server_errors(wanted, report).total() for report in (measured.before, measured.during))
    if earlier and improbable(earlier, measured.before.answered, bad, measured.during.answered):
        yield (
            f"{bad} of {measured.during.answered} answers 5xx, in the warm-up {earlier} of {measured.before.answered}: "
            f"{_by_request(wanted, server_errors(wanted, measured.during))}"
        )


def improbable(bad_before: int, before: int, bad_after: int, after: int) -> bool:
    """Whether the second share is over the first by more than chance explains (exact, one-sided, 1 in 100).

    Were both the same, each of all the bad ones would have come after with the probability after / (before + after).
    """
    if before == 0 or after == 0 or bad_after * before <= bad_before * after:
        return False
    trials, share = bad_before + bad_after, after / (before + after)
    tail = sum(_binomial(trials, hits, share) for hits in range(bad_after, trials + 1))
    return tail < _CHANCE


def _binomial(trials: int, hits: int, share: float) -> float:
    ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return math.exp(ways + hits * math.log(share) + (trials - hits) * math.log1p(-share))


def _by_request(wanted: Sequence[Wanted], bad: Mapping[tuple[int, int], int]) -> str:
    return ", ".join(f"{wanted[number].text} {count} x {status}" for (number, status), count in sorted(bad.items()))


def _never_asked(wanted: Sequence[Wanted], measured: Measured) -> Iterator[str]:
    for number, one in enumerate(wanted):
        answers = sum(measured.during.by_request.get(number, {}).values())
        if answers <= measured.at_end.get(number, 0):
            yield f"{one.text} was never answered after the rollout, so nothing is known of it: raise rate or cool_down"


def _slower(measured: Measured, factor: float | None) -> Iterator[str]:
    before, during = measured.before.response, measured.during.response
    if factor is None or before is None or during is None or _invalid(measured) is not None:
        return
    if during.p99 > factor * before.p99:
        yield (
            f"p99 of the response time was {during.p99:.1f} ms, over {factor:g} times that of the warm-up "
            f"({before.p99:.1f} ms)"
        )


def _unmeasured(measured: Measured, factor: float | None) -> Iterator[str]:
    """A limit on what was not measured."""
    why = _invalid(measured)
    if factor is not None and why is not None:
        yield f"the latency could not be measured: {why}"


def _invalid(measured: Measured) -> str | None:
    return next((one.self.why for one in (measured.before, measured.during) if not one.self.valid), None)
