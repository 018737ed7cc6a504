"""The fold from what became of requests to a report, in memory that does not grow with their number.

What finishes within one interval is counted in that interval alone, and taken into the whole when it is over. Its times
are kept as they are until there are a few hundred, which are then counted at once. Intervals are a second long; once
there are too many of them, two become one, again and again. Snapshots of several processes add up to what one process
would have counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from loadtest.histogram import Histogram, Sketch
from loadtest.model import ErrorKind, Interval, Latency, Loss, Outcome, Report, SelfCheck

OTHER = "(other)"
PHASES = ("dns", "dial", "tls", "write", "wait", "read")
_MOST_ATTRIBUTES = 1_000
MOST_LOSSES = 10_000
_MOST_INTERVALS = 600
_SECOND = 1_000_000_000
_KEPT = 4_000_000  # ns that times are kept for until they are counted: a few hundred

Counts = dict[int, int]
K = TypeVar("K")


class Head(Protocol):
    """What is counted of a response. Equal ones should be the same object, as far as that is cheap."""

    @property
    def status(self) -> int: ...
    @property
    def attribute(self) -> str | None: ...  # value of the header named by Plan.attribute


class _Answer(NamedTuple):
    status: int
    attribute: str | None


class Stretch:
    """What finished in one interval."""

    __slots__ = ("_told", "errors", "received", "response", "status")

    def __init__(self) -> None:
        self.status: Counts = {}
        self.errors: dict[ErrorKind, int] = {}
        self.received = 0
        self.response = Sketch()
        self._told: Interval | None = None  # until something is added

    def take(self, other: Stretch) -> None:
        self.add(other.status, other.errors, other.received, other.response)

    def add(self, status: Counts, errors: Mapping[ErrorKind, int], received: int, response: Histogram | Sketch) -> None:
        self._told = None
        _sum(self.status, status)
        _sum(self.errors, errors)
        self.received += received
        self.response.take(response)

    def interval(self, index: int, width: int) -> Interval:
        """As the one with this index among intervals of `width` seconds."""
        if self._told is None or self._told.seconds != width:
            self._told = Interval(
                begin=float(index * width),
                seconds=float(width),
                status=dict(sorted(self.status.items())),
                errors=dict(sorted(self.errors.items())),
                received=self.received,
                response=self.response.wide().latency(),
            )
        return self._told


@dataclass
class Snapshot:
    """What was counted so far. `width`: how many seconds an interval has."""

    start_ns: int
    closed: bool
    width: int = 1
    sent: int = 0
    idle_closed: int = 0
    resent: int = 0
    redirected: int = 0
    received: int = 0
    last_ns: int | None = None
    status: Counts = field(default_factory=dict)
    errors: dict[ErrorKind, int] = field(default_factory=dict)
    examples: dict[ErrorKind, tuple[int, str]] = field(default_factory=dict)  # when the first was, and its detail
    by_attribute: dict[str, Counts] = field(default_factory=dict)
    by_request: dict[int, Counts] = field(default_factory=dict)
    response: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)  # in an open loop; in a closed one it is the response time
    lag: Histogram = field(default_factory=Histogram)  # in an open loop
    phases: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in PHASES})
    losses: list[Loss] = field(default_factory=list)
    stretches: dict[int, Stretch] = field(default_factory=dict)  # by number, from the start of the run

    def widen(self) -> None:
        """Make two intervals one."""
        pairs: dict[int, Stretch] = {}
        for index in sorted(self.stretches):
            pairs.setdefault(index // 2, Stretch()).take(self.stretches[index])
        self.width *= 2
        self.stretches = pairs

    def merge(self, other: Snapshot) -> None:
        """Add what another process counted; `other` is used up."""
        while self.width < other.width:
            self.widen()
        while other.width < self.width:
            other.widen()
        self.start_ns = min(self.start_ns, other.start_ns)
        self.sent += other.sent
        self.idle_closed += other.idle_closed
        self.resent += other.resent
        self.redirected += other.redirected
        self.received += other.received
        ends = [ns for ns in (self.last_ns, other.last_ns) if ns is not None]
        self.last_ns = max(ends, default=None)
        _sum(self.status, other.status)
        _sum(self.errors, other.errors)
        for kind, example in other.examples.items():
            self.examples[kind] = min(self.examples.get(kind, example), example)
        for value, counts in other.by_attribute.items():
            _sum(self.by_attribute.setdefault(_known(self.by_attribute, value), {}), counts)
        for request, counts in other.by_request.items():
            _sum(self.by_request.setdefault(request, {}), counts)
        for mine, theirs in ((self.response, other.response), (self.service, other.service), (self.lag, other.lag)):
            mine.merge(theirs)
        for name, histogram in other.phases.items():
            self.phases[name].merge(histogram)
        self.losses = sorted([*self.losses, *other.losses], key=lambda loss: loss.at)[:MOST_LOSSES]
        for index, stretch in other.stretches.items():
            self.stretches.setdefault(index, Stretch()).take(stretch)

    def report(self, *, planned: int | None, check: SelfCheck) -> Report:
        """`planned` None: as many as were sent."""
        service = self.response if self.closed else self.service
        return Report(
            planned=self.sent if planned is None else planned,
            sent=self.sent,
            status=dict(sorted(self.status.items())),
            errors=dict(sorted(self.errors.items())),
            examples={kind: detail for kind, (_, detail) in sorted(self.examples.items())},
            idle_closed=self.idle_closed,
            elapsed=0.0 if self.last_ns is None else (self.last_ns - self.start_ns) / _SECOND,
            received=self.received,
            response=self.response.latency(),
            service=service.latency(),
            lag=_no_lag(self.sent) if self.closed else self.lag.latency(),
            histogram=self.response.bars(),
            by_attribute={value: dict(counts) for value, counts in self.by_attribute.items()},
            self=check,
            began_at=time.time() - (time.monotonic_ns() - self.start_ns) / _SECOND,
            resent=self.resent,
            redirected=self.redirected,
            phases={name: told for name, one in self.phases.items() if (told := one.latency()) is not None},
            intervals=tuple(self._intervals()),
            losses=tuple(self.losses),
            by_request={request: dict(counts) for request, counts in sorted(self.by_request.items())},
        )

    def encoded(self) -> dict[str, str]:
        """The distributions as HdrHistograms, which takes a moment: for the last report."""
        apart = {} if self.closed else {"service": self.service, "lag": self.lag}
        return {name: one.encoded() for name, one in {"response": self.response, **apart}.items() if one.count}

    def _intervals(self) -> Iterable[Interval]:
        for index in range(max(self.stretches, default=-1) + 1):
            yield (self.stretches.get(index) or Stretch()).interval(index, self.width)


class Metrics:
    """`start_ns`: of the run, by the monotonic clock. `closed`: a closed loop, where no request waits for its turn:
    response and service time are one."""

    def __init__(self, start_ns: int, *, closed: bool) -> None:
        self.idle_closed = 0  # kept-alive connections that the server had closed before they were wanted again
        self.resent = 0
        self.redirected = 0
        self.on_loss: Callable[[Loss], object] | None = None  # hears of each request that is lost
        self._whole = Snapshot(start_ns, closed)
        self._closed = closed
        self._times: list[int] = []  # response times that are not counted yet, and so on
        self._services: list[int] = []
        self._lags: list[int] = []
        self._samples: list[tuple[int, ...]] = []  # of the phases
        self._head: Head | None = None  # of the last answer, and of which request it was
        self._request = 0
        self._alike = 0  # from which of `_times` on they were the same
        self._begin(start_ns)

    def _begin(self, now: int) -> None:
        """A fresh interval, the one that `now` lies in."""
        start, width = self._whole.start_ns, self._whole.width * _SECOND
        self._index = max(0, now - start) // width
        self._end = start + (self._index + 1) * width
        self._until = now  # when to look whether enough was kept, or the interval is over
        self._answers: Counter[tuple[int, str | None, int]] = Counter()  # by status, attribute and request
        self._errors: dict[ErrorKind, int] = {}
        self._response = Histogram()
        self._received = 0
        self._newest = 0  # when the last of it finished

    def answered(
        self, head: Head, request: int, size: int, due_ns: int, started_ns: int, written_ns: int, finished_ns: int
    ) -> None:
        """A complete answer. Times of the monotonic clock, which never go back from call to call."""
        if finished_ns >= self._until:
            self._look(finished_ns)
        if head is not self._head or request != self._request:
            self._count_alike()
            self._head = head
            self._request = request
        self._received += size
        self._newest = finished_ns
        self._times.append(finished_ns - due_ns)
        if not self._closed:
            self._services.append(finished_ns - written_ns)
            self._lags.append(started_ns - due_ns)

    def add(self, outcome: Outcome) -> None:
        """Any outcome."""
        if outcome.error is None:
            assert outcome.status is not None, "an outcome has a status or an error"
            self.answered(
                _Answer(outcome.status, outcome.attribute),
                outcome.request,
                outcome.size,
                outcome.scheduled_ns,
                outcome.started_ns,
                outcome.written_ns or outcome.started_ns,
                outcome.finished_ns,
            )
            return
        if outcome.finished_ns >= self._until:
            self._look(outcome.finished_ns)
        whole, kind = self._whole, outcome.error
        self._errors[kind] = self._errors.get(kind, 0) + 1
        self._received += outcome.size
        self._newest = outcome.finished_ns
        whole.examples.setdefault(kind, (outcome.finished_ns, outcome.detail))
        if not self._closed:
            whole.lag.record(outcome.started_ns - outcome.scheduled_ns)
        at = time.time() - (time.monotonic_ns() - outcome.finished_ns) / _SECOND
        loss = Loss(outcome.hit, at, kind, outcome.request, outcome.connection, outcome.detail, outcome.attribute)
        if len(whole.losses) < MOST_LOSSES:
            whole.losses.append(loss)
        if self.on_loss is not None:
            self.on_loss(loss)

    def phases(self, *, dns_ns: int, dial_ns: int, tls_ns: int, write_ns: int, wait_ns: int, read_ns: int) -> None:
        """What the parts of one request took, of which samples are enough."""
        self._samples.append((dns_ns, dial_ns, tls_ns, write_ns, wait_ns, read_ns))

    def snapshot(self) -> Snapshot:
        """What was counted so far; it grows on with what comes."""
        self._turn(self._end - 1)
        whole = self._whole
        whole.idle_closed, whole.resent, whole.redirected = self.idle_closed, self.resent, self.redirected
        return whole

    def _count_times(self) -> None:
        self._count_alike()
        self._alike = 0
        self._response.extend(self._times)
        self._times.clear()
        self._whole.service.extend(self._services)
        self._services.clear()
        self._whole.lag.extend(self._lags)
        self._lags.clear()
        for name, times in zip(PHASES, zip(*self._samples, strict=True), strict=False):  # no times where no samples
            self._whole.phases[name].extend(times)
        self._samples.clear()

    def _count_alike(self) -> None:
        if (count := len(self._times) - self._alike) and self._head is not None:
            self._answers[self._head.status, self._head.attribute, self._request] += count
            self._alike = len(self._times)

    def _look(self, now: int) -> None:
        if now >= self._end:
            self._turn(now)
        else:
            self._count_times()
        self._until = min(self._end, now + _KEPT)

    def _turn(self, now: int) -> None:
        """Take the interval that is over into the whole, and begin the one that `now` lies in."""
        self._count_times()
        self._close()
        whole = self._whole
        while now >= whole.start_ns + _MOST_INTERVALS * whole.width * _SECOND:
            whole.widen()
        self._begin(now)

    def _close(self) -> None:
        whole, failures = self._whole, sum(self._errors.values())
        if not (self._response.count or failures):
            return
        status: Counts = {}
        for (code, attribute, request), times in self._answers.items():
            status[code] = status.get(code, 0) + times
            _sum(whole.by_request.setdefault(request, {}), {code: times})
            if attribute is not None:
                _sum(whole.by_attribute.setdefault(_known(whole.by_attribute, attribute), {}), {code: times})
        _sum(whole.status, status)
        _sum(whole.errors, self._errors)
        whole.sent += self._response.count + failures
        whole.received += self._received
        whole.last_ns = max(whole.last_ns or 0, self._newest)
        whole.response.merge(self._response)
        stretch = whole.stretches.setdefault(self._index, Stretch())
        stretch.add(status, self._errors, self._received, self._response)


def _known(values: Mapping[str, Counts], value: str) -> str:
    """The value, or what stands for all those that came after the first thousand."""
    return value if value in values or len(values) < _MOST_ATTRIBUTES else OTHER


def _no_lag(sent: int) -> Latency | None:
    """A closed loop sends when it can: that is its schedule."""
    return Latency(*(0.0,) * 11) if sent else None


def _sum(mine: dict[K, int], other: Mapping[K, int]) -> None:
    for key, times in other.items():
        mine[key] = mine.get(key, 0) + times
