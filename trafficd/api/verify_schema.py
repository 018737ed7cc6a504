"""The API's models of verifications: a rollout under load, and what came of it.

Times are seconds since the epoch, latencies milliseconds.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trafficd.api.schema import Answer, Text, VerifyRollout
from trafficd.config.values import Name, Version


class StartVerification(VerifyRollout):
    service: Name
    version: Version | None = Field(
        default=None, description="what to roll out; without it, each upstream is drained and made ready again"
    )
    message: Text = ""


class LatencyView(Answer):
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class FiguresView(Answer):
    sent: int
    answered: int
    lost: int = Field(description="sent, and no complete answer came")
    rps: float
    status: dict[str, int] = Field(description="complete answers only; every request is in one of status and errors")
    errors: dict[str, int]
    latency: LatencyView | None = Field(description="of complete answers, from when each was due, in milliseconds")
    answered_by: dict[str, dict[str, int]] = Field(description="status by the value of verify.attribute")
    valid: bool = Field(description="whether the load generator kept to its schedule")
    why: str


class TallyView(Answer):
    request: str
    compatible: bool = Field(description="only clients of the old version still send it")
    expected: list[int] = Field(description="empty: as in the warm-up")
    warm_up: dict[str, int]
    rollout: dict[str, int] = Field(description="from the begin of the rollout to the end of the cool-down")


class SocketsView(Answer):
    opened: int
    closed: int = Field(description="by the server, in good order")
    cut: int = Field(description="ended without a close frame")
    failed: int = Field(description="attempts to open")


class LostView(Answer):
    at: float
    kind: str = Field(description='why there was no answer; "cut": a WebSocket without a close frame')
    request: str
    upstream: str | None = Field(description="that was being worked on then")
    phase: str
    answered_by: str | None = Field(description="verify.attribute, where the head of an answer had come")
    connection: int | None
    detail: str


class StageView(Answer):
    stage: Literal["warm_up", "rollout", "cycle", "cool_down", "rollback"]
    at: float


class SpanView(Answer):
    step: str
    upstream: str | None
    begin: float
    end: float | None
    back: bool = Field(description="it brought the old version back")


class VerificationView(Answer):
    id: str
    service: str
    version: str | None = Field(description="null: a drain and ready of each upstream")
    state: Literal["running", "passed", "failed", "interrupted"]
    reasons: list[str] = Field(description="why it did not pass")
    notes: list[str]
    address: str
    actor: str
    on_fail: Literal["report", "revert"]
    started_at: float
    ended_at: float | None
    rollout: str | None
    rollout_state: str | None
    rollback: str | None = Field(description="the rollout that took the version back, once it was rolled out")
    sent: int
    lost: int
    warm_up: FiguresView | None
    during: FiguresView | None = Field(description="from the begin of the rollout to the end of the cool-down")
    requests: list[TallyView]
    websockets: SocketsView | None
    losses: list[LostView] = Field(description="the first 1,000")
    stages: list[StageView]
    steps: list[SpanView]


class VerificationList(Answer):
    verifications: list[VerificationView]
