"""What was found and what to do next, for the terminal. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from trafficd.draft.document import plain
from trafficd.draft.services import Draft, Service, place

_ELSEWHERE = "VERSION"


def successor(version: str | None) -> str:
    """A version that could come next, to show how a deploy is typed: v2 after v1."""
    match = re.fullmatch(r"(v?(?:\d{1,4}\.)*)(\d{1,4})", version or "", re.ASCII)
    return f"{match[1]}{int(match[2]) + 1}" if match else _ELSEWHERE


def commands(draft: Draft, path: str) -> list[tuple[str, str]]:
    """The next commands, each with what it does."""
    file = shlex.quote(path)
    found = [
        (f"trafficd plan --config {file}", "shows the one change in Caddy; touches nothing"),
        (f"trafficd run --config {file}", "the daemon; makes that change"),
    ]
    for service in draft.services:
        hold = " --strategy hold" if service.single else ""
        if service.docker is not None:
            found.append((f"trafficd deploy {service.name} {successor(service.version)}{hold}", "in another terminal"))
        else:
            found.append(
                (f"trafficd drain {service.name} {service.instances[0].id}", "and so on: see [swap] in the file")
            )
    return found


def text(draft: Draft, path: str | None) -> str:
    """All of it. `path` is None where the file went to standard output."""
    return "\n".join(_lines(draft, path))


def _lines(draft: Draft, path: str | None) -> Iterator[str]:
    yield f"Caddy   {plain(draft.seen.origin)}"
    for machine in draft.seen.machines:
        count = len(machine.containers)
        said = f"{count} {'container runs' if count == 1 else 'containers run'}"
        if machine.failure is not None:
            said = f"NOT ASKED: {machine.failure}"
        yield f"Engine  {plain(machine.url)}: {plain(said)}"
    if draft.contained is not None:
        yield f"LOOK    {plain(draft.contained)}"
    for service in draft.services:
        yield ""
        yield from _service(service)
    if draft.unfit:
        yield ""
        yield "Left out (the reasons are in the file, too):"
        for one in draft.unfit:
            dials = ", ".join(one.candidate.dials) or "no upstreams"
            yield f"  {plain(', '.join(one.candidate.hosts) or 'any host')} -> {plain(dials)}: {plain(one.reason)}"
    yield ""
    yield f"{path} is written. Next:" if path is not None else "Save it as trafficd.toml. Next:"
    rows = commands(draft, path or "trafficd.toml")
    width = max(len(command) for command, _ in rows)
    for command, why in rows:
        yield f"  {command:<{width}}   # {why}"


def _service(service: Service) -> Iterator[str]:
    hosts = ", ".join(service.handler.hosts) or "any host"
    yield f"{service.name}  {hosts}"
    width = max(len(one.id) for one in service.instances)
    for one in service.instances:
        yield f"  {one.id:<{width}}  {one.dial}  {plain(one.version or 'version unknown')}  {plain(one.why)}"
    yield f"  health  {service.health.path}  {plain(service.health.why)}"
    replaced = "by trafficd (docker)" if service.docker is not None else "by your own script (external)"
    yield f"  replaced  {replaced}"
    for reason in service.by_hand:
        yield f"    {plain(reason)}"
    if not service.adopts:
        yield f"  TO DO  {plain(service.handler.ambiguous or '')}: your Caddyfile has to import a snippet; see the file"
    for warning in service.warnings:
        yield f"  LOOK  {plain(warning)}"


def view(draft: Draft, path: str | None) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "output": path,
        "caddy": {"admin": draft.seen.admin, "origin": draft.seen.origin, "running": draft.seen.running},
        "engines": [
            {"url": one.url, "containers": len(one.containers), "failure": one.failure} for one in draft.seen.machines
        ],
        "services": [_view(one) for one in draft.services],
        "left_out": [
            {
                "hosts": list(one.candidate.hosts),
                "dials": list(one.candidate.dials),
                "place": place(one.candidate),
                "reason": one.reason,
            }
            for one in draft.unfit
        ],
        "next": [command for command, _ in commands(draft, path or "trafficd.toml")],
    }


def _view(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "hosts": list(service.handler.hosts),
        "route": "adopt" if service.adopts else "import",
        "upstreams": [
            {"id": one.id, "dial": one.dial, "version": one.version, "why": one.why} for one in service.instances
        ],
        "health": service.health.path,
        "driver": "external" if service.docker is None else "docker",
        "by_hand": list(service.by_hand),
        "warnings": list(service.warnings),
    }
