"""The route of our own in Caddy's JSON: build it, put it into a configuration, take it out. Pure.

A route is written once and never again: its upstreams are placeholders that Caddy resolves at every request
from the slot directory. Two handlers stand in it, one for requests and one for what is upgraded to a stream,
over two spellings of the same addresses, because Caddy counts what is open by the spelling. Before them stand, for
each pin (`proxy.pins`), the same handlers over its own slots.

What is in the handlers, and why:
- `try_duration` and `try_interval`, no `retries`: a request that meets a dead address waits for the slot to be
  repointed, and while nobody is ready all of them wait.
- no health checks: failures would belong to the slot and survive its repointing; our probes decide.
- a `retry_match` that matches nothing: only a failed dial is tried again, so no request is delivered twice.
- `stream_close_delay`: somebody's reload of Caddy does not cut the streams.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from proxy import logged
from proxy.errors import AddressError, CaddyRefusedError
from proxy.model import slot_name, stream_slot_name
from proxy.pins import DIRECTORY as PINS
from proxy.pins import SLOTS as PIN_SLOTS
from proxy.pins import Pin

Json = dict[str, Any]

SERVER = "trafficd"
PROBE_ID = "trafficd_probe"  # no service's id: those begin with "trafficd-"
SITE_ID = "trafficd-site:"  # then the service's name, a colon, the public name; no service's name has a colon
_NOTHING: list[Json] = [{"not": [{}]}]  # no request matches the negation of a matcher that all match
_EVEN: Json = {"policy": "round_robin"}
_GROUP = "trafficd.pins"  # Caddy keeps groups by name for the whole request, whoever named them
_UPGRADE: list[Json] = [
    {
        "header": {"Upgrade": ["*"]},
        "header_regexp": {"Connection": {"pattern": r"(?i)(^|[\s,])upgrade([\s,]|$)"}},
    },
    {"method": ["CONNECT"]},  # RFC 8441: WebSockets over HTTP/2
]


@dataclass(frozen=True)
class Transport:
    """How Caddy talks to the upstreams. Times in seconds; None: no limit. `ca`: a PEM file."""

    tls: bool = False
    server_name: str | None = None
    insecure: bool = False
    ca: str | None = None
    h2c: bool = False
    dial_timeout: float = 3.0
    response_header_timeout: float | None = None
    read_timeout: float | None = None
    write_timeout: float | None = None
    keepalive: float = 120.0


@dataclass(frozen=True)
class Route:
    """A service's route. `slots_path` is the directory of the slots in force, as Caddy sees it, and `access_log` the
    file that its requests are logged to (`proxy.logged`), one for all services; None: they are not."""

    service: str
    slots_path: str
    slots: int
    hosts: tuple[str, ...] = ()
    listen: tuple[str, ...] = (":443",)
    tls: Literal["auto", "off"] = "off"
    affinity: Literal["none", "cookie", "client_ip"] = "none"
    try_duration: float = 30.0
    try_interval: float = 0.05
    stream_close_delay: float = 86_400.0
    transport: Transport = field(default_factory=Transport)
    access_log: str | None = None
    pins: tuple[Pin, ...] = ()  # in the order in which they are asked

    def __post_init__(self) -> None:
        check_path(self.slots_path)
        if self.access_log is not None:
            check_path(self.access_log)

    @property
    def id(self) -> str:
        return f"trafficd-{self.service}"

    @property
    def splits_streams(self) -> bool:
        """Whether streams go by a spelling of their own. Sticky policies hash the spelling, so there a user's
        requests and streams stay together by using the same one."""
        return self.affinity == "none"

    @property
    def unpinned(self) -> Route:
        """The same route for everybody."""
        return replace(self, pins=())

    @property
    def pin_slots(self) -> int:
        return min(self.slots, PIN_SLOTS)

    def pin_path(self, pin: Pin) -> str:
        """The directory of a pin's slots in force, as Caddy sees it."""
        return f"{self.slots_path.rpartition('/')[0]}/{PINS}/{pin.name}/current"


