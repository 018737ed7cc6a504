"""What the steps of a rollout change: of its tasks, and of where their upstreams serve while they run."""

from __future__ import annotations

from dataclasses import replace

from trafficd.core import beside
from trafficd.core import events as ev
from trafficd.core.model import (
    Direction,
    Phase,
    Rollout,
    Service,
    StepKey,
    StepKind,
    StepRecord,
    Task,
    Upstream,
)

_ONCE = (StepKind.BEFORE_ROLLOUT, StepKind.AFTER_ROLLOUT, StepKind.ON_FAILURE)


def ungated(service: Service, name: str) -> Service:
    """A `ready` by hand ends where a rollout's turn begins: it must not let in what is being replaced."""
    upstream = service.upstreams.get(name)
    if upstream is None or upstream.gating is None:
        return service
    return service.with_upstream(replace(upstream, gating=None))


def task_started(service: Service, rollout: Rollout, event: ev.TaskStarted) -> Rollout:
    """The rollout with the task begun."""
    upstream = service.upstreams.get(event.upstream)
    task = Task(
        upstream=event.upstream,
        direction=event.direction,
        steps=event.steps,
        old_dial=event.old_dial,
        old_version=event.old_version,
        new_dial=event.new_dial,
        new_version=event.new_version,
        old_proven=upstream is None or not upstream.unproven,
    )
    touched = rollout.touched
    if event.direction is Direction.FORWARD and event.upstream not in touched:
        touched = (*touched, event.upstream)
    return _put_task(replace(rollout, touched=touched), task)


def _put_task(rollout: Rollout, task: Task) -> Rollout:
    if task.direction is Direction.FORWARD:
        return replace(rollout, forward={**rollout.forward, task.upstream: task})
    return replace(rollout, revert={**rollout.revert, task.upstream: task})


def _task(rollout: Rollout, key: StepKey) -> Task | None:
    if key.upstream is None or key.kind in _ONCE or key.kind is StepKind.PREPARE:
        return None
    tasks = rollout.forward if key.direction is Direction.FORWARD else rollout.revert
    return tasks.get(key.upstream)


def step_started(service: Service, rollout: Rollout, at: float, event: ev.StepStarted) -> Service:
    """The state in which a step is under way."""
    key = StepKey(event.upstream, event.direction, event.step)
    rollout = replace(rollout, steps=(*rollout.steps, StepRecord(key=key, started_at=at)))
    task = _task(rollout, key)
    if task is None:
        return replace(service, rollout=rollout)
    task = _marked(task, event.step)
    service = replace(service, rollout=_put_task(rollout, task))
    upstream = service.upstreams.get(task.upstream)
    if upstream is None:
        return service
    if event.step is StepKind.DRAIN and rollout.policy.beside:
        return service.with_upstream(beside.without(upstream, task.old_dial))
    if event.step is StepKind.DRAIN and upstream.serving == task.old_dial:
        service = replace(service, rollout=_put_task(rollout, replace(task, took_out=True)))
        return service.with_upstream(replace(upstream, serving=None))
    if event.step is StepKind.SWAP and task.in_place:
        return service.with_upstream(replace(upstream, unproven=True))
    if event.step is StepKind.ADMIT and rollout.policy.beside:
        return service.with_upstream(beside.admitted(upstream, rollout, task))
    if event.step is StepKind.ADMIT and task.new_dial is not None:
        return service.with_upstream(_moved(upstream, task, task.new_dial))
    return service


def _marked(task: Task, step: StepKind) -> Task:
    """The task with its step begun: how far it came decides what a revert has to undo."""
    return replace(
        task,
        running=True,
        drain_begun=task.drain_begun or step is StepKind.DRAIN,
        swapped=task.swapped or step is StepKind.SWAP,
        admitted=task.admitted or step is StepKind.ADMIT,
        retired=task.retired or step is StepKind.RETIRE,
    )


def _moved(upstream: Upstream, task: Task, dial: str) -> Upstream:
    """The upstream serves at the task's new address; with start_first the two addresses change roles."""
    spare = upstream.spare_dial
    if dial == spare:
        spare = upstream.dial
    return replace(
        upstream,
        dial=dial,
        spare_dial=spare,
        version=task.new_version,
        serving=dial,
        unproven=False,
        ejection=None,
    )


