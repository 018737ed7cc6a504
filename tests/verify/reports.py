"""Reports of the load generator, as the tests of verdicts need them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from loadtest.model import ErrorKind, Latency, Loss, Report, SelfCheck

Answers = Mapping[int, Mapping[int, int]]  # by request and status


def latency(p99: float) -> Latency:
    low = p99 / 2
    return Latency(low, low, low, low, low, low, low, low, p99, p99, p99)


def report(
    by_request: Answers,
    *,
    errors: Mapping[ErrorKind, int] | None = None,
    p99: float = 10.0,
    why: str = "",
    losses: Sequence[Loss] = (),
) -> Report:
    """What came of a run with these answers; `why`: the generator did not keep to its schedule."""
    status: Counter[int] = Counter()
    for found in by_request.values():
        status.update(found)
    lost = dict(errors or {})
    return Report(
        planned=status.total() + sum(lost.values()),
        sent=status.total() + sum(lost.values()),
        status=dict(status),
        errors=lost,
        examples={},
        idle_closed=0,
        elapsed=1.0,
        received=0,
        response=latency(p99) if status else None,
        service=None,
        lag=None,
        histogram=(),
        by_attribute={},
        self=SelfCheck(10.0, not why, why),
        by_request=by_request,
        losses=tuple(losses),
    )
