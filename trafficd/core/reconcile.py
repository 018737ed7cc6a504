"""What a changed configuration means for a service that the journal knows already. Pure.

The configuration says which upstreams there are and where; the journal says what has happened to them since.
So an upstream that the configuration still describes as before keeps all that the journal knows of it (the
version that runs there now, a drain, a removal by an operator). Only what was changed in the configuration
changes here, and not while a rollout works on these very upstreams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from trafficd.core import events as ev
from trafficd.core.model import Service
from trafficd.core.place import address


@dataclass(frozen=True)
class Configured:
    """One upstream as the configuration describes it."""

    id: str
    dial: str
    version: str | None = None
    spare_dial: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Changes:
    """What to journal, and what to tell the operator."""

    events: tuple[ev.Event, ...]
    notes: tuple[str, ...]


def reconcile(
    service: Service, past: Iterable[ev.Event], wanted: Sequence[Configured], *, routed: bool = True
) -> Changes:
    """The changes that bring a service, with its past events, to its configuration.

    `routed`: whether it has a route, or is a service of workers. What was added at run time cannot stay where that
    has changed: the proxy must never be given the place of a worker.
    """
    described = _described(past)
    events: list[ev.Event] = []
    notes: list[str] = []
    for upstream in wanted:
        before = described.get(upstream.id)
        same = before is not None and (before.dial, before.spare_dial) == (upstream.dial, upstream.spare_dial)
        if same and upstream.id not in service.upstreams:
            notes.append(f"{upstream.id} was removed by an operator and stays so; add it by the API to have it back")
        elif not same:
            events += _added(service, upstream)
        elif before is not None and before.group != upstream.group:
            events.append(ev.GroupSet(service.name, upstream.id, upstream.group))
    kept = {upstream.id for upstream in wanted}
    events += [
        ev.UpstreamRemoved(service.name, name, configured=True)
        for name in described
        if name not in kept and name in service.upstreams
    ]
    notes += [_left_running(event.upstream, service) for event in events if _leaves_more(event, service)]
    for name in sorted(set(strangers(service, routed=routed)) - kept - described.keys()):
        events.append(ev.UpstreamRemoved(service.name, name))
        notes.append(f"{name} was removed: it was added {'without' if routed else 'with'} an address")
    if events and service.live is not None:
        changed = ", ".join(sorted({str(getattr(event, "upstream", "")) for event in events}))
        return Changes(
            (),
            (
                f"the configuration of {changed} changed while rollout {service.live.id} is live; restart the daemon "
                "after it has ended to have the change",
            ),
        )
    if service.stable is None and (stable := _stable(wanted)) is not None:
        events.append(ev.StableSet(service.name, stable))
    return Changes(tuple(events), tuple(notes))


def _leaves_more(event: ev.Event, service: Service) -> TypeGuard[ev.UpstreamRemoved]:
    return isinstance(event, ev.UpstreamRemoved) and bool(service.upstreams[event.upstream].beside)


def _left_running(name: str, service: Service) -> str:
    more = ", ".join(f"{one.version} at {one.dial}" for one in service.upstreams[name].beside)
    return f"{name} was removed, and nobody looks after what runs beside it any more: stop {more} by hand"


def strangers(service: Service, *, routed: bool) -> list[str]:
    """The upstreams of the other kind: workers in a service with a route, addresses in one without."""
    return [upstream.id for upstream in service.upstreams.values() if (address(upstream.dial) is None) is routed]


def _described(past: Iterable[ev.Event]) -> dict[str, ev.UpstreamAdded]:
    """How the configuration described each upstream last."""
    described: dict[str, ev.UpstreamAdded] = {}
    for event in past:
        if isinstance(event, ev.UpstreamAdded) and event.configured:
            described[event.upstream] = event
        elif isinstance(event, ev.UpstreamRemoved) and event.configured:
            described.pop(event.upstream, None)
        elif isinstance(event, ev.GroupSet) and event.upstream in described:
            described[event.upstream] = replace(described[event.upstream], group=event.group)
    return described


def _added(service: Service, upstream: Configured) -> list[ev.Event]:
    """The upstream as now described; what is known of an instance that stays where it is is kept."""
    known = service.upstreams.get(upstream.id)
    places = (upstream.dial, upstream.spare_dial)
    if known is None or known.dial not in places:
        return [_event(service, upstream, upstream.dial, upstream.spare_dial, upstream.version)]
    spare = upstream.spare_dial if known.dial == upstream.dial else upstream.dial
    events: list[ev.Event] = [_event(service, upstream, upstream.dial, upstream.spare_dial, known.version)]
    if known.dial != upstream.dial:
        # What runs, runs at the second address: the roles were changed by a rollout.
        events.append(_event(service, upstream, known.dial, spare, known.version, configured=False))
    if known.drained:
        events.append(ev.DrainRequested(service.name, upstream.id, force=True, actor="configuration"))
    return events


def _event(
    service: Service,
    upstream: Configured,
    dial: str,
    spare: str | None,
    version: str | None,
    *,
    configured: bool = True,
) -> ev.UpstreamAdded:
    return ev.UpstreamAdded(service.name, upstream.id, dial, version, spare, configured, upstream.group)


def _stable(wanted: Sequence[Configured]) -> str | None:
    """The version most configured upstreams run; of equally many the first."""
    versions = Counter(upstream.version for upstream in wanted if upstream.version is not None)
    return versions.most_common(1)[0][0] if versions else None