def check_path(path: str) -> None:
    """Refuse a path that would mean something else inside a placeholder. Raises `AddressError`."""
    if not path.startswith("/") or any(c in '{}\\"' or ord(c) < 32 for c in path):
        raise AddressError(
            f"{path!r} cannot be used for slots or logs: it must be absolute, without braces, quotes, backslashes and "
            "control characters (Caddy reads it inside a placeholder)"
        )


def placeholder(path: str) -> str:
    """What Caddy replaces, at every request, by the content of a file."""
    return f"{{file.{path}}}"


# -- building ------------------------------------------------------------------------------------------


def build_route(route: Route, logs: Json | None = None) -> Json:
    """The route as Caddy's JSON, in a server that says this of its `logs`."""
    everybody = _proxies(route, *_slots(route.slots_path, route.slots), _policy(route))
    if not route.pins:
        return _route(route, everybody, logs)
    # One of a group is taken, the first that fits. Who is pinned stays where the pin says, so no policy binds them.
    cases = [{"match": [pin.matcher()], "handle": _pinned(route, pin)} for pin in route.pins]
    cases.append({"handle": [*_stratum(route), *everybody]})
    by_pin: Json = {"handler": "subroute", "routes": [{"group": _GROUP, **case} for case in cases]}
    return _route(route, [by_pin], logs)


def _slots(path: str, count: int) -> tuple[list[str], list[str]]:
    """The placeholders of the slots in a directory, for requests and for streams."""
    return (
        [placeholder(f"{path}/{slot_name(i)}") for i in range(count)],
        [placeholder(f"{path}/{stream_slot_name(i)}") for i in range(count)],
    )


def _pinned(route: Route, pin: Pin) -> list[Json]:
    dials, stream_dials = _slots(route.pin_path(pin), route.pin_slots)
    return [*_stratum(route, pin), *_proxies(route, dials, stream_dials, _EVEN)]


def _stratum(route: Route, pin: Pin | None = None) -> list[Json]:
    """Where its requests come from, for the log."""
    return [] if route.access_log is None else [logged.stratum_of(None if pin is None else pin.name)]


def assemble(route: Route, dials: list[str], stream_dials: list[str], logs: Json | None = None) -> Json:
    """The route over these upstreams, for everybody."""
    return _route(route.unpinned, _proxies(route, dials, stream_dials, _policy(route)), logs)


def _route(route: Route, handle: list[Json], logs: Json | None) -> Json:
    if route.access_log is not None:
        handle = [*logged.handlers(route.service, route.hosts, logs, stratum=not route.pins), *handle]
    built: Json = {"@id": route.id, "handle": handle, "terminal": True}
    if route.hosts:
        built["match"] = [{"host": list(route.hosts)}]
    return built


def _proxies(route: Route, dials: list[str], stream_dials: list[str], policy: Json) -> list[Json]:
    """One handler, or one for requests and one for streams."""
    requests = _reverse_proxy(route, dials, policy, streams=False)
    if not route.splits_streams:
        return [requests]
    streams = _reverse_proxy(route, stream_dials, policy, streams=True)
    return [{"handler": "subroute", "routes": [{"match": _UPGRADE, "handle": [streams]}, {"handle": [requests]}]}]


def _reverse_proxy(route: Route, dials: list[str], policy: Json, *, streams: bool) -> Json:
    handler: Json = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": dial} for dial in dials],
        "load_balancing": {
            "selection_policy": policy,
            "try_duration": duration(route.try_duration),
            "try_interval": duration(route.try_interval),
            "retry_match": _NOTHING,
        },
        "transport": _transport(route.transport, streams=streams),
    }
    if route.access_log is not None:
        handler["handle_response"] = logged.answered()
    if route.stream_close_delay:
        handler["stream_close_delay"] = duration(route.stream_close_delay)
    if route.transport.tls:
        # Caddy would send the upstream's address as Host over TLS; the application expects its own name.
        handler["headers"] = {"request": {"set": {"Host": ["{http.request.hostport}"]}}}
    return handler


