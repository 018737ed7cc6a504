"""What a stranger's reverse_proxy handler becomes over slots. Pure.

Over slots an upstream of Caddy's is no longer an instance: one instance stands behind many slots, and a slot
behind which another instance stands now keeps the counts and failures of the one before. So what is counted or
judged per upstream loses its meaning and is taken out or translated; all else in the handler stays as it is.
Each change comes with a note for the person who is asked to agree. Invariant: translating twice changes
nothing more, and notes nothing.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from proxy.candidates import slot_dials
from proxy.handler import Json, Route, duration

_NOTHING: list[Json] = [{"not": [{"path": ["*"]}]}]
_MATCHES_NOTHING: tuple[list[Json], ...] = (_NOTHING, [{"not": [{}]}])
_EVEN = "round_robin"
# Policies that weigh or count upstreams, or prefer some; and why they cannot stay.
_POLICIES = {
    "weighted_round_robin": "its weights belong to upstreams by position; over slots a share is a number of slots",
    "least_conn": "it would compare what is open on slots, not on instances",
    "first": "it would send everything to the first slot; over slots an instance is preferred by weight",
}
_HEALTH = {
    "uri": "path",
    "path": "path",
    "interval": "interval",
    "timeout": "timeout",
    "passes": "rise",
    "fails": "fall",
}
_TIMES = ("interval", "timeout", "fail_duration", "unhealthy_latency")


def translate(handler: Json, route: Route) -> tuple[Json, list[str]]:
    """The handler over this route's slots, and what is different in it, in words."""
    translated = copy.deepcopy(handler)
    notes: list[str] = []
    _take_dynamic_upstreams(translated, notes)
    _take_health_checks(translated, route, notes)
    _set_upstreams(translated, route, notes)
    _set_load_balancing(translated, route, notes)
    if route.stream_close_delay and _unset(translated.get("stream_close_delay")):
        translated["stream_close_delay"] = duration(route.stream_close_delay)
        notes.append(
            f"stream_close_delay: set to {translated['stream_close_delay']}, so that a reload of Caddy cuts no stream"
        )
    return translated, notes


def _set_upstreams(handler: Json, route: Route, notes: list[str]) -> None:
    present = [upstream if isinstance(upstream, dict) else {} for upstream in handler.get("upstreams") or []]
    limits = sorted({limit for u in present if isinstance(limit := u.get("max_requests"), int) and limit})
    if limits:
        text = ", ".join(str(limit) for limit in limits)
        notes.append(
            f"upstreams.max_requests = {text}: taken out, it would limit each slot; Caddy cannot cap an instance"
        )
    wanted = list(slot_dials(route))
    if [str(upstream.get("dial", "")).removeprefix("tcp/") for upstream in present] == wanted and not limits:
        return  # the slots are there, in one spelling or the other
    dials = ", ".join(str(upstream.get("dial", "?")) for upstream in present) or "none"
    were = "other slots" if "{file." in dials else dials
    notes.append(
        f"upstreams: {were} become {route.slots} slots; who answers is then up to services.{route.service}.upstreams"
    )
    handler["upstreams"] = [{"dial": dial} for dial in wanted]


def _take_dynamic_upstreams(handler: Json, notes: list[str]) -> None:
    source = handler.pop("dynamic_upstreams", None)
    if source:
        notes.append(f"dynamic_upstreams: taken out, they would replace the slots; they were {_text(source)}")


def _take_health_checks(handler: Json, route: Route, notes: list[str]) -> None:
    checks = handler.pop("health_checks", None)
    if not isinstance(checks, dict):
        return
    left = {key: value for key, value in checks.items() if key not in ("active", "passive")}
    if left:
        handler["health_checks"] = left  # what we do not know is not ours to judge
    if isinstance(checks.get("active"), dict):
        notes.append(_active_note(checks["active"], route))
    if isinstance(checks.get("passive"), dict):
        settings = {key: _readable(key, value) for key, value in checks["passive"].items()}
        notes.append(
            f"health_checks.passive: taken out ({_text(settings)}), failures would stay with a slot when another "
            "instance stands behind it; trafficd's own probes decide who is ready"
        )


def _active_note(active: Json, route: Route) -> str:
    known = {_HEALTH[key]: _readable(key, value) for key, value in active.items() if key in _HEALTH and value}
    rest = {key: value for key, value in active.items() if key not in _HEALTH and value}
    # TOML writes texts, numbers and arrays of them as JSON does.
    lines = ", ".join(f"{key} = {_text(value)}" for key, value in known.items()) or "nothing of it"
    also = f"; it also had {_text(rest)}" if rest else ""
    return (
        "health_checks.active: taken out, every slot would be probed; trafficd probes each instance itself. "
        f"For the same checks set in [services.{route.service}.health]: {lines}{also}"
    )


def _set_load_balancing(handler: Json, route: Route, notes: list[str]) -> None:
    balancing = handler.get("load_balancing")
    balancing = handler["load_balancing"] = balancing if isinstance(balancing, dict) else {}
    retries = balancing.pop("retries", None)
    if retries:
        notes.append(
            f"load_balancing.retries = {retries}: taken out, a request that meets a dead instance waits until its "
            "slots are repointed instead of failing after a few tries"
        )
    _set_retry_match(balancing, notes)
    for key, seconds in (("try_duration", route.try_duration), ("try_interval", route.try_interval)):
        if _unset(balancing.get(key)):
            balancing[key] = duration(seconds)
            notes.append(f"load_balancing.{key}: set to {balancing[key]}, how requests wait while nobody is ready")
    if "selection_policy" in balancing:
        balancing["selection_policy"] = _policy(balancing["selection_policy"], "load_balancing.selection_policy", notes)


def _set_retry_match(balancing: Json, notes: list[str]) -> None:
    present = balancing.get("retry_match")
    if present in _MATCHES_NOTHING:
        return
    balancing["retry_match"] = copy.deepcopy(_NOTHING)
    was = f"{_text(present)} becomes a matcher that matches nothing" if present else "set to match nothing"
    notes.append(
        f"load_balancing.retry_match: {was}, so that no request is delivered twice while it may be tried again"
    )


def _policy(policy: Any, place: str, notes: list[str]) -> Any:
    """A selection policy that means the same over slots; those by hash stick to a slot, and stay."""
    if not isinstance(policy, dict):
        return policy
    name = policy.get("policy")
    if isinstance(name, str) and name in _POLICIES:
        weights = f" (weights {_text(policy['weights'])})" if policy.get("weights") else ""
        notes.append(f"{place}: {name}{weights} becomes {_EVEN}: {_POLICIES[name]}")
        return {"policy": _EVEN}
    if "fallback" in policy:
        return {**policy, "fallback": _policy(policy["fallback"], f"{place}.fallback", notes)}
    return policy


def _unset(value: Any) -> bool:
    return value in (None, 0, "", "0", "0s")


def _readable(key: str, value: Any) -> Any:
    """Caddy's JSON has times as text or as nanoseconds; people want the text."""
    if key in _TIMES and isinstance(value, int):
        return duration(value / 1e9)
    return value


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
