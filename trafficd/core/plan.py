"""Decide the next action of a rollout, purely: (state, observed world, now) -> the next event to journal.

`decide` names at most one event. The engine journals it, folds it, and asks again, so every point between
two events is one where a crash may happen and the same question is asked after the restart. A step that
the fold says is running is performed by the engine; performing is idempotent.

Safety is stated and checked apart from this module, in `invariants`. Liveness: every wait is bounded by
the policy, except a pause and the caller's part with an external driver after its time-out is lifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trafficd.core import beside, groups, queue, stages
from trafficd.core import events as ev
from trafficd.core.model import (
    Direction,
    Order,
    Phase,
    Policy,
    Rollout,
    Service,
    StepKey,
    StepKind,
    StepRecord,
    Task,
    Upstream,
    Wait,
    World,
)
from trafficd.core.outliers import returned
from trafficd.core.revert import due, ending, orphans
from trafficd.core.routing import available, route
from trafficd.core.strategy import forward_steps

MAX_PREPARES = 4  # images are pulled side by side, but not fifty at once

# What may be given up at once when the rollout fails by itself; a swap or a hook is let finish.
_INTERRUPTIBLE = frozenset({StepKind.DRAIN, StepKind.GATE, StepKind.CHECK, StepKind.WATCH, StepKind.PREPARE})


@dataclass(frozen=True)
class Decision:
    """What to do now: `event` to journal (None: nothing), `weights` to route by (`pins`: requests that are pinned),
    `cancel` to stop doing. `wake_at`: when to ask again at the latest (s since the epoch), if nothing happens."""

    weights: Mapping[str, int]
    panic: str | None = None
    event: ev.Event | None = None
    cancel: frozenset[StepKey] = frozenset()
    waits: tuple[Wait, ...] = field(default=())
    pins: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    wake_at: float | None = None


def decide(service: Service, world: World, now: float, terms: queue.Terms | None = None) -> Decision:
    """The next decision for one service. A rollout that waits begins by `terms`, and not at all without."""
    routing = route(service, world)
    event: ev.Event | None = returned(service, now) or queue.next_event(service, world, now, terms)
    event = event or beside.next_event(service, now)
    rollout, wake_at = service.live, beside.wake_at(service)
    if rollout is None:
        return Decision(routing.weights, routing.panic, event, pins=routing.pins, wake_at=wake_at)
    event = event or _next_event(service, rollout, world, now)
    return Decision(
        weights=routing.weights,
        panic=routing.panic,
        event=event,
        cancel=_cancelled(rollout),
        waits=() if event else _waits(service, rollout, world, now),
        pins=routing.pins,
        wake_at=wake_at,
    )


def _next_event(service: Service, rollout: Rollout, world: World, now: float) -> ev.Event | None:
    failing = rollout.failure is not None or rollout.phase is Phase.ABORTING
    if rollout.superseded_by is not None:
        return _wind_down(service, rollout, world, now)
    if rollout.phase is Phase.REVERTING:
        return _revert(service, rollout, world, now)
    if failing:
        return _after_failure(service, rollout)
    return _forward(service, rollout, world, now)


def _cancelled(rollout: Rollout) -> frozenset[StepKey]:
    running = rollout.running_steps()
    if rollout.phase is Phase.ABORTING:
        undoing = rollout.abort is not None and rollout.abort.revert  # what undoes something already goes on
        return frozenset(
            s.key
            for s in running
            if s.key.kind is not StepKind.ON_FAILURE and not (undoing and s.key.direction is Direction.REVERT)
        )
    if rollout.superseded_by is not None:
        return frozenset(s.key for s in running if not _goes_on(rollout, s.key))
    failing = rollout.revert_failure if rollout.phase is Phase.REVERTING else rollout.failure
    if failing is None:
        return frozenset()
    return frozenset(s.key for s in running if s.key.kind in _INTERRUPTIBLE)


def _goes_on(rollout: Rollout, key: StepKey) -> bool:
    """Whether a superseded rollout brings a step to its end: what puts an upstream in order, and not what is new."""
    if key.direction is Direction.REVERT or key.kind is StepKind.ON_FAILURE:
        return True
    task = rollout.forward.get(key.upstream or "")
    return task is not None and task.admitted and key.kind is not StepKind.PREPARE


# -- forward -------------------------------------------------------------------------------------------


def _forward(service: Service, rollout: Rollout, world: World, now: float) -> ev.Event | None:
    started = _advance(rollout, rollout.forward)
    if started is not None:
        return started
    if rollout.paused:
        return None
    first = _once(rollout, StepKind.BEFORE_ROLLOUT)
    if first is not None:
        return _start(rollout, first) if not _record(rollout, first) else None
    if rollout.policy.prepares:
        waiting, event = _prepare(service, rollout)
        if waiting:
            return event
    if all(task.done for task in _forward_tasks(service, rollout)) and not _pending(service, rollout):
        return _after_tasks(service, rollout, world, now)
    return _begin(service, rollout, _pending(service, rollout), world, now)


def _after_tasks(service: Service, rollout: Rollout, world: World, now: float) -> ev.Event | None:
    """All instances are there: those beside the old ones get their share, stage by stage. The end makes them the
    serving ones, and the old ones warm."""
    if not rollout.policy.beside:
        return _finish(rollout)
    event = stages.next_event(service, rollout, world, now)
    return event if event is not None or not stages.over(service, rollout, world, now) else _finish(rollout)


def _finish(rollout: Rollout) -> ev.Event | None:
    last = _once(rollout, StepKind.AFTER_ROLLOUT)
    if last is not None:
        return _start(rollout, last) if not _record(rollout, last) else None
    return ev.RolloutEnded(rollout.service, rollout.id, Phase.SUCCEEDED, "; ".join(rollout.warnings))


def _prepare(service: Service, rollout: Rollout) -> tuple[bool, ev.Event | None]:
    """Whether the first upstream has to wait for it yet, and what to begin. On one host one after the other: they
    bring the same version to the same place, and a program of the user's need not expect to run twice at once."""
    keys = [StepKey(u, Direction.FORWARD, StepKind.PREPARE) for u in rollout.upstreams if u in service.upstreams]
    records = {key: _record(rollout, key) for key in keys}
    running = [key for key, record in records.items() if record and record.ended_at is None]
    fresh = [key for key, record in records.items() if record is None]
    busy = {_host(rollout, key) for key in running}
    free = next((key for key in fresh if _host(rollout, key) not in busy), None)
    if free is not None and len(running) < MAX_PREPARES:
        return True, _start(rollout, free)
    return bool(fresh or running), None


