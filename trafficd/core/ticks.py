"""From single requests to the ticks that are judged.

A tick closes when both arms have had a request in it, after 1 s at the earliest and 60 s at the latest: fixed ticks of
1 s are blind on thin traffic, where the arms seldom meet in one. Counts alone decide, never what was bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

SHORTEST = 1.0
LONGEST = 60.0


class Arm(StrEnum):
    CANARY = "canary"
    STABLE = "stable"


class Request(NamedTuple):
    """A request that ended at `at` (seconds), and the metrics by which it was bad."""

    at: float
    arm: Arm
    client: str
    bad: frozenset[str] = frozenset()


class Bad(NamedTuple):
    """The bad requests of one metric; `canary_repeats` are those of the canary that the rule below counts as good."""

    canary: int = 0
    stable: int = 0
    canary_repeats: int = 0


NONE_BAD = Bad()


class Tick(NamedTuple):
    """The requests of both arms that ended from `begin` to `end` (seconds); a metric without bad ones is left out."""

    begin: float
    end: float
    canary: int
    stable: int
    bad: Mapping[str, Bad]


@dataclass
class Ticks:
    """Feed it requests, roughly in the order of their end; a late one belongs to the tick that is open.

    A client in a retry loop is no independent witness, so a tick counts one bad request a client and metric: its first
    over both arms together. With `sticky` (cookie or client address choose the arm) the client was drawn and not the
    request, so it is one bad request a client for as long as this object lives. Without `by_client` every bad request
    counts: for a load generator, which has one address and sends each request when it is due, whatever became of the
    one before.
    """

    since: float
    sticky: bool = False
    by_client: bool = True
    _totals: dict[Arm, int] = field(init=False)
    _bad: dict[str, Bad] = field(init=False)
    _seen: set[tuple[str, str]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._begin(self.since)

    def add(self, request: Request) -> Tick | None:
        """Count `request`; gives the tick that it closes because it came after its end."""
        closed = self.close(request.at)
        self._totals[request.arm] += 1
        for metric in request.bad:
            self._count(metric, request)
        return closed

    def close(self, now: float) -> Tick | None:
        """The open tick, if it is over at `now`; call it once a second, requests or none."""
        age = now - self.since
        if age < SHORTEST or (age < LONGEST and not all(self._totals.values())):
            return None
        tick = Tick(self.since, now, self._totals[Arm.CANARY], self._totals[Arm.STABLE], self._bad)
        self._begin(now)
        return tick if tick.canary or tick.stable else None

    def _begin(self, at: float) -> None:
        self.since = at
        self._totals = dict.fromkeys(Arm, 0)
        self._bad = {}
        if not self.sticky:
            self._seen.clear()

    def _count(self, metric: str, request: Request) -> None:
        bad, key = self._bad.get(metric, NONE_BAD), (metric, request.client)
        on_canary = request.arm is Arm.CANARY
        if key not in self._seen:
            if self.by_client:
                self._seen.add(key)
            bad = bad._replace(canary=bad.canary + on_canary, stable=bad.stable + (not on_canary))
        else:
            # Counted as good, not left out: simulated A/A runs (200 requests/s, 5 % share, 300 s, retry loops of up to
            # 30 s) are quiet either way where each request draws its arm (0 of 120 failed), but where the client draws
            # it, leaving its repeats out makes the arm of a failing client look small: 19 of 90 failed, of those that
            # count them as good 3 of 90, and with the memory of `sticky` none of 90.
            bad = bad._replace(canary_repeats=bad.canary_repeats + on_canary)
        self._bad[metric] = bad
