"""Permission to send. Times are whole nanoseconds since the start of the run."""

from __future__ import annotations

from typing import NamedTuple

SECOND = 1_000_000_000


class Slot(NamedTuple):
    """Permission to send one request."""

    at: int  # ns since the start: when it is due
    wait: int  # ns from now until then; 0 when it is due already
