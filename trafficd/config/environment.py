"""The environment over the file.

`TRAFFICD_DAEMON__STATE_DIR=/srv/trafficd` overrides `state_dir` in `[daemon]`: sections and keys are
joined by two underscores, lists and tables are JSON, and in names `-` and `.` are written `_`. Variables
without two underscores are not the configuration's (TRAFFICD_CONFIG, TRAFFICD_SOCKET, what commands are told).
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from trafficd.errors import ConfigError

_PREFIX = "TRAFFICD_"


class Override(NamedTuple):
    """A variable and the place it sets."""

    variable: str
    place: tuple[str, ...]
    value: object


def overrides(environ: Mapping[str, str], file: Mapping[str, Any], sections: Container[str]) -> list[Override]:
    """What the environment sets, given the file's own names of services.

    Raises `ConfigError` for a list or table that is no JSON.
    """
    found = []
    for variable, text in sorted(environ.items()):
        parts = variable.removeprefix(_PREFIX).lower().split("__")
        if not variable.startswith(_PREFIX) or (len(parts) == 1 and parts[0] not in sections):
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


class Environment(PydanticBaseSettingsSource):
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
