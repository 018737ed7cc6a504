"""How a rollout goes about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trafficd.core.model.kinds import Inconclusive, Order, StepKind

Setting = bool | int | float | str  # one override as asked: true, 2, 10.0, "25%", "start_first"


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
    hosts: dict[str, str] = field(default_factory=dict)  # where it does it for an upstream, where not for all alike
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
