"""What a container is to be: the Engine's create body, from the configuration and from what ran before. Pure.

Where a running container is taken over, everything that it has and that the configuration does not declare stays as it
is, labels of Compose among it. An Engine shows a container's settings mixed with the defaults of its image; those are
taken out first, so that the next image's own defaults hold. A container of ours says in a label what was declared when
it was made: what is no longer declared is not inherited either.

Invariants: the body depends on nothing but the arguments; whatever the driver looks for later is in the labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trafficd.config.docker import DockerSection

Json = dict[str, Any]

PREFIX = "trafficd."
DAEMON = f"{PREFIX}daemon"
SERVICE, UPSTREAM, VERSION = f"{PREFIX}service", f"{PREFIX}upstream", f"{PREFIX}version"
DIAL, ROLLOUT, INTENT = f"{PREFIX}dial", f"{PREFIX}rollout", f"{PREFIX}intent"
PREVIOUS, PREVIOUS_VERSION, PREVIOUS_DIAL = (
    f"{PREFIX}previous",
    f"{PREFIX}previous_version",
    f"{PREFIX}previous_dial",
)
DEFINITION, DECLARED, NETWORKS = f"{PREFIX}definition", f"{PREFIX}declared", f"{PREFIX}networks"

_CONFIG = (  # what a container keeps of its own, beside what is treated by itself below
    "Domainname",
    "User",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Cmd",
    "Entrypoint",
    "Healthcheck",
    "WorkingDir",
    "StopSignal",
    "StopTimeout",
)
_OF_THE_IMAGE = ("User", "Cmd", "Entrypoint", "Healthcheck", "WorkingDir", "StopSignal")
_NOT_KEPT = ("AutoRemove", "ContainerIDFile", "Links", "ConsoleSize", "Isolation")
_ENDPOINT = ("IPAMConfig", "Links", "DriverOpts")
_NS = 1_000_000_000


class Place(NamedTuple):
    """What is to run where. `dial` is empty for a worker; `intent` names the step of the rollout; `daemon` is the id of
    the daemon whose it is."""

    service: str
    upstream: str
    version: str
    dial: str
    rollout: str
    intent: str
    daemon: str

    @property
    def port(self) -> str:
        return self.dial.rpartition(":")[2]


class Base(NamedTuple):
    """The container before: what the Engine says of it, and of its image (None where that is gone). `ours`: this
    daemon made it."""

    inspect: Json
    image: Json | None
    version: str | None = None
    dial: str = ""
    ours: bool = True


class Definition(NamedTuple):
    """The name and body of the create call."""

    name: str
    body: Json

    @property
    def digest(self) -> str:
        return str(self.body["Labels"][DEFINITION])


class UndefinedError(ValueError):
    """There is no container to be made of this configuration; says why."""


def image_of(section: DockerSection, version: str, base: Base | None) -> str:
    """The image of a version. Raises `UndefinedError` where nothing names one."""
    if section.image is not None:
        return section.image.replace("{version}", version)
    if base is None:
        raise UndefinedError("no container runs there whose image could be taken over: set docker.image")
    name = repository(str(base.inspect["Config"]["Image"]))
    if not name:
        raise UndefinedError("the container that runs there has an image without a name: set docker.image")
    return f"{name}:{version}"


def repository(reference: str) -> str:
    """A reference without tag and digest; empty where it is only an id."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    found = f"{head}{slash}{last.partition(':')[0]}"
    return "" if found in ("", "sha256") else found


def define(
    section: DockerSection,
    place: Place,
    image: str,
    environment: Mapping[str, str],
    before: Base | None,
) -> Definition:
    """The container for `place`, after the one `before`. `environment` is what the files and the configuration set,
    together. Raises `UndefinedError`."""
    base = before if section.take_over is not False else None
    port = _port(section, place, base)
    body = _inherited(base)
    host = body["HostConfig"]
    words = _words(place, port)
    body["Image"] = image
    body["Env"] = [
        f"{name}={value}"
        for name, value in {**body.pop("_env"), **{n: _filled(v, words) for n, v in environment.items()}}.items()
    ]
    if section.command is not None:
        body["Cmd"] = [_filled(part, words) for part in section.command]
    _limits(section, body, host)
    _volumes(section, host, words)
    networks = _networks(section, host, body.pop("_networks"), base)
    _ports(section, place, port, base, body)
    labels = {**body["Labels"], **{name: _filled(value, words) for name, value in section.labels.items()}}
    body["Labels"] = labels
    digest = _digest(body, networks)
    names = list(networks)
    if names:
        body["NetworkingConfig"] = {"EndpointsConfig": {names[0]: networks[names[0]]}}
    more = {name: networks[name] for name in names[1:]}
    body["Labels"] = labels | {
        **_own_labels(section, place, digest, environment),
        **(_predecessor(before) if before is not None else {}),
        **({NETWORKS: json.dumps(more)} if more else {}),
    }
    return Definition(name_of(place), body)


