"""The fold from outcomes to a report, in memory that does not grow with their number."""

from __future__ import annotations

from collections import Counter

from loadtest.histogram import Histogram
from loadtest.model import ErrorKind, Outcome, Report, SelfCheck

OTHER = "(other)"
_MOST_ATTRIBUTES = 1_000


class Metrics:
    def __init__(self) -> None:
        self.sent = 0
        self.lag = Histogram()
        self._response = Histogram()
        self._service = Histogram()
        self._status: Counter[int] = Counter()
        self._errors: Counter[ErrorKind] = Counter()
        self._examples: dict[ErrorKind, str] = {}
        self._by_attribute: dict[str, Counter[int]] = {}
        self._received = 0
        self._last_ns: int | None = None

    def add(self, outcome: Outcome) -> None:
        self.sent += 1
        self._received += outcome.size
        self._last_ns = max(self._last_ns or outcome.finished_ns, outcome.finished_ns)
        self.lag.record(outcome.started_ns - outcome.scheduled_ns)
        if outcome.error is not None:
            self._errors[outcome.error] += 1
            self._examples.setdefault(outcome.error, outcome.detail)
        elif outcome.status is not None:
            self._add_answer(outcome, outcome.status)

    def _add_answer(self, outcome: Outcome, status: int) -> None:
        self._status[status] += 1
        self._response.record(outcome.finished_ns - outcome.scheduled_ns)
        if outcome.written_ns is not None:
            self._service.record(outcome.finished_ns - outcome.written_ns)
        if outcome.attribute is not None:
            known = outcome.attribute in self._by_attribute or len(self._by_attribute) < _MOST_ATTRIBUTES
            value = outcome.attribute if known else OTHER
            self._by_attribute.setdefault(value, Counter())[status] += 1

    def report(self, *, planned: int | None, idle_closed: int, started_ns: int, check: SelfCheck) -> Report:
        """`planned` None: as many as were sent. `started_ns` is the start of the run."""
        return Report(
            planned=self.sent if planned is None else planned,
            sent=self.sent,
            status=dict(sorted(self._status.items())),
            errors=dict(sorted(self._errors.items())),
            examples=dict(self._examples),
            idle_closed=idle_closed,
            elapsed=0.0 if self._last_ns is None else (self._last_ns - started_ns) / 1e9,
            received=self._received,
            response=self._response.latency(),
            service=self._service.latency(),
            lag=self.lag.latency(),
            histogram=self._response.bars(),
            by_attribute={value: dict(counts) for value, counts in self._by_attribute.items()},
            self=check,
        )