def _policy(route: Route) -> Json:
    match route.affinity:
        case "cookie":
            return {"policy": "cookie", "name": f"trafficd_{route.service}"}
        case "client_ip":
            return {"policy": "client_ip_hash"}
        case "none":
            return _EVEN


def _transport(transport: Transport, *, streams: bool) -> Json:
    built: Json = {
        "protocol": "http",
        "dial_timeout": duration(transport.dial_timeout),
        "keep_alive": {"idle_timeout": duration(transport.keepalive)},
    }
    for key in ("response_header_timeout", "read_timeout", "write_timeout"):
        value = getattr(transport, key)
        if value is not None and not (streams and key != "response_header_timeout"):
            built[key] = duration(value)  # but no idle limit on a stream: it may be silent for hours
    if transport.tls:
        built["tls"] = _tls(transport)
    if transport.h2c and not streams:  # an upgrade needs HTTP/1.1
        built["versions"] = ["h2c", "2"]
    return built


def _tls(transport: Transport) -> Json:
    built: Json = {}
    if transport.server_name:
        built["server_name"] = transport.server_name
    if transport.insecure:
        built["insecure_skip_verify"] = True
    if transport.ca:
        built["ca"] = {"provider": "file", "pem_files": [transport.ca]}
    return built


def duration(seconds: float) -> str:
    """A duration as Go writes it."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def probe_server(port: int, path: str) -> Json:
    """A server on the loopback that proves, at each start, that Caddy resolves files of ours in `dial`."""
    check_path(path)
    handler = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": placeholder(path)}],
        "transport": {"protocol": "http", "dial_timeout": "1s", "keep_alive": {"enabled": False}},
    }
    return {
        "listen": [f"127.0.0.1:{port}"],
        "automatic_https": {"disable": True},
        "protocols": ["h1"],
        "routes": [{"@id": PROBE_ID, "handle": [handler]}],
    }


# -- editing a configuration ---------------------------------------------------------------------------


def ensure(config: Json | None, routes: list[Route], probe: Json | None = None) -> Json:
    """The configuration with these routes (and the probe's server) in it, all else untouched.

    Equal to `config` when all of it is there already. Raises `CaddyRefusedError` when a route has no place.
    """
    edited: Json = copy.deepcopy(config) if config else {}
    if probe is not None:
        put_server(edited, PROBE_ID, probe)
    for route in routes:
        put_route(edited, route)
    return edited


def put_server(config: Json, name: str, server: Json) -> None:
    """Put a server of ours into the configuration, in place."""
    _servers(config)[name] = server


def _servers(config: Json) -> Json:
    servers: Json = config.setdefault("apps", {}).setdefault("http", {}).setdefault("servers", {})
    return servers


def put_route(config: Json, route: Route) -> None:
    """Put a route of ours into the configuration, in place. Raises `CaddyRefusedError` when it has no place; then
    nothing is changed."""
    servers = _servers(config)
    name = _server_for(servers, route)
    _refuse_without_https(name, servers.get(name, {}), route)
    _take_out(servers, {route.id}, but=name)
    server = servers.setdefault(name, _new_server(route))
    if route.access_log is not None:
        logged.put_server(server)
        logged.put_logger(config, route.access_log)
    built = build_route(route, server.get("logs"))
    present = server.setdefault("routes", [])
    for index, existing in enumerate(present):
        if existing.get("@id") == route.id:
            present[index] = built
            break
    else:
        present.insert(place(present, route.hosts), built)
    _set_automatic_https(server, route)
    follow(servers, route.service, built["handle"])


def unpin(config: Json, route: Route) -> None:
    """Let everybody, in the service's route and its sites as they stand in the configuration, go the same way, in
    place."""
    if not route.pins:
        return
    servers = config.get("apps", {}).get("http", {}).get("servers", {})
    for server in servers.values():
        for existing in server.get("routes") or []:
            if existing.get("@id") == route.id:
                existing["handle"] = build_route(route.unpinned, server.get("logs"))["handle"]
                follow(servers, route.service, existing["handle"])


def follow(servers: Json, service: str, handle: Any) -> None:
    """Let the sites of a service (`proxy.site_config`) be answered as its route is: they are copies of it."""
    for existing in _site_routes(servers, service):
        existing["handle"] = copy.deepcopy(handle)


def let_sites_follow(config: Json, route: Route) -> None:
    """`follow` the service's route as it stands in the configuration, in place."""
    servers = config.get("apps", {}).get("http", {}).get("servers", {})
    for server in servers.values():
        for existing in server.get("routes") or []:
            if existing.get("@id") == route.id:
                follow(servers, route.service, existing["handle"])


def _site_routes(servers: Json, service: str) -> list[Json]:
    routes = (route for server in servers.values() for route in server.get("routes") or [])
    return [route for route in routes if str(route.get("@id", "")).startswith(f"{SITE_ID}{service}:")]


def _new_server(route: Route) -> Json:
    server: Json = {"listen": list(route.listen), "routes": []}
    if route.tls == "off":
        server["automatic_https"] = {"disable": True}
    return server


def _server_for(servers: Json, route: Route) -> str:
    """The server that listens where the route is to, or a free name for one of its own."""
    wanted = {listen_key(address) for address in route.listen}
    holders = {
        name: wanted & {listen_key(address) for address in server.get("listen", [])} for name, server in servers.items()
    }
    holders = {name: shared for name, shared in holders.items() if shared}
    if not holders:
        return next(name for name in _names() if name not in servers)
    name, shared = next(iter(holders.items()))
    if len(holders) > 1 or shared != wanted:
        places = ", ".join(f"{server} has {', '.join(sorted(keys))}" for server, keys in holders.items())
        raise CaddyRefusedError(
            f"services.{route.service}.listen = {list(route.listen)}: these addresses belong to several of Caddy's "
            f"servers, or to one only in part ({places}); listen on those of one server"
        )
    return name


def _names() -> Iterator[str]:
    yield SERVER
    number = 2
    while True:
        yield f"{SERVER}-{number}"
        number += 1


def listen_key(address: str) -> str:
    """Listen addresses that mean the same socket have the same key."""
    network, slash, rest = address.rpartition("/")
    if slash and network not in ("tcp", "tcp4", "tcp6"):
        return address
    host, _, port = rest.rpartition(":")
    return f"{'' if host in ('0.0.0.0', '[::]') else host}:{port}"


def place(present: list[Json], hosts: Collection[str]) -> int:
    """Exact hosts first, then wildcards, then whoever takes any host; after the earlier ones of a kind of ours."""
    if not hosts:
        return len(present)
    rank = _rank(hosts)
    before = [i for i, r in enumerate(present) if _is_ours(r) and _rank(hosts_of(r)) <= rank]
    return before[-1] + 1 if before else 0


def _is_ours(route: Json) -> bool:
    name = str(route.get("@id", ""))
    return name.startswith("trafficd-") or name == PROBE_ID


def hosts_of(route: Json) -> list[str]:
    """The hosts that a route's own matchers name."""
    return [host for matcher in route.get("match") or [] for host in matcher.get("host") or []]


def _rank(hosts: Collection[str]) -> int:
    if not hosts:
        return 2
    return 1 if any(host.startswith("*") for host in hosts) else 0


def _refuse_without_https(name: str, server: Json, route: Route) -> None:
    if route.tls == "auto" and server.get("automatic_https", {}).get("disable"):
        raise CaddyRefusedError(
            f'services.{route.service}: tls = "auto", but Caddy\'s server {name!r}, which listens on '
            f'{", ".join(route.listen)}, has automatic HTTPS disabled; set tls = "off" or another listen address'
        )


def _set_automatic_https(server: Json, route: Route) -> None:
    """Make Caddy manage certificates for the hosts, or leave them alone, as the route says."""
    automatic = server.get("automatic_https", {})
    if automatic.get("disable") or not route.hosts:
        return
    skipped = [host for host in automatic.get("skip", []) if host not in route.hosts]
    if route.tls == "off":
        skipped = [*automatic.get("skip", []), *(h for h in route.hosts if h not in automatic.get("skip", []))]
    if skipped != automatic.get("skip", []):
        server["automatic_https"] = {**automatic, "skip": skipped}


def remove(config: Json | None, ids: Collection[str]) -> Json:
    """The configuration without these routes of ours, and without servers of ours that they leave empty."""
    edited: Json = copy.deepcopy(config) if config else {}
    take_out(edited, ids)
    logged.tidy(edited)
    return edited


def strays(config: Json | None, kept: Collection[str], former: Collection[str], slots_path: str) -> frozenset[str]:
    """The ids of routes of ours, and of their sites, whose service is no more: not of those that are `kept`, and
    either one of `former` ones or over slots below `slots_path`. Another daemon's routes are neither."""
    servers = (config or {}).get("apps", {}).get("http", {}).get("servers", {})
    found: set[str] = set()
    for route in (route for server in servers.values() for route in server.get("routes") or []):
        name = _service_of(str(route.get("@id", "")))
        if name is not None and name not in kept and (name in former or f"{{file.{slots_path}/" in str(route)):
            found.add(str(route["@id"]))
    return frozenset(found)


def _service_of(route_id: str) -> str | None:
    """The service that a route of ours, or a site, belongs to."""
    if route_id.startswith(SITE_ID):
        return route_id.removeprefix(SITE_ID).partition(":")[0]
    return route_id.removeprefix("trafficd-") if route_id.startswith("trafficd-") else None


def take_out(config: Json, ids: Collection[str]) -> None:
    """`remove`, in place."""
    _take_out(config.get("apps", {}).get("http", {}).get("servers", {}), ids)


def _take_out(servers: Json, ids: Collection[str], but: str | None = None) -> None:
    for name, server in list(servers.items()):
        routes = server.get("routes", [])
        left = [route for route in routes if route.get("@id") not in ids]
        if name == but or len(left) == len(routes):
            continue
        server["routes"] = left
        if not left and name.startswith(SERVER):
            del servers[name]


def present(config: Json | None, route: Route) -> bool:
    """Whether the configuration has this very route, in a server that listens where it is to, and the service's
    sites are answered as it is."""
    servers = (config or {}).get("apps", {}).get("http", {}).get("servers", {})
    for server in servers.values():
        for existing in server.get("routes", []):
            if existing.get("@id") == route.id:
                built = build_route(route, server.get("logs"))
                listening = {listen_key(address) for address in server.get("listen", [])}
                follows = all(site["handle"] == built["handle"] for site in _site_routes(servers, route.service))
                logs = route.access_log is None or logged.present(config or {}, server, route.access_log)
                return {listen_key(a) for a in route.listen} <= listening and existing == built and follows and logs
    return False


def route_ids(config: Json | None) -> frozenset[str]:
    """The ids of all routes of ours in a configuration."""
    servers = (config or {}).get("apps", {}).get("http", {}).get("servers", {})
    routes = (route for server in servers.values() for route in server.get("routes", []))
    return frozenset(str(route["@id"]) for route in routes if _is_ours(route))


def static_dials(config: Json | None) -> frozenset[str]:
    """Every address that the configuration names as an upstream itself, anywhere. Caddy shows only the static
    count of such an address, so what goes there through slots cannot be counted."""
    return frozenset(static_places(config))


def static_places(config: Json | None) -> dict[str, str]:
    """The same, each with a place in which it stands."""
    found: dict[str, str] = {}
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, dict):
            dial = value.get("dial")
            if isinstance(dial, str) and "{" not in dial:
                found[dial] = place.lstrip(".")
            pending.extend((f"{place}.{key}", inner) for key, inner in value.items())
        elif isinstance(value, list):
            pending.extend((f"{place}.{index}", inner) for index, inner in enumerate(value))
    return found


def server_port(config: Json | None, server: str) -> int | None:
    """The port of a server of ours that listens on one loopback address."""
    try:
        listen = (config or {})["apps"]["http"]["servers"][server]["listen"][0]
        return int(str(listen).rpartition(":")[2])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