def _digest(body: Json, networks: Mapping[str, Json]) -> str:
    """The same for what is the same: variables that were there before stand in another place than declared ones, and an
    Engine gives a container its host name for an alias."""
    own = {body.get("Hostname")}
    ends = {name: {**one, "Aliases": sorted({*one.get("Aliases", ())} - own)} for name, one in networks.items()}
    what = [{**body, "Env": sorted(body["Env"])}, ends]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def name_of(place: Place) -> str:
    """Its name: readable, and never another's, as the step and the daemon are in it."""
    version = "".join(c if c.isalnum() or c in "_.-" else "-" for c in place.version)[:60]
    step = f"{place.intent} {place.service} {place.upstream} {place.daemon}"
    suffix = hashlib.sha256(step.encode()).hexdigest()[:6]
    return f"{place.service}-{place.upstream}-{version}-{suffix}"


def _predecessor(before: Base) -> dict[str, str]:
    """What it takes the place of: so that one which has no labels of ours is found again."""
    return {
        PREVIOUS: str(before.inspect["Id"]),
        PREVIOUS_VERSION: before.version or "",
        PREVIOUS_DIAL: before.dial,
    }


def more_networks(labels: Mapping[str, str]) -> Mapping[str, Json]:
    """The networks that a container has to join after it was made: the create call of before API 1.44 takes one."""
    found: Mapping[str, Json] = json.loads(labels.get(NETWORKS, "{}"))
    return found


def networks_of(made: Definition) -> list[str]:
    """All networks that it is to be in, by name."""
    first = made.body.get("NetworkingConfig", {}).get("EndpointsConfig", {})
    return [*first, *more_networks(made.body["Labels"])]


def is_published_by_chance(base: Base) -> bool:
    """Whether the Engine chose the port of the dial (-P, or a range): at another start it is another one."""
    port = base.dial.rpartition(":")[2]
    shown = (base.inspect.get("NetworkSettings") or {}).get("Ports") or {}
    told = base.inspect["HostConfig"].get("PortBindings") or {}
    there, wanted = (
        any(_is_at(inside, one, port) for inside, bound in ports.items() for one in bound or [])
        for ports in (shown, told)
    )
    return there and not wanted


def _own_labels(section: DockerSection, place: Place, digest: str, environment: Mapping[str, str]) -> dict[str, str]:
    return {
        DAEMON: place.daemon,
        SERVICE: place.service,
        UPSTREAM: place.upstream,
        VERSION: place.version,
        DIAL: place.dial,
        ROLLOUT: place.rollout,
        INTENT: place.intent,
        DEFINITION: digest,
        DECLARED: json.dumps(sorted(_declared(section, environment))),
    }


# -- what is declared ----------------------------------------------------------------------------------


def _declared(section: DockerSection, environment: Mapping[str, str]) -> Iterator[str]:
    yield from (f"env {name}" for name in environment)
    yield from (f"label {name}" for name in section.labels)
    yield from (f"volume {volume.split(':')[1]}" for volume in section.volumes)
    single = ("networks", "command", "memory", "cpus", "restart", "stop_signal", "stop_grace", "health")
    yield from (key for key in single if getattr(section, key) is not None)


def _words(place: Place, port: int | None) -> dict[str, str]:
    return {
        "{service}": place.service,
        "{upstream}": place.upstream,
        "{version}": place.version,
        "{dial}": place.dial,
        "{port}": "" if port is None and not place.port else str(port or place.port),
    }


