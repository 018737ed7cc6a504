"""A rollout that waits behind the live one, or takes over from it. Pure: the fold of its events, and what is next.

A service has at most one pending rollout; the newest wish wins, and the one it displaces ends as failed, with
nothing touched. What a pending one would do is decided when it begins, not when it was asked for: its policy (the
overrides are kept as asked, so percentages are taken of the upstreams of that moment), its upstreams, and what
runs on them.

queued      begins when the live one has ended as succeeded, reverted or failed. After stuck, which needs a person,
            it is paused: a resume begins it, an abort gives it up. A freeze that came meanwhile holds it. What has
            become hopeless ends as failed; nothing was touched.
superseding the live one is told to stop (`Superseded`): it begins nothing more, brings back nothing of what it
            replaced, and ends as failed. Then this one begins, whatever came meanwhile, because it has become
            answerable for upstreams that are half done: paused where somebody paused it, and with the revert of
            everything to the stable version where somebody aborted it. An abort of the live one goes first:
            it reverts, and the one that was to supersede it begins after, like one that was queued.

Invariants: nothing begins while another one is live (S10); a take-over takes nothing out of traffic (S11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from trafficd.core import beside, groups
from trafficd.core import events as ev
from trafficd.core.model import (
    Abort,
    Order,
    Phase,
    Policy,
    Rollout,
    Service,
    Setting,
    Wait,
    World,
)
from trafficd.core.place import address
from trafficd.core.routing import available

# The policy of a rollout by this strategy, with these overrides, over so many upstreams; or why there is none.
Terms = Callable[[str, Mapping[str, Setting], int], Policy | str]

_UNTOUCHED = "before it began; nothing was touched"


# -- the fold ------------------------------------------------------------------------------------------


def queued(service: Service, at: float, event: ev.RolloutQueued) -> Service:
    """One more wish, in the place of an older one. What that one was to take over from, this one is."""
    older = service.pending
    wish = Rollout(
        id=event.rollout,
        service=event.service,
        version=event.version,
        strategy=event.strategy,
        policy=Policy(),
        upstreams=(),
        previous={},
        started_at=at,
        changed_at=at,
        queued_at=at,
        overrides=event.overrides,
        supersedes=event.supersedes or (older.supersedes if older else None),
        actor=event.actor,
        message=event.message,
        key=event.key,
        phase=Phase.PENDING,
    )
    displaced = (*service.displaced, replace(older, superseded_by=wish.id)) if older else service.displaced
    return replace(service, queued=wish, displaced=displaced)


def waiting_event(service: Service, at: float, event: ev.RolloutEvent) -> Service | None:
    """The state after an event of a rollout that has not begun; None where it is of none such."""
    if isinstance(event, ev.RolloutEnded) and any(one.id == event.rollout for one in service.displaced):
        return replace(service, displaced=tuple(one for one in service.displaced if one.id != event.rollout))
    pending = service.pending
    if pending is None or pending.id != event.rollout:
        return None
    match event:
        case ev.Paused():
            pending = replace(pending, paused=True)
        case ev.Resumed():
            pending = replace(pending, paused=False)
        case ev.AbortRequested(revert=revert, actor=actor):
            pending = replace(pending, paused=False, abort=Abort(revert, actor), failure=aborted(actor))
            if takes_over(service):
                service = withdrawn(service)  # an abort moves traffic at once
        case ev.RolloutEnded(state=state, reason=reason):
            pending = replace(pending, phase=state, ended_at=at, reason=reason, paused=False)
        case _:
            return service
    return replace(service, queued=replace(pending, changed_at=at))


def aborted(actor: str, reason: str = "") -> str:
    """Who aborted, and why, in words."""
    return (f"aborted by {actor}" if actor else "aborted") + (f": {reason}" if reason else "")


def begun(service: Service, rollout: Rollout) -> Service:
    """The state with a rollout that has just begun; what was asked of it while it was pending still holds."""
    wish = service.pending
    if wish is not None and wish.id == rollout.id:
        rollout = replace(rollout, queued_at=wish.queued_at, overrides=wish.overrides, paused=wish.paused)
        if wish.abort is not None:
            rollout = replace(rollout, phase=Phase.ABORTING, abort=wish.abort, failure=wish.failure)
            service = withdrawn(service)
        service = replace(service, queued=None)
    out = tuple(name for name in rollout.upstreams if name in service.upstreams and _is_out(service, name))
    return replace(
        beside.begun(service, rollout),
        rollout=replace(rollout, out=out),
        mixing=None if rollout.abort or rollout.policy.beside else rollout.version,
        carried=_carried(service, rollout.version),
        canary_percent=None,
    )


def _is_out(service: Service, name: str) -> bool:
    return service.upstreams[name].serving is None


def withdrawn(service: Service) -> Service:
    """The state with traffic for the stable version only, as far as one of its instances is in service."""
    home = any(
        u.serving is not None and not u.drained and u.version in (None, service.stable)
        for u in service.upstreams.values()
    )
    return replace(service, mixing=None, carried=() if home else service.carried)


def superseded(service: Service, rollout: Rollout, by: str) -> Service:
    """The state with the live rollout told to stop for another one; an abort goes first, whenever it came."""
    if rollout.abort is not None:
        return service
    if service.pending is not None and service.pending.abort is not None:
        service = withdrawn(service)
    return replace(service, rollout=replace(rollout, superseded_by=by, paused=False))


def _carried(service: Service, version: str | None = None) -> tuple[str, ...]:
    """What serves beside the stable version goes on serving until its turn comes."""
    serving = {u.version for u in service.upstreams.values() if u.serving is not None}
    known = dict.fromkeys((*service.carried, service.mixing))
    return tuple(v for v in known if v is not None and v in serving and v not in (service.stable, version))


# -- what is next --------------------------------------------------------------------------------------


def takes_over(service: Service) -> bool:
    """Whether the pending rollout is to begin in the midst of another one, which was stopped for it."""
    pending, rollout = service.pending, service.rollout
    return pending is not None and rollout is not None and _for(pending, rollout) and rollout.superseded_by is not None


def _for(pending: Rollout, rollout: Rollout) -> bool:
    return pending.supersedes == rollout.id


def next_event(service: Service, world: World, now: float, terms: Terms | None) -> ev.RolloutEvent | None:
    """What is to be journalled about those that wait; nothing of them begins without `terms`."""
    if service.displaced:
        older = service.displaced[0]
        return _fails(older, f"superseded by {older.superseded_by}, {_UNTOUCHED}")
    pending, live = service.pending, service.live
    if pending is None:
        return None
    if pending.abort is not None and not takes_over(service):
        return given_up(pending)
    if live is not None:
        stops = _for(pending, live) and live.superseded_by != pending.id and supersedable(live)
        return ev.Superseded(live.service, live.id, pending.id) if stops else None
    if terms is None or (_held_back(service, now) is not None and not takes_over(service)):
        return None
    return _begin(service, pending, world, terms)


def supersedable(rollout: Rollout) -> bool:
    """Whether a rollout can still be stopped where it stands: a revert, once begun, is brought to its end."""
    return rollout.phase is Phase.RUNNING and rollout.abort is None and not rollout.policy.beside


def given_up(pending: Rollout, actor: str = "") -> ev.RolloutEnded:
    """The end of a pending rollout that somebody aborts."""
    return _fails(pending, f"{pending.failure or aborted(actor)} {_UNTOUCHED}")


def _fails(rollout: Rollout, reason: str) -> ev.RolloutEnded:
    return ev.RolloutEnded(rollout.service, rollout.id, Phase.FAILED, reason)


def _begin(service: Service, pending: Rollout, world: World, terms: Terms) -> ev.RolloutEvent:
    if not service.upstreams:
        return _fails(pending, f"service {service.name} has no upstreams any more; nothing was touched")
    policy = terms(pending.strategy, pending.overrides, len(service.upstreams))
    if isinstance(policy, str):
        return _fails(pending, f"{policy}; nothing was touched")
    problem = unfit(service, pending.version, policy) or hopeless(service, policy, world)
    if problem is not None and not takes_over(service):
        return _fails(pending, f"{problem}; nothing was touched")
    return started(
        service,
        policy,
        rollout=pending.id,
        version=pending.version,
        strategy=pending.strategy,
        actor=pending.actor,
        message=pending.message,
        key=pending.key,
        supersedes=pending.supersedes if takes_over(service) else None,
    )


def started(
    service: Service,
    policy: Policy,
    *,
    rollout: str,
    version: str,
    strategy: str,
    actor: str = "",
    message: str = "",
    key: str | None = None,
    supersedes: str | None = None,
) -> ev.RolloutStarted:
    """The beginning of a rollout, over the upstreams as they are now.

    Where versions that never made it still serve, a revert goes to the stable one and not to them.
    """
    mixed = supersedes is not None or bool(_carried(service))
    return ev.RolloutStarted(
        service=service.name,
        rollout=rollout,
        version=version,
        strategy=strategy,
        policy=policy,
        upstreams=tuple(service.upstreams),
        previous={name: upstream.version for name, upstream in service.upstreams.items()},
        actor=actor,
        message=message,
        key=key,
        supersedes=supersedes,
        back_to=service.stable if mixed else None,
    )


def unfit(service: Service, version: str, policy: Policy) -> str | None:
    """Why a version cannot be put beside the stable one now, or None."""
    if not policy.beside:
        return None
    others = sorted({v for v in (*service.carried, service.mixing) if v is not None and v != service.stable})
    if others:
        return (
            f"{service.name} serves {', '.join(others)} beside {service.stable or 'its stable version'}, since a "
            f"rollout did not come to its end: `trafficd rollback {service.name}` or a rolling deploy first"
        )
    if not policy.keeps:
        return None
    if version == service.stable:
        return f"{version} is the stable version of {service.name}, and has what the others leave: no share of its own"
    percent = policy.stages[-1].percent
    taken = {name: part for name, part in service.parts().items() if name != version}
    if sum(taken.values()) + percent > 100:
        said = ", ".join(f"{name} {part:g} %" for name, part in taken.items())
        return (
            f"{percent:g} % cannot be had beside {said}: lower one (`trafficd share {service.name} VERSION PERCENT`), "
            "or ask for less"
        )
    return None


def hopeless(service: Service, policy: Policy, world: World) -> str | None:
    """Why a rollout could only end in a time-out: all serve, and not one may be taken out; or a group is drained."""
    all_serve = len(available(service, world)) == len(service.upstreams)
    return (cramped(service, policy) if all_serve else None) or groups.parted(service, policy)


def cramped(service: Service, policy: Policy) -> str | None:
    """Why not one of a service's upstreams may be taken out once all of them serve, or None."""
    total = len(service.upstreams)
    if policy.order is not Order.STOP_FIRST or policy.min_ready < total:
        return None
    called = any(address(upstream.dial) for upstream in service.upstreams.values())
    start_first = 'Use order = "start_first" with a spare_dial, or set' if called else "Set"
    return (
        f"{service.name} has {total} upstream(s) and min_ready is {policy.min_ready}: replacing one would "
        f"leave {total - 1}. {start_first} min_ready = {total - 1}"
    )


