"""Caddy's configuration -> the reverse_proxy handlers that can be deployed behind, and what each of them says. Pure.

A handler fits when its upstreams are addresses that stay. Whatever does not fit is named, with the reason: an operator
must be able to trust that nothing was overlooked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.candidates import Candidate, at, candidates, find, probes, steered
from proxy.errors import AddressError, CaddyRefusedError
from proxy.handler import Json, Route
from proxy.model import parse_dial
from trafficd.config import values

_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_GO_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d)", re.ASCII)
_ANYWHERE = "/nowhere"  # a place for slots that no configuration has: only who would be adopted is asked


@dataclass(frozen=True)
class Asked:
    """An active health check. Times in seconds; None where Caddy has its default."""

    path: str
    host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    status: tuple[int, ...] = ()  # empty: whatever Caddy takes, 200 to 399
    interval: float | None = None
    timeout: float | None = None
    rise: int | None = None
    fall: int | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transport:
    """How Caddy speaks to the upstreams, as far as probes have to speak like it."""

    keys: Mapping[str, str | bool] = field(default_factory=dict)  # of [services.NAME.transport]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Handler:
    """A handler that fits. `hosts` are those that a service can name; `adopt_id` is set where only an @id tells the
    handler from others; `ambiguous` says why it cannot be adopted at all, in Caddy's and our words."""

    candidate: Candidate
    dials: tuple[str, ...]
    hosts: tuple[str, ...]
    asked: Asked | None
    transport: Transport
    adopt_id: str | None = None
    ambiguous: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unfit:
    """A handler that is left out."""

    candidate: Candidate
    reason: str


def handlers(config: Json | None) -> tuple[list[Handler], list[Unfit]]:
    """All handlers of a configuration, as Caddy has them in JSON."""
    fit: list[Handler] = []
    unfit: list[Unfit] = []
    for candidate in (one for one in candidates(config) if not probes(one)):
        reason = _unfit(at(config, candidate.path), candidate)
        if reason is not None:
            unfit.append(Unfit(candidate, reason))
        else:
            fit.append(_handler(config, candidate))
    shared = _shared(fit, [one.candidate for one in unfit])
    unfit += [Unfit(one.candidate, shared[one.candidate]) for one in fit if one.candidate in shared]
    return [one for one in fit if one.candidate not in shared], unfit


def _handler(config: Json | None, candidate: Candidate) -> Handler:
    handler: Json = at(config, candidate.path)
    hosts = tuple(host for host in candidate.hosts if _is_host(host))
    remarks = [f"{host} is left out of hosts: no plain name" for host in candidate.hosts if host not in hosts]
    adopt_id, ambiguous = _adoption(config, candidate, hosts)
    return Handler(
        candidate=candidate,
        dials=tuple(dict.fromkeys(map(_dial, candidate.dials))),
        hosts=hosts,
        asked=asked(handler),
        transport=transport(handler),
        adopt_id=adopt_id,
        ambiguous=ambiguous,
        remarks=tuple(remarks),
    )


def _is_name(text: str) -> bool:
    return _is_host(text) and "*" not in text


def _is_host(text: str) -> bool:
    try:
        values.host(text)
    except ValueError:
        return False
    return True


# -- what does not fit ---------------------------------------------------------------------------------


def _unfit(handler: Json, candidate: Candidate) -> str | None:
    """Why nothing can be deployed behind a handler, or None."""
    if steered(candidate):
        return "trafficd steers it already"
    if _object(handler.get("dynamic_upstreams")):
        source = _object(handler.get("dynamic_upstreams")).get("source", "a module")
        return f"its upstreams are looked up at every request ({source}); trafficd deploys to addresses that stay"
    if "errors" in candidate.path or "handle_response" in candidate.path:
        return "it answers only in place of another handler (errors, or answers of another proxy)"
    if handler.get("handle_response") and handler.get("rewrite"):
        return "it only asks another service for permission (forward_auth)"
    protocol = _object(handler.get("transport")).get("protocol", "http")
    if protocol != "http":
        return f"it speaks {protocol} to its upstreams, and trafficd asks them over HTTP whether they are well"
    if not candidate.dials:
        return "it has no upstreams"
    return next((reason for dial in candidate.dials if (reason := _no_address(dial)) is not None), None)


def _no_address(dial: str) -> str | None:
    if "{" in dial:
        return f"its upstream {dial} is a placeholder, which Caddy fills in at every request"
    if dial.startswith(("unix/", "unix+")):
        return f"its upstream {dial} is a unix socket; trafficd deploys to host:port"
    try:
        _dial(dial)
    except AddressError as error:
        return str(error)
    return None


def _dial(text: str) -> str:
    """The address of an upstream in our spelling. Raises `AddressError`."""
    address = text.removeprefix("tcp/")
    return parse_dial(f"127.0.0.1{address}" if address.startswith(":") else address)


def _shared(fit: Sequence[Handler], unfit: Sequence[Candidate]) -> dict[Candidate, str]:
    """The handlers of which one address is also another's: Caddy counts what is open by address, not by handler."""
    addresses = [one.dials for one in fit]
    addresses += [tuple({dial.removeprefix("tcp/") for dial in one.dials}) for one in unfit]
    count = Counter(dial for dials in addresses for dial in dials)
    found = {}
    for one in fit:
        twice = [dial for dial in one.dials if count[dial] > 1]
        if twice:
            found[one.candidate] = (
                f"{', '.join(twice)} is an upstream of another handler too, and what is open there could not be told "
                "apart. Let one handler serve both (`a.example.com, b.example.com { ... }`, or a named matcher), "
                "and run trafficd init again"
            )
    return found