def _filled(text: str, words: Mapping[str, str]) -> str:
    """Only what is known is replaced: other braces (of JSON, say) stay."""
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _limits(section: DockerSection, body: Json, host: Json) -> None:
    if section.memory is not None:
        host["Memory"] = section.memory
        host.pop("MemorySwap", None)  # it was for another limit, and must not be less than it
    if section.cpus is not None:
        host["NanoCpus"] = round(section.cpus * _NS)
        for key in ("CpuQuota", "CpuPeriod"):  # another way to say the same
            host.pop(key, None)
    host["RestartPolicy"] = _restart(section.restart, host.get("RestartPolicy"))
    if section.stop_signal is not None:
        body["StopSignal"] = section.stop_signal
    if section.stop_grace is not None:
        body["StopTimeout"] = max(1, round(section.stop_grace))
    if section.health is not None:
        body["Healthcheck"] = {
            "Test": ["CMD", *section.health.command],
            "Interval": round(section.health.interval * _NS),
            "Timeout": round(section.health.timeout * _NS),
            "StartPeriod": round(section.health.start_period * _NS),
            "Retries": section.health.retries,
        }


def _restart(declared: str | None, inherited: Json | None) -> Json:
    """What was stopped must stay so when its Engine starts again: "always" would not."""
    if declared is not None:
        name, _, count = declared.partition(":")
        return {"Name": name, "MaximumRetryCount": int(count or 0)}
    kept = inherited or {"Name": "unless-stopped", "MaximumRetryCount": 0}
    return {**kept, "Name": "unless-stopped"} if kept.get("Name") == "always" else kept


def _volumes(section: DockerSection, host: Json, words: Mapping[str, str]) -> None:
    declared = {volume.split(":")[1]: _filled(volume, words) for volume in section.volumes}
    binds = [bind for bind in host.get("Binds", []) if target(bind) not in declared]
    mounts = [mount for mount in host.get("Mounts", []) if mount.get("Target") not in declared]
    for key, value in (("Binds", binds + list(declared.values())), ("Mounts", mounts)):
        host.pop(key, None)
        if value:
            host[key] = value


def target(bind: str) -> str:
    """Where in the container a bind is."""
    parts = bind.split(":")
    return parts[1] if len(parts) > 1 else parts[0]


def _networks(
    section: DockerSection, host: Json, inherited: Mapping[str, Json], base: Base | None
) -> Mapping[str, Json]:
    """The networks by name that have to be joined by name, the first one with the create call. What it is called in
    one stays, as long as it is in it."""
    if section.networks is None:
        return {} if base is not None and "networks" in _declared_for(base) else inherited
    host["NetworkMode"] = section.networks[0]
    named = [name for name in section.networks if name not in ("host", "none", "bridge", "default")]
    return {name: inherited.get(name, {}) for name in named}


# -- ports ---------------------------------------------------------------------------------------------


def _port(section: DockerSection, place: Place, base: Base | None) -> int | None:
    """The port in the container that `dial` leads to; None where there is nothing to publish."""
    if not place.dial or _on_host(section, base):
        return None
    if section.port is not None:
        return section.port
    if base is not None:
        wanted = base.dial.rpartition(":")[2]
        for inside, bindings in (base.inspect["HostConfig"].get("PortBindings") or {}).items():
            if any(_is_at(inside, binding, wanted) for binding in bindings or []):
                return int(inside.partition("/")[0])
    raise UndefinedError("no port of the container before is published there: set docker.port")


def _on_host(section: DockerSection, base: Base | None) -> bool:
    if section.networks is not None:
        return section.on_host_network
    return base is not None and base.inspect["HostConfig"].get("NetworkMode") == "host"


def _ports(section: DockerSection, place: Place, port: int | None, base: Base | None, body: Json) -> None:
    if port is None:
        if _on_host(section, base):
            body["HostConfig"].pop("PortBindings", None)
        return
    host_ip = section.publish or _address(place.dial)
    inside = f"{port}/tcp"
    bindings = dict(body["HostConfig"].get("PortBindings") or {})
    others = [one for one in bindings.get(inside, []) if not _is_at(inside, one, place.port)]
    bindings[inside] = [{"HostIp": host_ip, "HostPort": place.port}, *others]
    body["HostConfig"]["PortBindings"] = bindings
    body["ExposedPorts"] = {**body.get("ExposedPorts", {}), **{name: {} for name in bindings}}


