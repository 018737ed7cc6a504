"""The reverse_proxy handlers of a running configuration, and which of them is a service's. Pure.

Handlers stand wherever Caddy lets them: in routes, in subroutes of routes, behind the answer of another
proxy, on the way of errors. All of them are looked at, and one is chosen only when it is the only one that
fits: to take over a stranger's handler would send its users to the wrong application.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.errors import CaddyRefusedError
from proxy.handler import PROBE_ID, Json, Route, placeholder
from proxy.model import slot_name

Path = tuple[str | int, ...]
"""Keys and indices that lead to a place in a configuration."""

_OURS = "trafficd-"  # the ids of our own routes, and of adopted handlers that had none
_NETWORK = "tcp/"  # a Caddyfile cannot name a placeholder as an address without it
_DIALS_SHOWN = 4


@dataclass(frozen=True)
class Candidate:
    """A reverse_proxy handler. `ids`: those of the places around it, the nearest first; `hosts`: those that lead
    to it, none where any host does."""

    path: Path
    server: str
    own_id: str | None = None
    ids: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    dials: tuple[str, ...] = ()

    @property
    def id(self) -> str | None:
        """The `@id` that it is called by: its own, else the nearest around it."""
        return self.own_id or next(iter(self.ids), None)

    def __str__(self) -> str:
        hosts = ", ".join(self.hosts) or "any host"
        dials = ", ".join(self.dials[:_DIALS_SHOWN]) or "no upstreams"
        more = f" and {len(self.dials) - _DIALS_SHOWN} more" if len(self.dials) > _DIALS_SHOWN else ""
        name = f'@id "{self.id}"' if self.id else "no @id"
        return f"server {self.server!r}, {name}, {hosts} -> {dials}{more} (at {path_text(self.path)})"


@dataclass(frozen=True)
class _Around:
    """What the places around a handler say of it."""

    server: str
    listen: tuple[str, ...]
    ids: tuple[str, ...] = field(default=())
    hosts: tuple[str, ...] = field(default=())

    def inside(self, place: Json) -> _Around:
        ids = (str(place["@id"]), *self.ids) if place.get("@id") else self.ids
        return _Around(self.server, self.listen, ids, narrowed(self.hosts, matched_hosts(place)))


def path_text(path: Path) -> str:
    """A place as a person reads it: `apps.http.servers.srv0.routes.0`; keys with dots in quotes."""
    return ".".join(f'"{key}"' if "." in str(key) or key == "" else str(key) for key in path)


def slot_dials(route: Route) -> tuple[str, ...]:
    """The upstreams of a handler that has this route's slots, one a slot."""
    return tuple(placeholder(f"{route.slots_path}/{slot_name(i)}") for i in range(route.slots))


def has_slots(candidate: Candidate, route: Route) -> bool:
    """Whether its upstreams are exactly this route's slots, however they were brought there."""
    return tuple(dial.removeprefix(_NETWORK) for dial in candidate.dials) == slot_dials(route)


# -- finding all ---------------------------------------------------------------------------------------


def candidates(config: Json | None) -> list[Candidate]:
    """Every reverse_proxy handler of the HTTP servers, however deep."""
    place: Any = config
    for key in ("apps", "http", "servers"):
        place = _object(place).get(key)
    found: list[Candidate] = []
    for name, server in _object(place).items():
        listen = tuple(str(address) for address in _array(_object(server).get("listen")))
        found.extend(_walk(server, ("apps", "http", "servers", name), _Around(name, listen)))
    return found


def _walk(value: Any, path: Path, around: _Around) -> Iterator[Candidate]:
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, (*path, index), around)
    elif isinstance(value, dict):
        if value.get("handler") == "reverse_proxy":
            yield _candidate(value, path, around)
        within = around.inside(value)
        for key, inner in value.items():
            yield from _walk(inner, (*path, key), within)


