"""The course of one judged rollout: what the judge said in each stage, and whom the new version answered. Pure.

Fed by whoever judges: `see` takes what the judge says at a moment, `take` one answer of the new version. `record` is
what is kept of it, and a course may go on from a record: what was judged before is added to, and the pause is marked.

Counts are those of each stage alone; the judge's own grow from stage to stage. Evidence is the judge's: it grows too,
and begins anew with a new judge. Nobody's address is in a record: clients are told apart in memory only, so those from
before a restart cannot be told from those after it, and their number becomes "at least".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from pydantic import TypeAdapter

from trafficd.core.analysis import ERRORS, NOTHING, Analysis, Counts
from trafficd.core.judge import Verdict
from trafficd.report.series import Point, Series

MOST_CLIENTS = 100_000
MOST_GAPS = 50
RESTARTED = "the daemon was restarted here"
ANEW = "the judge began anew here"


@dataclass(frozen=True)
class Exposure:
    """Whom the new version answered. `clients` is a lower bound where `at_least`; `first_at` and `last_at` (s since the
    epoch) are when the first and the last of those requests began."""

    requests: int = 0
    bad: int = 0
    clients: int = 0
    at_least: bool = False
    first_at: float | None = None
    last_at: float | None = None

    @property
    def seconds(self) -> float:
        """For how long it had traffic."""
        return 0.0 if self.first_at is None or self.last_at is None else self.last_at - self.first_at


@dataclass(frozen=True)
class MetricRecord:
    """One metric in one stage: the counts of the stage, and the evidence at its end."""

    name: str
    evidence: float
    canary: Counts
    stable: Counts


@dataclass(frozen=True)
class StageRecord:
    """`percent` None: no share of its own, the new instances serve among the others."""

    number: int
    percent: float | None
    begin: float
    end: float | None = None
    verdict: Verdict = Verdict.HOLD
    why: str = ""
    metrics: tuple[MetricRecord, ...] = ()
    exposure: Exposure = Exposure()


@dataclass(frozen=True)
class Worst:
    """Requests and bad ones of both arms, on one route."""

    route: str
    canary: int
    canary_bad: int
    stable: int
    stable_bad: int

    @property
    def excess(self) -> float:
        """Bad requests of the new version beyond the stable one's share of them."""
        rate = self.stable_bad / self.stable if self.stable else 0.0
        return self.canary_bad - rate * self.canary


@dataclass(frozen=True)
class Failure:
    """FAIL, and what came after it: requests that `began` on the new version later, and when the last one did. `cut`:
    answers that were cut short after it, of which nobody knows when they began."""

    at: float
    why: str
    began: int = 0
    last_at: float | None = None
    cut: int = 0


@dataclass(frozen=True)
class Gap:
    """From `since` to `until` nobody judged."""

    since: float
    until: float
    why: str


@dataclass(frozen=True)
class Record:
    """What is kept of a rollout. `read_to`: the end of the newest answer that is counted in it."""

    rollout: str
    service: str
    begin: float
    end: float | None = None
    verdict: Verdict = Verdict.HOLD
    why: str = ""
    needed: float = 0.0
    stages: tuple[StageRecord, ...] = ()
    exposure: Exposure = Exposure()
    worst: Worst | None = None
    failure: Failure | None = None
    points: tuple[Point, ...] = ()
    piece: float = 1.0
    gaps: tuple[Gap, ...] = ()
    read_to: float = 0.0
    schema: int = 1


@cache
def _adapter() -> TypeAdapter[Record]:
    """Made when it is first wanted: most daemons judge nothing."""
    return TypeAdapter(Record)


def encode(record: Record) -> bytes:
    return _adapter().dump_json(record)


def decode(body: bytes) -> Record:
    """Raises `pydantic.ValidationError` for what is none of ours."""
    return _adapter().validate_json(body)


@dataclass
class _Exposed:
    """An exposure that grows. `before`: clients that an earlier life told apart."""

    requests: int = 0
    bad: int = 0
    clients: int = 0
    before: int = 0
    at_least: bool = False
    first_at: float | None = None
    last_at: float | None = None

    @classmethod
    def of(cls, kept: Exposure) -> _Exposed:
        return cls(kept.requests, kept.bad, 0, kept.clients, kept.at_least, kept.first_at, kept.last_at)

    def take(self, began: float, *, bad: bool, new: bool | None) -> None:
        """`new`: whether its client is; None where that cannot be told."""
        self.requests += 1
        self.bad += bad
        self.clients += bool(new)
        self.at_least = self.at_least or new is None or self.before > 0
        self.first_at = began if self.first_at is None else min(self.first_at, began)
        self.last_at = began if self.last_at is None else max(self.last_at, began)

    @property
    def kept(self) -> Exposure:
        clients = max(self.before, self.clients)
        return Exposure(self.requests, self.bad, clients, self.at_least, self.first_at, self.last_at)