def _is_at(inside: str, binding: Mapping[str, str], port: str) -> bool:
    """Whether a binding is that of a dial: UDP at a port of the same number is something else."""
    return inside.endswith("/tcp") and binding.get("HostPort") == port


def _address(dial: str) -> str:
    """The host's address to publish at: that of `dial`, all where it is a name."""
    host = dial.rpartition(":")[0].strip("[]")
    plain = host.replace(".", "").isdigit() or ":" in host
    return host if plain else ""


# -- what is inherited ---------------------------------------------------------------------------------


def _inherited(base: Base | None) -> Json:
    if base is None:
        return {"HostConfig": {}, "Labels": {}, "_env": {}, "_networks": {}}
    config, host, image = base.inspect["Config"], base.inspect["HostConfig"], (base.image or {}).get("Config") or {}
    labels = config.get("Labels") or {}
    before = _declared_for(base)
    body = {key: config[key] for key in _CONFIG if config.get(key) and _is_own(key, config, image)}
    if (config.get("Entrypoint") or None) != (image.get("Entrypoint") or None):
        # Its own, or none at all on purpose: an Engine then leaves out the image's Cmd, so that is said as well.
        body["Entrypoint"] = config.get("Entrypoint") or [""]
        body |= {"Cmd": config["Cmd"]} if config.get("Cmd") else {}
    for key, words in (("Cmd", "command"), ("Healthcheck", "health"), ("StopSignal", "stop_signal")):
        if words in before:
            body.pop(key, None)
    if "stop_grace" in before:
        body.pop("StopTimeout", None)
    if (name := config.get("Hostname")) and name != str(base.inspect["Id"])[:12] and host.get("NetworkMode") != "host":
        body["Hostname"] = name
    body["_env"] = _own_environment(config.get("Env") or [], image.get("Env") or [], before)
    body["Labels"] = _own_texts(labels, image.get("Labels") or {}, before, "label")
    exposed: Json = {k: {} for k in config.get("ExposedPorts") or {} if k not in (image.get("ExposedPorts") or {})}
    if exposed:
        body["ExposedPorts"] = exposed
    body["HostConfig"] = _host(base, before)
    body["_networks"] = _endpoints(base)
    return body


def _declared_for(base: Base) -> frozenset[str]:
    """What was declared when it was made, where it is one of ours. What another daemon declared is what it has."""
    if not base.ours:
        return frozenset()
    return frozenset(json.loads((base.inspect["Config"].get("Labels") or {}).get(DECLARED, "[]")))


def _is_own(key: str, config: Json, image: Json) -> bool:
    return key not in _OF_THE_IMAGE or config.get(key) != image.get(key)


def _own_environment(config: Sequence[str], image: Sequence[str], before: frozenset[str]) -> dict[str, str]:
    own = (entry.partition("=") for entry in config if entry not in image)
    return {name: value for name, _, value in own if f"env {name}" not in before}


def _own_texts(
    config: Mapping[str, str], image: Mapping[str, str], before: frozenset[str], kind: str
) -> dict[str, str]:
    return {
        name: value
        for name, value in config.items()
        if image.get(name) != value and not name.startswith(PREFIX) and f"{kind} {name}" not in before
    }


def _host(base: Base, before: frozenset[str]) -> Json:
    """The host's side. An empty value is the default nearly everywhere, but for what is switched off on purpose."""
    given = base.inspect["HostConfig"]
    host: Json = {k: v for k, v in given.items() if k not in _NOT_KEPT and (v or _is_off(k, v))}
    for key, word in (
        ("Memory", "memory"),
        ("MemorySwap", "memory"),
        ("NanoCpus", "cpus"),
        ("RestartPolicy", "restart"),
        ("NetworkMode", "networks"),
    ):
        if word in before:
            host.pop(key, None)
    if base.dial:  # the port that the dial leads to moves with it
        port = base.dial.rpartition(":")[2]
        bindings = {
            inside: [one for one in bound or [] if not _is_at(inside, one, port)]
            for inside, bound in host.pop("PortBindings", {}).items()
        }
        if left := {inside: bound for inside, bound in bindings.items() if bound}:
            host["PortBindings"] = left
    if links := given.get("Links"):
        host["Links"] = [_link(link) for link in links]
    binds = [bind for bind in host.get("Binds", []) if f"volume {target(bind)}" not in before]
    binds += _unnamed_volumes(base, binds)
    host.pop("Binds", None)
    if binds:
        host["Binds"] = binds
    if "Mounts" in host:
        host["Mounts"] = [_with_its_volume(mount, base) for mount in host["Mounts"]]
    return host


