"""The fold: a service's state after one more event.

The same function replays the journal at start and advances the state in live operation, so a resumed
daemon stands exactly where the killed one stood. Folding never fails on a journal that this code wrote;
an event about something unknown (an upstream removed since) changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from trafficd.core import beside, queue, rollouts, upstreams
from trafficd.core import events as ev
from trafficd.core.judged import by_hand
from trafficd.core.model import Freeze, Maintenance, Service

_T = TypeVar("_T")


def fold(service: Service, history: Iterable[tuple[float, ev.Event]]) -> Service:
    """The state after all of `history`, pairs of (time, event), oldest first."""
    for at, event in history:
        service = advance(service, at, event)
    return service


def advance(service: Service, at: float, event: ev.Event) -> Service:
    """The state after one event that happened at `at`."""
    after = _after(service, at, event)
    # Whatever it was that changed who has the share: what was asked there before says nothing of what is there now.
    same = by_hand(after) == by_hand(service) or isinstance(event, ev.Snapshotted)  # which says it itself
    return after if same else replace(after, canary_at=at)


def _after(service: Service, at: float, event: ev.Event) -> Service:
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
            return upstreams.upstream_event(service, at, event)
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
            return rollouts.rollout_started(service, at, event)
        case _:
            waiting = queue.waiting_event(service, at, event)
            if waiting is not None:
                return waiting
            rollout = service.rollout
            # An end is an end: an abort that was journalled a moment too late must not bring the rollout back to
            # life at the next start.
            if rollout is None or rollout.id != event.rollout or not rollout.live:
                return service
            return rollouts.rollout_event(service, replace(rollout, changed_at=at), at, event)


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
            # Who takes it all away, after a promote too, is not overruled by that.
            live = replace(live, promoted=live.promoted and percent > 0)
            return replace(service, shares={**service.shares, live.version: percent}, rollout=live)
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
        canary_at=event.canary_at,
        shares=event.shares,
        pins=event.pins,
        held=event.held,
        freeze=event.freeze,
        history=event.history,
        carried=event.carried,
        maintenance=event.maintenance,
        left=event.left,
    )
