"""Who receives traffic: from a service's state and the probes' word to a weight per address.

Rules, in order:
1. In maintenance: Caddy's own static answer. Held: nobody; requests wait at the proxy.
2. Only an upstream that is in service (`serving`), not drained by an operator, and whose version is the
   stable one or takes part in a live rollout is a candidate.
3. Candidates that are up share equally, but for the slow start of those that were just put back. When all of them
   look dead the routing stays as it is: probes that see nobody alive are more often wrong than right (the panic
   threshold). An ejected one (`outliers`) counts as not up, unless no other is.
4. Versions beside the stable one have their own shares, of whole slots, rounded down: never more, whatever happens to
   the stable ones. While a rollout moves a share, the others have no more than what it leaves. Where no stable one is
   left, or nobody can connect to any, requests wait at the proxy: it looks for a slot until it has found one that it
   can connect to, so whoever had one would get them all.
5. When there is no candidate at all, whoever serves now keeps serving: old news beats no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from trafficd.core.model import FULL, Health, Service, Upstream, World
from trafficd.core.place import address

_HAND = ""  # the group of versions whose share was set by hand, for all of them together
_EPSILON = 1e-6  # of a slot: what a percentage may lose by being no binary fraction
_UNSHARED = (
    "no instance of the stable version can be reached, and those beside it get no more than their share, so requests "
    "wait at the proxy: bring one back, or give another version 100 %"
)
PREVIEW = "preview"  # the pin that leads to what a rollout is about to give a share


@dataclass(frozen=True)
class Routing:
    """Weights per address; empty means nobody. `panic` says why health was set aside, if it was. `pins`: the weights
    for requests that are pinned; a pin that is not named follows all others."""

    weights: Mapping[str, int]
    panic: str | None = None
    pins: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Group(NamedTuple):
    """Addresses that share a part of the traffic, in percent."""

    percent: float
    dials: tuple[str, ...]


def route(service: Service, world: World) -> Routing:
    """The weights that the proxy should have now."""
    if service.maintenance is not None:
        return Routing({service.maintenance.dial: 1})
    if service.held:
        return Routing({})
    serving = [u for u in service.upstreams.values() if u.serving is not None and not u.drained]
    regular = [u for u in serving if service.regular(u)]
    groups = _groups(service, world)
    pins = _pins(service, world)
    # Where nobody of the stable version is left, the others go on as before, but where they have a share of their own.
    chosen, panic = _alive(regular, regular if groups else serving, world)
    if groups:
        stable = _dials([u for u in chosen if u.id not in world.unreachable])
        if not stable and sum(group.percent for group in groups) < 100 - _EPSILON:
            return Routing({}, _UNSHARED, pins)
        return Routing(_apportioned(groups, stable, world), panic, pins)
    stable = _dials(chosen)
    return Routing(
        {dial: world.warmth.get(dial, FULL) for dial in stable} if world.warmth else _equal(stable), panic, pins
    )


def available(service: Service, world: World) -> frozenset[str]:
    """The ids of the upstreams that carry traffic and are up: what `min_ready` counts. In maintenance, and while
    requests are held: those that would, as they will have to in a moment."""
    weights = route(replace(service, maintenance=None, held=False), world).weights

    def carries(upstream: Upstream) -> bool:
        if upstream.serving and weights.get(upstream.serving, 0) > 0 and world.up(upstream.id):
            return True
        return any(weights.get(one.dial, 0) > 0 and world.up(one.key(upstream.id)) for one in upstream.beside)

    return frozenset(u.id for u in service.upstreams.values() if carries(u))


def carrying(service: Service, world: World) -> frozenset[str]:
    """The ids of the upstreams that carry traffic, up or not. In maintenance, and while requests are held: those that
    would."""
    weights = route(replace(service, maintenance=None, held=False), world).weights
    upstreams = service.upstreams.values()
    places = {u.id: (u.serving, *(one.dial for one in u.beside)) for u in upstreams}
    return frozenset(name for name, dials in places.items() if any(weights.get(dial or "", 0) > 0 for dial in dials))


def instances(service: Service, version: str) -> Iterator[tuple[str, str]]:
    """Where a version runs beside the stable one, and takes part: (what its health is known by, address)."""
    for upstream in service.upstreams.values():
        if upstream.drained:
            continue
        if upstream.version == version and upstream.serving is not None and not service.regular(upstream):
            yield upstream.id, upstream.serving
        other = upstream.other(version)
        if other is not None:
            yield other.key(upstream.id), other.dial


# -- versions beside the stable one --------------------------------------------------------------------


def _up(service: Service, version: str, world: World) -> tuple[str, ...]:
    return tuple(dial for key, dial in instances(service, version) if world.up(key))


def _groups(service: Service, world: World) -> list[Group]:
    """The shares of versions beside the stable one, as far as an instance of them is up."""
    parts = service.parts()
    found = {version: Group(percent, _up(service, version, world)) for version, percent in parts.items()}
    if service.canary_percent:
        others = [u for u in service.upstreams.values() if u.serving and not u.drained and not service.regular(u)]
        dials = _dials([u for u in others if u.version not in parts and world.up(u.id)])
        found[_HAND] = Group(service.canary_percent, tuple(dials))
    groups = {version: group for version, group in found.items() if group.dials and group.percent}
    live = service.live
    first = groups.pop(live.version, None) if live is not None else None
    left = 100.0 - (first.percent if first else 0.0)
    wanted = sum(group.percent for group in groups.values())
    scale = min(1.0, left / wanted) if wanted else 1.0
    rest = [Group(group.percent * scale, group.dials) for group in groups.values()]
    return ([first] if first else []) + [group for group in rest if group.percent > 0]


def _pins(service: Service, world: World) -> dict[str, dict[str, int]]:
    pinned = dict(service.pins)
    live = service.live
    if live is not None and live.policy.beside and not live.failing:
        pinned.setdefault(PREVIEW, live.version)
    stable = [u for u in service.upstreams.values() if u.version == service.stable and service.regular(u)]
    home = _dials([u for u in stable if not u.drained and world.up(u.id)])
    found = {
        pin: _equal(home if version == service.stable else _up(service, version, world))
        for pin, version in pinned.items()
    }
    return {pin: weights for pin, weights in found.items() if weights}


def _apportioned(groups: Sequence[Group], stable: Sequence[str], world: World) -> dict[str, int]:
    """Whole slots per address. What rounding leaves over is the stable version's, where one of it is in service."""
    weights: dict[str, int] = {}
    for group in groups:
        weights |= _split(int(group.percent * world.slots / 100 + _EPSILON), group.dials, world)
    rest = world.slots - sum(weights.values())
    if stable:
        weights |= _split(rest, stable, world)
    return {dial: weight for dial, weight in weights.items() if weight}


def _split(slots: int, dials: Sequence[str], world: World) -> dict[str, int]:
    """So many slots among these addresses, by their warmth; the odd ones to who has the most already, so that few
    slots move."""
    warmth = {dial: world.warmth.get(dial, FULL) for dial in dials}
    total = sum(warmth.values())
    counts = {dial: slots * part // total for dial, part in warmth.items()}
    odd = slots - sum(counts.values())
    first = sorted(dials, key=lambda dial: (-(slots * warmth[dial] % total), -world.shares.get(dial, 0), dial))
    for dial in first[:odd]:
        counts[dial] += 1
    return counts


# -- the stable version --------------------------------------------------------------------------------


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


def _dials(upstreams: Sequence[Upstream]) -> list[str]:
    return [u.serving for u in upstreams if u.serving is not None]


def _equal(dials: Sequence[str]) -> dict[str, int]:
    return dict.fromkeys(dials, 1)
