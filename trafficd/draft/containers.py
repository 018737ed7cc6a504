"""Which container serves an address. Pure.

Known for certain is a port that an Engine publishes, and a port that a process of a container on its host's network
listens at. Where neither can be seen (the Engine is on another host), a variable PORT, or the one port that its image
exposes, is taken for it when no other container there has the same. Ports alone never join an address to a machine:
two hosts that both publish 8080 are the usual case.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trafficd.swap.docker import survey
from trafficd.swap.docker.definition import repository

Json = dict[str, Any]

_EVERYWHERE = ("", "0.0.0.0", "::")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class How(enum.Enum):
    """How it is known who serves an address."""

    PUBLISHED = "published"
    LISTENS = "listens"
    TOLD = "told"  # by its variable PORT, or by what its image exposes
    INSIDE = "inside"  # the address is the container's own, in a network of its Engine


@dataclass(frozen=True)
class Container:
    """A running container: its line in the Engine's list, and what the Engine says of it. `listens`: ports of the
    host that its processes listen at; None where that cannot be seen. `pulled`: whether its image has been in a
    registry, and was not made on its host."""

    entry: Mapping[str, Any]
    inspect: Mapping[str, Any]
    listens: frozenset[int] | None = None
    pulled: bool = True

    @property
    def name(self) -> str:
        return str(self.inspect.get("Name", "")).lstrip("/")

    @property
    def image(self) -> str:
        return str(self._config.get("Image", ""))

    @property
    def repository(self) -> str:
        """The image without its tag; empty where it has no name."""
        return repository(self.image)

    @property
    def tag(self) -> str | None:
        """The tag of the image; None where it is named by a digest alone, or has no name."""
        name, at, _ = self.image.partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        return (tag or (None if at else "latest")) if self.repository else None

    @property
    def environment(self) -> Mapping[str, str]:
        pairs = (entry.partition("=") for entry in self._config.get("Env") or [])
        return {name: value for name, _, value in pairs}

    @property
    def on_host(self) -> bool:
        return bool(self._host.get("NetworkMode") == "host")

    @property
    def temporary(self) -> bool:
        """Whether it is gone when it stops (--rm)."""
        return bool(self._host.get("AutoRemove"))

    @property
    def compose(self) -> str | None:
        """Its service in a Compose file."""
        found = (self._config.get("Labels") or {}).get("com.docker.compose.service")
        return None if found is None else str(found)

    @property
    def check(self) -> str:
        """The command of its own health check; empty where it has none."""
        test = (self._config.get("Healthcheck") or {}).get("Test") or []
        return " ".join(map(str, test[1:])) if test and test[0] in ("CMD", "CMD-SHELL") else ""

    @property
    def exposed(self) -> frozenset[int]:
        ports = (name.partition("/") for name in self._config.get("ExposedPorts") or {})
        return frozenset(int(port) for port, _, kind in ports if port.isdigit() and kind in ("", "tcp"))

    @property
    def addresses(self) -> frozenset[str]:
        """What it is called in its Engine's networks."""
        found = {self.name, str(self._config.get("Hostname", ""))}
        for network in ((self.inspect.get("NetworkSettings") or {}).get("Networks") or {}).values():
            found |= {str(network.get("IPAddress") or ""), *map(str, network.get("Aliases") or [])}
        return frozenset(found - {""})

    def bindings(self, port: int) -> Iterator[tuple[str, int]]:
        """Where it is published at a port of the host: the address, and the port inside."""
        for one in self.entry.get("Ports") or []:
            if one.get("PublicPort") == port and one.get("Type", "tcp") == "tcp":
                yield str(one.get("IP", "")), int(one["PrivatePort"])

    @property
    def _config(self) -> Json:
        return self.inspect.get("Config") or {}

    @property
    def _host(self) -> Json:
        return self.inspect.get("HostConfig") or {}


@dataclass(frozen=True)
class Machine:
    """An Engine as it was found. `hosts`: the hosts of the upstreams that are this machine; `failure`: why it could
    not be asked; `certificates`: authority, certificate and key for an Engine at tcp://."""

    url: str
    hosts: frozenset[str] = frozenset()
    containers: tuple[Container, ...] = ()
    failure: str | None = None
    certificates: tuple[str, str, str] | None = field(default=None)


@dataclass(frozen=True)
class Serving:
    """Who serves an address. `inside`: the port in the container, None on the host's network; `bound`: the address of
    the host that it is published at; `by_name`: only its name leads the driver to it."""

    container: Container
    machine: Machine
    how: How
    inside: int | None = None
    bound: str = ""
    by_name: bool = False

    def __str__(self) -> str:
        name, where = self.container.name, self.machine.url
        match self.how:
            case How.PUBLISHED:
                return f"published by container {name} ({where})"
            case How.LISTENS:
                return f"container {name} listens there, on its host's network ({where})"
            case How.TOLD:
                return f"container {name}, on its host's network, by its PORT ({where})"
            case How.INSIDE:
                return f"container {name}'s own address ({where})"


def serving(dial: str, machines: Sequence[Machine]) -> Serving | None:
    """Who serves an address; None where that is not known, or more than one could be."""
    host, port = _split(dial)
    for look in (_published, _listening, _told, _inside):
        found = [one for machine in machines for one in look(machine, dial, host, port)]
        if len(found) == 1:
            return found[0]
        if found:
            return None
    return None


def near(dial: str, machines: Sequence[Machine]) -> list[tuple[Container, Machine]]:
    """Containers that publish the port on machines that are not known to have the address."""
    host, port = _split(dial)
    return [
        (container, machine)
        for machine in machines
        if host not in machine.hosts
        for container in machine.containers
        if any(True for _ in container.bindings(port))
    ]


def _split(dial: str) -> tuple[str, int]:
    host, _, port = dial.rpartition(":")
    return host.strip("[]"), int(port)


def _published(machine: Machine, dial: str, host: str, port: int) -> Iterator[Serving]:
    for container in machine.containers:
        bound = [one for one in container.bindings(port) if _leads(one[0], host, machine)]
        if bound:
            found = survey.publishing([one.entry for one in machine.containers], dial)
            yield Serving(
                *(container, machine, How.PUBLISHED),
                inside=bound[0][1],
                bound=bound[0][0],
                by_name=found is not container.entry,
            )


def _leads(bound: str, host: str, machine: Machine) -> bool:
    """Whether what is published at this address is met at that host."""
    if bound in _EVERYWHERE:
        return host in machine.hosts
    if bound in _LOOPBACK:
        return host in machine.hosts and host in _LOOPBACK
    return bound == host


def _listening(machine: Machine, dial: str, host: str, port: int) -> Iterator[Serving]:
    for container in _on_host(machine, host):
        if port in (container.listens or ()):
            yield Serving(container, machine, How.LISTENS, by_name=True)


def _told(machine: Machine, dial: str, host: str, port: int) -> Iterator[Serving]:
    for container in _on_host(machine, host):
        said = container.environment.get("PORT")
        told = said == str(port) if said is not None else container.exposed == {port}
        if container.listens is None and told:
            yield Serving(container, machine, How.TOLD, by_name=True)


def _on_host(machine: Machine, host: str) -> Iterable[Container]:
    return (one for one in machine.containers if one.on_host and host in machine.hosts)


def _inside(machine: Machine, dial: str, host: str, port: int) -> Iterator[Serving]:
    for container in machine.containers:
        if host in container.addresses and not container.on_host:
            yield Serving(container, machine, How.INSIDE, inside=port)