@dataclass
class _Stage:
    """A stage that goes on. `base`: the judge's counts when it began, `carried`: those of earlier judges in it."""

    number: int
    percent: float | None
    begin: float
    end: float | None = None
    verdict: Verdict = Verdict.HOLD
    why: str = ""
    metrics: tuple[MetricRecord, ...] = ()
    exposed: _Exposed = field(default_factory=_Exposed)
    base: Mapping[str, _Pair] = field(default_factory=dict)
    carried: Mapping[str, _Pair] = field(default_factory=dict)

    @classmethod
    def of(cls, kept: StageRecord) -> _Stage:
        exposed = _Exposed.of(kept.exposure)
        return cls(kept.number, kept.percent, kept.begin, kept.end, kept.verdict, kept.why, kept.metrics, exposed)

    def carry(self, since: float) -> None:
        """Another judge goes on, who counts from `since` on: from nothing, or once more all of this stage."""
        counted = {one.name: (one.canary, one.stable) for one in self.metrics}
        self.carried, self.base = counted if since > self.begin else {}, {}

    def judged(self, analysis: Analysis) -> None:
        self.verdict, self.why = analysis.verdict, analysis.why
        self.metrics = tuple(
            MetricRecord(
                one.name,
                one.evidence,
                *_of_stage((one.canary, one.stable), self.base.get(one.name), self.carried.get(one.name)),
            )
            for one in analysis.metrics
        )

    @property
    def kept(self) -> StageRecord:
        return StageRecord(
            self.number, self.percent, self.begin, self.end, self.verdict, self.why, self.metrics, self.exposed.kept
        )


_Pair = tuple[Counts, Counts]


def _short(evidence: float) -> float:
    """Four digits of it: there are many."""
    return float(f"{evidence:.4g}")


def _of_stage(total: _Pair, base: _Pair | None, carried: _Pair | None) -> Iterator[Counts]:
    """The counts of both arms in this stage alone."""
    none = (NOTHING, NOTHING)
    for now, before, earlier in zip(total, base or none, carried or none, strict=True):
        yield Counts(now.total - before.total + earlier.total, now.bad - before.bad + earlier.bad)


