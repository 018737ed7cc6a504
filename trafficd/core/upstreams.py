"""What an event changes of one upstream: where it serves, whether it is drained, its gate by hand, its ejection."""

from __future__ import annotations

from dataclasses import replace

from trafficd.core import beside
from trafficd.core import events as ev
from trafficd.core.model import Beside, Ejection, Gating, Service, Upstream

OfUpstream = (  # what changes an upstream that is there
    ev.GroupSet
    | ev.DrainRequested
    | ev.DrainEnded
    | ev.ReadyRequested
    | ev.ReadyEnded
    | ev.UpstreamEjected
    | ev.UpstreamReturned
)


def upstream_event(service: Service, at: float, event: ev.ServiceEvent) -> Service:
    """The state after one event of one upstream."""
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
        return service.with_upstream(added)
    if not isinstance(event, ev.UpstreamRemoved | OfUpstream):
        return service
    upstream = service.upstreams.get(event.upstream)
    if upstream is None:
        return service
    if isinstance(event, ev.UpstreamRemoved):
        rest = {key: value for key, value in service.upstreams.items() if key != event.upstream}
        return beside.tidied(replace(service, upstreams=rest))
    return service.with_upstream(_changed(upstream, at, event))


def _changed(upstream: Upstream, at: float, event: OfUpstream) -> Upstream:
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
