"""Performing one step, idempotently: the thin I/O under the plan.

A step may be performed again after a crash; each of them names a target state. Every wait is counted from
the time the step was journalled, so restarts do not lengthen time-outs; a drain's from the moment traffic was moved
away, where that was later: what is open then is given the whole time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from trafficd.core.drain import DrainVerdict, Open
from trafficd.core.model import (
    HOOKS,
    Beside,
    Cut,
    Direction,
    Order,
    Policy,
    Rollout,
    StepKey,
    StepKind,
    StepRecord,
    Task,
)
from trafficd.core.place import address
from trafficd.core.revert import ending
from trafficd.observe import ask, drain, gate, stay_up
from trafficd.ports import Driver, Explains, Outcome, Pool, Probe, Swap


@dataclass(frozen=True)
class Done:
    """How a step ended."""

    outcome: Outcome
    cut: Cut | None = None


RunHook = Callable[[StepKind, str, Mapping[str, str], float], Awaitable[Outcome]]


@dataclass(frozen=True)
class Hands:
    """What performing needs: the pool, the driver, the probe, and the engine's own routing.

    `routed` returns when the proxy has the routing that the journal calls for. `admitted` says that an
    upstream (or an instance beside it: `Beside.key`) passed its gate and may be taken for up at its address. `holder`
    says, in words, which other upstream has an address. `check` makes the preview checks of an address; `fall` is how
    many bad probes in a row mean that an instance is down. `occupied` says, in words, what has the second
    address of an upstream. `left_at`: when traffic was moved away from an address, as far as this daemon knows (s since
    the epoch).
    """

    pool: Pool
    driver: Driver
    probe: Probe
    hook: RunHook
    routed: Callable[[], Awaitable[None]]
    admitted: Callable[[str, str], None]
    holder: Callable[[str, str], str | None]
    check: Probe
    fall: int
    occupied: Callable[[str], str | None]
    left_at: Callable[[str], float]


async def perform(hands: Hands, rollout: Rollout, record: StepRecord, *, resumed: bool) -> Done:
    """Do what a running step stands for, and say how it ended."""
    key = record.key
    if key.kind is StepKind.PREPARE or key.upstream is None:
        return await _once(hands, rollout, record, resumed=resumed)
    tasks = rollout.forward if key.direction is Direction.FORWARD else rollout.revert
    task = tasks[key.upstream]
    if key.kind in HOOKS:
        return Done(await _hook(hands, rollout, record, _hook_environment(rollout, task)))
    match key.kind:
        case StepKind.DRAIN:
            return await _drain(hands, rollout, record, task)
        case StepKind.GATE:
            return await _gate(hands, rollout, record, task)
        case StepKind.CHECK:
            assert task.new_dial is not None, "a checked task has its address"
            failure = await ask(hands.check, task.new_dial)
            return Done(Outcome(failure is None, failure or ""))
        case StepKind.WATCH:
            return await _watch(hands, rollout, record, task)
        case StepKind.ADMIT:
            assert task.new_dial is not None, "an admitted task has its address"
            hands.admitted(_admitted_as(rollout, task, task.new_dial), task.new_dial)
            await hands.routed()
            return Done(Outcome(ok=True))
        case _:
            return await _drive(hands, rollout, record, task, resumed=resumed)


async def _once(hands: Hands, rollout: Rollout, record: StepRecord, *, resumed: bool) -> Done:
    key = record.key
    if key.upstream is None:
        environment = {"TRAFFICD_VERSION": rollout.version}
        if key.kind is StepKind.ON_FAILURE:
            state, reason = ending(rollout)
            environment |= {"TRAFFICD_STATE": state.value, "TRAFFICD_REASON": reason}
        return Done(await _hook(hands, rollout, record, environment))
    swap = Swap(
        action="prepare",
        service=rollout.service,
        upstream=key.upstream,
        version=rollout.version,
        previous_version=rollout.previous.get(key.upstream),
        dial=None,
        previous_dial="",
        rollout=rollout.id,
        timeout=rollout.policy.prepare_timeout,
        since=record.started_at,
        resumed=resumed,
    )
    return Done(await hands.driver(swap))


async def _drain(hands: Hands, rollout: Rollout, record: StepRecord, task: Task) -> Done:
    await hands.routed()
    if address(task.old_dial) is None:
        return Done(Outcome(ok=True))  # nobody calls a worker, so there is nothing to wait for
    # While requests wait at the proxy nobody waits for a stream to end, which may be never.
    waits = rollout.policy.hold_for is not None and record.key.direction is Direction.FORWARD
    verdict, count = await drain(
        hands.pool,
        task.old_dial,
        since=max(record.started_at, hands.left_at(task.old_dial)),
        quiet=rollout.policy.drain_quiet,
        timeout=rollout.policy.drain_timeout,
        streams=not waits,
    )
    if verdict is DrainVerdict.DRAINED and count is not None and count.streams:
        return Done(Outcome(ok=True), cut=cut_of(count))
    match verdict:
        case DrainVerdict.UNKNOWN:
            return Done(Outcome(False, unknown_reason(task.old_dial)))
        case DrainVerdict.TIMED_OUT:
            return Done(Outcome(True, "drain_timeout"), cut=cut_of(count))
        case _:
            return Done(Outcome(ok=True), cut=Cut())


def _admitted_as(rollout: Rollout, task: Task, dial: str) -> str:
    """What the health of an admitted instance is known by."""
    return Beside(dial, rollout.version, rollout.id).key(task.upstream) if rollout.policy.beside else task.upstream


async def _watch(hands: Hands, rollout: Rollout, record: StepRecord, task: Task) -> Done:
    assert task.new_dial is not None, "what is watched has an address"
    failure = await stay_up(
        hands.probe, task.new_dial, since=record.started_at, watch_time=rollout.policy.watch_time, fall=hands.fall
    )
    return Done(await _explained(hands, rollout, task, failure))


async def retire(hands: Hands, policy: Policy, service: str, upstream: str, one: Beside, *, resumed: bool) -> Done:
    """Drain and stop an instance that is not to run beside the serving one any more."""
    assert one.retiring_at is not None, "it is being retired"
    await hands.routed()
    since = max(one.retiring_at, hands.left_at(one.dial))
    verdict, count = await drain(
        hands.pool, one.dial, since=since, quiet=policy.drain_quiet, timeout=policy.drain_timeout
    )
    if verdict is DrainVerdict.UNKNOWN:
        return Done(Outcome(False, unknown_reason(one.dial)))
    cut = cut_of(count) if verdict is DrainVerdict.TIMED_OUT else Cut()
    swap = Swap(
        action="retire",
        service=service,
        upstream=upstream,
        version=one.version,
        previous_version=None,
        dial=address(one.dial),
        previous_dial="",
        rollout=one.rollout,
        timeout=policy.swap_timeout,
        since=one.retiring_at,
        resumed=resumed,
    )
    return Done(await hands.driver(swap) if policy.retires else Outcome(ok=True), cut=cut)


def unknown_reason(dial: str) -> str:
    """Why a drain cannot go on without an in-flight count."""
    return (
        f"the requests open on {dial} cannot be counted: Caddy's admin API does not answer, or the address is "
        "also configured elsewhere in this Caddy (see `trafficd status`); nothing was stopped"
    )


def cut_of(count: Open | None) -> Cut:
    return Cut() if count is None else Cut(count.requests, count.streams)


async def _gate(hands: Hands, rollout: Rollout, record: StepRecord, task: Task) -> Done:
    assert task.new_dial is not None, "a gate has an address"
    # Only a new instance has to prove itself for the whole time; an old one that never stopped does not.
    swapped = StepKind.SWAP in task.steps
    failure = await gate(
        hands.probe,
        task.new_dial,
        since=record.started_at,
        min_healthy_time=rollout.policy.min_healthy_time if swapped else 0.0,
        deadline=rollout.policy.healthy_deadline,
    )
    return Done(await _explained(hands, rollout, task, failure))


async def _explained(hands: Hands, rollout: Rollout, task: Task, failure: str | None) -> Outcome:
    """How a gate ended, with what the instance itself says where its driver can ask it."""
    if failure is None:
        return Outcome(ok=True)
    said = None
    if isinstance(hands.driver, Explains):
        said = await hands.driver.explain(rollout.service, task.upstream, address(task.new_dial or "") or "")
    return Outcome(False, failure) if said is None else Outcome(False, f"{failure}; {said.reason}", said.output)


async def _drive(hands: Hands, rollout: Rollout, record: StepRecord, task: Task, *, resumed: bool) -> Done:
    retire = record.key.kind is StepKind.RETIRE
    swap = Swap(
        action="retire" if retire else "swap",
        service=rollout.service,
        upstream=task.upstream,
        version=(task.old_version if retire else task.new_version) or "",
        previous_version=None if retire else task.old_version,
        dial=address(task.old_dial if retire else task.new_dial),
        previous_dial="" if retire else address(task.old_dial) or "",
        rollout=rollout.id,
        timeout=rollout.policy.swap_timeout,
        since=record.started_at,
        resumed=resumed,
    )
    outcome = await hands.driver(swap)
    if address(task.old_dial) is None:
        outcome = replace(outcome, dial=None)  # a program that serves others too may name one; a worker has none
    if outcome.ok and not retire and (outcome.dial or task.new_dial) is None:
        why = hands.occupied(task.upstream) or "set its spare_dial"
        needs = f"there is no address for the new instance of {task.upstream} beside the old one: {why}"
        return Done(Outcome(False, f"{needs}, or let the driver print TRAFFICD_DIAL=host:port", outcome.output))
    refusal = None if retire or not outcome.ok else _unusable(hands, rollout, task, outcome.dial)
    return Done(outcome if refusal is None else Outcome(False, refusal, outcome.output))


def _unusable(hands: Hands, rollout: Rollout, task: Task, named: str | None) -> str | None:
    """Why the address that a driver named cannot be the new instance's, or None."""
    if named is None:
        return None
    if rollout.policy.order is Order.START_FIRST and named == task.old_dial:
        return f"the driver named {named} for the new instance, where the old one serves: it needs another address"
    other = hands.holder(task.upstream, named)
    return f"the driver named {named} for the new instance, which is an address of {other}" if other else None


