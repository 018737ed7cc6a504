"""Rollouts, their tasks and steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trafficd.core.model.kinds import Direction, Phase, StepKey, StepKind
from trafficd.core.model.policy import Policy, Setting


@dataclass(frozen=True)
class Cut:
    """What was still open when a drain gave up waiting."""

    requests: int = 0
    streams: int = 0


@dataclass(frozen=True)
class StepRecord:
    """One step, running (`ended_at` None) or ended."""

    key: StepKey
    started_at: float
    ended_at: float | None = None
    ok: bool = False
    reason: str = ""
    cut: Cut | None = None
    output: str = ""


@dataclass(frozen=True)
class Task:
    """The steps of one upstream, in one direction.

    `old` is the address and version at the start, `new` where the task wants to go; `new_dial` is None
    until the driver has named it. `cursor` points at the next step, or at the one that runs or failed.
    """

    upstream: str
    direction: Direction
    steps: tuple[StepKind, ...]
    old_dial: str
    old_version: str | None
    new_dial: str | None
    new_version: str | None
    cursor: int = 0
    running: bool = False
    failed: str | None = None
    swapped: bool = False  # the swap has at least begun
    admitted: bool = False  # the new address has at least begun to receive traffic
    retired: bool = False  # the old instance has at least begun to be stopped
    drain_begun: bool = False
    took_out: bool = False  # the drain took out of traffic what was serving until then
    old_proven: bool = True  # what was there before had passed its gate

    @property
    def in_place(self) -> bool:
        """Whether the new instance takes the address of the old one."""
        return self.new_dial == self.old_dial

    @property
    def done(self) -> bool:
        return self.cursor >= len(self.steps) and self.failed is None

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it: done, or failed."""
        return self.done or self.failed is not None

    @property
    def step(self) -> StepKey:
        return StepKey(self.upstream, self.direction, self.steps[self.cursor])


@dataclass(frozen=True)
class Abort:
    """Somebody asked to abort; `revert` says whether the old version is to be brought back."""

    revert: bool
    actor: str


@dataclass(frozen=True)
class Rollout:
    """One journalled attempt to bring a service to a version."""

    id: str
    service: str
    version: str
    strategy: str
    policy: Policy
    upstreams: tuple[str, ...]
    previous: Mapping[str, str | None]
    started_at: float
    actor: str = ""
    message: str = ""
    key: str | None = None
    queued_at: float | None = None  # asked for then, behind another one
    overrides: Mapping[str, Setting] = field(default_factory=dict)  # as asked, for the policy once it begins
    supersedes: str | None = None  # the rollout it was asked to take over from
    superseded_by: str | None = None
    back_to: str | None = None  # where a revert brings every upstream, when not to what it ran before
    out: tuple[str, ...] = ()  # upstreams that were out of traffic already when it began
    phase: Phase = Phase.RUNNING
    paused: bool = False
    paused_at: float = 0.0
    abort: Abort | None = None
    failure: str | None = None
    revert_failure: str | None = None
    forward: Mapping[str, Task] = field(default_factory=dict)
    revert: Mapping[str, Task] = field(default_factory=dict)
    once: Mapping[StepKey, StepRecord] = field(default_factory=dict)  # hooks and prepares
    steps: tuple[StepRecord, ...] = ()
    touched: tuple[str, ...] = ()  # in the order their tasks began
    changed_at: float = 0.0
    ended_at: float | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    stage: int | None = None  # the number of the stage it is in
    stage_at: float = 0.0  # when that began
    stage_idle: float = 0.0  # s of it that were a pause
    passed: int = -1  # the newest stage that somebody promoted
    promoted: bool = False  # somebody wants it to have all traffic now

    @property
    def live(self) -> bool:
        return not self.phase.ended

    @property
    def failing(self) -> bool:
        """Whether its version is to have no traffic any more."""
        return self.failure is not None or self.phase in (Phase.ABORTING, Phase.REVERTING)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return (*self.forward.values(), *self.revert.values())

    def running_steps(self) -> tuple[StepRecord, ...]:
        return tuple(step for step in self.steps if step.ended_at is None)

    @property
    def gathers(self) -> bool:
        """Whether a revert concerns every upstream, not just those that this rollout touched."""
        return self.supersedes is not None or self.back_to is not None
