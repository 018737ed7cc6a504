"""One verification as it is kept and shown: what was asked, how it stands, and what was measured.

Times are seconds since the epoch, latencies milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from pydantic import TypeAdapter

from loadtest.model import Loss, Report
from trafficd.verify.phases import Begun, Span, Timeline
from trafficd.verify.target import Target
from trafficd.verify.verdict import Sockets, State, Wanted

CUT = "cut"  # the kind of a stream that ended without a close frame


@dataclass(frozen=True)
class Latencies:
    """Of complete answers, from when each was due. In milliseconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class Figures:
    """What was measured in one part of the verification."""

    sent: int
    answered: int
    lost: int
    rps: float
    status: Mapping[int, int]
    errors: Mapping[str, int]
    latency: Latencies | None  # None: nothing was answered
    by: Mapping[str, Mapping[int, int]]  # statuses by the value of `verify.attribute`
    valid: bool  # whether the generator kept to its schedule
    why: str


@dataclass(frozen=True)
class Tally:
    """The answers to one of the requests, by status."""

    request: str
    compatible: bool
    expected: tuple[int, ...]  # empty: as in the warm-up
    before: Mapping[int, int]
    during: Mapping[int, int]


@dataclass(frozen=True)
class Lost:
    """One request that got no complete answer, or one stream that was cut (`kind` "cut").

    `upstream`: the one that was being worked on then; `answered_by`: the value of `verify.attribute`, where the
    head of an answer had come.
    """

    at: float
    kind: str
    request: str
    upstream: str | None
    phase: str
    answered_by: str | None = None
    connection: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    id: str
    service: str
    version: str | None  # None: a drain and ready of each upstream
    address: str
    on_fail: str
    actor: str
    started_at: float
    state: State = State.RUNNING
    ended_at: float | None = None
    rollout: str | None = None
    rollout_state: str | None = None
    rollback: str | None = None  # the rollout that took the version back, once it had been rolled out
    cycling: str | None = None  # the upstream that is drained for it
    reasons: tuple[str, ...] = ()  # why it failed
    notes: tuple[str, ...] = ()
    stages: tuple[Begun, ...] = ()
    spans: tuple[Span, ...] = ()
    before: Figures | None = None
    during: Figures | None = None
    requests: tuple[Tally, ...] = ()
    sockets: Sockets | None = None
    losses: tuple[Lost, ...] = ()

    @property
    def sent(self) -> int:
        return sum(part.sent for part in (self.before, self.during) if part is not None)

    @property
    def lost(self) -> int:
        return sum(part.lost for part in (self.before, self.during) if part is not None)


@cache
def _adapter() -> TypeAdapter[Verification]:
    """Made when it is first wanted: an idle daemon needs none."""
    return TypeAdapter(Verification)


def encode(verification: Verification) -> bytes:
    return _adapter().dump_json(verification)


def decode(body: bytes) -> Verification:
    """Raises `pydantic.ValidationError` for what is none of ours."""
    return _adapter().validate_json(body)


def figures(report: Report | None) -> Figures | None:
    if report is None:
        return None
    found = report.response
    return Figures(
        sent=report.sent,
        answered=report.answered,
        lost=report.lost,
        rps=round(report.rps, 3),
        status=dict(report.status),
        errors={kind.value: count for kind, count in report.errors.items()},
        latency=Latencies(*(round(getattr(found, name), 3) for name in ("p50", "p90", "p99", "p999", "max")))
        if found is not None
        else None,
        by={value: dict(counts) for value, counts in report.by_attribute.items()},
        valid=report.self.valid,
        why=report.self.why,
    )


def tallies(wanted: Sequence[Wanted], before: Report | None, during: Report | None) -> tuple[Tally, ...]:
    """The answers to each request."""

    def answers(report: Report | None, number: int) -> dict[int, int]:
        return {} if report is None else dict(sorted(report.by_request.get(number, {}).items()))

    return tuple(
        Tally(one.request, one.compatible, tuple(sorted(one.status)), answers(before, number), answers(during, number))
        for number, one in enumerate(wanted)
    )


def lost_request(loss: Loss, target: Target, timeline: Timeline) -> Lost:
    moment = timeline.at(loss.at)
    return Lost(
        at=loss.at,
        kind=loss.kind.value,
        request=target.wanted[loss.request].request,
        upstream=moment.upstream,
        phase=moment.text,
        answered_by=loss.attribute,
        connection=loss.connection,
        detail=loss.detail,
    )


def cut_stream(at: float, path: str, detail: str, timeline: Timeline) -> Lost:
    moment = timeline.at(at)
    return Lost(
        at=at, kind=CUT, request=f"WebSocket {path}", upstream=moment.upstream, phase=moment.text, detail=detail
    )
