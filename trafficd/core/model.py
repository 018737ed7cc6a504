"""The words of a deploy as values: upstreams, policies, steps, tasks, rollouts, and a service's state.

All values are frozen; `machine` makes the next one from an event. Times are seconds since the epoch,
durations are seconds. An address is "host:port" (`proxy.model.parse_dial`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from trafficd.core.judge import Verdict

FULL = 20  # the weight of an instance that has had its slow start, in parts of which a cold one has 1


class Order(StrEnum):
    """Which goes first when an instance is replaced."""

    STOP_FIRST = "stop_first"
    START_FIRST = "start_first"


class Phase(StrEnum):
    """Where a rollout stands. The last four are ends."""

    PENDING = "pending"
    RUNNING = "running"
    PROMOTING = "promoting"
    ABORTING = "aborting"
    REVERTING = "reverting"
    SUCCEEDED = "succeeded"
    REVERTED = "reverted"
    FAILED = "failed"
    STUCK = "stuck"

    @property
    def ended(self) -> bool:
        return self in _ENDS


_ENDS = frozenset({Phase.SUCCEEDED, Phase.REVERTED, Phase.FAILED, Phase.STUCK})


class StepKind(StrEnum):
    """What a step does. A step is the smallest observable, resumable advance of a rollout."""

    BEFORE_ROLLOUT = "before_rollout"  # hook, once
    PREPARE = "prepare"  # pull, unpack: before any upstream is touched
    DRAIN = "drain"  # out of traffic, then wait for what is open
    BEFORE_SWAP = "before_swap"  # hook, on the drained old instance
    SWAP = "swap"  # the driver brings the new instance up at the new address
    AFTER_SWAP = "after_swap"  # hook, on the new instance
    GATE = "gate"  # healthy without a break
    CHECK = "check"  # the preview checks, on the new instance
    ADMIT = "admit"  # into traffic; of an instance beside the old one: what may be given a share
    WATCH = "watch"  # in traffic, and looked at, before the next one is touched
    RETIRE = "retire"  # start_first: the old instance, drained, is stopped
    AFTER_ROLLOUT = "after_rollout"  # hook, once
    ON_FAILURE = "on_failure"  # hook, once, when the version did not make it


HOOKS = frozenset(
    {
        StepKind.BEFORE_ROLLOUT,
        StepKind.BEFORE_SWAP,
        StepKind.AFTER_SWAP,
        StepKind.AFTER_ROLLOUT,
        StepKind.ON_FAILURE,
    }
)


class Direction(StrEnum):
    """Whether a task brings the new version in or the old one back."""

    FORWARD = "forward"
    REVERT = "revert"


class Health(StrEnum):
    """What the probes say. UNKNOWN: not probed yet, and never taken for UP."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class StepKey(NamedTuple):
    """Names one step of a rollout; `upstream` is None for the steps done once."""

    upstream: str | None
    direction: Direction
    kind: StepKind


class Inconclusive(StrEnum):
    """What becomes of a stage that has no verdict when its time is up."""

    HOLD = "hold"  # it waits for somebody to promote or abort
    ABORT = "abort"
    PROMOTE = "promote"


@dataclass(frozen=True)
class Stage:
    """A share of the traffic that a new version gets beside the old one.

    It lasts at least `min_time` (s). A `judged` one then needs a PASS, by `max_time` (s; None: as long as it takes); a
    `gate` needs somebody to promote it, and nothing else.
    """

    percent: float
    min_time: float = 0.0
    max_time: float | None = None
    judged: bool = False
    gate: bool = False


@dataclass(frozen=True)
class Policy:
    """How a rollout goes about it; journalled with the rollout, so that a restart with another
    configuration does not change the meaning of a rollout that is under way.

    `max_parallel` and `min_ready` are numbers of upstreams, already resolved from percentages.
    """

    max_parallel: int = 1
    min_ready: int = 1
    order: Order = Order.STOP_FIRST
    min_healthy_time: float = 10.0
    healthy_deadline: float = 300.0
    drain_timeout: float = 30.0
    drain_quiet: float = 0.25
    auto_revert: bool = True
    swap_timeout: float = 600.0
    prepare_timeout: float = 600.0
    hook_timeout: float = 300.0
    prepares: bool = False  # the driver has something to do before the first upstream is touched
    retires: bool = False  # the driver stops the old instance in start_first
    external: bool = False  # the caller replaces the instance and then says ready
    hooks: tuple[StepKind, ...] = ()
    watch_time: float = 0.0  # s that each new instance is looked at before the next is touched
    hold_for: float | None = None  # s that requests may wait at the proxy where nobody is left; None: that is not meant
    beside: bool = False  # all new instances come up beside the old ones, and then get their share
    stages: tuple[Stage, ...] = ()
    on_inconclusive: Inconclusive = Inconclusive.ABORT
    keeps: bool = False  # the shares of the last stage stay: the version does not become the stable one
    keep_old: float = 0.0  # s that the old instances stay warm beside the new ones
    checks: bool = False  # there are preview checks


@dataclass(frozen=True)
class Beside:
    """Another instance of an upstream, beside the one that is `serving`: of a version that has a share of its own, or
    of the one before, kept warm until `keep_until` (s since the epoch; None: as long as it has a share).

    `rollout` is the one that left it there.
    """

    dial: str
    version: str
    rollout: str
    keep_until: float | None = None
    retiring_at: float | None = None  # since when it gets no traffic any more, and is drained and stopped

    @property
    def retiring(self) -> bool:
        return self.retiring_at is not None

    def key(self, upstream: str) -> str:
        """What its health is known by: no upstream has such an id."""
        return f"{upstream}/{self.dial}"


