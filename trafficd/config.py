"""The configuration: TOML by pydantic-settings, `TRAFFICD_*` variables override.

`TRAFFICD_DAEMON__STATE_DIR=/srv/trafficd` overrides `state_dir` in `[daemon]`: sections and keys are
joined by two underscores. All faults are reported at once, each with its place.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from proxy.model import parse_dial, parse_name
from trafficd.core.model import Order, Policy, StepKind
from trafficd.errors import ConfigError

DEFAULT_PATH = "/etc/trafficd/trafficd.toml"
DEFAULT_SOCKET = "/run/trafficd/trafficd.sock"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:@/-]{0,127}")


def parse_duration(value: object) -> float:
    """Seconds of "10s", "250ms", "1m30s"; a bare number is seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = str(value).strip()
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f'{text!r} is not a duration; write "250ms", "10s", "5m" or "1m30s"')
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("a duration must be finite and not negative")
    return seconds


def parse_version(text: str) -> str:
    """A version as it may reach an argument vector or an environment variable."""
    if not _VERSION.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is not a version: letters, digits and . _ + : @ / - only, at most 128, "
            "beginning with a letter or digit"
        )
    return text


class Amount(BaseModel):
    """A number of upstreams, or a percentage of them."""

    model_config = ConfigDict(frozen=True)
    number: int | None = None
    percent: float | None = None

    def of(self, total: int, *, up: bool) -> int:
        """The number it means among `total` upstreams; percentages are rounded up or down."""
        if self.number is not None:
            return self.number
        exact = total * (self.percent or 0) / 100
        return math.ceil(exact) if up else math.floor(exact)


def parse_amount(value: object) -> object:
    if isinstance(value, Amount) or value is None:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Amount(number=value)
    text = str(value).strip()
    if re.fullmatch(r"\d+", text):
        return Amount(number=int(text))
    if re.fullmatch(r"\d+(\.\d+)?%", text) and float(text[:-1]) <= 100:
        return Amount(percent=float(text[:-1]))
    raise ValueError(f'{value!r} is neither a number of upstreams nor a percentage such as "25%"')


Seconds = Annotated[
    float, BeforeValidator(parse_duration), Field(json_schema_extra={"examples": ["10s", "250ms"]})
]
Positive = Annotated[Seconds, Field(gt=0)]
Count = Annotated[Amount, BeforeValidator(parse_amount, json_schema_input_type=int | str)]
Dial = Annotated[str, AfterValidator(parse_dial)]
Name = Annotated[str, AfterValidator(parse_name)]
Version = Annotated[str, AfterValidator(parse_version)]


def _host(text: str) -> str:
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", text):
        raise ValueError(f"{text!r} is not a host name")
    return text.lower()


def _listen(text: str) -> str:
    if (
        not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]*):\d{1,5}", text)
        or int(text.rpartition(":")[2]) > 65535
    ):
        raise ValueError(f'{text!r} is not a listen address such as ":443" or "127.0.0.1:8080"')
    return text


def _argv(value: list[str]) -> list[str]:
    if not value or not value[0]:
        raise ValueError('give the program and its arguments as a list: ["/usr/local/bin/restart-web"]')
    if any("\0" in part for part in value):
        raise ValueError("an argument must not contain a NUL character")
    return value


