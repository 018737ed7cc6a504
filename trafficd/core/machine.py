"""The fold: a service's state after one more event.

The same function replays the journal at start and advances the state in live operation, so a resumed
daemon stands exactly where the killed one stood. Folding never fails on a journal that this code wrote;
an event about something unknown (an upstream removed since) changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from trafficd.core import beside, queue
from trafficd.core import events as ev
from trafficd.core.model import (
    Abort,
    Beside,
    Direction,
    Ejection,
    Freeze,
    Gating,
    Maintenance,
    Phase,
    Rollout,
    Service,
    StepKey,
    StepKind,
    StepRecord,
    Task,
    Upstream,
)

_T = TypeVar("_T")
_ONCE = (StepKind.BEFORE_ROLLOUT, StepKind.AFTER_ROLLOUT, StepKind.ON_FAILURE)
_OfOne = (  # what changes an upstream that is there
    ev.GroupSet
    | ev.DrainRequested
    | ev.DrainEnded
    | ev.ReadyRequested
    | ev.ReadyEnded
    | ev.UpstreamEjected
    | ev.UpstreamReturned
)


def fold(service: Service, history: Iterable[tuple[float, ev.Event]]) -> Service:
    """The state after all of `history`, pairs of (time, event), oldest first."""
    for at, event in history:
        service = advance(service, at, event)
    return service


def advance(service: Service, at: float, event: ev.Event) -> Service:
    """The state after one event that happened at `at`."""
    match event:
        case (
            ev.UpstreamAdded()
            | ev.UpstreamRemoved()
            | ev.GroupSet()
            | ev.DrainRequested()
            | ev.DrainEnded()
            | ev.ReadyRequested()
            | ev.ReadyEnded()
            | ev.UpstreamEjected()
            | ev.UpstreamReturned()
        ):
            return _upstream_event(service, at, event)
        case (
            ev.StableSet()
            | ev.CanarySet()
            | ev.ShareSet()
            | ev.PinSet()
            | ev.Held()
            | ev.Released()
            | ev.MaintenanceBegun()
            | ev.MaintenanceEnded()
            | ev.Left()
            | ev.Joined()
            | ev.Frozen()
            | ev.Thawed()
            | ev.Snapshotted()
        ):
            return _service_event(service, at, event)
        case ev.RetireStarted() | ev.RetireEnded():
            return beside.retire_event(service, at, event)
        case ev.RolloutQueued():
            return queue.queued(service, at, event)
        case ev.RolloutStarted():
            return _rollout_started(service, at, event)
        case _:
            waiting = queue.waiting_event(service, at, event)
            if waiting is not None:
                return waiting
            rollout = service.rollout
            # An end is an end: an abort that was journalled a moment too late must not bring the rollout back to
            # life at the next start.
            if rollout is None or rollout.id != event.rollout or not rollout.live:
                return service
            return _rollout_event(service, replace(rollout, changed_at=at), at, event)


def _service_event(service: Service, at: float, event: ev.ServiceEvent) -> Service:
    match event:
        case ev.StableSet(version=version):
            return replace(service, stable=version)
        case ev.CanarySet() | ev.ShareSet() | ev.PinSet():
            return _share_event(service, event)
        case ev.Held() | ev.Released():
            return replace(service, held=isinstance(event, ev.Held))
        case ev.MaintenanceBegun(dial=dial, reason=reason):
            return replace(service, maintenance=Maintenance(dial, reason, at))
        case ev.MaintenanceEnded():
            return replace(service, maintenance=None)
        case ev.Left() | ev.Joined():
            return replace(service, left=isinstance(event, ev.Left))
        case ev.Frozen(reason=reason, until=until, actor=actor):
            return replace(service, freeze=Freeze(reason, until, actor))
        case ev.Snapshotted():
            return _restored(service, event)
        case ev.Thawed():
            return replace(service, freeze=None)
        case _:
            return service


def _share_event(service: Service, event: ev.CanarySet | ev.ShareSet | ev.PinSet) -> Service:
    match event:
        case ev.CanarySet(percent=percent):
            # The share of the rollout that moves one, where there is one; of all other versions else.
            live = service.live
            if live is None or not live.policy.beside:
                return replace(service, canary_percent=percent)
            return replace(service, shares={**service.shares, live.version: percent})
        case ev.ShareSet(version=version, percent=share):
            return replace(service, shares=_with(service.shares, version, share))
        case ev.PinSet(pin=pin, version=pinned):
            return replace(service, pins=_with(service.pins, pin, pinned))


def _with(before: Mapping[str, _T], key: str, value: _T | None) -> dict[str, _T]:
    rest = {name: one for name, one in before.items() if name != key}
    return rest if value is None else {**rest, key: value}


def _restored(service: Service, event: ev.Snapshotted) -> Service:
    return replace(
        service,
        upstreams={upstream.id: upstream for upstream in event.upstreams},
        stable=event.stable,
        mixing=event.mixing,
        canary_percent=event.canary_percent,
        shares=event.shares,
        pins=event.pins,
        held=event.held,
        freeze=event.freeze,
        history=event.history,
        carried=event.carried,
        maintenance=event.maintenance,
        left=event.left,
    )


# -- upstreams -----------------------------------------------------------------------------------------


def _upstream_event(service: Service, at: float, event: ev.ServiceEvent) -> Service:
    if isinstance(event, ev.UpstreamAdded):
        known = service.upstreams.get(event.upstream)
        added = Upstream(
            id=event.upstream,
            dial=event.dial,
            version=event.version,
            spare_dial=event.spare_dial,
            serving=event.dial,
            beside=() if known is None else _still_beside(known, event),
            group=event.group,
        )
        return _put(service, added)
    if not isinstance(event, ev.UpstreamRemoved | _OfOne):
        return service
    upstream = service.upstreams.get(event.upstream)
    if upstream is None:
        return service
    if isinstance(event, ev.UpstreamRemoved):
        rest = {key: value for key, value in service.upstreams.items() if key != event.upstream}
        return beside.tidied(replace(service, upstreams=rest))
    return _put(service, _changed(upstream, at, event))


def _changed(upstream: Upstream, at: float, event: _OfOne) -> Upstream:
    match event:
        case ev.GroupSet(group=group):
            return replace(upstream, group=group)
        case ev.DrainRequested():
            return replace(upstream, drained=True, gating=None)
        case ev.ReadyRequested():
            gating = Gating(since=at, swapped=event.swapped, version=event.version, dial=event.dial)
            return replace(upstream, gating=gating)
        case ev.ReadyEnded():
            return _readied(upstream, event.ok)
        case ev.UpstreamEjected() | ev.UpstreamReturned():
            return replace(upstream, ejection=_ejection(upstream.ejection, at, event))
        case ev.DrainEnded():
            return upstream


def _still_beside(known: Upstream, event: ev.UpstreamAdded) -> tuple[Beside, ...]:
    """What goes on beside an upstream that is described anew. Where its two addresses have only changed roles, the
    next event puts it back to where it serves."""
    roles = known.dial == event.spare_dial
    return tuple(one for one in known.beside if roles or one.dial != event.dial)


def _readied(upstream: Upstream, ok: bool) -> Upstream:
    gating = upstream.gating
    if gating is None or not ok:
        return replace(upstream, gating=None)
    spare = upstream.dial if gating.dial == upstream.spare_dial else upstream.spare_dial
    return replace(
        upstream,
        gating=None,
        drained=False,
        dial=gating.dial,
        spare_dial=spare,
        version=gating.version,
        serving=gating.dial,
        unproven=False,
        ejection=None,
        beside=beside.without(upstream, gating.dial).beside,
    )


def _ejection(before: Ejection | None, at: float, event: ev.UpstreamEjected | ev.UpstreamReturned) -> Ejection | None:
    """What is remembered of it: nothing where somebody has looked at the upstream and let it in again."""
    if isinstance(event, ev.UpstreamEjected):
        return Ejection(at, event.until, event.reason, event.row)
    return None if before is None or event.actor else replace(before, until=max(at, before.until), over=True)


def _put(service: Service, upstream: Upstream) -> Service:
    return replace(service, upstreams={**service.upstreams, upstream.id: upstream})


# -- rollouts ------------------------------------------------------------------------------------------


def _rollout_started(service: Service, at: float, event: ev.RolloutStarted) -> Service:
    rollout = Rollout(
        id=event.rollout,
        service=event.service,
        version=event.version,
        strategy=event.strategy,
        policy=event.policy,
        upstreams=event.upstreams,
        previous=event.previous,
        started_at=at,
        changed_at=at,
        actor=event.actor,
        message=event.message,
        key=event.key,
        supersedes=event.supersedes,
        back_to=event.back_to,
    )
    return queue.begun(service, rollout)


def _rollout_event(service: Service, rollout: Rollout, at: float, event: ev.Event) -> Service:
    match event:
        case ev.TaskStarted():
            return replace(_ungated(service, event.upstream), rollout=_task_started(service, rollout, event))
        case ev.StepStarted():
            return _step_started(service, rollout, at, event)
        case ev.StepEnded():
            return _step_ended(service, rollout, at, event)
        case ev.Paused() | ev.Resumed() | ev.StageStarted() | ev.GatePassed() | ev.Promoted():
            return _steered(service, rollout, at, event)
        case ev.AbortRequested():
            return _abort_requested(service, rollout, event)
        case ev.Superseded(by=by):
            return queue.superseded(service, rollout, by)
        case ev.FailureNoted(reason=reason):
            return replace(service, rollout=_failed(rollout, reason))
        case ev.RevertStarted(reason=reason):
            # A superseded one reverts only where it could not be left as it was: then nobody takes over from it.
            rollout = replace(rollout, phase=Phase.REVERTING, failure=rollout.failure or reason, superseded_by=None)
            return replace(service, rollout=rollout)
        case ev.RolloutEnded():
            return _rollout_ended(service, rollout, at, event)
        case _:
            return service


def _steered(
    service: Service,
    rollout: Rollout,
    at: float,
    event: ev.Paused | ev.Resumed | ev.StageStarted | ev.GatePassed | ev.Promoted,
) -> Service:
    """How far the rollout may go, by its own plan or by somebody's word."""
    match event:
        case ev.StageStarted(stage=stage, percent=percent):
            phase = Phase.PROMOTING if percent >= 100 else rollout.phase
            rollout = replace(rollout, stage=stage, stage_at=at, phase=phase)
            return replace(service, rollout=rollout, shares={**service.shares, rollout.version: percent})
        case ev.Paused() | ev.Resumed():
            return replace(service, rollout=replace(rollout, paused=isinstance(event, ev.Paused)))
        case ev.GatePassed(stage=stage):
            return replace(service, rollout=replace(rollout, passed=max(rollout.passed, stage)))
        case ev.Promoted():
            return replace(service, rollout=replace(rollout, promoted=True, phase=Phase.PROMOTING, paused=False))


