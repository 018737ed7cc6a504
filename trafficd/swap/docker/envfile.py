"""Files of variables, as `docker run --env-file` reads them: NAME=value a line, `#` begins a comment line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trafficd.errors import ConfigError


def parse_env(text: str, place: str) -> dict[str, str]:
    """The variables of one file. Raises `ConfigError`."""
    found = {}
    # Only a line feed ends a line: other separators of Unicode may be in a value.
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.removesuffix("\r").lstrip()
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
            # As bytes, or a lone carriage return would become a line; editors on Windows begin it with a mark.
            found |= parse_env(path.read_bytes().decode("utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"docker.env_files: {path}: {error}") from error
    return found
