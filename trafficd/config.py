"""The configuration: TOML by pydantic-settings, `TRAFFICD_*` variables override.

`TRAFFICD_DAEMON__STATE_DIR=/srv/trafficd` overrides `state_dir` in `[daemon]`: sections and keys are
joined by two underscores, lists and tables are JSON, and in names `-` and `.` are written `_`. Variables
without two underscores are not the configuration's (TRAFFICD_CONFIG, TRAFFICD_SOCKET, what commands are
told). All faults are reported at once, each with its place.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from proxy.errors import AddressError
from proxy.model import parse_dial, parse_name
from trafficd.core.model import Order, Policy, StepKind
from trafficd.errors import ConfigError

DEFAULT_PATH = "/etc/trafficd/trafficd.toml"
DEFAULT_SOCKET = "/run/trafficd/trafficd.sock"

_PREFIX = "TRAFFICD_"
_LONGEST = 366 * 86_400.0  # s; longer than this is a slip of the pen, and some clocks cannot count it
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
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
    if not 0 <= seconds <= _LONGEST:
        raise ValueError("a duration must be from 0 to 366 days")
    return seconds


def parse_version(text: str) -> str:
    """A version as it may reach an argument vector or an environment variable."""
    if not _VERSION.fullmatch(text) or ".." in text.split("/"):
        raise ValueError(
            f"{text[:80]!r} is not a version: letters, digits and . _ + : @ / - only, at most 128, "
            'beginning with a letter or digit, and no ".." between slashes'
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
    if re.fullmatch(r"\d+", text, re.ASCII):
        return Amount(number=int(text))
    if re.fullmatch(r"\d+(\.\d+)?%", text, re.ASCII) and float(text[:-1]) <= 100:
        return Amount(percent=float(text[:-1]))
    raise ValueError(f'{value!r} is neither a number of upstreams nor a percentage such as "25%"')


def _at_least_one(amount: Amount) -> Amount:
    if amount.number == 0 or amount.percent == 0:
        raise ValueError("with none at a time a rollout would never end; give at least 1")
    return amount


def _file(value: object) -> object:
    if value == "":
        raise ValueError("give a path; an empty one would mean the directory that trafficd is started in")
    return value


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(json_schema_extra={"examples": ["10s", "250ms"]})]
Positive = Annotated[Seconds, Field(gt=0)]
Count = Annotated[Amount, BeforeValidator(parse_amount, json_schema_input_type=int | str)]
Parallel = Annotated[Count, AfterValidator(_at_least_one)]
Dial = Annotated[str, AfterValidator(parse_dial)]
Name = Annotated[str, AfterValidator(parse_name)]
Version = Annotated[str, AfterValidator(parse_version)]
File = Annotated[Path, BeforeValidator(_file)]


def _host(text: str) -> str:
    """A host name, or all names under one ("*.example.com"): it stands in Caddy's matchers."""
    labels = text.removeprefix("*.").split(".")
    if len(text) > 253 or not all(re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", label) for label in labels):
        raise ValueError(f"{text[:80]!r} is not a host name")
    return text.lower()


def _listen(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]*):(\d{1,5})", text, re.ASCII)
    if not match or int(match[2]) > 65535:
        raise ValueError(f'{text!r} is not a listen address such as ":443" or "127.0.0.1:8080"')
    return text


def _public(text: str) -> str:
    if int(text.rpartition(":")[2]) == 0:
        raise ValueError(f"{text!r}: clients need a port that they know; 0 is a different one every time")
    return text


def _admin(text: str) -> str:
    """Where Caddy's admin API is. Braces and spaces are nobody's address."""
    network = re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?/?", text, re.ASCII)
    if not network and not re.fullmatch(r"unix://(/[^\s{}|?#]+)", text):
        raise ValueError(f'{text!r} is neither like "http://127.0.0.1:2019" nor like "unix:///run/caddy/admin.sock"')
    return text