def _abort_requested(service: Service, rollout: Rollout, event: ev.AbortRequested) -> Service:
    # A revert under way is not started again; it can only be told to stop.
    phase = rollout.phase if rollout.phase is Phase.REVERTING and event.revert else Phase.ABORTING
    rollout = replace(
        rollout,
        phase=phase,
        paused=False,
        abort=Abort(event.revert, event.actor),
        failure=rollout.failure or queue.aborted(event.actor, event.reason),
        superseded_by=None,
    )
    return queue.withdrawn(replace(service, rollout=rollout))


def _rollout_ended(service: Service, rollout: Rollout, at: float, event: ev.RolloutEnded) -> Service:
    ended = replace(rollout, phase=event.state, ended_at=at, reason=event.reason, paused=False)
    if rollout.policy.beside and event.state is not Phase.SUCCEEDED:
        service = replace(service, shares=_with(service.shares, rollout.version, None))
    match event.state:
        case Phase.SUCCEEDED if rollout.policy.keeps:
            return replace(beside.kept(service, rollout.version), rollout=ended)
        case Phase.SUCCEEDED:
            if rollout.policy.beside:
                service = beside.flipped(service, rollout, at)
            service = beside.settled(service, rollout.version, at)
            history = service.history
            if service.stable is not None and service.stable != rollout.version:
                history = (*history, service.stable)
            return replace(
                service,
                rollout=ended,
                stable=rollout.version,
                mixing=None,
                carried=(),
                canary_percent=None,
                history=history,
            )
        case Phase.STUCK:
            # What still works goes on serving, whichever version it is. A person decides what comes after.
            waiting = replace(service.pending, paused=True, changed_at=at) if service.pending else service.queued
            return replace(service, rollout=ended, mixing=rollout.version, queued=waiting)
        case Phase.FAILED if rollout.superseded_by is not None:
            return replace(service, rollout=ended)  # what serves goes on serving
        case Phase.REVERTED:
            return replace(service, rollout=ended, mixing=None, carried=())
        case _:
            return replace(service, rollout=ended, mixing=None)


