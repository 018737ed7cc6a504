"""Permission to send. Times are whole nanoseconds since the start of the run."""

from __future__ import annotations

from typing import NamedTuple

SECOND = 1_000_000_000
LATE = 50_000_000  # ns: timers are coarse, so what is due just before the end may still be sent just after it


class Slot(NamedTuple):
    """Permission to send one request."""

    at: int  # ns since the start: when it is due
    wait: int  # ns from now until then; 0 when it is due already
