"""The kinds of things that happen in a deploy, as enumerations."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


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
