"""What a rollout that did not make it brings back, and how it ends.

An upstream goes back to what it ran before. Where the rollout took over from another one, or versions that never
made it to their end still served when it began, every upstream goes to the stable version (`back_to`): touched or
not, and also what was out of traffic then. Such a version is a stopgap; nobody has asked to have it back.

Invariant: what is let in without a replacement is an instance that was never stopped, of a version that is known.
"""

from __future__ import annotations

from collections.abc import Iterator

from trafficd.core.model import Direction, Order, Phase, Rollout, Service, StepKind, Task, Upstream
from trafficd.core.place import address
from trafficd.core.strategy import back_steps, replaces, revert_steps

_LET_IN = (StepKind.GATE, StepKind.ADMIT)


def due(service: Service, rollout: Rollout) -> Iterator[Task]:
    """The reverts that have not begun: what was touched, newest first, then what else is to be gathered in."""
    for name in reversed(rollout.touched):
        upstream = service.upstreams.get(name)
        back = None if upstream is None else _undo(rollout, rollout.forward[name])
        if back is not None and name not in rollout.revert:
            yield back
        elif upstream is not None and rollout.gathers:
            yield from _gathered(rollout, upstream)
    if rollout.gathers:
        untouched = (name for name in reversed(rollout.upstreams) if name not in rollout.touched)
        for name in untouched:
            upstream = service.upstreams.get(name)
            if upstream is not None:
                yield from _gathered(rollout, upstream)


def orphans(rollout: Rollout) -> Iterator[Task]:
    """The light part of a revert that a superseded rollout owes: a new instance that never got traffic, beside an
    old one that serves, is stopped."""
    for name in reversed(rollout.touched):
        task = rollout.forward[name]
        steps = _steps(rollout, task)
        if steps == (StepKind.RETIRE,) and name not in rollout.revert:
            yield _back(rollout, task, steps)


def _undo(rollout: Rollout, task: Task) -> Task | None:
    """The revert of one turn, or None where there is none to be done."""
    steps = _steps(rollout, task)
    if not steps or _lets_in_unknown(rollout, task, steps):
        return None
    back = _back(rollout, task, steps)
    return back if _refused(rollout, task, back) is None else None


def _lets_in_unknown(rollout: Rollout, task: Task, steps: tuple[StepKind, ...]) -> bool:
    """Whether undoing a turn would let in what runs at the old address, and nobody can say what that is."""
    light = StepKind.ADMIT in steps and StepKind.SWAP not in steps
    return light and not _known(rollout, task.old_version, proven=task.old_proven)


def _steps(rollout: Rollout, task: Task) -> tuple[StepKind, ...]:
    """What undoes one turn. An instance whose address the driver never named cannot be stopped by us; and what is
    at the old address serves."""
    steps = revert_steps(rollout.policy, task)
    return () if steps == (StepKind.RETIRE,) and task.new_dial is None else steps


def _known(rollout: Rollout, version: str | None, *, proven: bool) -> bool:
    """Whether an instance that is out of traffic may be let in again as it is."""
    return proven and rollout.back_to in (None, version)


def _back(rollout: Rollout, task: Task, steps: tuple[StepKind, ...]) -> Task:
    replaced = StepKind.SWAP in steps
    return Task(
        upstream=task.upstream,
        direction=Direction.REVERT,
        steps=steps,
        old_dial=task.new_dial or task.old_dial,
        old_version=rollout.version,
        new_dial=task.old_dial,
        new_version=(rollout.back_to if replaced else None) or task.old_version,
    )


def _gathered(rollout: Rollout, upstream: Upstream) -> Iterator[Task]:
    """The task that brings an upstream home which needs more than the undoing of its turn."""
    back = rollout.revert.get(upstream.id)
    at_home = upstream.serving is not None and rollout.back_to in (None, upstream.version)
    if at_home or (back is not None and not back.done):
        return
    light = upstream.serving is None and _known(rollout, upstream.version, proven=not upstream.unproven)
    if not light and _unwanted(rollout) is not None:
        return
    beside = rollout.policy.order is Order.START_FIRST and not light
    yield Task(
        upstream=upstream.id,
        direction=Direction.REVERT,
        steps=_LET_IN if light else back_steps(rollout.policy),
        old_dial=upstream.dial,
        old_version=upstream.version,
        new_dial=upstream.spare_dial if beside else upstream.dial,
        new_version=upstream.version if light else rollout.back_to,
    )


