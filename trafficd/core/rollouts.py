"""What an event changes of a rollout: its beginning, how far it may go, its end and what serves from then on."""

from __future__ import annotations

from dataclasses import replace

from trafficd.core import beside, queue, tasks
from trafficd.core import events as ev
from trafficd.core.model import Abort, Phase, Rollout, Service


def rollout_started(service: Service, at: float, event: ev.RolloutStarted) -> Service:
    """The state in which the rollout has begun."""
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


def rollout_event(service: Service, rollout: Rollout, at: float, event: ev.Event) -> Service:
    """The state after one event of the live rollout."""
    match event:
        case ev.TaskStarted():
            return replace(tasks.ungated(service, event.upstream), rollout=tasks.task_started(service, rollout, event))
        case ev.StepStarted():
            return tasks.step_started(service, rollout, at, event)
        case ev.StepEnded():
            return tasks.step_ended(service, rollout, at, event)
        case ev.Paused() | ev.Resumed() | ev.StageStarted() | ev.GatePassed() | ev.Promoted():
            return _steered(service, rollout, at, event)
        case ev.AbortRequested():
            return _abort_requested(service, rollout, event)
        case ev.Superseded(by=by):
            return queue.superseded(service, rollout, by)
        case ev.FailureNoted(reason=reason):
            return replace(service, rollout=tasks.failed(rollout, reason))
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
            rollout = replace(rollout, stage=stage, stage_at=at, stage_idle=0.0, phase=phase)
            return replace(service, rollout=rollout, shares={**service.shares, rollout.version: percent})
        case ev.Paused():
            return replace(service, rollout=replace(rollout, paused=True, paused_at=at))
        case ev.Resumed():
            idle = at - max(rollout.paused_at, rollout.stage_at)
            return replace(service, rollout=replace(rollout, paused=False, stage_idle=rollout.stage_idle + idle))
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
        service = beside.unshared(service, rollout.version)
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