def _candidate(handler: Json, path: Path, around: _Around) -> Candidate:
    own_id = str(handler["@id"]) if handler.get("@id") else None
    dials = tuple(str(_object(u).get("dial", "")) for u in _array(handler.get("upstreams")))
    return Candidate(path, around.server, own_id, around.ids, around.hosts, around.listen, dials)


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _array(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# -- hosts ---------------------------------------------------------------------------------------------


def matched_hosts(place: Json) -> tuple[str, ...]:
    """The hosts a route is limited to; none unless each of its alternatives names some."""
    if "handle" not in place:
        return ()  # not a route: response matchers, for one, are called `match` too
    named = [_array(_object(alternative).get("host")) for alternative in _array(place.get("match"))]
    if not named or not all(named):
        return ()
    return tuple(dict.fromkeys(str(host).lower() for hosts in named for host in hosts))


def narrowed(outer: tuple[str, ...], inner: tuple[str, ...]) -> tuple[str, ...]:
    """The hosts that get through both."""
    if not outer or not inner:
        return outer or inner
    both = [host for host in inner if _covered(host, outer)] + [host for host in outer if _covered(host, inner)]
    return tuple(dict.fromkeys(both)) or inner  # a route that nothing reaches still has its name


def _covered(host: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches it; in Caddy's patterns a `*` stands for one label."""
    labels = host.split(".")
    return any(
        len(pattern) == len(labels) and all(p in ("*", label) for p, label in zip(pattern, labels, strict=True))
        for pattern in (text.split(".") for text in patterns)
    )


# -- choosing one --------------------------------------------------------------------------------------


def find(config: Json | None, route: Route, adopt_id: str | None = None) -> Candidate:
    """The handler that is to serve this service: by `adopt_id`, else the one that has its slots already, else by
    its hosts, else the only one there is. Raises `CaddyRefusedError` unless it is exactly one."""
    others = [candidate for candidate in candidates(config) if not _is_ours(candidate, route)]
    fitting = _fitting(others, route, adopt_id)
    if len(fitting) == 1:
        return fitting[0]
    raise CaddyRefusedError(_refusal(fitting, others, route, adopt_id))


def _is_ours(candidate: Candidate, route: Route) -> bool:
    """Whether it belongs to a route of our own, or was adopted for another service."""
    own = candidate.own_id if candidate.own_id != route.id else None
    return probes(candidate) or _has_our_id(own, *candidate.ids)


def steered(candidate: Candidate) -> bool:
    """Whether it is ours already, for whichever service: a route of our own, an adopted handler, slots."""
    slots = any("{file." in dial and "/current/" in dial for dial in candidate.dials)
    return slots or _has_our_id(candidate.own_id, *candidate.ids)


def _has_our_id(*ids: str | None) -> bool:
    return any(name.startswith(_OURS) for name in ids if name is not None)


def probes(candidate: Candidate) -> bool:
    """Whether it serves nobody: the server on the loopback by which it is proved that Caddy reads slots."""
    return candidate.server == PROBE_ID


def _fitting(others: Sequence[Candidate], route: Route, adopt_id: str | None) -> list[Candidate]:
    if adopt_id is not None:
        called = [candidate for candidate in others if candidate.own_id == adopt_id]
        return called or [candidate for candidate in others if adopt_id in candidate.ids]
    adopted = [candidate for candidate in others if has_slots(candidate, route)]
    if adopted:
        return adopted
    if not route.hosts:
        return list(others)
    wanted = {host.lower() for host in route.hosts}
    return [candidate for candidate in others if wanted <= set(candidate.hosts)]


def _refusal(fitting: Sequence[Candidate], others: Sequence[Candidate], route: Route, adopt_id: str | None) -> str:
    sought = "of any host"
    if adopt_id is not None:
        sought = f'with the @id "{adopt_id}"'
    elif route.hosts:
        sought = f"for {', '.join(route.hosts)}"
    place = f"services.{route.service}: Caddy's configuration has"
    if not others:
        return f'{place} no reverse_proxy handler to adopt; load one into Caddy, or set route = "own"'
    listed = "".join(f"\n  - {candidate}" for candidate in fitting or others)
    count = f"{len(fitting)} reverse_proxy handlers" if fitting else "no reverse_proxy handler"
    return (
        f"{place} {count} {sought}, so none is touched. {'They are' if fitting else 'There are'}:{listed}\n"
        f"Set services.{route.service}.adopt_id to the @id of the right one; if it has none, add "
        f'"@id": "{route.service}" to that handler in Caddy\'s configuration. A Caddyfile has no @id: there set '
        'route = "import" instead'
    )


def with_slots(config: Json | None, route: Route) -> list[Candidate]:
    """The handlers outside of our own routes that have this route's slots."""
    return [c for c in candidates(config) if has_slots(c, route) and not _is_ours(c, route)]


def in_own_route(config: Json | None, route: Route) -> list[Candidate]:
    """The handlers in this service's route of our own."""
    return [candidate for candidate in candidates(config) if route.id in candidate.ids]


def at(config: Any, path: Path) -> Any:
    """What stands at a place; None where there is no such place."""
    for key in path:
        try:
            config = config[key]
        except (KeyError, IndexError, TypeError):
            return None
    return config