def _host(rollout: Rollout, key: StepKey) -> str | None:
    return rollout.policy.hosts.get(key.upstream or "")


def _forward_tasks(service: Service, rollout: Rollout) -> list[Task]:
    return [task for name, task in rollout.forward.items() if name in service.upstreams]


def _pending(service: Service, rollout: Rollout) -> list[Task]:
    """The turns that have not begun, in the rollout's order."""
    return [
        _forward_task(service.upstreams[name], rollout)
        for name in rollout.upstreams
        if name in service.upstreams and name not in rollout.forward
    ]


def _forward_task(upstream: Upstream, rollout: Rollout) -> Task:
    start_first = rollout.policy.order is Order.START_FIRST
    warm = upstream.other(rollout.version) if rollout.policy.beside else None
    new_dial = _spare(upstream) if start_first else upstream.dial
    return Task(
        upstream=upstream.id,
        direction=Direction.FORWARD,
        steps=forward_steps(rollout.policy, warm=warm is not None),
        old_dial=upstream.dial,
        old_version=upstream.version,
        new_dial=warm.dial if warm is not None else new_dial,
        new_version=rollout.version,
    )


def _spare(upstream: Upstream) -> str | None:
    """The second address, where nothing that is to stay runs there; else the driver has to find one."""
    stays = {one.dial for one in upstream.beside if one.keep_until is None}
    return None if upstream.spare_dial in stays else upstream.spare_dial