def _plain_path(text: str) -> str:
    """A path that goes into Caddy's configuration, where braces are placeholders."""
    if not re.fullmatch(r"/[^{}*\x00-\x1f]*", text) or ".." in text.split("/"):
        raise ValueError(f'{text!r} must be an absolute path without braces, "*" and ".."')
    return text.rstrip("/") or "/"


def _argv(value: list[str]) -> list[str]:
    if not value or not value[0]:
        raise ValueError('give the program and its arguments as a list: ["/usr/local/bin/restart-web"]')
    if any("\0" in part for part in value):
        raise ValueError("an argument must not contain a NUL character")
    return value


def _header(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\x20-\x7e\t]*", text):
            raise ValueError(f"header {name!r} has characters that a header must not have")
        if name.lower() in ("content-length", "transfer-encoding"):
            raise ValueError(f"header {name!r} announces a body, and a probe has none")
    return value


Argv = Annotated[list[str], AfterValidator(_argv)]
Headers = Annotated[dict[str, str], AfterValidator(_header)]


Clash = tuple[tuple[str | int, ...], str]
"""Where, and what does not fit together there."""


def _gather(title: str, error: ValidationError | None, clashes: list[Clash]) -> ValidationError:
    """One error of the faults of single values and of those between values."""
    found = [(fault["loc"], _reason(fault)) for fault in error.errors(include_url=False)] if error else []
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": text}), loc=place, input=None)
            for place, text in [*found, *clashes]
        ],
    )


