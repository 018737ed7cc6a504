"""The configuration: TOML by pydantic-settings, `TRAFFICD_*` variables override.

All faults are reported at once, each with its place.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from proxy.errors import AddressError
from proxy.model import parse_dial, parse_name
from trafficd.config.environment import Environment, overrides
from trafficd.config.faults import Clash, get, items, made_or_all_faults, reason
from trafficd.config.sections import (
    DEFAULT_SOCKET,
    CaddySection,
    DaemonSection,
    RolloutOverrides,
    ServiceSection,
    SshSection,
)
from trafficd.config.values import (
    Amount,
    Dial,
    Name,
    Seconds,
    Version,
    parse_amount,
    parse_duration,
    parse_version,
)
from trafficd.config.verification import VerifyOverrides, VerifyRequest, VerifySection
from trafficd.errors import ConfigError

__all__ = [
    "DEFAULT_PATH",
    "DEFAULT_SOCKET",
    "Amount",
    "Config",
    "Dial",
    "Name",
    "RolloutOverrides",
    "Seconds",
    "ServiceSection",
    "VerifyOverrides",
    "VerifyRequest",
    "VerifySection",
    "Version",
    "default_path",
    "load",
    "parse_amount",
    "parse_duration",
    "parse_name",
    "parse_version",
]

DEFAULT_PATH = "/etc/trafficd/trafficd.toml"
_ON = ("true", "1", "1.0", "yes", "on", "t", "y")  # as pydantic reads it, from a variable, too


class Config(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)
    daemon: DaemonSection = DaemonSection()
    caddy: CaddySection = CaddySection()
    ssh: SshSection = SshSection()
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
        return (init_settings, Environment(settings_cls, overrides(os.environ, file(), cls.model_fields)), file)

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        clashes = [*_between_services(get(value, "services")), *_blind(get(value, "caddy"), get(value, "services"))]
        return made_or_all_faults(cls.__name__, value, handler, clashes)


def _between_services(services: object) -> Iterator[Clash]:
    """What two services must not share."""
    if isinstance(services, dict):
        yield from _shared_addresses(services)
        yield from _shared_hosts(services)


def _shared_addresses(services: Mapping[str, object]) -> Iterator[Clash]:
    """No address twice anywhere: in-flight counts of a shared address would be nobody's."""
    seen: dict[str, str] = {}
    for name, service in services.items():
        for number, upstream in items(get(service, "upstreams")):
            for key in ("dial", "spare_dial"):
                try:
                    address = parse_dial(str(get(upstream, key) or ""))
                except AddressError:
                    continue
                who = f"{key} of {get(upstream, 'id')} in services.{name}"
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
        if get(service, "route") in ("adopt", "import", "none"):
            continue  # the site that is there has its hosts, and a worker has none
        hosts = [str(host).lower() for _, host in items(get(service, "hosts"))] or ["any host"]
        listen = [str(address) for _, address in items(get(service, "listen"))] or [":443"]
        for key in dict.fromkeys((host, address) for host in hosts for address in listen):
            if key in seen:
                yield (
                    ("services", name, "hosts"),
                    f"{key[0]} on {key[1]} goes to services.{seen[key]} already",
                )
            seen.setdefault(key, name)


def _blind(caddy: object, services: object) -> Iterator[Clash]:
    """What is judged by answers that nobody logs."""
    for name, service in services.items() if isinstance(services, dict) else ():
        for place in _judges(service):
            if get(caddy, "access_log") is None:
                yield (
                    ("services", name, *place),
                    "nothing is known of the answers without a log: set caddy.access_log to a file that Caddy may "
                    "write and trafficd may read",
                )
            elif get(service, "route") == "import":
                yield (
                    ("services", name, *place),
                    'the answers are not logged with route = "import", since the Caddyfile is not ours to write; leave '
                    'it out, or set route = "adopt" or "own"',
                )
            elif get(service, "control") == "admin":
                yield (
                    ("services", name, *place),
                    'the answers are not logged with control = "admin"; leave it out, or set control = "slots"',
                )


def _judges(service: object) -> Iterator[tuple[str, str]]:
    """The keys of a service that judge answers and mean nothing where none are logged."""
    if str(get(get(service, "outliers"), "enabled")).lower() in _ON:
        yield "outliers", "enabled"
    if any(True for _ in items(get(get(service, "canary"), "metrics"))):
        yield "canary", "metrics"


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
        lines.append(f"  {'.'.join(parts) or '(whole file)'}: {reason(fault)}{origin}")
    return "\n".join(lines)


def _origin(place: tuple[str, ...], file: Mapping[str, Any]) -> str | None:
    """The variable that sets what is at this place, or a part of what the file does not have there."""
    value: object = file
    for part in place:
        value = get(value, part)
    for variable, target, _ in overrides(os.environ, file, Config.model_fields):
        if place[: len(target)] == target or (value is None and target[: len(place)] == place):
            return variable
    return None


def default_path() -> str:
    """Where `trafficd run` looks for its configuration when not told."""
    return os.environ.get("TRAFFICD_CONFIG", DEFAULT_PATH)
