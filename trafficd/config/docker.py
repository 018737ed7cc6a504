"""`[services.NAME.docker]`: the containers that the `docker` driver makes, and where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from trafficd.config.faults import Clash, Section, get, items
from trafficd.config.values import Argv, File, Positive, Seconds
from trafficd.ssh.host import parse_host

DEFAULT_ENGINE = "unix:///var/run/docker.sock"
_LABEL = "trafficd."
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_HOST = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)"


def parse_engine(text: str) -> str:
    """Where an Engine is asked. Raises ValueError, in words."""
    unix = re.fullmatch(r"unix://(/[^\s?#]+)", text)
    tcp = re.fullmatch(rf"tcp://{_HOST}:\d{{1,5}}", text, re.ASCII)
    ssh = re.fullmatch(r"(ssh://[^/]*)(/[^\s?#]+)?", text)
    if ssh:
        parse_host(ssh[1])
    if not (unix or tcp or ssh):
        raise ValueError(
            f'{text[:80]!r} is not an Engine like "unix:///var/run/docker.sock", "tcp://10.0.0.5:2376" or '
            '"ssh://deploy@web1"'
        )
    return text


def parse_image(text: str) -> str:
    if "{version}" not in text or not re.fullmatch(r"[A-Za-z0-9./:@_\-]+", text.replace("{version}", "v")):
        raise ValueError(
            f'{text[:80]!r} must be the name of an image with {{version}} in it: "registry/web:{{version}}"'
        )
    return text


def parse_size(value: object) -> object:
    """Bytes of "512m"."""
    match = re.fullmatch(r"(\d+)\s*([bkmg]?)b?", str(value).strip().lower(), re.ASCII)
    if isinstance(value, bool) or not match:
        raise ValueError(f'{value!r} is not a size; write "512m" or "2g"')
    return int(match[1]) * _UNITS[match[2]]


def parse_volume(text: str) -> str:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0] or not parts[1].startswith("/"):
        raise ValueError(f'{text[:80]!r} is not like "/on/the/host:/in/the/container" or "name:/in/the/container:ro"')
    return text


def parse_port_range(value: object) -> tuple[int, int]:
    """The ports of "20000-20999", both included."""
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", str(value), re.ASCII)
    if not match or not 0 < int(match[1]) <= int(match[2]) <= 65535:
        raise ValueError(f'{value!r} is not a range of ports like "20000-20999"')
    return int(match[1]), int(match[2])


def _restart(text: str) -> str:
    if text == "always":
        raise ValueError(
            "an older version that is kept would start by itself with the Engine, and take the port; write "
            '"unless-stopped"'
        )
    if not re.fullmatch(r"no|unless-stopped|on-failure(:\d{1,4})?", text, re.ASCII):
        raise ValueError(f'{text!r} is none of "no", "unless-stopped", "on-failure" and "on-failure:5"')
    return text


def _labels(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if name.startswith(_LABEL) or not re.fullmatch(r"[\x21-\x7e]+", name):
            raise ValueError(f"{name!r} cannot be set: labels that begin with {_LABEL} are the driver's own")
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[^\s=\0]+", name) or "\0" in text:
            raise ValueError(f"{name!r} is not the name of a variable, or its value has a NUL character")
    return value


def _network(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise ValueError(f"{text[:80]!r} is not the name of a network")
    return text


EngineUrl = Annotated[str, AfterValidator(parse_engine)]


class ContainerHealth(Section):
    """The container's own health check, for whoever looks at the Engine; the gate asks as `[services.NAME.health]`
    says."""

    command: Argv
    interval: Positive = 30.0
    timeout: Positive = 30.0
    start_period: Seconds = 0.0
    retries: Annotated[int, Field(ge=1)] = 3


class DockerSection(Section):
    """Keys that are None are taken from the running container where one is taken over, else left to the Engine."""

    engine: EngineUrl = DEFAULT_ENGINE
    tls_ca: File | None = None
    tls_cert: File | None = None
    tls_key: File | None = None
    image: Annotated[str, AfterValidator(parse_image)] | None = None
    pull: Literal["always", "missing", "never"] = "always"
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    publish: Annotated[str, Field(pattern=r"^[0-9a-fA-F:.]+$")] | None = None  # None: the address of dial
    port_range: Annotated[tuple[int, int], BeforeValidator(parse_port_range)] = (20_000, 20_999)
    networks: list[Annotated[str, AfterValidator(_network)]] | None = Field(default=None, min_length=1)
    command: Argv | None = None
    environment: Annotated[dict[str, str], AfterValidator(_environment)] = Field(default_factory=dict)
    env_files: list[File] = Field(default_factory=list)
    volumes: list[Annotated[str, AfterValidator(parse_volume)]] = Field(default_factory=list)
    memory: Annotated[int, BeforeValidator(parse_size), Field(ge=6 << 20)] | None = None  # bytes
    cpus: Annotated[float, Field(gt=0, le=1024)] | None = None
    labels: Annotated[dict[str, str], AfterValidator(_labels)] = Field(default_factory=dict)
    restart: Annotated[str, AfterValidator(_restart)] | None = None
    stop_signal: Annotated[str, Field(pattern=r"^(SIG)?[A-Z0-9+-]{1,12}$")] | None = None
    stop_grace: Seconds | None = None
    health: ContainerHealth | None = None
    keep: Annotated[int, Field(ge=1, le=100)] = 3
    take_over: bool | Annotated[str, Field(pattern=r"^[A-Za-z0-9{][A-Za-z0-9{}_.-]*$")] = False

    @property
    def on_host_network(self) -> bool:
        return self.networks == ["host"]

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        takes_over = given.get("take_over", False) is not False
        if given.get("image") is None and not takes_over:
            yield ("image",), 'Field required, like "registry/web:{version}" (or set take_over)'
        networks = [network for _, network in items(given.get("networks"))]
        if "host" in networks and len(networks) > 1:
            yield ("networks",), '"host" is the host\'s own network; a container on it has no other'
        if given.get("publish") is not None and networks == ["host"]:
            yield ("publish",), 'nothing is published where networks = ["host"]: the program says where it listens'
        certificates = [key for key in ("tls_ca", "tls_cert", "tls_key") if given.get(key) is not None]
        if certificates and len(certificates) < 3:
            yield (certificates[0],), "tls_ca, tls_cert and tls_key belong together"
        yield from exposed(given.get("engine"), ("engine",), secured=bool(certificates))


def exposed(url: object, place: tuple[str | int, ...], *, secured: bool) -> Iterator[Clash]:
    """An Engine that whoever reaches it can use: to be root on that host."""
    if isinstance(url, str) and url.startswith("tcp://") and not secured:
        host = url.removeprefix("tcp://").rpartition(":")[0]
        if host not in ("127.0.0.1", "[::1]", "localhost"):
            yield (
                place,
                "an Engine without TLS makes root of everybody who reaches it: set tls_ca, tls_cert and tls_key",
            )


def docker_clashes(given: Mapping[str, Any]) -> Iterator[Clash]:
    """What a service must and must not have for its driver."""
    docker, wanted = given.get("docker"), get(given.get("swap"), "driver") == "docker"
    secured = get(docker, "tls_ca") is not None
    for number, upstream in items(given.get("upstreams")):
        url = get(upstream, "engine")
        yield from exposed(url, ("upstreams", number, "engine"), secured=secured)
        if url is not None and not wanted:
            yield ("upstreams", number, "engine"), 'means nothing without swap.driver = "docker"'
    if not wanted:
        if docker is not None:
            yield ("docker",), 'means nothing without swap.driver = "docker"'
        return
    if docker is None:
        yield ("docker",), 'swap.driver = "docker" needs this section, with an image at least'
        return
    routed, networks = given.get("route") != "none", [network for _, network in items(get(docker, "networks"))]
    if not routed:
        for key in ("port", "publish", "port_range"):
            if get(docker, key) is not None:
                yield ("docker", key), "nobody calls a worker, so it has no port; leave it out"
    elif get(docker, "port") is None and networks != ["host"] and not get(docker, "take_over"):
        yield ("docker", "port"), "Field required: where the program listens in its container"
    yield from _in_range(given, get(docker, "port_range"))


def _in_range(given: Mapping[str, Any], wanted: object) -> Iterator[Clash]:
    try:
        first, last = parse_port_range("20000-20999" if wanted is None else wanted)
    except ValueError:
        return
    for number, upstream in items(given.get("upstreams")):
        for key in ("dial", "spare_dial"):
            port = str(get(upstream, key) or "").rpartition(":")[2]
            if port.isdigit() and first <= int(port) <= last:
                yield (
                    ("upstreams", number, key),
                    f"lies in docker.port_range ({first}-{last}), from which the driver takes free ports; change one",
                )
