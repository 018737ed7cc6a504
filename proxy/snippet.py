"""The snippet that a Caddyfile imports to have a service's slots in it. Pure.

The file holds one whole `reverse_proxy` directive, with the log of its answers where there is one, and is imported
inside a site block. It is the Caddyfile's own part then, and every later `caddy reload` keeps the routing, which lives
in the slots. It means what the handler for requests means in a route of our own; upgraded streams go through it too and
count as requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from proxy import import_log
from proxy.candidates import slot_dials
from proxy.errors import AddressError
from proxy.handler import Route, Transport, duration

_PLAIN = re.compile(r"[\w./*+@%,:=-]+", re.ASCII)


def snippet(route: Route) -> str:
    """The content of the file. Raises `AddressError` for a path or name that a Caddyfile cannot hold."""
    directive = ["reverse_proxy {", *(f"\t{line}" for line in _directive(route)), "}"]
    log = () if route.access_log is None else import_log.site_lines(route.service, route.access_log)
    lines = [*_header(route), *log, *directive]
    return "\n".join(lines) + "\n"


def _header(route: Route) -> Iterator[str]:
    file = f"trafficd-{route.service}.caddy"
    yield f"# The slots of the service {route.service}: trafficd routes by them, and never changes this file."
    yield f"# Written by `trafficd caddyfile {route.service}`. Save it as /etc/caddy/{file}, import it once inside the"
    yield "# site block, in place of the reverse_proxy that is there, and reload Caddy:"
    yield "#"
    for host in route.hosts or ("example.com",):
        yield f"#\t{host} {{"
        yield f"#\t\timport /etc/caddy/{file}"
        yield "#\t}"
    yield "#"
    yield "# Requests wait here while nobody is ready. WebSockets and other streams are counted as requests."
    if route.access_log is not None:
        yield "# The log is for trafficd, beside those of the site, which stay as they are. (A site without a host name"
        yield "# can have only one, the last: give it its names if it has a log of its own.)"
    if route.transport.h2c:
        yield "# Upstreams are spoken to by HTTP/2 without TLS, which cannot carry WebSockets."


def _directive(route: Route) -> Iterator[str]:
    if route.access_log is not None and not _PLAIN.fullmatch(route.access_log.replace(" ", "")):
        raise AddressError(
            f"caddy.access_log: {route.access_log!r} cannot be named in a Caddyfile; move it to a path of letters, "
            "digits and dots"
        )
    if ":" in route.slots_path or "`" in route.slots_path:
        raise AddressError(
            f"services.{route.service}: the slots in {route.slots_path!r} cannot be named in a Caddyfile, which takes "
            "the colon or backquote for its own; move daemon.state_dir to another path"
        )
    for dial in slot_dials(route):
        # Without the network a Caddyfile's adapter takes the placeholder for a host and appends ":80".
        address = f"tcp/{dial}"
        yield f"to {address}" if " " not in address else f'to "{address}"'
    yield f"lb_policy {_policy(route)}"
    yield f"lb_try_duration {duration(route.try_duration)}"
    yield f"lb_try_interval {duration(route.try_interval)}"
    yield "lb_retry_match not path *"  # nothing: only a failed dial is tried again
    if route.stream_close_delay:
        yield f"stream_close_delay {duration(route.stream_close_delay)}"
    if route.transport.tls:
        yield "header_up Host {http.request.hostport}"
    if route.access_log is not None:
        yield from import_log.handler_lines()
    yield "transport http {"
    yield from (f"\t{line}" for line in _transport(route.transport))
    yield "}"


def _policy(route: Route) -> str:
    match route.affinity:
        case "cookie":
            return f"cookie {_word(f'trafficd_{route.service}')}"
        case "client_ip":
            return "client_ip_hash"
        case "none":
            return "round_robin"


def _transport(transport: Transport) -> Iterator[str]:
    yield f"dial_timeout {duration(transport.dial_timeout)}"
    yield f"keepalive {duration(transport.keepalive)}"
    for key in ("response_header_timeout", "read_timeout", "write_timeout"):
        value = getattr(transport, key)
        if value is not None:
            yield f"{key} {duration(value)}"
    if transport.tls:
        yield from _tls(transport)
    if transport.h2c:
        yield "versions h2c 2"


def _tls(transport: Transport) -> Iterator[str]:
    yield "tls"
    if transport.server_name:
        yield f"tls_server_name {_word(transport.server_name)}"
    if transport.insecure:
        yield "tls_insecure_skip_verify"
    if transport.ca:
        yield f"tls_trust_pool file {_word(transport.ca)}"


def _word(text: str) -> str:
    """One word of a Caddyfile, in quotes where it needs them."""
    if _PLAIN.fullmatch(text):
        return text
    if not text.isprintable() or any(c in '"`\\{}' for c in text):
        raise AddressError(
            f"{text!r} cannot be written into a Caddyfile: it must be without quotes, braces, backslashes and "
            "control characters"
        )
    return f'"{text}"'
