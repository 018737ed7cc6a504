"""What was found -> the services, with every value decided and what a person should know of it. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from proxy.candidates import Candidate, path_text
from proxy.errors import AddressError
from proxy.handler import Json
from proxy.model import parse_name
from trafficd.config import values
from trafficd.config.docker import parse_image
from trafficd.draft.containers import How, Machine, Serving, near, serving
from trafficd.draft.handlers import Handler, Unfit, handlers
from trafficd.draft.health import Answers, Health, Question, question, settled

_RANGES = range(20_000, 60_000, 1_000)  # where new instances may get ports: the first thousand without an upstream
_ALL = "0.0.0.0"


@dataclass(frozen=True)
class Seen:
    """All that was found. `origin` says where Caddy's configuration is from; `running`: whether from Caddy itself."""

    config: Json | None
    admin: str
    origin: str
    running: bool
    machines: tuple[Machine, ...] = ()
    answers: Mapping[tuple[str, str], int | str] | None = None


@dataclass(frozen=True)
class Instance:
    """One upstream. `version` is None where it is not known; `why` says where it was found."""

    id: str
    dial: str
    why: str
    version: str | None = None
    version_why: str = ""
    engine: str | None = None  # where not that of all


@dataclass(frozen=True)
class Docker:
    """`[services.NAME.docker]`. `remarks` are for the file, `warnings` what stands in the way of a deploy."""

    engine: str
    image: str | None
    made_here: str | None  # a container whose image no registry has
    port: int | None
    publish: str | None
    port_range: str | None
    take_over: str | bool
    environment: Mapping[str, str]
    certificates: tuple[str, str, str] | None
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Service:
    """One service. `docker` is None where somebody else replaces the instances, and `by_hand` then says why."""

    name: str
    handler: Handler
    instances: tuple[Instance, ...]
    docker: Docker | None
    by_hand: tuple[str, ...]
    health: Health
    remarks: tuple[str, ...] = ()

    @property
    def adopts(self) -> bool:
        return self.handler.ambiguous is None

    @property
    def single(self) -> bool:
        return len(self.instances) == 1

    @property
    def version(self) -> str | None:
        """What most of it runs."""
        known = Counter(one.version for one in self.instances if one.version is not None)
        return known.most_common(1)[0][0] if known else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be looked at before the first deploy."""
        return (*self.health.warnings, *(self.docker.warnings if self.docker is not None else ()))


@dataclass(frozen=True)
class Draft:
    seen: Seen
    services: tuple[Service, ...]
    unfit: tuple[Unfit, ...]

    @property
    def contained(self) -> str | None:
        return _contained(self.seen.machines)

    @property
    def silent(self) -> tuple[Machine, ...]:
        """The Engines that could not be asked."""
        return tuple(one for one in self.seen.machines if one.failure is not None)


def _contained(machines: Sequence[Machine]) -> str | None:
    """What a Caddy in a container needs, where one seems to be in one."""
    images = ((one.repository.rpartition("/")[2], one.name) for machine in machines for one in machine.containers)
    name = next((name for image, name in images if image == "caddy"), None)
    if name is None:
        return None
    return (
        f"a Caddy runs in container {name}. If it is this one, mount trafficd's slots (/var/lib/trafficd/slots) into "
        'it, and say where they are with slots_path: see "A Caddy in a container" in the README'
    )


def hosts_of(config: Json | None) -> frozenset[str]:
    """The hosts of all upstreams: whose machines they are is to be found out."""
    fit, _ = handlers(config)
    return frozenset(dial.rpartition(":")[0].strip("[]") for one in fit for dial in one.dials)


def questions(seen: Seen) -> list[Question]:
    """What the instances are to be asked, before `draft`."""
    fit, _ = handlers(seen.config)
    return [question(one, _servings(one, seen.machines)) for one in fit]


def draft(seen: Seen) -> Draft:
    """The services of everything that was found."""
    fit, unfit = handlers(seen.config)
    taken = _taken_ports(fit)
    names = _names(fit, seen.machines)
    services = [
        _service(name, one, seen.machines, seen.answers or {}, taken) for name, one in zip(names, fit, strict=True)
    ]
    return Draft(seen, tuple(services), tuple(unfit))


def place(candidate: Candidate) -> str:
    """A handler as a person looks for it."""
    return f"on {', '.join(candidate.listen) or candidate.server}, {path_text(candidate.path)}"


def _servings(handler: Handler, machines: Sequence[Machine]) -> list[Serving]:
    found = (serving(dial, machines) for dial in handler.dials)
    return [one for one in found if one is not None]


def _service(name: str, handler: Handler, machines: Sequence[Machine], answers: Answers, taken: set[int]) -> Service:
    servings = [serving(dial, machines) for dial in handler.dials]
    known = [one for one in servings if one is not None]
    by_hand = tuple(_reasons(handler, servings, machines))
    docker, instances = None, _plain_instances(handler, servings)
    if not by_hand:
        named, take_over = _named(known)
        if take_over is None:
            by_hand = (
                "its containers are found by their names alone (they are on their hosts' network), and these names "
                "are neither all different nor all the same: the driver would not know which is meant. Rename them",
            )
        else:
            instances = _instances(handler, known, named)
            docker = _docker(known, take_over, taken)
    return Service(
        name=name,
        handler=handler,
        instances=instances,
        docker=docker,
        by_hand=by_hand,
        health=settled(handler, known, answers),
        remarks=(*handler.remarks, *handler.transport.remarks),
    )


# -- names ---------------------------------------------------------------------------------------------


def _names(fit: Sequence[Handler], machines: Sequence[Machine]) -> list[str]:
    """A name for each service: the first label of its first host, else its image's name, else "web"."""
    first = [_label(one.hosts[0]) if one.hosts else _image_name(_servings(one, machines)) for one in fit]
    names: list[str] = []
    for handler, name in zip(fit, first, strict=True):
        if first.count(name) > 1 and handler.hosts:
            name = handler.hosts[0].replace(".", "-")
        names.append(_unused(_slug(name), names))
    return names


