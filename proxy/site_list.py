"""Every public name that a Caddy answers for: where, what answers, by which certificate, and whose it is.

Pure but for `read_loaded`, which reads the certificate files that the configuration names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from proxy import certificates
from proxy.candidates import matched_hosts, narrowed
from proxy.certificates import Certificate, covers
from proxy.errors import CertificateError
from proxy.handler import PROBE_ID, SITE_ID, Json
from proxy.site_tls import policies_of, routes_of, servers_of, speaks_tls

ManagedBy = Literal["site", "service", "other"]
_SLOTS = re.compile(r"(?:tcp/)?\{file\.(?:.*/)?([^/]+)/current/s?\d+\}")
_SHOWN = 4  # upstreams, of those that are not ours
# What passes a request on, changed or noted, and does not answer it.
_MIDDLEWARE = frozenset(
    (
        "headers",
        "encode",
        "rewrite",
        "vars",
        "map",
        "log_append",
        "request_body",
        "tracing",
        "authentication",
        "push",
        "intercept",
        "templates",
        "copy_response",
        "copy_response_headers",
    )
)
_INTERNAL = (".localhost", ".local", ".internal", ".home.arpa")  # no public authority certifies these


class Tls(StrEnum):
    """What a client that asks for the name is served with."""

    OFF = "off"  # plain HTTP
    AUTOMATIC = "automatic"  # a certificate that Caddy gets and renews itself (ACME)
    INTERNAL = "internal"  # one that Caddy's own authority makes
    OWN = "own"  # one that the configuration loads
    UNMANAGED = "unmanaged"  # TLS is spoken, and the configuration says of no certificate for it


@dataclass(frozen=True)
class Loaded:
    """A certificate that the configuration loads; None where it cannot be read, and `fault` says why."""

    place: str
    tags: tuple[str, ...]
    certificate: Certificate | None
    fault: str = ""


@dataclass(frozen=True)
class Listed:
    """One public name at one server; `name` None: whatever name the client asks for."""

    name: str | None
    server: str
    listen: tuple[str, ...]
    answers: tuple[str, ...]
    service: str | None
    managed_by: ManagedBy
    tls: Tls
    loaded: Loaded | None = None
    note: str = ""


def read_loaded(config: Json | None) -> list[Loaded]:
    """The certificates that the configuration loads by file or as text. Blocks on the disk."""
    loaders = (((config or {}).get("apps", {}).get("tls") or {}).get("certificates")) or {}
    found = [_read(str(entry.get("certificate")), entry, None) for entry in loaders.get("load_files") or []]
    texts = loaders.get("load_pem") or []
    return found + [_read("in the configuration", entry, str(entry.get("certificate")).encode()) for entry in texts]


def _read(place: str, entry: Json, pem: bytes | None) -> Loaded:
    tags = tuple(str(tag) for tag in entry.get("tags") or [])
    if pem is None and not place.startswith("/"):
        return Loaded(place, tags, None, "a path from Caddy's own directory, which is not known here")
    try:
        return Loaded(place, tags, certificates.read(place) if pem is None else certificates.parse(pem, place))
    except CertificateError as error:
        return Loaded(place, tags, None, str(error))


# -- pure ----------------------------------------------------------------------------------------------


def listed(config: Json | None, loaded: Sequence[Loaded]) -> list[Listed]:
    """One entry for each name at each server, in the order of the configuration."""
    found = []
    for server_name, server in servers_of(config).items():
        if server_name == PROBE_ID:
            continue
        by_name: dict[str | None, list[_Leaf]] = {}
        for route in routes_of(server):
            for leaf in _leaves(route, (), ()):
                for name in leaf.hosts or (None,):
                    by_name.setdefault(name, []).append(leaf)
        found += [_listed(config, server_name, name, leaves, loaded) for name, leaves in by_name.items()]
    return found


@dataclass(frozen=True)
class _Leaf:
    """A handler that answers, with the hosts that lead to it and the `@id`s around it, the outermost first."""

    hosts: tuple[str, ...]
    ids: tuple[str, ...]
    handler: Json | None


def _leaves(route: Json, hosts: tuple[str, ...], ids: tuple[str, ...]) -> Iterator[_Leaf]:
    hosts = narrowed(hosts, matched_hosts(route))
    ids = (*ids, str(route["@id"])) if route.get("@id") else ids
    met = False
    for handler in route.get("handle") or []:
        if handler.get("handler") == "subroute":
            for inner in handler.get("routes") or []:
                for leaf in _leaves(inner, hosts, ids):
                    met = True
                    yield leaf
        elif handler.get("handler") not in _MIDDLEWARE:
            met = True
            yield _Leaf(hosts, ids, handler)
    if not met and hosts and not ids:
        yield _Leaf(hosts, ids, None)  # a name all the same


def _listed(
    config: Json | None, server_name: str, name: str | None, leaves: Sequence[_Leaf], loaded: Sequence[Loaded]
) -> Listed:
    answers = tuple(dict.fromkeys(_answer(leaf) for leaf in leaves if leaf.handler is not None))
    service = next((found for found in map(_service, leaves) if found), None)
    ids = [leaf.ids[0] for leaf in leaves if leaf.ids]
    managed: ManagedBy = "other"
    if any(one.startswith("trafficd-") for one in ids):
        managed = "site" if any(one.startswith(SITE_ID) for one in ids) else "service"
    tls, own, note = _tls(config, server_name, name, loaded)
    listen = tuple(str(address) for address in servers_of(config)[server_name].get("listen") or [])
    return Listed(name, server_name, listen, answers, service, managed, tls, own, note)


def _service(leaf: _Leaf) -> str | None:
    """The service of ours that answers, whether by its route, by a site, or by slots in somebody's handler."""
    for one in leaf.ids:
        if one.startswith(SITE_ID):
            return one.removeprefix(SITE_ID).partition(":")[0]
        if one.startswith("trafficd-"):
            return one.removeprefix("trafficd-")
    dials = _dials(leaf.handler or {})
    slots = _SLOTS.fullmatch(dials[0]) if dials else None
    return slots[1] if slots else None