def _unwanted(rollout: Rollout) -> str | None:
    """Why nothing is replaced to gather the upstreams in, or None when it is."""
    wanted = rollout.abort.revert if rollout.abort else rollout.policy.auto_revert
    if not wanted:
        return "a revert was not wanted"
    if rollout.back_to is None:
        return "the version before is not known (set `version` of the upstream in the configuration)"
    if rollout.back_to == rollout.version:
        return f"the stable version is {rollout.version} as well: there is nothing to go back to"
    return None


def _refused(rollout: Rollout, task: Task, back: Task) -> str | None:
    """Why an upstream is not brought back, or None when it is."""
    if not task.swapped:
        return None  # nothing was replaced: it is only let in again
    wanted = rollout.abort.revert if rollout.abort else rollout.policy.auto_revert
    if not wanted:
        return "a revert was not wanted"
    if not replaces(back):
        return None
    if back.new_version is None:
        return "the version before is not known (set `version` of the upstream in the configuration)"
    if back.new_version == rollout.version:
        return f"what ran before was {rollout.version} as well: there is nothing to go back to"
    return None


def _left(rollout: Rollout) -> list[tuple[str, str]]:
    """Upstreams that were replaced, or should have been gathered in, and are not back; with the reason."""
    left = []
    for name in rollout.touched:
        task = rollout.forward[name]
        steps = _steps(rollout, task)
        back = rollout.revert.get(name)
        if not task.swapped or not steps or (back is not None and back.done):
            continue
        if _lets_in_unknown(rollout, task, steps):
            continue  # it is gathered in, if anything
        unfinished = (
            f"its revert failed: {back.failed}" if back is not None and back.failed else "its revert did not end"
        )
        left.append((name, _refused(rollout, task, _back(rollout, task, steps)) or unfinished))
    known = {name for name, _ in left}
    if rollout.gathers:
        away = [name for name in rollout.upstreams if name not in known and not _is_home(rollout, name)]
        left += [(name, _unwanted(rollout) or "its revert did not end") for name in away]
    return left


def _left_beside(rollout: Rollout) -> Iterator[str]:
    """The new instances that may still run beside the old ones, in words."""
    unwanted = []
    for name, why in _left(rollout):
        back, dial = rollout.revert.get(name), rollout.forward[name].new_dial
        if back is None:
            unwanted.append(dial or name)
        else:
            yield f"the new instance of {name} at {dial} may still run, stop it by hand: {why}"
    if unwanted:
        yield (
            f"a revert was not wanted, so {', '.join(unwanted)} goes on without traffic: "
            f"`trafficd retire {rollout.service} {rollout.version}` stops it"
        )


def _is_home(rollout: Rollout, name: str) -> bool:
    """Whether an upstream is where a revert that gathers all wants it, as far as the rollout itself tells."""
    back = rollout.revert.get(name)
    if back is not None and StepKind.ADMIT in back.steps:
        return back.done and rollout.back_to in (None, back.new_version)
    task = rollout.forward.get(name)
    if task is not None and task.admitted:
        return rollout.back_to in (None, task.new_version)
    return name not in rollout.out and rollout.back_to in (None, rollout.previous.get(name))


def ending(rollout: Rollout) -> tuple[Phase, str]:
    """The state and reason a rollout that did not succeed ends with, as things stand."""
    failure = rollout.failure or "failed"
    if rollout.revert_failure is not None:
        return Phase.STUCK, (
            f"{failure}; bringing the old version back failed as well: {rollout.revert_failure}. "
            f"{_works_on(rollout)} what still works. Look at the failed upstream, repair it, and say "
            f"`trafficd ready {rollout.service} UPSTREAM`, or deploy a version that works"
        )
    replaced = [name for name in rollout.touched if rollout.forward[name].swapped]
    gathered = [task for task in rollout.revert.values() if replaces(task)]
    left = _left(rollout)
    if left and rollout.policy.beside:
        return Phase.FAILED, f"{failure}; {'; '.join(_left_beside(rollout))}"
    if left:
        what = "; ".join(f"{name} was not brought back: {why}" for name, why in left)
        return Phase.FAILED, f"{failure}; {what}"
    if not replaced and not gathered:
        return Phase.FAILED, f"{failure}; nothing was replaced"
    return Phase.REVERTED, failure


def _works_on(rollout: Rollout) -> str:
    called = any(address(task.old_dial) for task in rollout.forward.values())
    return "Traffic goes to" if called else "The work is left to"
