"""The sections of the file, each key with its default, and the policy that a rollout gets from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from trafficd.config import values, workers
from trafficd.config.canary import CanarySection, Part, Percent, Steps, Terms, plain, shaped, too_fine
from trafficd.config.docker import DockerSection, EngineUrl, docker_clashes
from trafficd.config.faults import Clash, Section, doubles, get, items
from trafficd.config.pins import PREVIEW, PinName, PinSection, PreviewSection, pin_clashes
from trafficd.config.systemd import SystemdSection, systemd_clashes
from trafficd.config.values import (
    Amount,
    Argv,
    Count,
    Dial,
    File,
    Headers,
    Name,
    Parallel,
    Positive,
    Seconds,
    SshHost,
    Version,
)
from trafficd.config.verification import VerifySection
from trafficd.core.model import Inconclusive, Order, Policy, Setting, StepKind
from trafficd.ssh.settings import KNOWN_HOSTS, Settings

DEFAULT_SOCKET = "/run/trafficd/trafficd.sock"
_HANDLERS_OWN = {  # keys that mean nothing where the handler is somebody else's, and why
    "listen": "the site that is there says where it listens",
    "tls": "the site that is there has its certificates",
    "affinity": "the handler keeps its own lb_policy",
}


class DaemonSection(Section):
    state_dir: Annotated[File, AfterValidator(values.state_dir)] = Path("/var/lib/trafficd")
    socket: Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)] = Path(DEFAULT_SOCKET)
    listen: Annotated[str, AfterValidator(values.listen)] | None = None
    token_file: File | None = None
    allowed_hosts: list[str] = Field(default_factory=list)
    allowed_origins: list[str] = Field(default_factory=list)
    retention: Positive = 90 * 86_400.0

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        if given.get("listen") is not None and given.get("token_file") is None:
            yield ("listen",), "listening over TCP needs a token: set token_file to a file that holds one"
        if given.get("socket", DEFAULT_SOCKET) in ("", None) and given.get("listen") is None:
            yield ("socket",), "set socket or listen: without either nobody can reach the daemon"


class CaddySection(Section):
    admin: Annotated[str, AfterValidator(values.admin)] = "http://127.0.0.1:2019"
    managed: bool = False
    timeout: Positive = 5.0
    slots_path: Annotated[str, AfterValidator(values.plain_path)] | None = None
    access_log: Annotated[str, AfterValidator(values.plain_path)] | None = None  # None: nothing is logged

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        address = given.get("admin", "")
        if given.get("managed") is True and isinstance(address, str) and not address.startswith("unix://"):
            if address.startswith("https://"):
                yield ("admin",), "a Caddy of our own (managed = true) speaks no TLS there; write http://"
            elif address and not re.search(r":\d+/?$", address.removeprefix("http:")):
                yield ("admin",), f"{address!r}: a Caddy of our own (managed = true) has to be told the port"


class SshSection(Section):
    """How other hosts are connected to."""

    known_hosts: File = Path(KNOWN_HOSTS)
    identity_files: list[File] = Field(default_factory=list)
    agent: File | None = None
    connect_timeout: Positive = 10.0
    keepalive: Positive = 15.0
    max_sessions: Annotated[int, Field(ge=1, le=1000)] = 8

    @property
    def settings(self) -> Settings:
        return Settings(
            known_hosts=self.known_hosts,
            identity_files=tuple(self.identity_files),
            agent=self.agent,
            connect_timeout=self.connect_timeout,
            keepalive=self.keepalive,
            max_sessions=self.max_sessions,
        )


class UpstreamSection(Section):
    id: Name
    dial: Dial | None = None  # None: a worker
    version: Version | None = None
    spare_dial: Dial | None = None
    group: Name | None = None
    host: SshHost | None = None  # where its swap command or its unit runs; None: that of swap
    engine: EngineUrl | None = None  # driver = "docker": the Engine of its host, where not that of all


class HealthSection(Section):
    command: Argv | None = None  # None: asked over HTTP
    path: Annotated[str, Field(pattern=r"^/[\x21-\x7e]*$")] = "/healthz"
    host: Annotated[str, AfterValidator(values.host)] | None = None
    headers: Headers = Field(default_factory=dict)
    status: list[Annotated[int, Field(ge=100, le=599)]] = Field(default_factory=lambda: [200], min_length=1)
    interval: Annotated[Seconds, Field(ge=0.05)] = 2.0
    timeout: Positive = 2.0
    rise: Annotated[int, Field(ge=1)] = 2
    fall: Annotated[int, Field(ge=1)] = 3

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        for key in ("path", "host", "headers", "status"):
            if given.get("command") is not None and given.get(key) is not None:
                yield (key,), "is for a probe over HTTP; leave out either it or command"


class RolloutSection(Section):
    max_parallel: Parallel = Amount(number=1)
    min_ready: Count | None = None
    order: Order = Order.STOP_FIRST
    min_healthy_time: Seconds = 10.0
    healthy_deadline: Positive = 300.0
    drain_timeout: Seconds = 30.0
    drain_quiet: Seconds = 0.25
    auto_revert: bool = True
    watch_time: Seconds = 0.0
    keep_old: Seconds = 600.0


class SwapSection(Section):
    driver: Literal["command", "external", "docker", "systemd"] = "external"
    command: Argv | None = None
    prepare: Argv | None = None
    retire: Argv | None = None
    timeout: Positive = 600.0
    prepare_timeout: Positive = 600.0
    host: SshHost | None = None  # None: here

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        driver = given.get("driver", "external")
        if driver == "command" and given.get("command") is None:
            yield ("command",), 'driver = "command" needs command = ["program", "argument", ...]'
        for key in ("command", "retire"):
            if driver in ("external", "docker", "systemd") and given.get(key) is not None:
                yield (key,), 'is run only where driver = "command"'
        if driver in ("external", "docker") and given.get("prepare") is not None:
            yield ("prepare",), 'is run only where driver is "command" or "systemd"'
        if driver in ("external", "docker") and given.get("host") is not None:
            yield ("host",), 'is where a command or a unit runs: it needs driver = "command" or "systemd"'


class HooksSection(Section):
    before_rollout: Argv | None = None
    before_swap: Argv | None = None
    after_swap: Argv | None = None
    after_rollout: Argv | None = None
    on_failure: Argv | None = None
    timeout: Positive = 300.0

    def argv(self, kind: StepKind) -> list[str] | None:
        value: list[str] | None = getattr(self, kind.value, None)
        return value

    def kinds(self) -> tuple[StepKind, ...]:
        return tuple(k for k in StepKind if k.value in HooksSection.model_fields and self.argv(k))


def _ca(path: Path) -> Path:
    values.plain_path(str(path))
    return path


class TransportSection(Section):
    tls: bool = False
    tls_server_name: Annotated[str, AfterValidator(values.host)] | None = None
    tls_insecure: bool = False
    tls_ca: Annotated[Path, BeforeValidator(values.file_path), AfterValidator(_ca)] | None = None
    h2c: bool = False
    dial_timeout: Positive = 3.0
    response_header_timeout: Positive | None = None
    read_timeout: Positive | None = None
    write_timeout: Positive | None = None
    keepalive: Positive = 120.0

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        tls = given.get("tls", False)
        for key in ("tls_server_name", "tls_insecure", "tls_ca"):
            if given.get(key) and tls is False:
                yield (key,), "means nothing without tls = true"
        if tls is True and given.get("h2c") is True:
            yield ("h2c",), "h2c is HTTP/2 without TLS; leave it out, or set tls = false"


def _route_clashes(given: Mapping[str, Any]) -> Iterator[Clash]:
    """Keys that mean nothing for the way in which the service stands in Caddy."""
    route = given.get("route", "own")
    if route in ("adopt", "import"):
        if given.get("control") == "admin":
            yield ("control",), f'"admin" needs a route of our own: leave it out, or set route = "own" ({route})'
        for key, why in _HANDLERS_OWN.items():
            if key in given and not (key == "affinity" and route == "import"):
                yield (key,), f'means nothing with route = "{route}": {why}'
    if route != "adopt" and given.get("adopt_id") is not None:
        yield ("adopt_id",), 'is looked for only with route = "adopt"'


class MaintenanceSection(Section):
    status: Annotated[int, Field(ge=200, le=599)] = 503
    body: str = "Down for maintenance. Please come back in a few minutes.\n"
    content_type: Annotated[str, Field(pattern=r"^[\x20-\x7e]+$")] = "text/plain; charset=utf-8"
    retry_after: Seconds = 120.0


class OutliersSection(Section):
    """An upstream whose answers are worse than the others' is sent nothing for a while."""

    enabled: bool = False
    alpha: Part = 0.001  # the rate of false ejections, in an hour of a service whose upstreams are equally good
    tolerance: Annotated[float, Field(ge=1, le=100)] = 2.0
    eject_for: Positive = 30.0
    max_ejected: Parallel = Amount(percent=34)


