"""What is observed, and what is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from trafficd.core.judge import Verdict
from trafficd.core.model.kinds import Health

FULL = 20  # the weight of an instance that has had its slow start, in parts of which a cold one has 1


class Finding(NamedTuple):
    """What the judge says of a rollout in this stage."""

    rollout: str
    stage: int
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class World:
    """What was observed: health per upstream id (and `Beside.key`), which of those that are down nobody can connect to,
    the shares the proxy has now (slots per address), how far the slow start of an address is (1 to `FULL`; not named:
    it is over), and what the judge says."""

    health: Mapping[str, Health] = field(default_factory=dict)
    down_since: Mapping[str, float] = field(default_factory=dict)  # s since the epoch, of what is down
    unreachable: frozenset[str] = frozenset()
    shares: Mapping[str, int] = field(default_factory=dict)
    warmth: Mapping[str, int] = field(default_factory=dict)
    slots: int = 100
    finding: Finding | None = None
    judged: bool = False  # whether anybody could ever say something

    def up(self, key: str) -> bool:
        return self.health.get(key, Health.UNKNOWN) is Health.UP


@dataclass(frozen=True)
class Wait:
    """What is waited for, since when, and until when at the latest (None: as long as it takes)."""

    upstream: str | None
    what: str
    since: float
    until: float | None = None
    expected: float | None = None