class Section(BaseModel):
    """A table of the file. What must fit together is looked at even where single values are wrong, so that
    all faults are known at once: `clashes` sees the values as they were given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        clashes = list(cls.clashes(value)) if isinstance(value, dict) else []
        try:
            made = handler(value)
        except ValidationError as error:
            raise _gather(cls.__name__, error, clashes) from None
        if clashes:
            raise _gather(cls.__name__, None, clashes)
        return made


class DaemonSection(Section):
    state_dir: File = Path("/var/lib/trafficd")
    socket: Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)] = Path(DEFAULT_SOCKET)
    listen: Annotated[str, AfterValidator(_listen)] | None = None
    token_file: File | None = None
    allowed_hosts: list[str] = Field(default_factory=list)
    allowed_origins: list[str] = Field(default_factory=list)

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        if given.get("listen") is not None and given.get("token_file") is None:
            yield ("listen",), "listening over TCP needs a token: set token_file to a file that holds one"
        if given.get("socket", DEFAULT_SOCKET) in ("", None) and given.get("listen") is None:
            yield ("socket",), "set socket or listen: without either nobody can reach the daemon"


class CaddySection(Section):
    admin: Annotated[str, AfterValidator(_admin)] = "http://127.0.0.1:2019"
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
    interval: Annotated[Seconds, Field(ge=0.05)] = 2.0
    timeout: Positive = 2.0
    rise: Annotated[int, Field(ge=1)] = 2
    fall: Annotated[int, Field(ge=1)] = 3


class RolloutSection(Section):
    max_parallel: Parallel = Amount(number=1)
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

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        driver = given.get("driver", "external")
        if driver == "command" and given.get("command") is None:
            yield ("command",), 'driver = "command" needs command = ["program", "argument", ...]'
        for key in ("command", "prepare", "retire"):
            if driver == "external" and given.get(key) is not None:
                yield (key,), 'is run only where driver = "command"'


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
    _plain_path(str(path))
    return path


class TransportSection(Section):
    tls: bool = False
    tls_server_name: Annotated[str, AfterValidator(_host)] | None = None
    tls_insecure: bool = False
    tls_ca: Annotated[Path, BeforeValidator(_file), AfterValidator(_ca)] | None = None
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


_LATER = ("adopt", "import", "admin")


def _items(value: object) -> Iterator[tuple[int, object]]:
    if isinstance(value, list):
        yield from enumerate(value)


def _get(table: object, key: str) -> object:
    return table.get(key) if isinstance(table, dict) else None


def _doubles(texts: Iterator[str]) -> list[str]:
    """Those that occur more than once, in any spelling."""
    seen = [text.lower() for text in texts]
    return sorted({text for text in seen if seen.count(text) > 1})


class ServiceSection(Section):
    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(default_factory=list)
    route: Literal["own", "adopt", "import"] = "own"
    listen: list[Annotated[str, AfterValidator(_listen), AfterValidator(_public)]] = Field(
        default_factory=lambda: [":443"], min_length=1
    )
    tls: Literal["auto", "off"] | None = None
    control: Literal["slots", "admin"] = "slots"
    slots: Annotated[int, Field(ge=1, le=10_000)] = 100
    slots_path: Annotated[str, AfterValidator(_plain_path)] | None = None
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

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        for key, only in (("route", "own"), ("control", "slots")):
            if given.get(key, only) in _LATER:
                yield (key,), f'"{given[key]}" is not supported yet; use "{only}"'
        for key in ("hosts", "listen"):
            for twice in _doubles(value for _, value in _items(given.get(key)) if isinstance(value, str)):
                yield (key,), f"{twice} stands there twice"
        upstreams = list(_items(given.get("upstreams")))
        ids = [_get(upstream, "id") for _, upstream in upstreams]
        for twice in _doubles(name for name in ids if isinstance(name, str)):
            yield ("upstreams",), f"two upstreams have the id {twice!r}"
        slots = given.get("slots", 100)
        if type(slots) is int and 0 < slots < len(upstreams):
            yield ("slots",), f"{len(upstreams)} upstreams need at least as many slots"

    @property
    def tls_mode(self) -> Literal["auto", "off"]:
        """`tls`, or its default: "off" where there is no host name or the port is not 443."""
        if self.tls is not None:
            return self.tls
        on_443 = all(address.rpartition(":")[2] == "443" for address in self.listen)
        return "auto" if self.hosts and on_443 else "off"

    def policy(self, upstreams: int, overrides: RolloutOverrides | None = None) -> Policy:
        """The policy of a rollout over this many upstreams.

        Percentages are rounded to the careful side: fewer in parallel, more that stay ready.
        """
        changes = overrides.model_dump(exclude_none=True) if overrides else {}
        base = {name: getattr(self.rollout, name) for name in RolloutSection.model_fields}
        wanted = RolloutSection.model_construct(**{**base, **{k: getattr(overrides, k) for k in changes}})
        parallel = max(1, wanted.max_parallel.of(upstreams, up=False))
        least = max(1, upstreams - parallel) if wanted.min_ready is None else wanted.min_ready.of(upstreams, up=True)
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
    max_parallel: Parallel | None = None
    min_ready: Count | None = None
    order: Order | None = None
    min_healthy_time: Seconds | None = None
    healthy_deadline: Positive | None = None
    drain_timeout: Seconds | None = None
    drain_quiet: Seconds | None = None
    auto_revert: bool | None = None


class Config(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)
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
        file = TomlConfigSettingsSource(settings_cls, settings_cls.model_config.get("toml_file"))
        return (init_settings, _Environment(settings_cls, overrides(os.environ, file())), file)

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        clashes = list(_between_services(_get(value, "services")))
        try:
            made = handler(value)
        except ValidationError as error:
            raise _gather(cls.__name__, error, clashes) from None
        if clashes:
            raise _gather(cls.__name__, None, clashes)
        return made


def _between_services(services: object) -> Iterator[Clash]:
    """What two services must not share."""
    if isinstance(services, dict):
        yield from _shared_addresses(services)
        yield from _shared_hosts(services)


def _shared_addresses(services: Mapping[str, object]) -> Iterator[Clash]:
    """No address twice anywhere: in-flight counts of a shared address would be nobody's."""
    seen: dict[str, str] = {}
    for name, service in services.items():
        for number, upstream in _items(_get(service, "upstreams")):
            for key in ("dial", "spare_dial"):
                try:
                    address = parse_dial(str(_get(upstream, key) or ""))
                except AddressError:
                    continue
                who = f"{key} of {_get(upstream, 'id')} in services.{name}"
                if address in seen:
                    yield (
                        ("services", name, "upstreams", number, key),
                        f"{address} is already the {seen[address]}; give each its own",
                    )
                seen.setdefault(address, who)


