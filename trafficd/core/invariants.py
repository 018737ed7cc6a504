"""What must never happen, checked at each decision and independent of how the decision was made.

S1  Nothing is stopped or replaced while it has weight: a swap in place or a retirement begins only when
    its address has none, and after its drain has ended.
S2  A new instance is not started on an address that has weight.
S3  At most `max_parallel` upstreams are in work.
S4  Taking an upstream out of traffic leaves at least `min_ready` that are up.
S5  Nothing is touched before every upstream is prepared.
S6  An upstream has at most one running step.
S7  What is admitted has just passed its gate.
S8  A rollout ends, and a revert begins, only when no step is running.
S9  Succeeded means: every upstream of the rollout runs its version, and serves unless an operator drained it.
S10 A rollout begins only when none is live.
S11 A take-over takes nothing out of traffic: neither where the old rollout is stopped nor where the new one begins.
S12 Nothing is retired while it has weight, and nothing that serves ever.
S13 A share grows only while every instance beside is admitted and up, and never over a FAIL.
S14 A turn that takes away what has traffic begins only when no turn of another group is in work; and where it drains
    first, only when everything of the other groups has traffic.
S15 On one host no two upstreams are prepared at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from trafficd.core import events as ev
from trafficd.core.judge import Verdict
from trafficd.core.machine import advance
from trafficd.core.model import Direction, Phase, Rollout, Service, StepKind, Task, World
from trafficd.core.routing import available, carrying, route
from trafficd.core.stages import not_up


class InvariantError(AssertionError):
    """The planner decided something that must never happen: a bug in trafficd, not in the deploy."""


def check(service: Service, world: World, event: ev.Event | None) -> None:
    """Raise `InvariantError` if journalling and performing `event` now would break an invariant."""
    rollout = service.live
    if isinstance(event, ev.RolloutStarted):
        _require(rollout is None, "S10", f"{event.rollout} would begin while {rollout.id if rollout else None} is live")
    if isinstance(event, ev.RetireStarted):
        _check_retirement(service, world, event)
    if _is_take_over(event, service):
        _check_take_over(service, world, event)
    if rollout is None or event is None or getattr(event, "rollout", None) != rollout.id:
        return
    match event:
        case ev.TaskStarted():
            _check_task(service, world, rollout, event)
        case ev.StepStarted():
            _check_step(service, world, rollout, event)
        case ev.StageStarted():
            _check_stage(service, world, rollout, event)
        case ev.RolloutEnded() | ev.RevertStarted():
            _require(not rollout.running_steps(), "S8", "steps are still running")
            if isinstance(event, ev.RolloutEnded) and event.state is Phase.SUCCEEDED:
                _check_success(service, world, rollout)
        case _:
            pass


def _require(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise InvariantError(f"{name}: {what}")


def _is_take_over(event: ev.Event | None, service: Service) -> TypeGuard[ev.Event]:
    aborted = service.pending is not None and service.pending.abort is not None  # that moves traffic
    match event:
        case ev.Superseded():
            return not aborted
        case ev.RolloutEnded(rollout=name):
            return service.live is not None and service.live.id == name and service.live.superseded_by is not None
        case ev.RolloutStarted(supersedes=older):
            return older is not None and not aborted
        case _:
            return False


def _check_take_over(service: Service, world: World, event: ev.Event) -> None:
    before = route(service, world).weights
    after = route(advance(service, 0.0, event), world).weights
    lost = sorted(dial for dial, weight in before.items() if weight and not after.get(dial))
    _require(not lost, "S11", f"{', '.join(lost)} would lose traffic by {event.type}")


def _check_task(service: Service, world: World, rollout: Rollout, event: ev.TaskStarted) -> None:
    tasks = rollout.forward if event.direction is Direction.FORWARD else rollout.revert
    in_work = sum(1 for task in tasks.values() if not task.over)
    _require(in_work < rollout.policy.max_parallel, "S3", f"{in_work} upstreams are in work already")
    ready = available(service, world)
    upstream = service.upstreams.get(event.upstream)
    serves = upstream is not None and upstream.serving == event.old_dial
    if event.steps[:1] == (StepKind.DRAIN,) and event.upstream in ready and serves:
        _require(
            len(ready) - 1 >= rollout.policy.min_ready,
            "S4",
            f"taking {event.upstream} out of {sorted(ready)}",
        )
    if not rollout.policy.beside and StepKind.DRAIN in event.steps:
        _check_groups(service, world, tasks.values(), event)
    if rollout.policy.prepares and event.direction is Direction.FORWARD:
        prepared = {s.key.upstream for s in rollout.steps if s.key.kind is StepKind.PREPARE and s.ok}
        missing = {name for name in rollout.upstreams if name in service.upstreams} - prepared
        _require(not missing, "S5", f"not prepared: {sorted(missing)}")


def _check_groups(service: Service, world: World, tasks: Iterable[Task], event: ev.TaskStarted) -> None:
    upstream, carry = service.upstreams.get(event.upstream), carrying(service, world)
    if upstream is None or upstream.group is None or upstream.id not in carry:
        return
    others = {u.id for u in service.upstreams.values() if u.group not in (None, upstream.group)}
    busy = others & {task.upstream for task in tasks if not task.over}
    _require(not busy, "S14", f"{upstream.id} of {upstream.group} would begin beside {sorted(busy)}")
    if event.steps[0] is StepKind.DRAIN:
        out = others - carry
        _require(not out, "S14", f"{upstream.id} of {upstream.group} would be taken out beside {sorted(out)}")


def _check_step(service: Service, world: World, rollout: Rollout, event: ev.StepStarted) -> None:
    if event.upstream is None:
        return
    if event.step is StepKind.PREPARE:
        hosts, others = rollout.policy.hosts, [s.key.upstream for s in rollout.running_steps()]
        same = [name for name in others if name and hosts.get(name) == hosts.get(event.upstream)]
        _require(not same, "S15", f"{event.upstream} would be prepared beside {same}")
    busy = [s for s in rollout.running_steps() if s.key.upstream == event.upstream]
    _require(not busy, "S6", f"{event.upstream} already runs {busy}")
    tasks = rollout.forward if event.direction is Direction.FORWARD else rollout.revert
    task = tasks.get(event.upstream)
    if task is None:
        return
    weights = route(service, world).weights
    if event.step is StepKind.SWAP:
        _check_swap(rollout, task, weights.get(task.new_dial or "", 0))
    if event.step is StepKind.RETIRE:
        _require(not weights.get(task.old_dial), "S1", f"{task.old_dial} has weight and would be stopped")
        begun = rollout.forward.get(task.upstream)
        had_traffic = task.direction is Direction.FORWARD or begun is None or begun.admitted
        drained = StepKind.DRAIN in task.steps[: task.cursor]
        _require(drained or not had_traffic, "S1", f"{task.old_dial} was not drained and would be stopped")
    if event.step is StepKind.ADMIT:
        done = task.steps[: task.cursor]
        gated = tuple(step for step in done if step is not StepKind.CHECK)
        _require(gated[-1:] == (StepKind.GATE,), "S7", f"{task.upstream} has not passed its gate: {done}")


def _check_swap(rollout: Rollout, task: Task, weight: int) -> None:
    in_place = task.new_dial == task.old_dial
    _require(not weight, "S1" if in_place else "S2", f"{task.new_dial} has weight and would be replaced")
    begun = rollout.forward.get(task.upstream)
    # Only what its own turn drained and replaced, and let nobody in to, has nothing open for certain.
    empty = task.direction is Direction.REVERT and begun is not None and begun.swapped and not begun.admitted
    if in_place and not empty:
        _require(StepKind.DRAIN in task.steps[: task.cursor], "S1", f"{task.upstream} was not drained")


def _check_retirement(service: Service, world: World, event: ev.RetireStarted) -> None:
    serving = {u.serving for u in service.upstreams.values()}
    _require(event.dial not in serving, "S12", f"{event.dial} serves and would be retired")
    after = route(advance(service, 0.0, event), world).weights
    _require(not after.get(event.dial), "S12", f"{event.dial} has weight and would be retired")


def _check_stage(service: Service, world: World, rollout: Rollout, event: ev.StageStarted) -> None:
    missing = [
        name
        for name in rollout.upstreams
        if name in service.upstreams and service.upstreams[name].other(rollout.version) is None
    ]
    _require(not missing, "S13", f"{', '.join(missing)} has no instance of {rollout.version} beside it")
    down = not_up(service, rollout.version, world)
    _require(not down, "S13", f"{', '.join(down)} is not up, and {rollout.version} would get {event.percent:g} %")
    finding = world.finding
    failed = finding is not None and finding.rollout == rollout.id and finding.verdict is Verdict.FAIL
    grows = event.percent > service.shares.get(rollout.version, 0.0)
    _require(not (failed and grows), "S13", f"the canary failed, and would get {event.percent:g} %")
    _require(not rollout.failing, "S13", "the rollout fails, and its version would get a share")


def _check_success(service: Service, world: World, rollout: Rollout) -> None:
    down = not_up(service, rollout.version, world) if rollout.policy.beside else []
    _require(not down, "S13", f"{', '.join(down)} is not up, and would have all traffic of {rollout.version}")
    for name in rollout.upstreams:
        upstream = service.upstreams.get(name)
        if upstream is not None and rollout.policy.beside:
            _require(upstream.other(rollout.version) is not None, "S9", f"{name} has no {rollout.version} beside it")
        elif upstream is not None:
            _require(
                upstream.version == rollout.version,
                "S9",
                f"{name} runs {upstream.version}, not {rollout.version}",
            )
            _require(upstream.serving is not None or upstream.drained, "S9", f"{name} is out of traffic")