def step_ended(service: Service, rollout: Rollout, at: float, event: ev.StepEnded) -> Service:
    """The state after a step, done or failed."""
    key = StepKey(event.upstream, event.direction, event.step)
    steps = tuple(
        replace(step, ended_at=at, ok=event.ok, reason=event.reason, cut=event.cut, output=event.output)
        if step.key == key and step.ended_at is None
        else step
        for step in rollout.steps
    )
    rollout = replace(rollout, steps=steps)
    if not event.ok and event.step is StepKind.AFTER_ROLLOUT:
        rollout = replace(rollout, warnings=(*rollout.warnings, f"after_rollout: {event.reason}"))
    if event.ok and event.step is StepKind.ADMIT and (warning := _held_too_long(rollout, key, at)):
        rollout = replace(rollout, warnings=(*rollout.warnings, warning))
    task = _task(rollout, key)
    if task is None:
        if not event.ok and event.step in (StepKind.BEFORE_ROLLOUT, StepKind.PREPARE):
            where = f" of {event.upstream}" if event.upstream else ""
            failure = f"{event.step}{where}: {event.reason}"
            rollout = failed(rollout, failure)
        return replace(service, rollout=rollout)
    return _task_step_ended(service, rollout, task, event)


def _held_too_long(rollout: Rollout, admit: StepKey, at: float) -> str:
    """That requests had to wait at the proxy for longer than they may, in words."""
    drains = (s for s in reversed(rollout.steps) if (s.key.upstream, s.key.kind) == (admit.upstream, StepKind.DRAIN))
    since = next((step.started_at for step in drains), at)
    most = rollout.policy.hold_for
    if most is None or at - since <= most:
        return ""
    return (
        f"{admit.upstream} was out of traffic for {at - since:.1f} s, and requests wait for {most:g} s at most "
        "(try_duration): those that came first were answered 502 or 503"
    )


def failed(rollout: Rollout, reason: str) -> Rollout:
    """The first failure is the one that counts; one while reverting is another matter."""
    if rollout.superseded_by is not None:
        return rollout  # a step that was cancelled for another rollout is no failure of this one
    if rollout.phase is Phase.REVERTING and rollout.policy.beside:
        return rollout  # the old version serves; the other new instances are stopped all the same
    if rollout.phase is Phase.REVERTING:
        return replace(rollout, revert_failure=rollout.revert_failure or reason)
    return replace(rollout, failure=rollout.failure or reason)


def _task_step_ended(service: Service, rollout: Rollout, task: Task, event: ev.StepEnded) -> Service:
    if not event.ok:
        return _task_step_failed(service, rollout, task, event)
    task = replace(task, running=False, cursor=task.cursor + 1, new_dial=event.dial or task.new_dial)
    service = replace(service, rollout=_put_task(rollout, task))
    upstream = service.upstreams.get(task.upstream)
    if upstream is not None and event.step is StepKind.SWAP and task.in_place:
        # Stop first: what runs at this one address is the new version now, in traffic or not.
        service = service.with_upstream(replace(upstream, version=task.new_version))
    return service


def _task_step_failed(service: Service, rollout: Rollout, task: Task, event: ev.StepEnded) -> Service:
    task = replace(task, running=False, failed=event.reason or "failed")
    if not event.begun:
        task = _unmarked(task, event.step)
    failure = f"{task.upstream}: {event.step}: {event.reason}"
    service = replace(service, rollout=failed(_put_task(rollout, task), failure))
    upstream = service.upstreams.get(task.upstream)
    if event.step is StepKind.DRAIN and upstream is not None and _untouched(upstream, task):
        service = service.with_upstream(replace(upstream, serving=task.old_dial))
    if event.step is StepKind.SWAP and upstream is not None and task.in_place:
        half = replace(upstream, version=None)  # whatever runs there now is of no version that we could name
        service = service.with_upstream(half if event.begun else replace(upstream, unproven=not task.old_proven))
    return service


def _untouched(upstream: Upstream, task: Task) -> bool:
    """Whether what was only to be drained runs as before, and may have its traffic back."""
    return task.took_out and upstream.serving is None and upstream.dial == task.old_dial


def _unmarked(task: Task, step: StepKind) -> Task:
    """The task with a step that it turned out not to have begun: there is nothing of it to undo."""
    return replace(
        task,
        swapped=task.swapped and step is not StepKind.SWAP,
        retired=task.retired and step is not StepKind.RETIRE,
    )