def _begin(service: Service, rollout: Rollout, pending: list[Task], world: World, now: float) -> ev.Event | None:
    """Begin the next turn, if the policy's limits allow one."""
    policy = rollout.policy
    tasks = rollout.forward if pending[:1] and pending[0].direction is Direction.FORWARD else rollout.revert
    in_work = sum(1 for task in tasks.values() if not task.over)
    if not pending or in_work >= policy.max_parallel:
        return None
    pending = [task for task in pending if not beside.in_the_way(service.upstreams[task.upstream], task)]
    if not pending:
        return None  # what is in the way is being retired
    ready = available(service, world)
    apart = groups.of_rollout(service, rollout, pending[0].direction, world)
    pending = apart.in_order(pending)
    allowed = [task for task in pending if apart.holds(task) is None]
    free = [task for task in allowed if cost(service, task, ready) == 0]
    costly = [task for task in allowed if cost(service, task, ready) > 0]
    if free:
        chosen = free[0]
    elif costly and len(ready) - 1 >= policy.min_ready:
        chosen = costly[0]
    elif not in_work and now - rollout.changed_at >= policy.healthy_deadline:
        reason = _short_of(ready, policy) if costly else _kept_apart(apart, pending[0], policy)
        return ev.FailureNoted(rollout.service, rollout.id, reason)
    else:
        return None
    return ev.TaskStarted(
        service=rollout.service,
        rollout=rollout.id,
        upstream=chosen.upstream,
        direction=chosen.direction,
        steps=chosen.steps,
        old_dial=chosen.old_dial,
        old_version=chosen.old_version,
        new_dial=chosen.new_dial,
        new_version=chosen.new_version,
    )


def _short_of(ready: frozenset[str], policy: Policy) -> str:
    return (
        f"{len(ready)} upstreams are ready and min_ready is {policy.min_ready}: taking one more out would "
        f"leave too few, and none came back within {policy.healthy_deadline:g} s"
    )


def _kept_apart(apart: groups.Apart, task: Task, policy: Policy) -> str:
    other = apart.holds(task)
    assert other is not None, "a turn that nothing holds up has begun"
    return f"{groups.together(apart, task.upstream, other)}; it did not come back within {policy.healthy_deadline:g} s"


def cost(service: Service, task: Task, ready: frozenset[str]) -> int:
    """How many ready upstreams the turn takes away: one that drains first what serves now."""
    drains = task.steps[:1] == (StepKind.DRAIN,) and service.upstreams[task.upstream].serving == task.old_dial
    return 1 if drains and task.upstream in ready else 0


def _advance(rollout: Rollout, tasks: Mapping[str, Task]) -> ev.Event | None:
    for task in tasks.values():
        if not task.running and not task.over:
            return _start(rollout, task.step)
    return None


def _start(rollout: Rollout, key: StepKey) -> ev.StepStarted:
    return ev.StepStarted(rollout.service, rollout.id, key.upstream, key.direction, key.kind)


def _once(rollout: Rollout, kind: StepKind) -> StepKey | None:
    """The key of a once-only hook that is configured and has not ended yet."""
    key = StepKey(None, Direction.FORWARD, kind)
    record = _record(rollout, key)
    if kind not in rollout.policy.hooks or (record is not None and record.ended_at is not None):
        return None
    return key


def _record(rollout: Rollout, key: StepKey) -> StepRecord | None:
    return next((step for step in reversed(rollout.steps) if step.key == key), None)


# -- failure and revert --------------------------------------------------------------------------------


def _after_failure(service: Service, rollout: Rollout) -> ev.Event | None:
    if rollout.running_steps():
        return None
    if any(True for _ in due(service, rollout)):
        return ev.RevertStarted(rollout.service, rollout.id, rollout.failure or "failed")
    return _end(rollout)


def _revert(service: Service, rollout: Rollout, world: World, now: float) -> ev.Event | None:
    if rollout.revert_failure is not None:
        return None if rollout.running_steps() else _end(rollout)
    started = _advance(rollout, rollout.revert)
    if started is not None:
        return started
    wanted = list(due(service, rollout))
    if not wanted:
        unfinished = any(not task.over for task in rollout.revert.values())
        return None if unfinished or rollout.paused else _end(rollout)
    if rollout.paused:
        return None
    # Newest first: only the newest may begin, or one that takes nothing out of traffic.
    return _begin(service, rollout, wanted, world, now)


def _wind_down(service: Service, rollout: Rollout, world: World, now: float) -> ev.Event | None:
    """What a superseded rollout still does: upstreams that serve already get rid of the old instance beside the
    new one, and a new instance beside an old one that serves is stopped. Nothing is brought back: the next rollout
    begins with what is out of traffic now."""
    serving = {name: task for name, task in rollout.forward.items() if task.admitted}
    started = _advance(rollout, serving) or _advance(rollout, rollout.revert)
    if started is not None:
        return started
    if rollout.running_steps():
        return None
    # An old instance that may still have requests must not be replaced unseen: then it is a revert after all.
    stopped = next((f"{name}: {task.failed}" for name, task in serving.items() if task.failed), None)
    if stopped is not None and any(True for _ in due(service, rollout)):
        return ev.RevertStarted(rollout.service, rollout.id, stopped)
    left = [task for task in orphans(rollout) if task.upstream in service.upstreams]
    if left:
        return _begin(service, rollout, left, world, now)
    failed = [
        f"the new instance of {name} may still run: {task.failed}"
        for name, task in rollout.revert.items()
        if task.failed
    ]
    reason = "; ".join((f"superseded by {rollout.superseded_by}", *failed))
    return ev.RolloutEnded(rollout.service, rollout.id, Phase.FAILED, reason)


