"""Is an upstream drained? A fold of in-flight samples over time.

Drained: every sample over the quiet window read zero, and there were at least three of them. One zero
proves nothing (a straggler may be between two hops), and a count that could not be read breaks the
window: unknown is not zero. At the time-out what is still open is counted and given up; a count that is
unknown at the time-out is waited for once more as long, and then the drain fails. One sample that could not be
read proves nothing either: after a pause of the whole daemon the first one comes late, and may have failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MIN_SAMPLES = 3


class Open(NamedTuple):
    """What is open on an upstream: ordinary requests, and upgraded streams."""

    requests: int
    streams: int

    @property
    def total(self) -> int:
        return self.requests + self.streams


class DrainVerdict(StrEnum):
    WAITING = "waiting"
    DRAINED = "drained"
    TIMED_OUT = "timed_out"
    UNKNOWN = "unknown"


@dataclass
class DrainWatch:
    """Feed it samples; `since` is the journalled start, so a restart does not lengthen the time-out."""

    since: float
    quiet: float
    timeout: float
    open: Open | None = None
    _zero_since: float | None = None
    _zeros: int = 0
    _unknown_since: float | None = None
    _unknowns: int = 0

    def sample(self, at: float, count: Open | None) -> DrainVerdict:
        """Take the sample read at `at`; None is a count that could not be read."""
        self.open = count
        if count is None:
            self._unknown_since = at if self._unknown_since is None else self._unknown_since
            self._unknowns += 1
        else:
            self._unknown_since, self._unknowns = None, 0
        if count is None or count.total > 0:
            self._zero_since, self._zeros = None, 0
        else:
            self._zero_since = at if self._zero_since is None else self._zero_since
            self._zeros += 1
            if self._zeros >= MIN_SAMPLES and at - self._zero_since >= self.quiet:
                return DrainVerdict.DRAINED
        return self._timed(at)

    def left(self, at: float) -> float | None:
        """Seconds until the quiet window is full, if all that is read until then is zero; None while it is not."""
        return None if self._zero_since is None else max(0.0, self._zero_since + self.quiet - at)

    def _timed(self, at: float) -> DrainVerdict:
        waited = at - self.since
        # The quiet window may end after the time-out: nothing is open, so nothing is given up by waiting.
        if waited < self.timeout or (self._zeros and waited < self.timeout + self.quiet):
            return DrainVerdict.WAITING
        if self.open is not None:
            return DrainVerdict.TIMED_OUT
        lasting = self._unknowns >= MIN_SAMPLES and at - (self._unknown_since or at) >= self.quiet
        over = waited >= 2 * self.timeout + self.quiet
        return DrainVerdict.UNKNOWN if over and lasting else DrainVerdict.WAITING
