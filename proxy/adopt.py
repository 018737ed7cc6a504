"""Take over a reverse_proxy handler of a running configuration, and give it back. Pure.

Nothing outside of the one handler is touched, and the handler keeps what it means: only its upstreams become
slots, and what would mean something else over slots is translated. One handler stays one handler, so upgraded
streams are counted as requests, unlike in a route of our own. Where its answers are to be logged, what that needs
comes with it (`proxy.adopt_log`) and goes with it.

Invariants: adopting what is adopted changes nothing; leaving twice changes nothing more. Both are pure
functions of a configuration, to be used as an edit under If-Match.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

from proxy import adopt_log
from proxy.candidates import Candidate, at, in_own_route, path_text, with_slots
from proxy.errors import CaddyRefusedError
from proxy.handler import Json, Route, let_sites_follow, unpin
from proxy.translate import translate

_EVEN = ("round_robin", "weighted_round_robin")


def adopt(config: Json, route: Route, candidate: Candidate) -> tuple[Json, list[str]]:
    """The configuration with this handler over the route's slots, and what is different, in words.

    Equal to `config`, with no notes, when it is so already. Raises `CaddyRefusedError` when the handler is not
    where it was found.
    """
    edited = copy.deepcopy(config)
    return edited, take_over(edited, route, candidate)


def take_over(config: Json, route: Route, candidate: Candidate) -> list[str]:
    """`adopt`, in place; what is different now, in words."""
    handler = at(config, candidate.path)
    if not isinstance(handler, dict) or handler.get("handler") != "reverse_proxy":
        raise CaddyRefusedError(
            f"services.{route.service}: there is no reverse_proxy handler at {path_text(candidate.path)} of Caddy's "
            "configuration any more; somebody else changed it in between. Look for it again"
        )
    translated, notes = translate(handler, route)
    if not translated.get("@id"):
        translated["@id"] = route.id
        notes.append(f'@id: set to "{route.id}", to find the handler again')
    _replace(handler, translated)
    return [*notes, *adopt_log.put(config, route, candidate)]


def leave(config: Json | None, route: Route, dials: Mapping[str, int]) -> Json:
    """The configuration with plain upstreams, of these weights by address, in place of the route's slots: in the
    handler that was adopted, and in a route of our own, which stays, but without pins: nobody would move them.

    Weights are written only where they differ, and only in place of an even policy: who is bound to an upstream
    by a cookie or an address stays so. Unchanged where no handler has the slots. Raises `CaddyRefusedError`
    when no address has a weight.
    """
    weights = {dial: weight for dial, weight in dials.items() if weight > 0}
    if not weights:
        raise CaddyRefusedError(
            f"services.{route.service}: no upstream has traffic now, so leaving would leave Caddy with nobody to "
            "send requests to; make one ready first"
        )
    edited: Json = copy.deepcopy(config) if config else {}
    unpin(edited, route)
    adopt_log.take_out(edited, route)
    for candidate in (*with_slots(edited, route), *in_own_route(edited, route)):
        _leave_handler(at(edited, candidate.path), route, weights)
    let_sites_follow(edited, route)
    return edited


def _leave_handler(handler: Json, route: Route, weights: Mapping[str, int]) -> None:
    handler["upstreams"] = [{"dial": dial} for dial in weights]
    balancing = handler.setdefault("load_balancing", {})
    policy = (balancing.get("selection_policy") or {}).get("policy", "random")
    if len(set(weights.values())) > 1 and policy in (*_EVEN, "random"):
        divisor = math.gcd(*weights.values())  # the policy sends blocks of requests: the smaller the better
        shares = [weight // divisor for weight in weights.values()]
        balancing["selection_policy"] = {"policy": "weighted_round_robin", "weights": shares}
    if handler.get("@id") == route.id:
        del handler["@id"]


def adopted(config: Json | None, route: Route) -> bool:
    """Whether a handler outside of our own routes has exactly this route's slots and nothing that overrides them,
    whether we adopted it or a Caddyfile imported our snippet."""
    return _adopted(config, route) != []


def as_wanted(config: Json | None, route: Route) -> bool:
    """Whether a handler is `adopted`, and its answers are logged if they are to be and can be."""
    return any(adopt_log.present(config or {}, route, candidate) for candidate in _adopted(config, route))


def unlogged(config: Json | None, route: Route) -> str | None:
    """Why the answers of the adopted handler are not logged though they are to be, in words."""
    found = (adopt_log.unlogged(config or {}, route, candidate) for candidate in _adopted(config, route))
    return next((why for why in found if why is not None), None)


def _adopted(config: Json | None, route: Route) -> list[Candidate]:
    found = with_slots(config, route)
    return [candidate for candidate in found if not at(config, candidate.path).get("dynamic_upstreams")]


def _replace(handler: Json, wanted: Json) -> None:
    handler.clear()
    handler.update(wanted)