async def _hook(hands: Hands, rollout: Rollout, record: StepRecord, extra: Mapping[str, str]) -> Outcome:
    environment = {
        "TRAFFICD_ACTION": record.key.kind.value,
        "TRAFFICD_SERVICE": rollout.service,
        "TRAFFICD_ROLLOUT": rollout.id,
        "TRAFFICD_DIRECTION": record.key.direction.value,
        **extra,
    }
    name = f"{rollout.id}-{record.key.upstream or 'once'}-{record.key.kind}-{record.started_at:.6f}"
    return await hands.hook(record.key.kind, name, environment, record.started_at)


def _hook_environment(rollout: Rollout, task: Task) -> dict[str, str]:
    return {
        "TRAFFICD_UPSTREAM": task.upstream,
        "TRAFFICD_VERSION": task.new_version or "",
        "TRAFFICD_PREVIOUS_VERSION": task.old_version or "",
        "TRAFFICD_DIAL": address(task.new_dial) or "",
        "TRAFFICD_PREVIOUS_DIAL": address(task.old_dial) or "",
    }


def describe(key: StepKey) -> str:
    """A step in words, for logs."""
    where = f" {key.upstream}" if key.upstream else ""
    back = " (revert)" if key.direction is Direction.REVERT else ""
    return f"{key.kind}{where}{back}"
