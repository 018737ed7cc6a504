"""Public names in Caddy's JSON: a site is put in, taken out, found again. Pure.

A site is a route of its own beside the route of a service, with one host name and a copy of that route's handlers. So
a drain or a shift moves it with the service (slots are read at every request), the service's own route stays what the
daemon compares it with, and `proxy.handler.follow` brings the copy up to date, in the same write, whenever the
service's route is written anew. Its `@id` says whose it is: `trafficd-site:SERVICE:NAME`.

A certificate of its own is loaded by path (`load_files`), never as text: a key in the configuration would be shown by
the admin API. Caddy reads the files only when its configuration changes, so the entry has a tag with the fingerprint
of the file: after a renewal, adding the site again is a change. A connection policy selects the certificate by that
tag, so that this one is served and no other that has the name too.

Invariants: putting in what is there changes nothing, and so does taking out what is not. Nothing is touched but the
site's own route, certificate and policy, and the name in a server's list of names without TLS. What would change
another name's TLS is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from proxy.caddy_client import SERVER as LIBRARY_SERVER
from proxy.caddy_client import MemoryClient
from proxy.certificates import covers
from proxy.errors import AddressError, SiteRefusedError
from proxy.handler import SERVER, SITE_ID, Json, hosts_of, place
from proxy.model import is_host_name
from proxy.site_tls import policy_for, refuse_unmanaged, routes_of, servers_of, speaks_tls

CATCH_ALL_ID = "trafficd-tls:"  # then the server's name
_TAG = 16  # digits of the fingerprint in a tag


@dataclass(frozen=True)
class OwnCertificate:
    """Two PEM files, and the SHA-256 of the first."""

    certificate: str
    key: str
    fingerprint: str


@dataclass(frozen=True)
class Site:
    """One public name of a service. Without a certificate: whatever TLS its server has for names."""

    name: str
    service: str
    own: OwnCertificate | None = None

    @property
    def id(self) -> str:
        return f"{SITE_ID}{self.service}:{self.name}"


def parse_host(text: str) -> str:
    """A public name, lower case; "*.example.com" is every name of one more label. Raises `AddressError`."""
    name = text.lower()
    if not is_host_name(name.removeprefix("*.")) or ("." not in name and name != "localhost"):
        raise AddressError(
            f"{text[:80]!r} is not a public host name such as shop.example.com or *.example.com: letters, digits, - "
            "and dots only, no port, no address; write a name in other letters in its xn-- form"
        )
    return name


# -- finding -------------------------------------------------------------------------------------------


def sites(config: Json | None) -> list[tuple[str, Site]]:
    """Every site of ours, with the server that it stands in."""
    return [
        (name, _site_of(config, route))
        for name, server in servers_of(config).items()
        for route in routes_of(server)
        if str(route.get("@id", "")).startswith(SITE_ID)
    ]


def _site_of(config: Json | None, route: Json) -> Site:
    service, _, name = str(route["@id"]).removeprefix(SITE_ID).partition(":")
    plain = Site(name, service)
    for entry in _loaded(config, "load_files"):
        if plain.id in (entry.get("tags") or []):
            return Site(name, service, _own_of(entry, plain))
    return plain


def _own_of(entry: Json, site: Site) -> OwnCertificate:
    prints = [tag.removeprefix(f"{site.id}:") for tag in entry["tags"] if tag.startswith(f"{site.id}:")]
    return OwnCertificate(str(entry.get("certificate")), str(entry.get("key")), prints[0] if prints else "")


def _loaded(config: Json | None, loader: str) -> list[Json]:
    tls = (config or {}).get("apps", {}).get("tls") or {}
    return (tls.get("certificates") or {}).get(loader) or []


def find(config: Json | None, name: str) -> tuple[str, Site] | None:
    """The site of this name, and its server."""
    return next((found for found in sites(config) if found[1].name == name), None)


# -- putting in ----------------------------------------------------------------------------------------


def put(config: Json | None, site: Site) -> Json:
    """The configuration with this site in it, all else untouched; equal to `config` when it is there already.

    Raises `SiteRefusedError` when it has no place there.
    """
    before: Json = config or {}
    _refuse_other(before, site)
    edited = take_out(before, site.name)
    server_name, own_route = _route_of(edited, site.service)
    server = servers_of(edited)[server_name]
    _refuse_taken(server_name, server, site)
    route = {
        "@id": site.id,
        "match": [{"host": [site.name]}],
        "handle": copy.deepcopy(own_route.get("handle", [])),
        "terminal": True,
    }
    _set_tls(edited, server_name, site)
    if _there(before, server_name, site, route, edited):
        return before
    server["routes"].insert(place(server["routes"], [site.name]), route)
    return edited


def _refuse_other(config: Json, site: Site) -> None:
    found = find(config, site.name)
    if found is not None and found[1].service != site.service:
        raise SiteRefusedError(
            f"{site.name} is a site of service {found[1].service}; to give it to {site.service}, "
            f"`trafficd site remove {site.name}` first"
        )


def _route_of(config: Json, service: str) -> tuple[str, Json]:
    """The route of our own that a service has, and its server."""
    for name, server in servers_of(config).items():
        for route in routes_of(server):
            if route.get("@id") == f"trafficd-{service}":
                return name, route
    raise SiteRefusedError(
        f"service {service} has no route of our own in Caddy's configuration, which a site would be a copy of. It "
        f'needs services.{service}.route = "own"; if it has that, the route was removed: restart trafficd, or '
        "wait until it is written again"
    )


def server_of_service(config: Json | None, service: str) -> str | None:
    """The server that has the service's route."""
    try:
        return _route_of(config or {}, service)[0]
    except SiteRefusedError:
        return None


