"""Where an instance runs: an address that is dialled, or the place of a worker, which nobody calls. Pure.

All that decides (the fold, the plan, the routing) knows a place only as a text that no other instance has, so a service
without a route goes through the same steps as any other. The place of a worker is made of its id. It is no address,
because no address has a slash in it; it stands in the journal, while programs and people are told of no address at all.
"""

from __future__ import annotations

from typing import NamedTuple

from trafficd.core.model import Service, Upstream

_WORKER = "worker/"


class Expected(NamedTuple):
    """Whose instance is at a place, and its version, None where nobody said."""

    upstream: str
    version: str | None


def worker(upstream: str) -> str:
    """The place of a worker."""
    return _WORKER + upstream


def address(place: str | None) -> str | None:
    """The address of a place; None where it has none, or where there is no place yet."""
    return None if place is None or place.startswith(_WORKER) else place


def expected(service: Service, place: str) -> Expected | None:
    """What should be running at a place now; None when it is nobody's."""
    for upstream in service.upstreams.values():
        found = _expected_of(service, upstream, place)
        if found is not None:
            return found
    return None


def _expected_of(service: Service, upstream: Upstream, place: str) -> Expected | None:
    if upstream.gating is not None and upstream.gating.dial == place:
        return Expected(upstream.id, upstream.gating.version)
    if upstream.dial == place:
        return Expected(upstream.id, upstream.version)
    other = next((one for one in upstream.beside if one.dial == place), None)
    if other is not None:
        return Expected(upstream.id, other.version)
    # Beside the old instance: a rollout is bringing one version or the other up at its second place.
    live = service.live
    for task in (live.revert.get(upstream.id), live.forward.get(upstream.id)) if live else ():
        if task is not None and task.new_dial == place:
            return Expected(upstream.id, task.new_version)
    return Expected(upstream.id, None) if upstream.spare_dial == place else None