# -- what is waited for --------------------------------------------------------------------------------


def waits(service: Service, now: float) -> tuple[Wait, ...]:
    """What the pending rollout waits for."""
    pending, live = service.pending, service.live
    if pending is None:
        return ()
    since = pending.queued_at or pending.started_at
    found = []
    if live is not None:
        stops = " to stop where it stands" if live.superseded_by else " to end"
        found.append(Wait(None, f"rollout {live.id} to {live.version}{stops}", since))
    held = _held_back(service, now)
    return (*found, held) if held is not None else tuple(found)


def _held_back(service: Service, now: float) -> Wait | None:
    """What a pending rollout waits for where none is live."""
    pending, freeze, before = service.pending, service.freeze, service.rollout
    if pending is None:
        return None
    if pending.paused:
        stuck = before is not None and before.phase is Phase.STUCK
        why = f"rollout {before.id} is stuck and needs a person first" if before and stuck else "paused"
        what = f"{why}: `trafficd resume {pending.id}` lets it begin, `trafficd abort {pending.id}` gives it up"
        return Wait(None, what, pending.changed_at)
    if freeze is not None and freeze.holds(now):
        by = f" by {freeze.actor}" if freeze.actor else ""
        what = f"the freeze{by} to end ({freeze.reason}), or `trafficd thaw {service.name}`"
        return Wait(None, what, pending.changed_at, freeze.until)
    return None