def _refuse_taken(server_name: str, server: Json, site: Site) -> None:
    for route in routes_of(server):
        if site.name in (host.lower() for host in hosts_of(route)):
            raise SiteRefusedError(
                f"{site.name} is answered already, in Caddy's server {server_name!r}, by {_owner(route)}; nothing was "
                "changed. Take the name out there first"
            )


def _owner(route: Json) -> str:
    name = str(route.get("@id", ""))
    if name.startswith("trafficd-"):
        service = name.removeprefix("trafficd-")
        return f"service {service}: services.{service}.hosts in the configuration file names it"
    return f'a route with the @id "{name}" that is not ours' if name else "a route that is not ours (it has no @id)"


def _there(before: Json, server_name: str, site: Site, route: Json, edited: Json) -> bool:
    """Whether the site is in `before` as it is to be, by all that `edited` would get."""
    shown = _window(before, server_name, site)
    if MemoryClient(shown).look_up(site.id) != (route, _entry(site)):
        return False
    return _sorted_tls(servers_of(before)[server_name]) == _sorted_tls(servers_of(edited)[server_name])


def _sorted_tls(server: Json) -> str:
    """What a server says of TLS, whatever the order of names and of the policies for single names."""
    policies = sorted(json.dumps(policy, sort_keys=True) for policy in server.get("tls_connection_policies") or [])
    automatic = server.get("automatic_https") or {}
    return json.dumps([policies, {**automatic, "skip": sorted(automatic.get("skip") or [])}], sort_keys=True)


# -- TLS -----------------------------------------------------------------------------------------------


def _set_tls(config: Json, server_name: str, site: Site) -> None:
    """The site's certificate and policy, or its place among the names without TLS."""
    server = servers_of(config)[server_name]
    tls = speaks_tls(config, server_name)
    if site.own is None:
        if tls:
            refuse_unmanaged(config, server_name, site.name)
        elif not (server.get("automatic_https") or {}).get("disable"):
            # Else this one name would turn TLS on for everybody on the server.
            automatic = server.get("automatic_https") or {}
            skipped = [*(automatic.get("skip") or []), site.name]
            server["automatic_https"] = {**automatic, "skip": list(dict.fromkeys(skipped))}
        return
    if not tls:
        raise SiteRefusedError(
            f"Caddy's server {server_name!r}, which listens on {', '.join(server.get('listen') or [])}, speaks no TLS: "
            f"a certificate for {site.name} would turn it on there for every name. Give service {site.service} a "
            f'`listen` of its own with services.{site.service}.tls = "auto", or leave the certificate out'
        )
    # Where there are none, Caddy has one for all names; where there are some, it has only those.
    policies = server.get("tls_connection_policies") or [{"@id": f"{CATCH_ALL_ID}{server_name}"}]
    index, demands = policy_for(policies, site.name, server_name)
    server["tls_connection_policies"] = [*policies[:index], {**demands, **_selection(site)}, *policies[index:]]
    certificates = config["apps"].setdefault("tls", {}).setdefault("certificates", {})
    certificates["load_files"] = [*(certificates.get("load_files") or []), _entry(site)]


def _entry(site: Site) -> Json | None:
    if site.own is None:
        return None
    return {"certificate": site.own.certificate, "key": site.own.key, "tags": [site.id, _tag(site.id, site.own)]}


def _tag(site_id: str, own: OwnCertificate) -> str:
    return f"{site_id}:{own.fingerprint[:_TAG]}"


def _selection(site: Site) -> Json:
    assert site.own is not None
    return {"match": {"sni": [site.name]}, "certificate_selection": {"all_tags": [_tag(site.id, site.own)]}}


# -- taking out ----------------------------------------------------------------------------------------


