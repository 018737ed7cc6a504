"""Permission to send. Times are whole nanoseconds since the start of the run."""

from __future__ import annotations

from typing import NamedTuple

SECOND = 1_000_000_000
LATE = 50_000_000  # ns: timers are coarse, so what is due just before the end may still be sent just after it


class Slot(NamedTuple):
    """Permission to send one request."""

    at: int  # ns since the start: when it is due
    wait: int  # ns from now until then; 0 when it is due already


def slot(at: int, elapsed: int, end: int | None) -> Slot | None:
    """The slot that is due `at`, unless that, or now, is after the end of the run."""
    if end is not None and max(at, elapsed - LATE) >= end:
        return None
    return Slot(at, max(0, at - elapsed))
