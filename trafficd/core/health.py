"""Health outside rollouts: `fall` failures in a row take an upstream out, `rise` successes bring it back.

An upstream never seen before is UNKNOWN: one good probe admits it, `fall` bad ones make it DOWN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trafficd.core.model import Health


class Unreachable(str):
    """Why a probe failed, where there was nothing to connect to: then no request reaches it, either."""

    __slots__ = ()


@dataclass(frozen=True)
class Pulse:
    """The probes of one address, folded."""

    health: Health = Health.UNKNOWN
    streak: int = 0  # successes in a row (positive) or failures in a row (negative)
    reason: str = ""

    @property
    def unreachable(self) -> bool:
        """Whether it is down, and there is nothing to connect to."""
        return self.health is Health.DOWN and isinstance(self.reason, Unreachable)

    def probe(self, failure: str | None, *, rise: int, fall: int) -> Pulse:
        """The pulse after one more probe; `failure` None means a good one."""
        if failure is None:
            streak = max(self.streak, 0) + 1
            needed = 1 if self.health is Health.UNKNOWN else rise
            health = Health.UP if streak >= needed else self.health
            return replace(self, streak=streak, health=health, reason="" if health is Health.UP else self.reason)
        streak = min(self.streak, 0) - 1
        health = Health.DOWN if -streak >= fall else self.health
        return replace(self, streak=streak, health=health, reason=failure)