def _label(host: str) -> str:
    return host.removeprefix("*.").removeprefix("www.").partition(".")[0]


def _image_name(servings: Sequence[Serving]) -> str:
    return next((one.container.repository.rpartition("/")[2] for one in servings if one.container.repository), "web")


def _slug(text: str) -> str:
    """Only what needs no quotes in a key, and fits a path and a variable."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:50] or "web"


def _unused(name: str, names: Sequence[str]) -> str:
    numbered = (f"{name}-{number}" for number in range(2, len(names) + 3))
    return next(one for one in (name, *numbered) if one not in names)


def letter(index: int) -> str:
    """The id of an instance without a name: a to z, and then numbers."""
    return chr(ord("a") + index) if index < 26 else f"u{index}"


def _named(servings: Sequence[Serving]) -> tuple[bool, str | bool | None]:
    """Whether upstreams are called as their containers are, and how the driver finds these; None: it cannot."""
    names = [one.container.name for one in servings]
    distinct = len({name.lower() for name in names}) == len(names) and all(map(_is_name, names))
    if not any(one.by_name for one in servings):
        return distinct, True
    if distinct:
        return True, "{upstream}"
    return False, names[0] if len(set(names)) == 1 and _is_name(names[0]) else None


def _is_name(text: str) -> bool:
    try:
        parse_name(text)
    except AddressError:
        return False
    return True


# -- instances -----------------------------------------------------------------------------------------


def _plain_instances(handler: Handler, servings: Sequence[Serving | None]) -> tuple[Instance, ...]:
    return tuple(
        Instance(letter(index), dial, "Caddy's upstream" if one is None else str(one))
        for index, (dial, one) in enumerate(zip(handler.dials, servings, strict=True))
    )


def _instances(handler: Handler, servings: Sequence[Serving], named: bool) -> tuple[Instance, ...]:
    tags = [_version(one) for one in servings]
    most = next(iter(Counter(tag for tag in tags if tag is not None).most_common(1)), (None, 0))[0]
    common = _common_engine(servings)
    found = []
    for index, (dial, one, tag) in enumerate(zip(handler.dials, servings, tags, strict=True)):
        other = tag is not None and tag != most
        why = f"the tag of its image, {one.container.image}"
        if other:
            # Its own version would be a canary's: without traffic until somebody gives it a share.
            why = f"it runs {tag}, unlike most: not said here, or it would get no traffic until the next deploy"
        elif tag is None:
            why = f"its image {one.container.image or '(without a name)'} has no tag"
        found.append(
            Instance(
                id=one.container.name if named else letter(index),
                dial=dial,
                why=str(one),
                version=None if other else tag,
                version_why=why,
                engine=None if one.machine.url == common else one.machine.url,
            )
        )
    return tuple(found)


def _version(one: Serving) -> str | None:
    tag = one.container.tag
    try:
        return None if tag is None else values.parse_version(tag)
    except ValueError:
        return None


def _common_engine(servings: Sequence[Serving]) -> str:
    return Counter(one.machine.url for one in servings).most_common(1)[0][0]


# -- who replaces them ---------------------------------------------------------------------------------


def _reasons(handler: Handler, servings: Sequence[Serving | None], machines: Sequence[Machine]) -> Iterator[str]:
    """Why the docker driver cannot replace the instances; nothing where it can."""
    unknown = [dial for dial, one in zip(handler.dials, servings, strict=True) if one is None]
    for why, dials in _by_reason(unknown, machines).items():
        yield f"{', '.join(dials)}: {why}"
    for dial, one in zip(handler.dials, servings, strict=True):
        if one is not None and one.how is How.INSIDE:
            yield (
                f"{dial} is container {one.container.name}'s own address in a network of {one.machine.url}, which its "
                "successor would not have: publish a port of the host (-p), and let Caddy go there"
            )
    if len({one.machine.certificates for one in servings if one is not None}) > 1:
        yield "its Engines need different certificates, and a service has one set"


def _by_reason(dials: Sequence[str], machines: Sequence[Machine]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for dial in dials:
        found.setdefault(_nobody(dial, machines), []).append(dial)
    return found


def _nobody(dial: str, machines: Sequence[Machine]) -> str:
    failed = [one.url for one in machines if one.failure is not None]
    if candidates := near(dial, machines):
        container, machine = candidates[0]
        return (
            f"container {container.name} publishes that port on {machine.url}, and nothing tells that this is the "
            f"same machine. If it is, name the Engine by that address: --engine ssh://USER@{dial.rpartition(':')[0]}"
        )
    if failed:
        return f"no container is known that serves it, and {', '.join(failed)} could not be asked"
    return (
        "no container is known that serves it. If one does, on another host, name that host's Engine: "
        "--engine ssh://USER@HOST"
    )


def _docker(servings: Sequence[Serving], take_over: str | bool, taken: set[int]) -> Docker:
    containers = [one.container for one in servings]
    repositories = {one.repository for one in containers}
    ports = {one.inside for one in servings}
    return Docker(
        engine=_common_engine(servings),
        image=_image(repositories),
        made_here=next((one.name for one in containers if not one.pulled), None),
        port=next(iter(ports)) if len(ports) == 1 else None,
        publish=_publish(servings),
        port_range=_port_range(taken),
        take_over=take_over,
        environment={"PORT": "{port}"} if all(map(_is_told, servings)) else {},
        certificates=servings[0].machine.certificates,
        remarks=tuple(_remarks(servings, repositories)),
        warnings=tuple(_warnings(servings, repositories)),
    )


def _image(repositories: set[str]) -> str | None:
    image = f"{next(iter(repositories))}:{{version}}"
    try:
        return parse_image(image) if len(repositories) == 1 and "" not in repositories else None
    except ValueError:
        return None


def _publish(servings: Sequence[Serving]) -> str | None:
    """Where new containers are published, as the old ones are; None where that is the address of their dials."""
    bound = {_ALL if one.bound == "" else one.bound for one in servings}
    if any(one.inside is None for one in servings) or not bound:
        return None
    if bound <= {_ALL, "::"}:
        return _ALL if _ALL in bound else "::"
    # A dial such as localhost names no address, and without one all would be taken.
    return next(iter(bound)) if len(bound) == 1 and any(one.by_name for one in servings) else None


def _is_told(one: Serving) -> bool:
    """Whether its variable PORT says where it listens on the host."""
    return one.inside is None and "PORT" in one.container.environment


def _port_range(taken: set[int]) -> str | None:
    """The range of ports for instances beside others; None where the default will do."""
    for first in _RANGES:
        if not any(first <= port < first + 1_000 for port in taken):
            return None if first == _RANGES[0] else f"{first}-{first + 999}"
    return None


def _taken_ports(fit: Iterable[Handler]) -> set[int]:
    return {int(dial.rpartition(":")[2]) for one in fit for dial in one.dials}


def _remarks(servings: Sequence[Serving], repositories: set[str]) -> Iterator[str]:
    containers = [one.container for one in servings]
    composed = sorted({one.compose for one in containers if one.compose is not None})
    if composed:
        yield (
            f"They are of a Compose file ({', '.join(composed)}): after the first deploy leave "
            f"{'it' if len(composed) == 1 else 'them'} out of `docker compose up`"
        )
    if len(repositories) > 1:
        yield "image is left out: each keeps the name of its own image"
    if any(one.tag == "latest" for one in containers):
        yield (
            "The tag `latest` is whatever was pushed last, so a version does not tell what runs: push a tag of its own "
            "for each release, and deploy that"
        )


def _warnings(servings: Sequence[Serving], repositories: set[str]) -> Iterator[str]:
    for one in servings:
        if one.container.temporary:
            yield (
                f"container {one.container.name} was started with --rm: stopped, it would be gone, so a deploy "
                "refuses. Start it without --rm"
            )
    if "" in repositories:
        yield 'an image has no name: set docker.image, such as "registry/web:{version}"'