def _answer(leaf: _Leaf) -> str:
    service = _service(leaf)
    if service is not None:
        return f"service {service}"
    handler = leaf.handler or {}
    if handler.get("handler") != "reverse_proxy":
        return str(handler.get("handler"))
    dials = _dials(handler)
    more = f" and {len(dials) - _SHOWN} more" if len(dials) > _SHOWN else ""
    return (", ".join(dials[:_SHOWN]) or "reverse_proxy without upstreams") + more


def _dials(handler: Json) -> list[str]:
    return [str(upstream.get("dial", "")) for upstream in handler.get("upstreams") or []]


# -- TLS -----------------------------------------------------------------------------------------------


def _tls(
    config: Json | None, server_name: str, name: str | None, loaded: Sequence[Loaded]
) -> tuple[Tls, Loaded | None, str]:
    server = servers_of(config)[server_name]
    if not speaks_tls(config, server_name):
        return Tls.OFF, None, ""
    policy = _automation_policy(config, name)
    if name is None:
        if policy.get("on_demand"):
            return Tls.AUTOMATIC, None, "on demand"
        return Tls.UNMANAGED, None, "a certificate for the name that the client asks for, where there is one"
    own = _selected(server, name, loaded)
    if own is not None:
        return Tls.OWN, own, own.fault or _staleness(own)
    if _left_out(server, name):
        return Tls.UNMANAGED, None, "automatic HTTPS is told to leave this name out"
    folders = (((config or {}).get("apps", {}).get("tls") or {}).get("certificates") or {}).keys() & {
        "load_folders",
        "load_storage",
    }
    note = f"unless {' or '.join(sorted(folders))} has a certificate for it" if folders else ""
    issuers = [issuer.get("module") for issuer in policy.get("issuers") or []]
    if issuers == ["internal"] or (not issuers and _is_internal(name)):
        return Tls.INTERNAL, None, note
    return Tls.AUTOMATIC, None, note


def _left_out(server: Json, name: str) -> bool:
    automatic: dict[str, Any] = server.get("automatic_https") or {}
    names = [*(automatic.get("skip") or []), *(automatic.get("skip_certificates") or [])]
    return bool(automatic.get("disable") or automatic.get("disable_certificates") or name in names)


def _automation_policy(config: Json | None, name: str | None) -> Json:
    """The first that is for the name; one without subjects is for every name."""
    for policy in policies_of(config):
        subjects = policy.get("subjects") or []
        if not subjects or (name is not None and covers(subjects, name)):
            return policy
    return {}


def _is_internal(name: str) -> bool:
    return name == "localhost" or name.endswith(_INTERNAL)


def _selected(server: Json, name: str, loaded: Sequence[Loaded]) -> Loaded | None:
    """The loaded certificate that Caddy serves: the one that a policy for the name selects, else one that names it,
    else one with a wildcard."""
    for policy in server.get("tls_connection_policies") or []:
        if name in ((policy.get("match") or {}).get("sni") or []):
            tags = (policy.get("certificate_selection") or {}).get("all_tags") or []
            for one in loaded:
                if tags and set(tags) <= set(one.tags):
                    return one
    known = [one for one in loaded if one.certificate is not None]
    for exact in (True, False):
        for one in known:
            names = one.certificate.names if one.certificate else ()
            if (name in names) if exact else covers(names, name):
                return one
    return None


def _staleness(own: Loaded) -> str:
    """Whether the file is another one than Caddy loaded, by the fingerprint in the tag of a site of ours."""
    prints = [tag.rpartition(":")[2] for tag in own.tags if tag.startswith(SITE_ID) and tag.count(":") > 2]
    if own.certificate is None or not prints or own.certificate.fingerprint.startswith(prints[0]):
        return ""
    return "the file has changed since Caddy loaded it: add the site again to have it loaded"
