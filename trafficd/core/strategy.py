"""Strategies as lists of steps: what one upstream goes through, forward and back.

stop_first   drain -> before_swap -> swap -> after_swap -> gate -> admit
start_first  swap (beside the old) -> after_swap -> gate -> admit (the addresses change roles)
             -> drain the old -> before_swap -> retire the old
beside       swap (beside the old) -> after_swap -> gate -> check -> admit (it may be given a share); all of them, and
             then the stages of `stages`. What still runs, warm, needs no swap

With a `watch_time`, an admitted instance is watched before anything else is done.

A revert depends on how far the upstream came: what was not replaced only needs to be let in again.
"""

from __future__ import annotations

from trafficd.core.model import HOOKS, Direction, Order, Policy, StepKind, Task

_STOP_FIRST: tuple[StepKind, ...] = (
    StepKind.DRAIN,
    StepKind.BEFORE_SWAP,
    StepKind.SWAP,
    StepKind.AFTER_SWAP,
    StepKind.GATE,
    StepKind.ADMIT,
)
_START_FIRST: tuple[StepKind, ...] = (
    StepKind.SWAP,
    StepKind.AFTER_SWAP,
    StepKind.GATE,
    StepKind.ADMIT,
    StepKind.DRAIN,
    StepKind.BEFORE_SWAP,
    StepKind.RETIRE,
)
_BESIDE: tuple[StepKind, ...] = (
    StepKind.SWAP,
    StepKind.AFTER_SWAP,
    StepKind.GATE,
    StepKind.CHECK,
    StepKind.ADMIT,
)
_WARM: tuple[StepKind, ...] = (StepKind.GATE, StepKind.CHECK, StepKind.ADMIT)


def forward_steps(policy: Policy, *, warm: bool = False) -> tuple[StepKind, ...]:
    """The steps that bring a new version to one upstream; `warm`: it runs beside the old one already."""
    if policy.beside:
        return _wanted(_WARM if warm else _BESIDE, policy)
    steps = _STOP_FIRST if policy.order is Order.STOP_FIRST else _START_FIRST
    if policy.watch_time:
        after = steps.index(StepKind.ADMIT) + 1
        steps = (*steps[:after], StepKind.WATCH, *steps[after:])
    return _wanted(steps, policy)


def back_steps(policy: Policy) -> tuple[StepKind, ...]:
    """The steps that bring another version to one upstream which is to be gathered in: nobody watches that."""
    return _wanted(_STOP_FIRST if policy.order is Order.STOP_FIRST else _START_FIRST, policy)


def revert_steps(policy: Policy, task: Task) -> tuple[StepKind, ...]:
    """The steps that bring the old version back, given how far the forward task came.

    Empty when the upstream needs nothing: its old instance was never out of traffic.
    """
    if policy.beside:
        steps = (StepKind.DRAIN, StepKind.RETIRE) if task.admitted else (StepKind.RETIRE,)
        return _wanted(steps, policy) if task.swapped else ()
    in_place = policy.order is Order.STOP_FIRST
    return _wanted(_undo_in_place(task) if in_place else _undo_beside(task), policy)


def _undo_in_place(task: Task) -> tuple[StepKind, ...]:
    if task.swapped:
        return _STOP_FIRST if task.admitted else _STOP_FIRST[1:]
    return (StepKind.GATE, StepKind.ADMIT) if task.drain_begun else ()


def _undo_beside(task: Task) -> tuple[StepKind, ...]:
    if task.retired:
        return _START_FIRST
    if task.admitted:
        return (StepKind.GATE, StepKind.ADMIT, StepKind.DRAIN, StepKind.RETIRE)
    return (StepKind.RETIRE,) if task.swapped else ()


def _wanted(steps: tuple[StepKind, ...], policy: Policy) -> tuple[StepKind, ...]:
    def wanted(step: StepKind) -> bool:
        if step in HOOKS:
            return step in policy.hooks
        if step is StepKind.CHECK:
            return policy.checks
        return step is not StepKind.RETIRE or policy.retires

    return tuple(step for step in steps if wanted(step))


def replaces(task: Task) -> bool:
    """Whether the task runs the driver (a light revert only lets the old instance in again)."""
    return StepKind.SWAP in task.steps


def is_revert(task: Task) -> bool:
    return task.direction is Direction.REVERT