def _end(rollout: Rollout) -> ev.Event | None:
    hook = _once(rollout, StepKind.ON_FAILURE)
    if hook is not None:
        return _start(rollout, hook) if not _record(rollout, hook) else None
    state, reason = ending(rollout)
    return ev.RolloutEnded(rollout.service, rollout.id, state, reason)


# -- what is waited for --------------------------------------------------------------------------------


def _waits(service: Service, rollout: Rollout, world: World, now: float) -> tuple[Wait, ...]:
    waits = [_step_wait(service, rollout, step, now) for step in rollout.running_steps()]
    if rollout.paused:
        waits.append(Wait(None, "paused: `trafficd resume` goes on, `trafficd abort` gives up", rollout.changed_at))
    elif not waits and (stage := stages.wait(service, rollout, world, now)) is not None:
        waits.append(stage)
    elif not waits and any(one.retiring for _, one in service.besides()):
        waits.append(Wait(None, "an instance of an older version to be retired", rollout.changed_at))
    elif not waits:
        what = _held_up(service, rollout, world)
        waits.append(Wait(None, what, rollout.changed_at, rollout.changed_at + rollout.policy.healthy_deadline))
    return tuple(waits)


def _held_up(service: Service, rollout: Rollout, world: World) -> str:
    """Why no turn begins, in words."""
    reverts = rollout.phase is Phase.REVERTING
    pending = list(due(service, rollout)) if reverts else _pending(service, rollout)
    if pending:
        apart = groups.of_rollout(service, rollout, pending[0].direction, world)
        others = {task.upstream: apart.holds(task) for task in pending}
        if all(others.values()):
            first, other = next(iter(others.items()))
            return f"{other} to have traffic again: {groups.together(apart, first, other or '')}"
    ready = available(service, world)
    return (
        f"another upstream to become ready: {len(ready)} are, and taking one out must leave "
        f"min_ready = {rollout.policy.min_ready}"
    )


def _step_wait(service: Service, rollout: Rollout, step: StepRecord, now: float) -> Wait:
    policy, key, since = rollout.policy, step.key, step.started_at
    where = f" of {key.upstream}" if key.upstream else ""
    match key.kind:
        case StepKind.DRAIN:
            what, until = f"open requests{where} to end", since + policy.drain_timeout + policy.drain_quiet
            if now > until:  # only what cannot be counted is waited for longer than that
                what = f"Caddy to tell what is open on {key.upstream}, so that nothing has to be guessed"
                until += policy.drain_timeout
            return Wait(key.upstream, what, since, until, since + policy.drain_quiet)
        case StepKind.GATE:
            what = f"{key.upstream} to be healthy for {policy.min_healthy_time:g} s without a break"
            return Wait(key.upstream, what, since, since + policy.healthy_deadline, since + policy.min_healthy_time)
        case StepKind.SWAP if policy.external:
            what = (
                f"the caller to replace {key.upstream} and then to "
                f"POST /v1/services/{service.name}/upstreams/{key.upstream}/ready"
            )
            return Wait(key.upstream, what, since, since + policy.swap_timeout)
        case StepKind.SWAP | StepKind.RETIRE:
            return Wait(key.upstream, f"the driver: {key.kind}{where}", since, since + policy.swap_timeout)
        case StepKind.PREPARE:
            return Wait(key.upstream, f"the driver: prepare{where}", since, since + policy.prepare_timeout)
        case StepKind.WATCH:
            what = f"{policy.watch_time:g} s in which {key.upstream} is watched"
            return Wait(key.upstream, what, since, since + policy.watch_time, since + policy.watch_time)
        case StepKind.CHECK:
            return Wait(key.upstream, f"the preview checks{where}", since)
        case StepKind.ADMIT:
            return Wait(key.upstream, f"the shift that lets {key.upstream} in", since)
        case _:
            return Wait(key.upstream, f"the hook {key.kind}{where}", since, since + policy.hook_timeout)
