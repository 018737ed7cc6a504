"""Is a new instance fit for traffic? A fold of probe results over time.

Passed: healthy without a break for `min_healthy_time`. A failure starts the count again. All of it within
`deadline` from the journalled start. That something runs counts for nothing; only answers do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GateVerdict(StrEnum):
    WAITING = "waiting"
    PASSED = "passed"
    FAILED = "failed"


@dataclass
class GateWatch:
    """Feed it probe results; times in seconds."""

    since: float
    min_healthy_time: float
    deadline: float
    healthy_since: float | None = None
    last_failure: str = "no probe has answered yet"
    breaks: int = 0

    def probe(self, at: float, failure: str | None) -> GateVerdict:
        """Take the result of a probe that ended at `at`; `failure` None means healthy."""
        if failure is None:
            self.healthy_since = at if self.healthy_since is None else self.healthy_since
            if at - self.healthy_since >= self.min_healthy_time:
                return GateVerdict.PASSED
        else:
            self.breaks += self.healthy_since is not None
            self.healthy_since, self.last_failure = None, failure
        return self.expire(at)

    def expire(self, at: float) -> GateVerdict:
        """The verdict when nothing but time has passed."""
        return GateVerdict.FAILED if at - self.since >= self.deadline else GateVerdict.WAITING

    def explain(self) -> str:
        """Why it failed, for the person who reads it."""
        if self.healthy_since is not None:
            return (
                f"healthy, but not for {self.min_healthy_time:g} s without a break within "
                f"{self.deadline:g} s (last failure: {self.last_failure})"
            )
        again = f", after it had been healthy {self.breaks} time(s)" if self.breaks else ""
        return f"not healthy within {self.deadline:g} s{again}: {self.last_failure}"
