"""The journal's events: facts and intents, each with all that folding it needs.

An intent (`StepStarted`, `RolloutStarted`, ...) is journalled before anything is done about it, its
outcome after. The names in `type` are on disk: they may be added to, never changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trafficd.core.model import Cut, Direction, Freeze, Maintenance, Phase, Policy, Setting, StepKind, Upstream


@dataclass(frozen=True)
class UpstreamAdded:
    """An upstream joins: from the configuration at first start, or at run time."""

    service: str
    upstream: str
    dial: str
    version: str | None = None
    spare_dial: str | None = None
    configured: bool = False
    group: str | None = None
    type: Literal["upstream_added"] = "upstream_added"


@dataclass(frozen=True)
class UpstreamRemoved:
    service: str
    upstream: str
    configured: bool = False
    type: Literal["upstream_removed"] = "upstream_removed"


@dataclass(frozen=True)
class GroupSet:
    """The configuration moves an upstream to another group, or out of all; nothing else of it changes."""

    service: str
    upstream: str
    group: str | None
    type: Literal["group_set"] = "group_set"


@dataclass(frozen=True)
class StableSet:
    """The stable version, known from the configured upstreams."""

    service: str
    version: str | None
    type: Literal["stable_set"] = "stable_set"


@dataclass(frozen=True)
class DrainRequested:
    service: str
    upstream: str
    force: bool = False
    actor: str = ""
    type: Literal["drain_requested"] = "drain_requested"


@dataclass(frozen=True)
class DrainEnded:
    """A drain by hand is over; `in_flight` is None where it could not be read."""

    service: str
    upstream: str
    drained: bool
    in_flight: int | None
    cut: Cut
    type: Literal["drain_ended"] = "drain_ended"


@dataclass(frozen=True)
class ReadyRequested:
    """A `ready` by hand; `swapped` says that something new runs there, so the whole gate applies."""

    service: str
    upstream: str
    dial: str
    version: str | None
    swapped: bool
    actor: str = ""
    type: Literal["ready_requested"] = "ready_requested"


@dataclass(frozen=True)
class ReadyEnded:
    service: str
    upstream: str
    ok: bool
    reason: str = ""
    type: Literal["ready_ended"] = "ready_ended"


@dataclass(frozen=True)
class UpstreamEjected:
    """It answers worse than the others and is sent nothing until then; the `row`-th time in a row."""

    service: str
    upstream: str
    until: float
    reason: str
    row: int = 1
    type: Literal["upstream_ejected"] = "upstream_ejected"


@dataclass(frozen=True)
class UpstreamReturned:
    """An ejected upstream may have traffic again: its time is over, or somebody (`actor`) says so."""

    service: str
    upstream: str
    actor: str = ""
    type: Literal["upstream_returned"] = "upstream_returned"


@dataclass(frozen=True)
class CanarySet:
    service: str
    percent: float
    actor: str = ""
    reason: str = ""
    type: Literal["canary_set"] = "canary_set"


@dataclass(frozen=True)
class ShareSet:
    """A version beside the stable one gets this share of its own, in percent; None: it has none any more."""

    service: str
    version: str
    percent: float | None
    actor: str = ""
    type: Literal["share_set"] = "share_set"


@dataclass(frozen=True)
class PinSet:
    """Requests with this pin go to the version; None: where all others go."""

    service: str
    pin: str
    version: str | None
    actor: str = ""
    type: Literal["pin_set"] = "pin_set"


@dataclass(frozen=True)
class RetireStarted:
    """An instance beside the serving one gets no traffic any more, and is drained and stopped."""

    service: str
    upstream: str
    dial: str
    reason: str = ""
    type: Literal["retire_started"] = "retire_started"


@dataclass(frozen=True)
class RetireEnded:
    """It is gone, or it could not be stopped and is a person's to look after."""

    service: str
    upstream: str
    dial: str
    ok: bool
    reason: str = ""
    cut: Cut | None = None
    type: Literal["retire_ended"] = "retire_ended"


@dataclass(frozen=True)
class Held:
    service: str
    actor: str = ""
    type: Literal["held"] = "held"


@dataclass(frozen=True)
class Released:
    service: str
    actor: str = ""
    type: Literal["released"] = "released"


@dataclass(frozen=True)
class MaintenanceBegun:
    """All requests are answered by Caddy itself, at this address of its own."""

    service: str
    dial: str
    reason: str = ""
    actor: str = ""
    type: Literal["maintenance_begun"] = "maintenance_begun"


@dataclass(frozen=True)
class MaintenanceEnded:
    service: str
    actor: str = ""
    type: Literal["maintenance_ended"] = "maintenance_ended"


@dataclass(frozen=True)
class Left:
    """Caddy goes on with plain upstreams, and trafficd steers nothing until it joins again."""

    service: str
    actor: str = ""
    type: Literal["left"] = "left"


@dataclass(frozen=True)
class Joined:
    service: str
    actor: str = ""
    type: Literal["joined"] = "joined"


@dataclass(frozen=True)
class Frozen:
    """No rollouts begin until then (None: until thawed); a rollback may."""

    service: str
    reason: str
    until: float | None = None
    actor: str = ""
    type: Literal["frozen"] = "frozen"


@dataclass(frozen=True)
class Thawed:
    service: str
    actor: str = ""
    type: Literal["thawed"] = "thawed"


