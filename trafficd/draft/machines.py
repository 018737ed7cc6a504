"""The Engines' running containers, and whose machine an address is. An Engine that cannot be asked is no error: it is
told, with the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import ipaddress
import os
import re
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from trafficd.config.docker import exposed
from trafficd.draft.containers import Container, Machine
from trafficd.draft.listening import listens
from trafficd.errors import TrafficdError
from trafficd.ssh.connections import Connections
from trafficd.ssh.forward import Forwards
from trafficd.ssh.host import parse_host
from trafficd.ssh.settings import Settings
from trafficd.swap.docker.engine import Engine
from trafficd.swap.docker.engines import Certificates, Engines, split

_ENGINE = 20.0  # s for all that is asked of one Engine
_RESOLVE = 3.0  # s


async def machines(
    urls: Sequence[str], hosts: frozenset[str], certificates: Certificates | None, ssh: Settings
) -> tuple[Machine, ...]:
    """The Engines at `urls`, and which of the `hosts` each one's machine is. `certificates` are for tcp://."""
    async with _clients(certificates, ssh) as (engines, connections):
        found = await asyncio.gather(*(_machine(url, hosts, engines, connections) for url in urls))
    if certificates is None:
        return tuple(found)
    files = (str(certificates.authority), str(certificates.certificate), str(certificates.key))
    return tuple(replace(one, certificates=files if one.url.startswith("tcp://") else None) for one in found)


@contextlib.asynccontextmanager
async def _clients(certificates: Certificates | None, ssh: Settings) -> AsyncIterator[tuple[Engines, Connections]]:
    connections = Connections(ssh)
    forwards = Forwards(connections)

    async def forward(host: str, remote_socket: str) -> Path:
        return await forwards.forward_unix(parse_host(f"ssh://{host}"), remote_socket)

    engines = Engines(certificates, forward)
    try:
        yield engines, connections
    finally:
        await engines.aclose()
        await forwards.aclose()
        await connections.aclose()


async def _machine(url: str, hosts: frozenset[str], engines: Engines, connections: Connections) -> Machine:
    for _, text in exposed(url, (), secured=engines.secured):
        return Machine(url, failure=f"{text} (DOCKER_CERT_PATH names their directory)")
    try:
        if url.startswith("unix://"):
            _look_at_socket(Path(url.removeprefix("unix://")))
        async with asyncio.timeout(_ENGINE):
            containers = await _containers(Engine(engines, url), local=url.startswith("unix://"))
            mine = await _hosts_of_machine(url, hosts, connections)
    except TimeoutError:
        return Machine(url, failure=f"no answer within {_ENGINE:g} s")
    except (TrafficdError, ValueError) as error:
        return Machine(url, failure=str(error))
    return Machine(url, mine, containers)


def _look_at_socket(path: Path) -> None:
    """Raises `TrafficdError` with the remedy, where the library would only name an errno."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        number = knock.connect_ex(str(path))
    if number == errno.EACCES:
        raise TrafficdError(
            f"permission denied. Run it as root, or as a user of the group {_group(path)} "
            f"(`sudo usermod -aG {_group(path)} $USER`, and log in again)"
        )
    if number in (errno.ENOENT, errno.ECONNREFUSED):
        raise TrafficdError("nothing listens there; does Docker run here? Another Engine is given with --engine URL")
    if number:
        raise TrafficdError(os.strerror(number))


def _group(path: Path) -> str:
    try:
        return grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "docker"


async def _containers(engine: Engine, *, local: bool) -> tuple[Container, ...]:
    found = []
    for entry in await engine.listing():
        if str(entry.get("State", "")).lower() != "running":
            continue
        inspect = await engine.inspect(entry["Id"])
        if inspect is None:
            continue  # it went away meanwhile
        image = await engine.image(inspect["Image"])
        one = Container(entry, inspect, pulled=image is None or bool(image.get("RepoDigests")))
        if local and one.on_host:
            one = replace(one, listens=await asyncio.to_thread(listens, int(inspect["State"].get("Pid") or 0)))
        found.append(one)
    return tuple(found)


# -- whose machine an address is -----------------------------------------------------------------------


async def _hosts_of_machine(url: str, hosts: frozenset[str], connections: Connections) -> frozenset[str]:
    """Those of the hosts that are the Engine's machine."""
    addresses = {host: await _resolved(host) for host in hosts}
    name = _name_of(url)
    if name is None:
        return frozenset(host for host, found in addresses.items() if found and all(map(_is_here, found)))
    own = await _resolved(name)
    if url.startswith("ssh://"):
        own |= await _addresses_there(url, connections)
    return frozenset(host for host, found in addresses.items() if host == name or found & own)


def _name_of(url: str) -> str | None:
    """The host of an Engine; None where it is this machine."""
    if url.startswith("unix://"):
        return None
    if url.startswith("ssh://"):
        return parse_host(f"ssh://{split(url)[0]}").name
    name = url.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return None if name in ("127.0.0.1", "::1", "localhost") else name


async def _addresses_there(url: str, connections: Connections) -> set[str]:
    """The addresses that another host says it has; none where it cannot say."""
    host = parse_host(f"ssh://{split(url)[0]}")
    try:
        async with connections.session(host, "hostname -I || ip -o addr") as process:
            text = (await process.stdout.read()).decode(errors="replace")
    except TrafficdError:
        return set()
    found = set()
    for word in re.split(r"[\s/]+", text):
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(word)
            if not address.is_loopback:
                found.add(str(address))
    return found


async def _resolved(host: str) -> set[str]:
    try:
        async with asyncio.timeout(_RESOLVE):
            rows = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return set()
    return {str(row[4][0]) for row in rows}


def _is_here(address: str) -> bool:
    """Whether it is an address of this machine: then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as knock:
            knock.bind((address, 0))
    except OSError:
        return False
    return True
