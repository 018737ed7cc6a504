"""What remembers the sites: a file, for the day that somebody's reload of Caddy forgets them.

What Caddy's configuration has is what is; the book says what is to be. It is written before Caddy is told, and never
has a site whose removal was begun. Every method blocks on the disk; call them off the event loop.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from proxy.errors import SiteBookError

_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A site as it was asked for: its certificate's content may change, so there is no fingerprint."""

    name: str
    service: str
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class SiteBook:
    """The sites in one file."""

    path: Path

    def read(self) -> list[Entry]:
        """Raises `SiteBookError` when it cannot be read; a file that is not there has none."""
        try:
            content = orjson.loads(self.path.read_bytes())
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']!r} is not known")
            return [Entry(**entry) for entry in content["sites"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SiteBookError(
                f"{self.path} cannot be read as trafficd's list of sites ({error}). Move it away, and "
                "add the sites of `trafficd site list` again"
            ) from error

    def write(self, entries: Sequence[Entry]) -> None:
        """Replace them, durably. Raises `SiteBookError`; the file is then as it was."""
        content = {"version": _VERSION, "sites": [vars(entry) for entry in entries]}
        scratch = self.path.with_name(f"{self.path.name}.new")
        try:
            with scratch.open("wb") as file:
                file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise SiteBookError(f"{self.path} cannot be written: {error.strerror}. Is the disk full?") from error
