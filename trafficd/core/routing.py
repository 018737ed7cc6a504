"""Who receives traffic: from a service's state and the probes' word to a weight per address.

Rules, in order:
1. In maintenance: Caddy's own static answer. Held: nobody; requests wait at the proxy.
2. Only an upstream that is in service (`serving`), not drained by an operator, and whose version is the
   stable one or takes part in a live rollout is a candidate.
3. Candidates that are up share equally. When all of them look dead the routing stays as it is: probes
   that see nobody alive are more often wrong than right (the panic threshold). An ejected one (`outliers`)
   counts as not up, unless no other is.
4. A canary share belongs to the ready upstreams of other versions, whatever happens to the stable ones.
5. When there is no candidate at all, whoever serves now keeps serving: old news beats no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trafficd.core.model import Health, Service, Upstream, World
from trafficd.core.place import address

_SCALE = 1000  # canary percentages are honoured to a thousandth of a percent


@dataclass(frozen=True)
class Routing:
    """Weights per address; empty means nobody. `panic` says why health was set aside, if it was."""

    weights: Mapping[str, int]
    panic: str | None = None


def route(service: Service, world: World) -> Routing:
    """The weights that the proxy should have now."""
    if service.maintenance is not None:
        return Routing({service.maintenance.dial: 1})
    if service.held:
        return Routing({})
    serving = [u for u in service.upstreams.values() if u.serving is not None and not u.drained]
    regular = [u for u in serving if service.regular(u)]
    others = [u for u in serving if not service.regular(u)]
    canaries = [u for u in others if world.up(u.id)]
    if service.canary_percent and canaries:
        chosen, panic = _alive(regular, regular, world)
        return Routing(_shared(chosen, canaries, service.canary_percent), panic)
    chosen, panic = _alive(regular, serving, world)
    return Routing(_equal(chosen), panic)


def available(service: Service, world: World) -> frozenset[str]:
    """The ids of the upstreams that carry traffic and are up: what `min_ready` counts. In maintenance, and while
    requests are held: those that would, as they will have to in a moment."""
    weights = route(replace(service, maintenance=None, held=False), world).weights
    return frozenset(
        u.id for u in service.upstreams.values() if u.serving and weights.get(u.serving, 0) > 0 and world.up(u.id)
    )


def _alive(
    candidates: Sequence[Upstream], fallback: Sequence[Upstream], world: World
) -> tuple[list[Upstream], str | None]:
    """The candidates that are up; where none is, whoever of `fallback` the proxy sends to now."""
    up = [u for u in candidates if world.up(u.id)]
    if kept := [u for u in up if not u.ejected]:
        return kept, None
    if up:
        return up, f"only upstreams that were ejected are up ({', '.join(u.id for u in up)}), so they serve"
    kept = _current(fallback, world)
    if not any(world.health.get(u.id) is Health.DOWN for u in candidates):
        return kept, None  # none in service, or none probed yet
    if not kept and world.shares:
        kept = list(candidates)
    if all(address(u.dial) is None for u in candidates):
        return kept, f"all {len(candidates)} workers look dead"
    return kept, f"all {len(candidates)} upstreams look dead; the routing stays as it is"


def _current(candidates: Sequence[Upstream], world: World) -> list[Upstream]:
    return [u for u in candidates if u.serving is not None and world.shares.get(u.serving, 0) > 0]


def _equal(upstreams: Sequence[Upstream]) -> dict[str, int]:
    return {u.serving: 1 for u in upstreams if u.serving is not None}


def _shared(stable: Sequence[Upstream], canaries: Sequence[Upstream], percent: float) -> dict[str, int]:
    share = round(percent * _SCALE)
    rest = 100 * _SCALE - share
    weights = {u.serving: rest * len(canaries) for u in stable if u.serving is not None and rest}
    if share:
        weights |= {u.serving: share * max(1, len(stable)) for u in canaries if u.serving is not None}
    return weights