def _with_its_volume(mount: Json, base: Base) -> Json:
    """Compose asks for a volume without a name in this way: made anew, it would be another one, and empty."""
    if mount.get("Type") != "volume" or mount.get("Source"):
        return mount
    there = (one for one in base.inspect.get("Mounts") or [] if one.get("Destination") == mount.get("Target"))
    name = next((one.get("Name") for one in there), None)
    return {**mount, "Source": name} if name else mount


def _is_off(key: str, value: object) -> bool:
    return (key == "Init" and value is False) or (key in ("MaskedPaths", "ReadonlyPaths") and value == [])


def _link(shown: str) -> str:
    """As it has to be given: it is shown as "/db:/web/db"."""
    source, _, alias = shown.partition(":")
    return f"{source.lstrip('/')}:{alias.rpartition('/')[2]}"


def _unnamed_volumes(base: Base, binds: Sequence[str]) -> list[str]:
    """Volumes that nobody named hold data all the same."""
    known = {target(bind) for bind in base.inspect["HostConfig"].get("Binds") or []} | {target(bind) for bind in binds}
    known |= {mount.get("Target", "") for mount in base.inspect["HostConfig"].get("Mounts") or []}
    return [
        f"{mount['Name']}:{mount['Destination']}"
        for mount in base.inspect.get("Mounts") or []
        if mount.get("Type") == "volume" and mount.get("Name") and mount["Destination"] not in known
    ]


def _endpoints(base: Base) -> dict[str, Json]:
    """The networks that it was given by name, without what an Engine works out for itself."""
    found = {}
    for name, shown in ((base.inspect.get("NetworkSettings") or {}).get("Networks") or {}).items():
        if name in ("host", "none", "bridge", "podman"):
            continue
        endpoint = {key: shown[key] for key in _ENDPOINT if shown.get(key)}
        aliases = [alias for alias in shown.get("Aliases") or [] if alias != str(base.inspect["Id"])[:12]]
        if aliases:
            endpoint["Aliases"] = aliases
        found[name] = endpoint
    mode = base.inspect["HostConfig"].get("NetworkMode")
    return dict(sorted(found.items(), key=lambda item: item[0] != mode))


# -- the difference ------------------------------------------------------------------------------------


def difference(base: Base, definition: Definition) -> list[str]:
    """What would be another than in the container before, one line each: nothing changes unseen. Values of variables
    are left out, as they may be secrets."""
    before, after = _flat(_inherited(base), base), _flat(definition.body, None)
    before["image"] = str(base.inspect["Config"]["Image"])
    for flat, host in ((before, base.inspect["HostConfig"]), (after, definition.body["HostConfig"])):
        flat["published"] = _published(host)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if key.startswith("env "):
            lines.append(f"{key}: {'added' if old is None else 'removed' if new is None else 'changed'}")
        else:
            lines.append(f"{key}: {_shown(old)} -> {_shown(new)}")
    return lines


def _flat(body: Json, base: Base | None) -> Json:
    flat: Json = {key: body[key] for key in (*_CONFIG, "Hostname") if key in body}
    labels = body["Labels"]
    flat |= {f"label {name}": value for name, value in labels.items() if not name.startswith(PREFIX)}
    env = body["_env"] if base is not None else dict(entry.split("=", 1) for entry in body["Env"])
    flat |= {f"env {name}": value for name, value in env.items()}
    flat |= {key: value for key, value in body["HostConfig"].items() if key != "PortBindings"}
    if base is None:
        flat["image"] = body["Image"]
    return flat


def _published(host: Json) -> str:
    """As `docker ps` has it."""
    all_of_it = ((inside, one) for inside, bound in (host.get("PortBindings") or {}).items() for one in bound or [])
    shown = (f"{one.get('HostIp') or '*'}:{one.get('HostPort', '')}->{inside}" for inside, one in all_of_it)
    return ", ".join(sorted(shown)) or "nothing"


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(value, sort_keys=True) if not isinstance(value, str) else value