# -- how it can be adopted -----------------------------------------------------------------------------


def _adoption(config: Json | None, candidate: Candidate, hosts: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The @id by which it is adopted (None: by its hosts), and why it cannot be."""
    route = Route("draft", _ANYWHERE, 1, hosts=hosts)
    own = candidate.own_id if re.fullmatch(r"[\x21-\x7e]{1,200}", candidate.own_id or "") else None
    for adopt_id in (None, own):
        try:
            if find(config, route, adopt_id).path == candidate.path:
                return adopt_id, None
        except CaddyRefusedError:
            continue
    return None, f"more than one reverse_proxy handler serves {', '.join(hosts) or 'any host'}"


# -- health --------------------------------------------------------------------------------------------


def asked(handler: Json) -> Asked | None:
    """The active health check of a handler; None where it has none."""
    active = _object(_object(handler.get("health_checks")).get("active"))
    path = active.get("uri") or active.get("path") or ("/" if active.get("port") or active.get("upstream") else None)
    if not isinstance(path, str):
        return None
    headers = {str(name): _first(texts) for name, texts in _object(active.get("headers")).items()}
    host = next((text for name, text in headers.items() if name.lower() == "host"), None)
    usable = {n: t for n, t in headers.items() if n.lower() != "host" and "{" not in t and _is_header(n, t)}
    return Asked(
        path=path,
        host=host if host is not None and _is_name(host) else None,
        headers=usable,
        status=_status(active.get("expect_status")),
        interval=seconds(active.get("interval")),
        timeout=seconds(active.get("timeout")),
        rise=_count(active.get("passes")),
        fall=_count(active.get("fails")),
        remarks=tuple(_not_said(active, headers, usable)),
    )


def _not_said(active: Json, headers: Mapping[str, str], usable: Mapping[str, str]) -> Iterator[str]:
    """What Caddy's check asks and ours cannot."""
    for key in ("port", "upstream"):
        if active.get(key):
            yield f"Caddy asks at health_{key} {active[key]}; trafficd asks at the address that it deploys to"
    if str(active.get("method") or "GET") != "GET":
        yield f"Caddy asks with {active['method']}; trafficd asks with GET"
    if active.get("expect_body"):
        yield "Caddy also looks at the body (health_body); trafficd looks at the status alone"
    for name, text in headers.items():
        if not (_is_name(text) if name.lower() == "host" else name in usable):
            yield f"Caddy's check has a header {name} that is left out: it holds a placeholder or cannot be sent"


def _status(value: object) -> tuple[int, ...]:
    """The statuses of `expect_status`: one, or a class such as 2."""
    if not isinstance(value, int) or isinstance(value, bool):
        return ()
    if 1 <= value <= 5:
        return tuple(range(100 * value, 100 * value + (9 if value <= 2 else 5)))
    return (value,) if 100 <= value <= 599 else ()


def _is_header(name: str, text: str) -> bool:
    return bool(re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) and re.fullmatch(r"[\x20-\x7e\t]*", text)) and (
        name.lower() not in ("content-length", "transfer-encoding")
    )


def seconds(value: object) -> float | None:
    """Seconds of a duration of Caddy's: nanoseconds, or a text as Go writes it. None where it has none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value / 1e9 if value > 0 else None
    text = str(value or "")
    parts = _GO_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _GO_UNITS[unit] for number, unit in parts) or None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _first(texts: object) -> str:
    return ", ".join(map(str, texts)) if isinstance(texts, list) else str(texts)


# -- transport -----------------------------------------------------------------------------------------


def transport(handler: Json) -> Transport:
    """How Caddy speaks to the upstreams of a handler."""
    given = _object(handler.get("transport"))
    keys: dict[str, str | bool] = {}
    remarks: list[str] = []
    tls = given.get("tls")
    if isinstance(tls, dict):
        keys["tls"] = True
        keys |= dict(_tls(tls, remarks))
    elif given.get("versions") and set(map(str, given["versions"])) <= {"h2c", "2"}:
        keys["h2c"] = True
    return Transport(keys, tuple(remarks))


def _tls(tls: Json, remarks: list[str]) -> Iterator[tuple[str, str | bool]]:
    if tls.get("insecure_skip_verify"):
        yield "tls_insecure", True
    name = str(tls.get("server_name") or "")
    if name and _is_host(name):
        yield "tls_server_name", name
    elif name:
        remarks.append(f"Caddy's tls_server_name {name} is left out: no plain name")
    files = [
        str(file) for file in [*_array(tls.get("root_ca_pem_files")), *_array(_object(tls.get("ca")).get("pem_files"))]
    ]
    if len(files) == 1 and re.fullmatch(r"/[^{}*\x00-\x1f]*", files[0]) and ".." not in files[0].split("/"):
        yield "tls_ca", files[0]
    elif files or tls.get("ca") or tls.get("root_ca_pool"):
        remarks.append("Caddy trusts authorities of its own here; name them in one file with tls_ca")
    if any(key.startswith("client_certificate") for key in tls):
        remarks.append("Caddy shows the upstreams a client certificate; trafficd's probes have none")


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _array(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
