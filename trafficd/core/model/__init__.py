"""The words of a deploy as values: upstreams, policies, steps, tasks, rollouts, and a service's state.

All values are frozen; `machine` makes the next one from an event. Times are seconds since the epoch,
durations are seconds. An address is "host:port" (`proxy.model.parse_dial`).
"""

from trafficd.core.model.kinds import HOOKS, Direction, Health, Inconclusive, Order, Phase, StepKey, StepKind
from trafficd.core.model.policy import Policy, Setting, Stage
from trafficd.core.model.rollout import Abort, Cut, Rollout, StepRecord, Task
from trafficd.core.model.service import Freeze, Maintenance, Service
from trafficd.core.model.upstream import Beside, Ejection, Gating, Upstream
from trafficd.core.model.world import FULL, Finding, Wait, World

__all__ = [
    "FULL",
    "HOOKS",
    "Abort",
    "Beside",
    "Cut",
    "Direction",
    "Ejection",
    "Finding",
    "Freeze",
    "Gating",
    "Health",
    "Inconclusive",
    "Maintenance",
    "Order",
    "Phase",
    "Policy",
    "Rollout",
    "Service",
    "Setting",
    "Stage",
    "StepKey",
    "StepKind",
    "StepRecord",
    "Task",
    "Upstream",
    "Wait",
    "World",
]
