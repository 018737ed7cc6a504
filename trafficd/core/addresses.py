"""Whose an address is. Pure.

No two upstreams may be at one address: what is open there would be nobody's, and a swap of the one would stop the
other. An address is taken by who is there, by who will be, and by who is just being moved there or away.
"""

from __future__ import annotations

from collections.abc import Iterable

from trafficd.core.model import Service


def taken(service: Service, name: str) -> set[str]:
    """The addresses that an upstream has, will have, or is just being moved to or from."""
    upstream, rollout = service.upstreams[name], service.live
    found = {upstream.dial, upstream.spare_dial, upstream.gating.dial if upstream.gating else None}
    found |= {one.dial for one in upstream.beside}
    if rollout is not None:
        for task in (rollout.forward.get(name), rollout.revert.get(name)):
            found |= {task.old_dial, task.new_dial} if task is not None and not task.done else set()
    return {address for address in found if address is not None}


def holder(service: Service, address: str, but: str | None = None) -> str | None:
    """The upstream, other than `but`, whose address this is."""
    return next((name for name in service.upstreams if name != but and address in taken(service, name)), None)


def elsewhere(services: Iterable[Service], address: str) -> str | None:
    """Whose an address is among other services, in words."""
    found = ((service.name, holder(service, address)) for service in services)
    return next((f"upstream {upstream} of service {name}" for name, upstream in found if upstream), None)