def _header(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", text):
            raise ValueError(f"header {name!r} has characters that a header must not have")
    return value


Argv = Annotated[list[str], AfterValidator(_argv)]
Headers = Annotated[dict[str, str], AfterValidator(_header)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DaemonSection(Section):
    state_dir: Path = Path("/var/lib/trafficd")
    socket: Path | None = Path(DEFAULT_SOCKET)
    listen: Annotated[str, AfterValidator(_listen)] | None = None
    token_file: Path | None = None
    allowed_hosts: list[str] = Field(default_factory=list)
    allowed_origins: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _token(self) -> DaemonSection:
        if self.listen is not None and self.token_file is None:
            raise ValueError("listen over TCP needs a token: set token_file to a file that holds one")
        if self.socket is None and self.listen is None:
            raise ValueError("set socket or listen: without either nobody can reach the daemon")
        return self


class CaddySection(Section):
    admin: str = "http://127.0.0.1:2019"
    managed: bool = False
    timeout: Positive = 5.0


class UpstreamSection(Section):
    id: Name
    dial: Dial
    version: Version | None = None
    spare_dial: Dial | None = None


class HealthSection(Section):
    path: Annotated[str, Field(pattern=r"^/[\x21-\x7e]*$")] = "/healthz"
    host: Annotated[str, AfterValidator(_host)] | None = None
    headers: Headers = Field(default_factory=dict)
    status: list[Annotated[int, Field(ge=100, le=599)]] = Field(default_factory=lambda: [200], min_length=1)
    interval: Positive = 2.0
    timeout: Positive = 2.0
    rise: Annotated[int, Field(ge=1)] = 2
    fall: Annotated[int, Field(ge=1)] = 3


class RolloutSection(Section):
    max_parallel: Count = Amount(number=1)
    min_ready: Count | None = None
    order: Order = Order.STOP_FIRST
    min_healthy_time: Seconds = 10.0
    healthy_deadline: Positive = 300.0
    drain_timeout: Seconds = 30.0
    drain_quiet: Seconds = 0.25
    auto_revert: bool = True


class SwapSection(Section):
    driver: Literal["command", "external"] = "external"
    command: Argv | None = None
    prepare: Argv | None = None
    retire: Argv | None = None
    timeout: Positive = 600.0
    prepare_timeout: Positive = 600.0

    @model_validator(mode="after")
    def _complete(self) -> SwapSection:
        if self.driver == "command" and self.command is None:
            raise ValueError('driver = "command" needs command = ["program", "argument", ...]')
        if self.driver == "external" and (self.command or self.prepare or self.retire):
            raise ValueError('command, prepare and retire need driver = "command"')
        return self


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


class TransportSection(Section):
    tls: bool = False
    tls_server_name: str | None = None
    tls_insecure: bool = False
    tls_ca: Path | None = None
    h2c: bool = False
    dial_timeout: Positive = 3.0
    response_header_timeout: Positive | None = None
    read_timeout: Positive | None = None
    write_timeout: Positive | None = None
    keepalive: Positive = 120.0


class ServiceSection(Section):
    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(default_factory=list)
    route: Literal["own", "adopt", "import"] = "own"
    listen: list[Annotated[str, AfterValidator(_listen)]] = Field(
        default_factory=lambda: [":443"], min_length=1
    )
    tls: Literal["auto", "off"] | None = None
    control: Literal["slots", "admin"] = "slots"
    slots: Annotated[int, Field(ge=1, le=10_000)] = 100
    slots_path: str | None = None
    affinity: Literal["none", "cookie", "client_ip"] = "none"
    try_duration: Positive = 30.0
    try_interval: Positive = 0.05
    stream_close_delay: Seconds = 86_400.0
    upstreams: list[UpstreamSection] = Field(default_factory=list)
    health: HealthSection = HealthSection()
    rollout: RolloutSection = RolloutSection()
    swap: SwapSection = SwapSection()
    hooks: HooksSection = HooksSection()
    transport: TransportSection = TransportSection()

    @model_validator(mode="after")
    def _consistent(self) -> ServiceSection:
        if self.route != "own":
            raise ValueError(f'route = "{self.route}" is not supported yet; use route = "own"')
        if self.control != "slots":
            raise ValueError(f'control = "{self.control}" is not supported yet; use control = "slots"')
        ids = [u.id for u in self.upstreams]
        doubles = sorted({name for name in ids if ids.count(name) > 1})
        if doubles:
            raise ValueError(f"upstream ids must differ; twice: {', '.join(doubles)}")
        if self.slots < len(self.upstreams):
            raise ValueError(
                f"{len(self.upstreams)} upstreams need at least as many slots; slots = {self.slots}"
            )
        return self

    @property
    def tls_mode(self) -> Literal["auto", "off"]:
        """`tls`, or its default: "off" where there is no host name or the port is not 443."""
        if self.tls is not None:
            return self.tls
        on_443 = all(address.rpartition(":")[2] == "443" for address in self.listen)
        return "auto" if self.hosts and on_443 else "off"

    def policy(self, upstreams: int, overrides: RolloutOverrides | None = None) -> Policy:
        """The policy of a rollout over this many upstreams."""
        changes = overrides.model_dump(exclude_none=True) if overrides else {}
        base = {name: getattr(self.rollout, name) for name in RolloutSection.model_fields}
        wanted = RolloutSection.model_construct(**{**base, **{k: getattr(overrides, k) for k in changes}})
        parallel = max(1, wanted.max_parallel.of(upstreams, up=True))
        least = (
            max(1, upstreams - parallel)
            if wanted.min_ready is None
            else wanted.min_ready.of(upstreams, up=True)
        )
        return Policy(
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
            prepares=self.swap.prepare is not None,
            retires=self.swap.retire is not None,
            external=self.swap.driver == "external",
            hooks=self.hooks.kinds(),
        )


class RolloutOverrides(BaseModel):
    """What a request may change of `[services.NAME.rollout]` for one rollout."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_parallel: Count | None = None
    min_ready: Count | None = None
    order: Order | None = None
    min_healthy_time: Seconds | None = None
    healthy_deadline: Positive | None = None
    drain_timeout: Seconds | None = None
    drain_quiet: Seconds | None = None
    auto_revert: bool | None = None


class Config(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        env_prefix="TRAFFICD_", env_nested_delimiter="__", extra="forbid", frozen=True
    )
    daemon: DaemonSection = DaemonSection()
    caddy: CaddySection = CaddySection()
    services: dict[Name, ServiceSection] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml_file = settings_cls.model_config.get("toml_file")
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file))

    @model_validator(mode="after")
    def _addresses(self) -> Config:
        """No address twice anywhere: in-flight counts of a shared address would be nobody's."""
        seen: dict[str, str] = {}
        for name, service in self.services.items():
            for upstream in service.upstreams:
                for key in ("dial", "spare_dial"):
                    address = getattr(upstream, key)
                    place = f"services.{name}.upstreams.{upstream.id}.{key}"
                    if address is not None and address in seen:
                        raise ValueError(f"{place}: {address} is already the address of {seen[address]}")
                    if address is not None:
                        seen[address] = place
        return self


def load(path: Path | str) -> Config:
    """Read and check a configuration file.

    Raises `ConfigError` with every fault and its place.
    """
    path = Path(path)
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give one with --config, or write it there") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error

    class FileConfig(Config):
        model_config = SettingsConfigDict(toml_file=path)

    try:
        return FileConfig()
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from error
    except Exception as error:  # a variable that is not the JSON a section needs
        raise ConfigError(f"{path}: {error}") from error


def _explain(path: Path, error: ValidationError) -> str:
    faults = error.errors(include_url=False)
    lines = [f"{path}: {len(faults)} fault(s)"]
    for fault in faults:
        place = ".".join(str(part) for part in fault["loc"] if part != "[key]") or "(whole file)"
        lines.append(f"  {place}: {_reason(fault)}")
    return "\n".join(lines)


def _reason(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "no such key; see the README for the keys of this section"
    message = str(fault["msg"]).removeprefix("Value error, ")
    given = fault.get("input")
    if isinstance(given, str | int | float) and fault["type"] != "value_error":
        message += f" (given: {given!r})"
    return message


def default_path() -> str:
    """Where `trafficd run` looks for its configuration when not told."""
    return os.environ.get("TRAFFICD_CONFIG", DEFAULT_PATH)
