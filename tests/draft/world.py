"""Caddy's configuration and Engines' lists, as small values that tests put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trafficd import config as configuration
from trafficd.draft.containers import Container, Machine
from trafficd.draft.health import Answers
from trafficd.draft.services import Draft, Seen, draft
from trafficd.draft.writing import document

Json = dict[str, Any]

LOCAL = "unix:///var/run/docker.sock"
A, B = "10.0.0.11:8080", "10.0.0.12:8080"


def proxy(*dials: str, **more: Any) -> Json:
    return {"handler": "reverse_proxy", "upstreams": [{"dial": dial} for dial in dials], **more}


def site(handler: Json, *hosts: str, **more: Any) -> Json:
    """A route, as the Caddyfile's adapter makes one of a site."""
    inside = {"handler": "subroute", "routes": [{"handle": [handler]}]}
    return {"handle": [inside], **({"match": [{"host": list(hosts)}]} if hosts else {}), **more}


def caddy(*routes: Json) -> Json:
    return {"apps": {"http": {"servers": {"srv0": {"listen": [":443"], "routes": list(routes)}}}}}


def tutorial() -> Json:
    """What Caddy makes of the tutorial's Caddyfile."""
    checks = {"active": {"uri": "/healthz", "interval": 5_000_000_000}, "passive": {"fail_duration": 30_000_000_000}}
    balancing = {"selection_policy": {"policy": "round_robin"}}
    return caddy(site(proxy(A, B, health_checks=checks, load_balancing=balancing), "example.com"))


def container(
    name: str,
    image: str = "shop/web:v1",
    *,
    at: str | None = None,
    inside: int = 3000,
    listens: frozenset[int] | None = None,
    env: tuple[str, ...] = (),
    labels: dict[str, str] | None = None,
    check: list[str] | None = None,
    temporary: bool = False,
    address: str = "",
    pulled: bool = True,
) -> Container:
    """A running container; `at` "0.0.0.0:8080" publishes there, None is on its host's network."""
    ports = []
    if at is not None:
        host, _, port = at.rpartition(":")
        ports = [{"IP": host, "PublicPort": int(port), "PrivatePort": inside, "Type": "tcp"}]
    inspect = {
        "Id": f"id of {name}",
        "Name": f"/{name}",
        "Config": {
            "Image": image,
            "Env": list(env),
            "Labels": labels or {},
            **({"Healthcheck": {"Test": check}} if check is not None else {}),
        },
        "HostConfig": {"NetworkMode": "bridge" if at or address else "host", "AutoRemove": temporary},
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": address, "Aliases": None}}},
    }
    return Container({"Id": f"id of {name}", "Names": [f"/{name}"], "Ports": ports}, inspect, listens, pulled)


def machine(
    *containers: Container, url: str = LOCAL, hosts: tuple[str, ...] = (), failure: str | None = None
) -> Machine:
    return Machine(url, frozenset(hosts), containers, failure)


def two_hosts() -> tuple[Machine, Machine]:
    """The tutorial's servers, an Engine each, whose containers have the same name."""
    return (
        machine(container("web", at="0.0.0.0:8080"), url="ssh://deploy@web1", hosts=("10.0.0.11",)),
        machine(container("web", at="0.0.0.0:8080"), url="ssh://deploy@web2", hosts=("10.0.0.12",)),
    )


def drafted(config: Json, *machines: Machine, answers: Answers | None = None) -> Draft:
    seen = Seen(config, "http://127.0.0.1:2019", "the running Caddy", running=True, machines=machines, answers=answers)
    return draft(seen)


def loaded(found: Draft, directory: Path) -> configuration.Config:
    """The draft as the daemon would load it."""
    file = directory / "trafficd.toml"
    file.write_text(document(found), encoding="utf-8")
    return configuration.load(file)
