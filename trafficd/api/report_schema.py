"""The report of a rollout, as the API answers it. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trafficd.api.schema import Answer, CutView, StepView
from trafficd.api.verify_schema import VerificationView

Verdict = Literal["FAIL", "PASS", "HOLD"]


class TimedStepView(StepView):
    seconds: float | None = Field(description="how long it took; null: it runs")


class MarkView(Answer):
    """Something that was done about the rollout, by somebody or by trafficd."""

    at: float
    what: str
    actor: str
    reason: str


class CountsView(Answer):
    total: int
    bad: int


class JudgedMetricView(Answer):
    name: str
    evidence: float = Field(description="at the end of the stage; it grows from stage to stage")
    canary: CountsView = Field(description="in this stage alone")
    stable: CountsView = Field(description="in this stage alone")


class ExposureView(Answer):
    """Whom the new version answered, users and judged strata."""

    clients: int = Field(description="different client addresses")
    at_least: bool = Field(description="there were more clients than were told apart, or some before a restart")
    requests: int
    bad: int = Field(description="5xx and answers that were cut short")
    first_at: float | None = Field(description="when the first of these requests began")
    last_at: float | None = Field(description="when the last of these requests began")
    seconds: float = Field(description="from the first to the last")


class JudgedStageView(Answer):
    verdict: Verdict = Field(description="at the end of the stage")
    why: str
    metrics: list[JudgedMetricView]


class ReportStageView(Answer):
    number: int
    percent: float | None = Field(description="its share; null: the new instances serve among the others")
    begin: float
    end: float | None = Field(description="null: it goes on")
    seconds: float | None
    exposure: ExposureView | None = Field(description="null: not known")
    judge: JudgedStageView | None = Field(description="null: nothing was judged in it")


class WorstRouteView(Answer):
    route: str = Field(description="method and first part of the path")
    canary: CountsView
    stable: CountsView


class FailureView(Answer):
    """FAIL, and the requests that began on the new version after it."""

    at: float
    why: str
    requests_after: int
    last_after: float | None = Field(description="when the last of them began; null: there was none")
    seconds: float = Field(description="from the verdict to that; 0: there was none")
    cut_after: int = Field(description="answers that were cut short after it, of which the log does not tell the begin")


class GapView(Answer):
    since: float
    until: float
    why: str


class PointView(Answer):
    at: float
    errors: float
    others: float = Field(description="the mean of the evidence of all other metrics")
    metrics: dict[str, float] = Field(description="those other metrics one by one")


class EvidenceView(Answer):
    needed: float = Field(description="the evidence of errors, or the mean of all others', that fails")
    piece: float = Field(description="seconds: of each piece of time so long, the point with the most evidence")
    points: list[PointView]
    gaps: list[GapView] = Field(description="when nobody judged")


class JudgeView(Answer):
    verdict: Verdict
    why: str
    exposure: ExposureView
    worst_route: WorstRouteView | None = Field(
        description="where the new version had the most bad requests beyond the stable version's share; null: nowhere"
    )
    failure: FailureView | None
    evidence: EvidenceView


class AskedView(Answer):
    version: str
    strategy: str
    actor: str
    message: str
    policy: dict[str, Any]
    overrides: dict[str, bool | int | float | str] = Field(description="as asked, of one that was queued")


class ReportView(Answer):
    id: str
    service: str
    asked: AskedView
    state: str
    reason: str
    failure: str | None
    warnings: list[str]
    queued_at: float | None
    started_at: float
    ended_at: float | None
    seconds: float
    previous: dict[str, str | None]
    supersedes: str | None
    upstreams: dict[str, str]
    steps: list[TimedStepView]
    marks: list[MarkView]
    cut: CutView = Field(description="what was still open when drains gave up waiting, in all")
    stages: list[ReportStageView]
    judge: JudgeView | None
    not_judged: str = Field(description="why `judge` is null")
    verification: VerificationView | None
