"""The API's models: what may be asked, and what is answered. Durations in requests are "10s" or seconds."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    model_validator,
)

from trafficd.config import RolloutOverrides, VerifyOverrides
from trafficd.config.values import Amount, Count, Dial, Name, Parallel, Positive, Seconds, Version
from trafficd.operate.rollouts import IfLive


def _plain(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise ValueError("control characters are not allowed")
    return text


def _few(amount: Amount) -> Amount:
    if amount.number is not None and amount.number > MOST:
        raise ValueError(f"at most {MOST}")
    return amount


MOST = 10_000  # upstreams; no service has more slots
_WRITTEN = WithJsonSchema(
    {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}], "examples": ["10s", "250ms", 1.5]}
)

Duration = Annotated[Seconds, _WRITTEN]
LongDuration = Annotated[Positive, _WRITTEN]
Text = Annotated[str, Field(max_length=500), AfterValidator(_plain)]
Percent = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]


class Request(BaseModel):
    """Strict: "5" is no number and 1 is not true, so that a slip of the pen is answered and not guessed at."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class AddUpstream(Request):
    id: Name
    dial: Dial | None = Field(default=None, description="left out for a worker, and only for one")
    version: Version | None = None
    spare_dial: Dial | None = None
    group: Name | None = Field(
        default=None, description="a zone or host: of two groups nothing is taken out of traffic at once"
    )


class RemoveUpstream(Request):
    force: bool = False


class Drain(Request):
    timeout: Duration | None = None
    wait: bool = True
    force: bool = False


class Ready(Request):
    version: Version | None = None
    dial: Dial | None = None
    wait: bool = True


class VerifyRollout(VerifyOverrides):
    """What this verification has otherwise than `[services.NAME.verify]`."""

    timeout: LongDuration | None = None
    warm_up: LongDuration | None = None
    cool_down: LongDuration | None = None


class StartRollout(RolloutOverrides):
    version: Version
    strategy: Literal["rolling", "canary", "blue_green", "rainbow", "hold"] = "rolling"
    verify: StrictBool | VerifyRollout = Field(
        default=False, description="under load, with a verdict: answered once the warm-up is over and the rollout begun"
    )
    if_live: IfLive = IfLive.REFUSE
    message: Text = ""
    max_parallel: Annotated[Parallel, AfterValidator(_few)] | None = None
    min_ready: Annotated[Count, AfterValidator(_few)] | None = None
    min_healthy_time: Duration | None = None
    healthy_deadline: LongDuration | None = None
    drain_timeout: Duration | None = None
    drain_quiet: Duration | None = None
    auto_revert: StrictBool | None = None
    watch_time: Duration | None = None
    keep_old: Duration | None = None
    step_min_time: Duration | None = None
    step_max_time: LongDuration | None = None
    percent: Percent | None = Field(default=None, description="rainbow: the share that the version is to keep")


class PromoteRollout(Request):
    gate: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None, description="the number of the stage that waits: a second promote then goes no further"
    )
    everything: bool = Field(
        default=False, alias="all", description="all traffic at once; must be said where the rollout has gates"
    )


class AbortRollout(Request):
    revert: bool = True


class Canary(Request):
    percent: Percent


class FreezeService(Request):
    reason: Annotated[Text, Field(min_length=1)]
    duration: LongDuration | None = Field(default=None, alias="for")
    until: Annotated[AwareDatetime, Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _one_end(self) -> FreezeService:
        if self.duration is not None and self.until is not None:
            raise ValueError("give for or until, not both")
        return self


class Maintain(Request):
    on: bool = True
    reason: Text = ""


class Nothing(Request):
    """No body, or an empty object."""


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)


class UpstreamView(Answer):
    id: str
    version: str | None
    dial: str | None = Field(description="null: a worker, which has no address")
    spare_dial: str | None
    group: str | None = Field(description="a zone or host: of two groups nothing is taken out of traffic at once")
    ready: bool = Field(description="may receive traffic: in service, not drained, not ejected, and up")
    weight: int | None = Field(description="slots of the slot table that name it; null: a worker")
    share: float | None = Field(description="its share of the service's traffic, in percent; null: a worker")
    in_flight: int | None = Field(description="requests and streams open now; null: not known, or a worker")
    health: Literal["up", "down", "unknown"]
    drained: bool
    gating: bool
    ejected_until: float | None = Field(
        description="seconds since the epoch: answered worse than the others and is sent nothing until then; null: no"
    )
    reason: str
    beside: list[BesideView] = Field(description="other instances of it: of versions with a share, and warm ones")