def take_out(config: Json | None, name: str) -> Json:
    """The configuration without the site of this name, all else untouched; equal where there is none."""
    edited: Json = copy.deepcopy(config) if config else {}
    for server_name, site in sites(edited):
        if site.name == name:
            left = MemoryClient(_window(edited, server_name, site)).without(name)
            _put_back(edited, server_name, site, left)
            _tidy(edited, server_name, name)
    return edited


def _window(config: Json, server_name: str, site: Site) -> Json:
    """What caddy-api-client is shown: the site's own parts, where it looks for them, and nothing else."""
    server = servers_of(config).get(server_name, {})
    shown: Json = {"routes": [route for route in routes_of(server) if route.get("@id") == site.id]}
    if policies := [policy for policy in server.get("tls_connection_policies") or [] if _selects(policy, site)]:
        shown["tls_connection_policies"] = policies
    entries = [entry for entry in _loaded(config, "load_files") if site.id in (entry.get("tags") or [])]
    window: Json = {"apps": {"http": {"servers": {LIBRARY_SERVER: shown}}, "tls": {"certificates": {}}}}
    if entries:
        window["apps"]["tls"]["certificates"]["load_pem"] = entries  # the one kind that it knows
    return window


def _selects(policy: Json, site: Site) -> bool:
    tags = (policy.get("certificate_selection") or {}).get("all_tags") or []
    return any(str(tag).startswith(f"{site.id}:") for tag in tags)


def _put_back(config: Json, server_name: str, site: Site, left: Json) -> None:
    """Keep of the site's parts what the library left."""
    server, kept = servers_of(config)[server_name], servers_of(left)[LIBRARY_SERVER]
    server["routes"] = [r for r in routes_of(server) if r.get("@id") != site.id or r in kept["routes"]]
    if policies := server.get("tls_connection_policies"):
        remaining = kept.get("tls_connection_policies") or []
        server["tls_connection_policies"] = [p for p in policies if not _selects(p, site) or p in remaining]
    if entries := _loaded(config, "load_files"):
        remaining = _loaded(left, "load_pem")
        config["apps"]["tls"]["certificates"]["load_files"] = [
            entry for entry in entries if site.id not in (entry.get("tags") or []) or entry in remaining
        ]


def _tidy(config: Json, server_name: str, name: str) -> None:
    """Take out what the site alone was the reason for, and what is empty now and means nothing."""
    servers = servers_of(config)
    server = servers[server_name]
    policies = [policy.get("@id") for policy in server.get("tls_connection_policies") or []]
    if policies == [f"{CATCH_ALL_ID}{server_name}"]:
        server["tls_connection_policies"] = []
    _drop_empty(server, "tls_connection_policies")
    automatic = server.get("automatic_https") or {}
    others = {host for route in routes_of(server) for host in hosts_of(route)}
    if name in (automatic.get("skip") or []) and name not in others and not speaks_tls(config, server_name):
        skipped = [host for host in automatic["skip"] if host != name]
        server["automatic_https"] = {key: value for key, value in automatic.items() if key != "skip"}
        if skipped:
            server["automatic_https"]["skip"] = skipped
        _drop_empty(server, "automatic_https")
    if not server["routes"] and server_name.startswith(SERVER):
        del servers[server_name]  # as `proxy.handler` does: the service listens elsewhere now
    tls = config["apps"].get("tls") or {}
    _drop_empty(tls.get("certificates") or {}, "load_files")
    _drop_empty(tls, "certificates")
    _drop_empty(config["apps"], "tls")


def _drop_empty(place: Json, key: str) -> None:
    if key in place and not place[key]:
        del place[key]


# -- others --------------------------------------------------------------------------------------------


def other_owner(config: Json | None, name: str) -> str | None:
    """Who else answers for a name, in words; None where nobody does by that very name."""
    for server in servers_of(config).values():
        for route in routes_of(server):
            if any(name in map(str.lower, hosts_of(inner)) for inner in _walk(route) if "handle" in inner):
                return _owner(route)
    return None


def also_covered(config: Json | None, site: Site, names: tuple[str, ...]) -> list[str]:
    """The other names with automatic certificates that this certificate covers too: Caddy will then serve it for
    them, and get none of their own any more."""
    found = []
    for server_name, server in servers_of(config).items():
        automatic = server.get("automatic_https") or {}
        if automatic.get("ignore_loaded_certificates") or not speaks_tls(config, server_name):
            continue
        skipped = {*(automatic.get("skip") or []), *(automatic.get("skip_certificates") or [])}
        for route in routes_of(server):
            found += [h for h in hosts_of(route) if h != site.name and h not in skipped and covers(names, h)]
    own = {other.name for _, other in sites(config) if other.own is not None}
    return [name for name in dict.fromkeys(found) if name not in own]


def _walk(value: Any) -> Iterator[Json]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _walk(inner)
