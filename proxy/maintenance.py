"""A static answer of Caddy's own, for services in maintenance. Pure.

One server on Caddy's loopback, written together with the services. A service in maintenance has this server's address
as its only upstream: in its slots, so that beginning and ending it changes nothing in Caddy's configuration, loses no
request and cuts no stream. Which service is asked is told by the host, which Caddy hands on;
a service without hosts has the answer for any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.candidates import at, in_own_route, with_slots
from proxy.handler import Json, Route, put_server, server_port

SERVER_ID = "trafficd_maintenance"


@dataclass(frozen=True)
class StaticAnswer:
    """What is answered. `retry_after` in seconds; 0: not said."""

    status: int = 503
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"
    retry_after: float = 0.0


def put(config: Json, port: int, answers: Iterable[tuple[Route, StaticAnswer]]) -> str:
    """Put the server into the configuration, in place, at the port that it has already or else at `port`.

    Returns its address.
    """
    port = server_port(config, SERVER_ID) or port
    # Those for any host last: the first that fits answers.
    ordered = sorted(answers, key=lambda pair: (not pair[0].hosts, pair[0].service))
    put_server(
        config,
        SERVER_ID,
        {
            "listen": [f"127.0.0.1:{port}"],
            "automatic_https": {"disable": True},
            "protocols": ["h1", "h2c"],
            "routes": [_route(route, answer) for route, answer in ordered],
        },
    )
    return f"127.0.0.1:{port}"


def _route(route: Route, answer: StaticAnswer) -> Json:
    headers = {"Content-Type": [answer.content_type], "Cache-Control": ["no-store"]}
    if answer.retry_after:
        headers["Retry-After"] = [str(round(answer.retry_after))]
    handler: Json = {
        "handler": "static_response",
        "status_code": answer.status,
        "body": answer.body,
        "headers": headers,
    }
    built: Json = {"handle": [handler], "terminal": True}
    if route.hosts:
        built["match"] = [{"host": list(route.hosts)}]
    return built


def present(config: Json | None) -> bool:
    """Whether the configuration has the server."""
    return server_port(config, SERVER_ID) is not None


def speaks_tls(config: Json | None, route: Route) -> bool:
    """Whether Caddy speaks TLS to the upstreams of this service: then this server, which does not, cannot stand in
    for them."""
    found = (at(config, candidate.path) for candidate in (*with_slots(config, route), *in_own_route(config, route)))
    return any("tls" in (handler.get("transport") or {}) for handler in found)
