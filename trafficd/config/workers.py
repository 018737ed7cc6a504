"""What a service without a route (`route = "none"`) must have, and what would mean nothing for it.

Refused is every key that is not known to make sense here, so that a key which is added later is looked at first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trafficd.config.faults import Clash, get, items

_SERVICE = ("route", "upstreams", "health", "rollout", "swap", "docker", "systemd", "hooks")
_NEVER_ASKED = 'Caddy never sees a service with route = "none"'

_MEANINGLESS = {
    ("rollout", "drain_timeout"): "no requests are open on a worker, so a drain waits for nothing; to let a worker end "
    "what it is at, quiet it in hooks.before_swap (hooks.timeout bounds that)",
    ("rollout", "drain_quiet"): "no requests are open on a worker, so a drain waits for nothing",
    ("swap", "retire"): 'is for order = "start_first", which a worker cannot have',
}


def missing_dials(given: Mapping[str, Any]) -> Iterator[Clash]:
    """The upstreams of a service with a route that do not say where they are."""
    for number, upstream in items(given.get("upstreams")):
        if isinstance(upstream, dict) and upstream.get("dial") is None:
            yield (
                ("upstreams", number, "dial"),
                'Field required (only a service with route = "none" has upstreams without)',
            )


def clashes(given: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Clash]:
    """What does not fit a service with route = "none"; `known` are the keys that a service may have at all."""
    for key in given:
        if key in known and key not in _SERVICE:
            yield (key,), f"{_NEVER_ASKED}, so this means nothing; leave it out"
    for number, upstream in items(given.get("upstreams")):
        for key in ("dial", "spare_dial"):
            if get(upstream, key) is not None:
                yield (
                    ("upstreams", number, key),
                    f"{_NEVER_ASKED}, so its upstreams have no address; leave it out (the swap command is told the id)",
                )
    if get(given.get("health"), "command") is None:
        yield (
            ("health", "command"),
            'nobody can ask a worker over HTTP: give command = ["program", "argument", ...], which exits 0 when the '
            "worker is healthy",
        )
    if get(given.get("rollout"), "order") == "start_first":
        yield (
            ("rollout", "order"),
            "a worker has no second address by which old and new could be told apart side by side; leave it out, and "
            "give the service another upstream if too few are left while one is replaced",
        )
    for (table, key), why in _MEANINGLESS.items():
        if get(given.get(table), key) is not None:
            yield (table, key), why