class Course:
    """One rollout's; `at` and all times are seconds since the epoch."""

    def __init__(self, rollout: str, service: str, at: float) -> None:
        self.rollout, self.service, self.begin = rollout, service, at
        self.changed = True  # since somebody last kept the record, who says so
        self._read_to = 0.0
        self._counted_to = 0.0  # what ended until then was counted in an earlier life
        self._end: float | None = None
        self._verdict, self._why, self._needed = Verdict.HOLD, "", 0.0
        self._stages: list[_Stage] = []
        self._exposed = _Exposed()
        self._worst: Worst | None = None
        self._worst_before: Worst | None = None  # of earlier judges
        self._failure: Failure | None = None
        self._series = Series()
        self._gaps: list[Gap] = []
        self._counts: Mapping[str, _Pair] = {}  # what the present judge counted in all
        self._clients: dict[str, int] = {}  # a bit for each stage that a client was seen in

    @classmethod
    def resume(cls, kept: Record, at: float) -> Course:
        """Go on after a restart of the daemon."""
        course = cls(kept.rollout, kept.service, kept.begin)
        course._read_to = course._counted_to = kept.read_to
        course._verdict, course._why, course._needed = kept.verdict, kept.why, kept.needed
        course._stages = [_Stage.of(one) for one in kept.stages]
        course._exposed = _Exposed.of(kept.exposure)
        course._worst, course._failure = kept.worst, kept.failure
        course._series = Series.of(kept.points, kept.piece)
        course._gaps = list(kept.gaps)
        course._mark(at, RESTARTED)
        return course

    def _mark(self, at: float, why: str) -> None:
        points = self._series.points
        since = points[-1].at if points else self.begin
        # A daemon that is restarted again and again must not make the record grow.
        self._gaps = [*self._gaps, Gap(min(since, at), at, why)][-MOST_GAPS:]
        self.changed = True

    # -- what the judge says ---------------------------------------------------------------------------

    def anew(self, at: float, since: float) -> None:
        """From now on another judge speaks, who counts what came from `since` on: all of a stage, or nothing yet."""
        if self._counts:
            self._mark(at, ANEW)
        self._counts, self._worst_before = {}, self._worst
        if self._stages:
            self._stages[-1].carry(since)

    def enter(self, number: int, percent: float | None, begin: float) -> bool:
        """The stage that the rollout is in, which began at `begin`; whether it is another one."""
        current = self._stages[-1] if self._stages else None
        if current is not None and current.number == number:
            current.percent = percent
            return False
        if current is not None and current.end is None:
            current.end = begin
        self._stages.append(_Stage(number, percent, begin, base=self._counts))
        self.changed = True
        return True

    def see(self, at: float, analysis: Analysis, worst: Worst | None) -> bool:
        """What the judge says now of the stage that was entered last; whether it is another verdict than before."""
        stage = self._stages[-1]
        before, stage.end = stage.verdict, None
        stage.judged(analysis)
        self._counts = {one.name: (one.canary, one.stable) for one in analysis.metrics}
        self._needed = analysis.needed
        self._worst = max(filter(None, (worst, self._worst_before)), key=lambda one: one.excess, default=None)
        if self._failure is None:  # a FAIL stays, whatever a judge after it says
            self._verdict, self._why = analysis.verdict, analysis.why
            if analysis.verdict is Verdict.FAIL:
                self._failure = Failure(at, analysis.why)
        others = {one.name: _short(one.evidence) for one in analysis.metrics if one.name != ERRORS}
        self._series.add(Point(round(at, 3), _short(analysis.errors), _short(analysis.others), others))
        self.changed = True
        return stage.verdict is not before

    def leave(self, at: float) -> None:
        """Nothing is judged any more."""
        if self._stages and self._stages[-1].end is None:
            self._stages[-1].end = at
            self.changed = True

    def close(self, at: float) -> None:
        """The rollout has ended."""
        self.leave(at)
        self._end, self.changed = at, True

    # -- what the log says -----------------------------------------------------------------------------

    def take(self, client: str, *, began: float | None, ended: float, bad: bool) -> None:
        """One answer of the new version; `began` None: it was cut short, and nobody knows when its request came."""
        if ended <= self._counted_to:
            return
        self._read_to = max(self._read_to, ended)
        moment = ended if began is None else began
        stage, new = self._stage_at(moment), self._new(client, 0)
        self._exposed.take(moment, bad=bad, new=new)
        if stage is not None:
            in_stage = None if new is None else self._new(client, stage.number + 1)
            stage.exposed.take(moment, bad=bad, new=in_stage)
        self._after_failure(began, ended)
        self.changed = True

    def _stage_at(self, moment: float) -> _Stage | None:
        for stage in reversed(self._stages):
            if stage.begin <= moment:
                return stage
        return self._stages[0] if self._stages else None

    def _new(self, client: str, bit: int) -> bool | None:
        """Whether a client was not seen before, in all (bit 0) or in a stage; None: there are too many to tell."""
        seen = self._clients.get(client, 0)
        if not seen and len(self._clients) >= MOST_CLIENTS:
            return None
        self._clients[client] = seen | 1 << bit
        return not seen >> bit & 1

    def _after_failure(self, began: float | None, ended: float) -> None:
        failure = self._failure
        if failure is None or (ended if began is None else began) <= failure.at:
            return
        last = None if began is None else max(began, failure.last_at or began)
        self._failure = Failure(
            failure.at,
            failure.why,
            failure.began + (began is not None),
            failure.last_at if last is None else last,
            failure.cut + (began is None),
        )

    # -- what is kept ----------------------------------------------------------------------------------

    @property
    def record(self) -> Record:
        return Record(
            rollout=self.rollout,
            service=self.service,
            begin=self.begin,
            end=self._end,
            verdict=self._verdict,
            why=self._why,
            needed=self._needed,
            stages=tuple(stage.kept for stage in self._stages),
            exposure=self._exposed.kept,
            worst=self._worst,
            failure=self._failure,
            points=self._series.points,
            piece=self._series.piece,
            gaps=tuple(self._gaps),
            read_to=self._read_to,
        )