def _ungated(service: Service, name: str) -> Service:
    """A `ready` by hand ends where a rollout's turn begins: it must not let in what is being replaced."""
    upstream = service.upstreams.get(name)
    if upstream is None or upstream.gating is None:
        return service
    return _put(service, replace(upstream, gating=None))


def _task_started(service: Service, rollout: Rollout, event: ev.TaskStarted) -> Rollout:
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


def _step_started(service: Service, rollout: Rollout, at: float, event: ev.StepStarted) -> Service:
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
        return _put(service, beside.without(upstream, task.old_dial))
    if event.step is StepKind.DRAIN and upstream.serving == task.old_dial:
        service = replace(service, rollout=_put_task(rollout, replace(task, took_out=True)))
        return _put(service, replace(upstream, serving=None))
    if event.step is StepKind.SWAP and task.in_place:
        return _put(service, replace(upstream, unproven=True))
    if event.step is StepKind.ADMIT and rollout.policy.beside:
        return _put(service, beside.admitted(upstream, rollout, task))
    if event.step is StepKind.ADMIT and task.new_dial is not None:
        return _put(service, _moved(upstream, task, task.new_dial))
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


def _step_ended(service: Service, rollout: Rollout, at: float, event: ev.StepEnded) -> Service:
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
            rollout = _failed(rollout, failure)
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


def _failed(rollout: Rollout, reason: str) -> Rollout:
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
        service = _put(service, replace(upstream, version=task.new_version))
    return service


def _task_step_failed(service: Service, rollout: Rollout, task: Task, event: ev.StepEnded) -> Service:
    task = replace(task, running=False, failed=event.reason or "failed")
    if not event.begun:
        task = _unmarked(task, event.step)
    failure = f"{task.upstream}: {event.step}: {event.reason}"
    service = replace(service, rollout=_failed(_put_task(rollout, task), failure))
    upstream = service.upstreams.get(task.upstream)
    if event.step is StepKind.DRAIN and upstream is not None and _untouched(upstream, task):
        service = _put(service, replace(upstream, serving=task.old_dial))
    if event.step is StepKind.SWAP and upstream is not None and task.in_place:
        half = replace(upstream, version=None)  # whatever runs there now is of no version that we could name
        service = _put(service, half if event.begun else replace(upstream, unproven=not task.old_proven))
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