@dataclass(frozen=True)
class Snapshotted:
    """All that is known of a service but its rollouts, so that older events need not be folded any more."""

    service: str
    upstreams: tuple[Upstream, ...]
    stable: str | None
    mixing: str | None
    canary_percent: float | None
    held: bool
    freeze: Freeze | None
    history: tuple[str, ...]
    maintenance: Maintenance | None = None
    left: bool = False
    carried: tuple[str, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)
    canary_at: float | None = None
    type: Literal["snapshotted"] = "snapshotted"


@dataclass(frozen=True)
class RolloutQueued:
    """A rollout waits for the live one to end. It takes the place of one that is pending already.

    `supersedes`: the live one is to be stopped for it, and not just waited for. Policy, upstreams and previous
    versions are not known yet: they are those of the moment it begins.
    """

    service: str
    rollout: str
    version: str
    strategy: str
    overrides: dict[str, Setting] = field(default_factory=dict)
    supersedes: str | None = None
    actor: str = ""
    message: str = ""
    key: str | None = None
    type: Literal["rollout_queued"] = "rollout_queued"


@dataclass(frozen=True)
class Superseded:
    """The live rollout begins nothing more, since another one takes over from it."""

    service: str
    rollout: str
    by: str
    type: Literal["superseded"] = "superseded"


@dataclass(frozen=True)
class RolloutStarted:
    service: str
    rollout: str
    version: str
    strategy: str
    policy: Policy
    upstreams: tuple[str, ...]
    previous: dict[str, str | None] = field(default_factory=dict)
    actor: str = ""
    message: str = ""
    key: str | None = None
    supersedes: str | None = None
    back_to: str | None = None
    type: Literal["rollout_started"] = "rollout_started"


@dataclass(frozen=True)
class TaskStarted:
    """An upstream's turn; the steps are named here so that newer code replays an old journal alike."""

    service: str
    rollout: str
    upstream: str
    direction: Direction
    steps: tuple[StepKind, ...]
    old_dial: str
    old_version: str | None
    new_dial: str | None
    new_version: str | None
    type: Literal["task_started"] = "task_started"


@dataclass(frozen=True)
class StepStarted:
    service: str
    rollout: str
    upstream: str | None
    direction: Direction
    step: StepKind
    type: Literal["step_started"] = "step_started"


@dataclass(frozen=True)
class StepEnded:
    """`dial` is the address the driver returned, where it chose one itself. `begun` is False where it is certain that
    nothing was done: a program that could not be started."""

    service: str
    rollout: str
    upstream: str | None
    direction: Direction
    step: StepKind
    ok: bool
    reason: str = ""
    dial: str | None = None
    cut: Cut | None = None
    output: str = ""
    begun: bool = True
    type: Literal["step_ended"] = "step_ended"


@dataclass(frozen=True)
class StageStarted:
    """The new version gets this share beside the old one."""

    service: str
    rollout: str
    stage: int
    percent: float
    type: Literal["stage_started"] = "stage_started"


@dataclass(frozen=True)
class GatePassed:
    """Somebody lets the rollout go on to the next stage."""

    service: str
    rollout: str
    stage: int
    actor: str = ""
    type: Literal["gate_passed"] = "gate_passed"


@dataclass(frozen=True)
class Promoted:
    """Somebody gives the new version all traffic."""

    service: str
    rollout: str
    actor: str = ""
    type: Literal["promoted"] = "promoted"


@dataclass(frozen=True)
class Paused:
    service: str
    rollout: str
    actor: str = ""
    reason: str = ""
    type: Literal["paused"] = "paused"


@dataclass(frozen=True)
class Resumed:
    service: str
    rollout: str
    actor: str = ""
    type: Literal["resumed"] = "resumed"


@dataclass(frozen=True)
class AbortRequested:
    service: str
    rollout: str
    revert: bool = True
    actor: str = ""
    reason: str = ""
    type: Literal["abort_requested"] = "abort_requested"


@dataclass(frozen=True)
class FailureNoted:
    """The rollout cannot go on for a reason that is no step's: capacity that never came, say."""

    service: str
    rollout: str
    reason: str
    type: Literal["failure_noted"] = "failure_noted"


@dataclass(frozen=True)
class RevertStarted:
    service: str
    rollout: str
    reason: str
    type: Literal["revert_started"] = "revert_started"


@dataclass(frozen=True)
class RolloutEnded:
    service: str
    rollout: str
    state: Phase
    reason: str = ""
    type: Literal["rollout_ended"] = "rollout_ended"


ServiceEvent = (
    UpstreamAdded
    | UpstreamRemoved
    | GroupSet
    | StableSet
    | DrainRequested
    | DrainEnded
    | ReadyRequested
    | ReadyEnded
    | UpstreamEjected
    | UpstreamReturned
    | CanarySet
    | ShareSet
    | PinSet
    | RetireStarted
    | RetireEnded
    | Held
    | Released
    | MaintenanceBegun
    | MaintenanceEnded
    | Left
    | Joined
    | Frozen
    | Thawed
    | Snapshotted
)
RolloutEvent = (
    RolloutQueued
    | Superseded
    | RolloutStarted
    | TaskStarted
    | StepStarted
    | StepEnded
    | StageStarted
    | GatePassed
    | Promoted
    | Paused
    | Resumed
    | AbortRequested
    | FailureNoted
    | RevertStarted
    | RolloutEnded
)
Event = ServiceEvent | RolloutEvent
