"""Files of variables, as `docker run --env-file` reads them: NAME=value a line, `#` begins a comment line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trafficd.errors import ConfigError


def parse_env(text: str, place: str) -> dict[str, str]:
    """The variables of one file. Raises `ConfigError`."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.lstrip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not name or name.split() != [name]:
            raise ConfigError(f"{place}, line {number}: not NAME=value")
        found[name] = value
    return found


def read_env_files(paths: Sequence[Path]) -> dict[str, str]:
    """The variables of all files, later ones over earlier ones. Raises `ConfigError`."""
    found: dict[str, str] = {}
    for path in paths:
        try:
            found |= parse_env(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"docker.env_files: {path}: {error}") from error
    return found