class BesideView(Answer):
    """An instance beside the one that serves."""

    dial: str
    version: str
    weight: int
    share: float = Field(description="its share of the service's traffic, in percent")
    in_flight: int | None = Field(description="requests and streams open now; null: not known")
    health: Literal["up", "down", "unknown"]
    keep_until: float | None = Field(description="seconds since the epoch: kept warm until then; null: it has a share")
    retiring: bool


class ShareStageView(Answer):
    percent: float
    min_time: float
    max_time: float | None
    judged: bool
    gate: bool


class WaitView(Answer):
    upstream: str | None
    what: str
    since: float
    at_most: float | None = Field(description="seconds from now until this wait ends in any case")
    expected: float | None = Field(description="seconds from now until it ends if all goes well")


class CutView(Answer):
    requests: int
    streams: int


class StepView(Answer):
    upstream: str | None
    direction: str
    step: str
    started_at: float
    ended_at: float | None
    ok: bool | None
    reason: str
    cut: CutView | None
    output: str


class RolloutView(Answer):
    id: str
    service: str
    version: str
    strategy: str
    state: str
    paused: bool
    reason: str
    failure: str | None
    warnings: list[str]
    actor: str
    message: str
    queued_at: float | None = Field(description="seconds since the epoch: asked for then, behind another rollout")
    supersedes: str | None = Field(description="the rollout that it takes over from")
    started_at: float = Field(description="while it is pending: when it was asked for")
    ended_at: float | None
    seconds: float
    previous: dict[str, str | None]
    upstreams: dict[str, str]
    steps: list[StepView]
    stages: list[ShareStageView] = Field(description="the shares that its version gets beside the old one")
    stage: int | None = Field(description="the number of the stage that it is in, from 0; null: in none")
    waits_for_promote: bool = Field(description="a promote lets it go on; otherwise that gives its version all traffic")
    waits: list[WaitView]


class StartedView(RolloutView):
    verification: str | None = Field(default=None, description="the verification under whose load it runs")


class FreezeView(Answer):
    reason: str
    until: float | None = Field(description="seconds since the epoch; null: until thawed")
    actor: str


class MaintenanceView(Answer):
    reason: str
    since: float


class MetricView(Answer):
    name: str
    evidence: float = Field(description="against a canary that is no worse; errors fail at `needed`")
    canary_total: int
    canary_bad: int
    stable_total: int
    stable_bad: int


class AnalysisView(Answer):
    verdict: Literal["FAIL", "PASS", "HOLD"]
    why: str
    current: bool = Field(description="whether it is of a canary that has traffic now; else of the last one")
    needed: float = Field(description="the evidence of errors, or the mean of all others', that fails")
    metrics: list[MetricView]


class ServiceView(Answer):
    name: str
    stable: str | None
    held: bool
    maintenance: MaintenanceView | None = Field(description="Caddy answers everything itself; null: it does not")
    left: bool = Field(description="Caddy goes on with plain upstreams, and nothing here steers them")
    canary_percent: float | None = Field(description="set by hand, for all versions without a share of their own")
    shares: dict[str, float] = Field(description="in percent, of versions beside the stable one")
    pins: dict[str, str] = Field(description="the version that each pin leads to")
    analysis: AnalysisView | None = Field(description="of the canary that has a share, or had one last; null: none")
    freeze: FreezeView | None
    upstreams: list[UpstreamView]
    rollout: RolloutView | None
    queued: RolloutView | None = Field(description="the rollout that is pending behind the live one")
    waits: list[WaitView]
    panic: str | None
    trouble: list[str]


class ServiceList(Answer):
    services: list[ServiceView]


class DrainView(Answer):
    drained: bool
    in_flight: int | None = Field(description="still open; null: not known, or a worker")
    cut: CutView


class RolloutList(Answer):
    rollouts: list[RolloutView]


class EventView(Answer):
    seq: int
    at: float
    service: str
    rollout: str | None
    type: str
    data: dict[str, Any]


class EventList(Answer):
    events: list[EventView]


class AbortView(RolloutView):
    warning: str | None = None


class HealthView(Answer):
    ok: bool
    version: str
    services: int
    started_at: float = Field(description="seconds since the epoch; another one after a restart or a reload")
    trouble: list[str]


class ServicePreviewView(Answer):
    service: str
    route: str
    control: str
    present: bool = Field(description="whether Caddy's configuration has it as it is to be")
    notes: list[str] = Field(description="what changes in a handler that is taken over, and why")
    refused: str | None
    cost: str = Field(description="what each later shift costs")


class PreviewView(Answer):
    admin: str
    services: list[ServicePreviewView]
    difference: list[str] = Field(description="the one write, a line a change; empty: nothing is written")
    cost: str


class SnippetView(Answer):
    service: str
    snippet: str


class Reloading(Answer):
    reloading: bool = True


class Problem(Answer):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[str, str]] = Field(default_factory=list)
