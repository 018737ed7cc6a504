"""Instances beside the serving ones: the fold of what is said about them, and which are to be retired. Pure.

An instance comes to stand beside the serving one when a rollout admits it there, and when a flip makes the old one a
warm one. It goes by being retired: it gets no traffic from the moment that is journalled, is drained, and stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from trafficd.core import events as ev
from trafficd.core.model import Beside, Rollout, Service, Task, Upstream


def admitted(upstream: Upstream, rollout: Rollout, task: Task) -> Upstream:
    """The upstream with the task's new instance beside the serving one."""
    assert task.new_dial is not None, "an admitted task has its address"
    warm = next((one for one in upstream.beside if one.dial == task.new_dial), None)
    # What was warm is so again where the rollout does not make it.
    until = None if warm is None or warm.version != rollout.version else warm.keep_until
    new = Beside(task.new_dial, rollout.version, rollout.id, keep_until=until)
    rest = tuple(one for one in upstream.beside if one.dial != new.dial)
    return replace(upstream, beside=(*rest, new))


def without(upstream: Upstream, dial: str) -> Upstream:
    """The upstream with nothing beside it at this address."""
    return replace(upstream, beside=tuple(one for one in upstream.beside if one.dial != dial))


def kept(service: Service, version: str) -> Service:
    """The version stays beside the stable one until it is retired by hand."""
    return _changed(service, lambda one: replace(one, keep_until=None) if one.version == version else one)


def settled(service: Service, version: str, at: float) -> Service:
    """The version is the stable one: it has no share of its own, and what of it is left beside has had its time."""

    def over(one: Beside) -> Beside:
        return replace(one, keep_until=at) if one.version == version and one.keep_until is None else one

    return _changed(unshared(service, version), over)


def unshared(service: Service, version: str) -> Service:
    """The version has no share of its own any more."""
    return replace(service, shares={name: percent for name, percent in service.shares.items() if name != version})


def tidied(service: Service) -> Service:
    """No share is left of a version that runs nowhere: the next instance of it would have it before its turn."""
    runs = {one.version for _, one in service.besides()} | {u.version for u in service.upstreams.values()}
    return replace(service, shares={name: percent for name, percent in service.shares.items() if name in runs})


def _changed(service: Service, change: Callable[[Beside], Beside]) -> Service:
    upstreams = {
        name: replace(upstream, beside=tuple(change(one) for one in upstream.beside))
        for name, upstream in service.upstreams.items()
    }
    return replace(service, upstreams=upstreams)


def flipped(service: Service, rollout: Rollout, at: float) -> Service:
    """The new instances serve, and what served stays beside them. Addresses change roles."""
    upstreams = {name: _flipped(upstream, rollout, at) for name, upstream in service.upstreams.items()}
    return replace(service, upstreams=upstreams)


def _flipped(upstream: Upstream, rollout: Rollout, at: float) -> Upstream:
    new = upstream.other(rollout.version)
    if new is None or upstream.id not in rollout.upstreams:
        return upstream
    old = Beside(upstream.dial, upstream.version or "", rollout.id, keep_until=at + rollout.policy.keep_old)
    spare = upstream.dial if new.dial == upstream.spare_dial else upstream.spare_dial
    return replace(
        upstream,
        dial=new.dial,
        spare_dial=spare,
        version=rollout.version,
        serving=new.dial,
        unproven=False,
        ejection=None,
        beside=(*(one for one in upstream.beside if one.dial != new.dial), old),
    )


def begun(service: Service, rollout: Rollout) -> Service:
    """A rollout begins: what stays warm of any other version than its own has had its time."""

    def over(one: Beside) -> Beside:
        keeps = one.keep_until is None or (rollout.policy.beside and one.version == rollout.version)
        return one if keeps else replace(one, keep_until=0.0)

    return tidied(_changed(service, over))


def retire_event(service: Service, at: float, event: ev.RetireStarted | ev.RetireEnded) -> Service:
    """The state after an instance began to be retired, or was."""
    upstream = service.upstreams.get(event.upstream)
    if upstream is None:
        return service
    if isinstance(event, ev.RetireEnded):
        changed = without(upstream, event.dial)
    else:
        marked = (replace(one, retiring_at=at) if one.dial == event.dial else one for one in upstream.beside)
        changed = replace(upstream, beside=tuple(marked))
    changed_service = replace(service, upstreams={**service.upstreams, upstream.id: changed})
    return tidied(changed_service) if isinstance(event, ev.RetireEnded) else changed_service


def _warm(service: Service) -> Iterator[tuple[float, Upstream, Beside]]:
    """Until when (s since the epoch) each warm instance is kept. What has a share is no warm one any more, nor is what
    a rollout or a `ready` by hand is just bringing in."""
    live, parts = service.live, service.parts()
    for upstream, one in service.besides():
        wanted = one.version in parts or (live is not None and live.policy.beside and one.version == live.version)
        wanted = wanted or (upstream.gating is not None and upstream.gating.dial == one.dial)
        if one.keep_until is not None and not one.retiring and not wanted:
            yield one.keep_until, upstream, one


def next_event(service: Service, now: float) -> ev.RetireStarted | None:
    """The next instance that has been kept warm for long enough, if any."""
    for until, upstream, one in _warm(service):
        if until <= now:
            return ev.RetireStarted(service.name, upstream.id, one.dial, f"kept long enough: {one.version}")
    return None


def wake_at(service: Service) -> float | None:
    """When the next instance will have been kept warm for long enough (s since the epoch)."""
    return min((until for until, _, _ in _warm(service)), default=None)


def in_the_way(upstream: Upstream, task: Task) -> bool:
    """Whether something has to be retired before the task can begin: it is where the new instance would come up."""
    return any(one.retiring or (one.keep_until == 0.0 and one.version != task.new_version) for one in upstream.beside)