class ServiceSection(Section):
    hosts: list[Annotated[str, AfterValidator(values.host)]] = Field(default_factory=list)
    route: Literal["own", "adopt", "import", "none"] = "own"
    listen: list[Annotated[str, AfterValidator(values.listen), AfterValidator(values.public)]] = Field(
        default_factory=lambda: [":443"], min_length=1
    )
    tls: Literal["auto", "off"] | None = None
    control: Literal["slots", "admin"] = "slots"
    slots: Annotated[int, Field(ge=1, le=10_000)] = 100
    adopt_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,200}$")] | None = None
    restore: bool = True
    affinity: Literal["none", "cookie", "client_ip"] = "none"
    try_duration: Positive = 30.0
    try_interval: Positive = 0.05
    stream_close_delay: Seconds = 86_400.0
    slow_start: Seconds = 0.0
    upstreams: list[UpstreamSection] = Field(default_factory=list)
    health: HealthSection = HealthSection()
    rollout: RolloutSection = RolloutSection()
    swap: SwapSection = SwapSection()
    docker: DockerSection | None = None
    systemd: SystemdSection | None = None
    hooks: HooksSection = HooksSection()
    transport: TransportSection = TransportSection()
    maintenance: MaintenanceSection = MaintenanceSection()
    verify: VerifySection = VerifySection()
    canary: CanarySection = CanarySection()
    outliers: OutliersSection = OutliersSection()
    preview: PreviewSection | None = None
    pins: dict[PinName, PinSection] = Field(default_factory=dict)

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        yield from _route_clashes(given)
        yield from pin_clashes(given)
        yield from docker_clashes(given)
        yield from systemd_clashes(given)
        worker = given.get("route") == "none"
        yield from workers.clashes(given, cls.model_fields) if worker else workers.missing_dials(given)
        for key in ("hosts", "listen"):
            for twice in doubles(value for _, value in items(given.get(key)) if isinstance(value, str)):
                yield (key,), f"{twice} stands there twice"
        upstreams = list(items(given.get("upstreams")))
        ids = [get(upstream, "id") for _, upstream in upstreams]
        for twice in doubles(name for name in ids if isinstance(name, str)):
            yield ("upstreams",), f"two upstreams have the id {twice!r}"
        for number, upstream in upstreams:
            if get(upstream, "host") is not None and get(given.get("swap"), "driver") not in ("command", "systemd"):
                yield (
                    ("upstreams", number, "host"),
                    'is where a command or a unit runs: it needs swap.driver = "command" or "systemd"',
                )
        slots = given.get("slots", 100)
        if type(slots) is int and 0 < slots < len(upstreams) and not worker:
            yield ("slots",), f"{len(upstreams)} upstreams need at least as many slots"

    @model_validator(mode="after")
    def _fine_enough(self) -> Self:
        if small := too_fine(self.canary.steps or (), self.slots):
            raise ValueError(f"canary.steps: {small}")
        return self

    @property
    def all_pins(self) -> Mapping[str, PinSection]:
        """The pins by name, the preview first: that is the order in which a request is looked at."""
        return {**({PREVIEW: self.preview} if self.preview is not None else {}), **self.pins}

    @property
    def ssh_hosts(self) -> frozenset[str]:
        """The other hosts that commands of this service run on, or its Engines."""
        engines = [u.engine for u in self.upstreams] + [self.docker.engine if self.docker is not None else None]
        places = [self.swap.host, *(u.host for u in self.upstreams), *engines]
        return frozenset(place for place in places if place is not None and place.startswith("ssh://"))

    @property
    def routed(self) -> bool:
        """Whether Caddy has a route to the service; its upstreams are workers where it has none."""
        return self.route != "none"

    @property
    def logged(self) -> bool:
        """Whether its answers are to be in the access log, with who gave them, where there is one."""
        return self.route in ("own", "adopt") and self.control == "slots"

    @property
    def tls_mode(self) -> Literal["auto", "off"]:
        """`tls`, or its default: "off" where there is no host name or the port is not 443."""
        if self.tls is not None:
            return self.tls
        on_443 = all(address.rpartition(":")[2] == "443" for address in self.listen)
        return "auto" if self.hosts and on_443 else "off"

    def policy(self, upstreams: int, overrides: RolloutOverrides | None = None, strategy: str = "rolling") -> Policy:
        """The policy of a rollout over this many upstreams. Raises `ValueError`, in words, where there is none.

        Percentages are rounded to the careful side: fewer in parallel, more that stay ready. The last one of a
        service without a route may be replaced by default: its work waits, and nobody is refused.
        """
        overrides = overrides or RolloutOverrides()
        wanted = RolloutSection.model_construct(**overrides.over(self.rollout, RolloutSection))
        parallel = max(1, wanted.max_parallel.of(upstreams, up=False))
        fewest = max(1 if self.routed else 0, upstreams - parallel)
        least = fewest if wanted.min_ready is None else wanted.min_ready.of(upstreams, up=True)
        policy = Policy(
            max_parallel=parallel,
            min_ready=least,
            order=wanted.order,
            min_healthy_time=wanted.min_healthy_time,
            healthy_deadline=wanted.healthy_deadline,
            drain_timeout=wanted.drain_timeout,
            drain_quiet=wanted.drain_quiet,
            auto_revert=wanted.auto_revert,
            swap_timeout=self.swap.timeout,
            prepare_timeout=self.swap.prepare_timeout,
            hook_timeout=self.hooks.timeout,
            prepares=self.swap.prepare is not None or self.swap.driver in ("docker", "systemd"),
            hosts=self._hosts(),
            retires=self.swap.retire is not None or self.swap.driver in ("docker", "systemd"),
            external=self.swap.driver == "external",
            hooks=self.hooks.kinds(),
            watch_time=wanted.watch_time,
        )
        canary = CanarySection.model_construct(**overrides.over(self.canary, CanarySection))
        return shaped(
            policy,
            strategy,
            Terms(
                slots=self.slots,
                try_duration=self.try_duration,
                # Its own steps are for canaries; whoever asks for others by name means them.
                steps=overrides.steps if strategy == "blue_green" else canary.steps,
                min_time=canary.step_min_time,
                max_time=canary.step_max_time,
                on_inconclusive=canary.on_inconclusive,
                keep_old=wanted.keep_old,
                checks=self.preview is not None and bool(self.preview.checks),
                percent=overrides.percent,
            ),
        )

    def _hosts(self) -> dict[str, str]:
        """The host or Engine of each upstream that has not that of all."""
        if self.docker is not None:
            return {one.id: one.engine for one in self.upstreams if one.engine not in (None, self.docker.engine)}
        return {one.id: one.host for one in self.upstreams if one.host not in (None, self.swap.host)}

    def terms(self, strategy: str, overrides: Mapping[str, Setting], upstreams: int) -> Policy | str:
        """The policy of a rollout whose overrides were journalled (`RolloutOverrides.plain`), or why there is none."""
        try:
            return self.policy(upstreams, RolloutOverrides.model_validate(dict(overrides)), strategy)
        except ValidationError as error:
            wrong = error.errors()[0]
            return f"its overrides cannot be used any more: {wrong['loc'][0] if wrong['loc'] else ''}: {wrong['msg']}"
        except ValueError as error:
            return f"its overrides cannot be used any more: {error}"


