"""Who a daemon is, for marks on what it makes beside others on one machine: an id of its own, made once.

It is in `state_dir/id`, and changes only with the state directory. It is written beside its place and then renamed, so
there is never half of one.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from trafficd.errors import StateError

_ID = re.compile(r"[0-9a-f]{16}")


def daemon_id(state_dir: Path) -> str:
    """The id of the daemon on a state directory that is locked; it is made at the first call. Raises `StateError`."""
    place = state_dir / "id"
    try:
        known = place.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return _made(place)
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(place, error.strerror if isinstance(error, OSError) else "it is no text") from error
    if not _ID.fullmatch(known):
        raise _unusable(place, "16 hexadecimal digits are expected")
    return known


def _made(place: Path) -> str:
    made = secrets.token_hex(8)
    beside = place.with_name("id.new")
    try:
        with beside.open("w", encoding="ascii") as file:
            file.write(f"{made}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
        directory = os.open(place.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # else a power cut could take it back, with containers that bear it
        finally:
            os.close(directory)
    except OSError as error:
        raise StateError(
            f"this daemon's id cannot be written to {place}: {error.strerror}. Is the disk full?"
        ) from error
    return made


def _unusable(place: Path, why: str | None) -> StateError:
    return StateError(
        f"this daemon's id cannot be read from {place}: {why}. Write there what the label trafficd.daemon of its "
        "containers says (docker inspect); without the file a new id is made, and those containers are a stranger's"
    )
