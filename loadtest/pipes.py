"""What a process of ours says and hears through its own stdin and stdout."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable


def write(data: bytes) -> None:
    """Write all of it to stdout. With PYTHONUNBUFFERED set, as in many containers, Python's own stdout drops what a
    pipe does not take at once. Raises OSError or ValueError where stdout is no file."""
    place = sys.stdout.fileno()
    sys.stdout.flush()
    with open(place, "wb", closefd=False) as whole:
        whole.write(data)


def at_end_of_stdin(act: Callable[[], None]) -> None:
    """Call `act` once stdin ends, also because the other side died. Nothing else is to come there."""
    loop, place = asyncio.get_running_loop(), sys.stdin.fileno()

    def ended() -> None:
        loop.remove_reader(place)  # or it would be told of the end again and again
        act()

    loop.add_reader(place, ended)