class RolloutOverrides(BaseModel):
    """What a request may change of `[services.NAME.rollout]` and `[services.NAME.canary]` for one rollout; `percent`
    is the share that a version keeps (rainbow)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_parallel: Parallel | None = None
    min_ready: Count | None = None
    order: Order | None = None
    min_healthy_time: Seconds | None = None
    healthy_deadline: Positive | None = None
    drain_timeout: Seconds | None = None
    drain_quiet: Seconds | None = None
    auto_revert: bool | None = None
    watch_time: Seconds | None = None
    keep_old: Seconds | None = None
    steps: Steps | None = None
    step_min_time: Seconds | None = None
    step_max_time: Positive | None = None
    on_inconclusive: Inconclusive | None = None
    percent: Percent | None = None

    def over(self, section: Section, kind: type[Section]) -> dict[str, Any]:
        """The values of a section, with these in place of its own."""
        mine = {name: getattr(self, name) for name in RolloutOverrides.model_fields}
        given = {name: value for name, value in mine.items() if value is not None and name in kind.model_fields}
        return {name: getattr(section, name) for name in kind.model_fields} | given

    def plain(self) -> dict[str, Setting]:
        """As asked, for the journal: percentages stay percentages."""
        given = {name: getattr(self, name) for name in RolloutOverrides.model_fields}
        return {name: _plain(value) for name, value in given.items() if value is not None}


def _plain(value: Any) -> Setting:
    if isinstance(value, tuple):
        return plain(value)
    written: Setting = str(value) if isinstance(value, Amount | Order | Inconclusive) else value
    return written