def _shared_hosts(services: Mapping[str, object]) -> Iterator[Clash]:
    """No host name of one listen address twice: the second service would never be asked."""
    seen: dict[tuple[str, str], str] = {}
    for name, service in services.items():
        hosts = [str(host).lower() for _, host in _items(_get(service, "hosts"))] or ["any host"]
        listen = [str(address) for _, address in _items(_get(service, "listen"))] or [":443"]
        for key in dict.fromkeys((host, address) for host in hosts for address in listen):
            if key in seen:
                yield (
                    ("services", name, "hosts"),
                    f"{key[0]} on {key[1]} goes to services.{seen[key]} already",
                )
            seen.setdefault(key, name)


class Override(NamedTuple):
    """A variable and the place it sets."""

    variable: str
    place: tuple[str, ...]
    value: object


def overrides(environ: Mapping[str, str], file: Mapping[str, Any]) -> list[Override]:
    """What the environment sets, given the file's own names of services.

    Raises `ConfigError` for a list or table that is no JSON.
    """
    found = []
    for variable, text in sorted(environ.items()):
        parts = variable.removeprefix(_PREFIX).lower().split("__")
        if not variable.startswith(_PREFIX) or (len(parts) == 1 and parts[0] not in Config.model_fields):
            continue
        if parts[0] == "services" and len(parts) > 1:
            parts[1] = _own_name(parts[1], file.get("services"))
        value: object = text
        if len(parts) == 1 or text.lstrip().startswith(("[", "{")):
            try:
                value = json.loads(text)
            except ValueError as error:
                raise ConfigError(f"the variable {variable} is no JSON: {error}") from None
        found.append(Override(variable, tuple(parts), value))
    return found


def _own_name(part: str, services: object) -> str:
    names = services if isinstance(services, dict) else {}
    return next((name for name in names if re.sub(r"[.-]", "_", name.lower()) == part), part)


class _Environment(PydanticBaseSettingsSource):
    """The overrides as pydantic-settings wants them. Its own reader guesses at types under `services`,
    takes "1m30s" for broken JSON, and does not name the variable."""

    def __init__(self, settings_cls: type[BaseSettings], found: list[Override]) -> None:
        super().__init__(settings_cls)
        self._found = found

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for override in self._found:
            table = tree
            for part in override.place[:-1]:
                inner = table.setdefault(part, {})
                if not isinstance(inner, dict):
                    raise ConfigError(f"the variable {override.variable} sets a key of what is no table")
                table = inner
            table[override.place[-1]] = override.value
        return tree


def load(path: Path | str) -> Config:
    """Read and check a configuration file.

    Raises `ConfigError` with every fault and its place.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
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
        raise ConfigError(_explain(path, error, data)) from error


def _explain(path: Path, error: ValidationError, file: Mapping[str, Any]) -> str:
    faults = error.errors(include_url=False)
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines = [f"{path}: {count}"]
    for fault in faults:
        parts = tuple(str(part) for part in fault["loc"] if part != "[key]")
        variable = _origin(parts, file)
        origin = f" (set by the variable {variable})" if variable else ""
        lines.append(f"  {'.'.join(parts) or '(whole file)'}: {_reason(fault)}{origin}")
    return "\n".join(lines)


def _origin(place: tuple[str, ...], file: Mapping[str, Any]) -> str | None:
    """The variable that sets what is at this place, or a part of what the file does not have there."""
    value: object = file
    for part in place:
        value = _get(value, part)
    for variable, target, _ in overrides(os.environ, file):
        if place[: len(target)] == target or (value is None and target[: len(place)] == place):
            return variable
    return None


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