@dataclass(frozen=True)
class Upstream:
    """One place an instance runs at, as the journal knows it.

    `serving` is the address that may receive traffic, None while the upstream is out of it by a step of
    a rollout; `drained` is the operator's word and outlives rollouts. `gating` is set while a `ready` by
    hand is under way.
    """

    id: str
    dial: str
    version: str | None = None
    spare_dial: str | None = None
    serving: str | None = None
    drained: bool = False
    gating: Gating | None = None
    removed: bool = False
    unproven: bool = False  # it began to be replaced in place, and has not passed a gate since
    beside: tuple[Beside, ...] = ()
    group: str | None = None  # a zone or host: of two groups nothing is out of traffic at once (`groups`)

    def other(self, version: str) -> Beside | None:
        """The instance of this version beside the serving one, if it is there to stay."""
        return next((one for one in self.beside if one.version == version and not one.retiring), None)

    ejection: Ejection | None = None  # the last one, over or not

    @property
    def ejected(self) -> bool:
        """Whether it is out of traffic because it answered worse than the others."""
        return self.ejection is not None and not self.ejection.over


@dataclass(frozen=True)
class Gating:
    """A `ready` by hand that has not passed its gate yet. `swapped`: something new runs there."""

    since: float
    swapped: bool
    version: str | None
    dial: str


@dataclass(frozen=True)
class Ejection:
    """An upstream was sent nothing from `since` until `until`; the `row`-th time in a row. `over`: it has returned."""

    since: float
    until: float
    reason: str
    row: int = 1
    over: bool = False


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


Setting = bool | int | float | str  # one override as asked: true, 2, 10.0, "25%", "start_first"


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


@dataclass(frozen=True)
class Freeze:
    """No rollouts begin until `until` (None: until somebody thaws the service)."""

    reason: str
    until: float | None
    actor: str

    def holds(self, now: float) -> bool:
        return self.until is None or now < self.until


@dataclass(frozen=True)
class Maintenance:
    """Every request gets one static answer, which Caddy itself gives at `dial`."""

    dial: str
    reason: str
    since: float


@dataclass(frozen=True)
class Service:
    """Everything the journal knows about one service."""

    name: str
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    stable: str | None = None
    mixing: str | None = None  # a second version that may receive traffic beside the stable one
    carried: tuple[str, ...] = ()  # versions of rollouts that did not get to their end, and still serve
    canary_percent: float | None = None  # of the versions that have no share of their own
    shares: Mapping[str, float] = field(default_factory=dict)  # in percent, of versions beside the stable one
    pins: Mapping[str, str] = field(default_factory=dict)  # the version that a pin leads to
    held: bool = False
    maintenance: Maintenance | None = None
    left: bool = False  # Caddy goes on without us, with plain upstreams
    freeze: Freeze | None = None
    rollout: Rollout | None = None  # the newest one that has begun, live or ended
    queued: Rollout | None = None  # the newest one that was queued and has not begun, pending or ended
    displaced: tuple[Rollout, ...] = ()  # pending ones that a newer wish replaced, until their end is journalled
    history: tuple[str, ...] = ()  # stable versions, oldest first

    @property
    def live(self) -> Rollout | None:
        return self.rollout if self.rollout is not None and self.rollout.live else None

    @property
    def pending(self) -> Rollout | None:
        return self.queued if self.queued is not None and self.queued.live else None

    def named(self, rollout: str) -> Rollout | None:
        """The rollout of this id, if it is one of those that matter now."""
        known = (self.rollout, self.queued, *self.displaced)
        return next((one for one in known if one is not None and one.id == rollout), None)

    def regular(self, upstream: Upstream) -> bool:
        """Whether the upstream's version takes part in ordinary traffic.

        Versions that nobody named are taken for the stable one.
        """
        known = (None, self.stable, self.mixing, *self.carried)
        return self.stable is None or upstream.version in known

    def parts(self) -> dict[str, float]:
        """The shares of versions beside the stable one as they hold now, in percent: none where a rollout fails."""
        live = self.live
        gone = live.version if live is not None and live.policy.beside and live.failing else None
        return {version: percent for version, percent in self.shares.items() if version != gone}

    def besides(self) -> Iterator[tuple[Upstream, Beside]]:
        """All instances beside serving ones, with their upstreams."""
        for upstream in self.upstreams.values():
            for one in upstream.beside:
                yield upstream, one


class Finding(NamedTuple):
    """What the judge says of a rollout in this stage."""

    rollout: str
    stage: int
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class World:
    """What was observed: health per upstream id (and `Beside.key`), the shares the proxy has now (slots per address),
    how far the slow start of an address is (1 to `FULL`; not named: it is over), and what the judge says."""

    health: Mapping[str, Health] = field(default_factory=dict)
    down_since: Mapping[str, float] = field(default_factory=dict)  # s since the epoch, of what is down
    shares: Mapping[str, int] = field(default_factory=dict)
    warmth: Mapping[str, int] = field(default_factory=dict)
    slots: int = 100
    finding: Finding | None = None
    judged: bool = False  # whether anybody could ever say something

    def up(self, key: str) -> bool:
        return self.health.get(key, Health.UNKNOWN) is Health.UP


@dataclass(frozen=True)
class Wait:
    """What is waited for, since when, and until when at the latest (None: as long as it takes)."""

    upstream: str | None
    what: str
    since: float
    until: float | None = None
    expected: float | None = None
