"""Evidence that notices what breaks late: bets that hold a part of their money back, and stake it little by little.

Bets against a canary lose as long as it is good: after an hour there is next to nothing left to multiply, and a canary
that breaks then would have to win all of that back. So a part of the money is held back at first, and before each tick
some of it is staked, evenly on all bets.

The invariant: what is staked and what is held back are together 1 at the beginning, and an e-process if the bets are.
Staking makes no money; what is held back stays what it is; what is staked is multiplied by factors of mean at most 1,
as how much that is was decided before the tick's bad requests were seen. In other words it is a mixture over the times
at which a canary may break,

    E = sum of w_j E_j over j = 0, 1, ..., with w_0 = 1 - held_back and all w_j together 1,

where E_j are bets that begin with tick j and are 1 before. So a canary that is no worse gets it to 1/alpha with
probability at most alpha, however often one looks (Ville 1939); and E >= w_0 E_0, so what is broken from the start is
told hardly later. Money on the same bet is multiplied by the same factors, whenever it was staked: one number a bet is
all that is kept, for a canary of days too.

Of the reserve, HALF / (HALF + n) is left after n ticks. So w_j falls as slowly as 1 / j^2: a late start costs twice the
logarithm of its lateness, and not what the bets have lost by then, which grows with the time itself.

Source: Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change detection" (NEJSDS 2024),
for e-processes that start one after another; ours are weighted, as alpha is to hold for good and not for a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from trafficd.core.evidence import Bets

# Chosen by simulation, 10 % errors beside 1 %: a quarter is 4 % later at the start, where a half is 8 %. With a HALF of
# 60 to 1200 ticks it is 14 to 16 s after an hour. Staked once a minute, and not each tick, it would be 2 to 5 s later.
HELD_BACK = 1 / 4
HALF = 600  # ticks
STEP = 60  # ticks whose stakes are laid at once when a step begins: a new share is a likely time to break


@dataclass
class RenewedBets(Bets):
    """`held_back` is the part that is not staked at first; with 0 these are plain bets. ValueError out of 0 to 1."""

    held_back: float = HELD_BACK
    ticks: int = field(init=False)

    def begin(self) -> None:
        if not 0 <= self.held_back < 1:
            raise ValueError(f"held_back must be at least 0 and less than 1, but is {self.held_back:g}")
        self.logs = [math.log1p(-self.held_back)] * len(self.bets)
        self.ticks = 0

    def multiply(self, log_factors: Iterable[float]) -> None:
        """Take one tick, after its part of the reserve was staked."""
        self.stake(1)
        super().multiply(log_factors)

    def stake(self, ticks: int) -> None:
        """Stake what is due for so many ticks at once; when, must not depend on a tick that is still to be taken."""
        part = self.reserve * ticks / (HALF + self.ticks + ticks)
        self.ticks += ticks
        if part > 0:
            self.logs = [_log_of_sum(log, math.log(part)) for log in self.logs]

    @property
    def reserve(self) -> float:
        """What is held back still."""
        return self.held_back * HALF / (HALF + self.ticks)

    @property
    def log_evidence(self) -> float:
        """ln of all there is, staked or not."""
        staked = super().log_evidence
        return _log_of_sum(staked, math.log(self.reserve)) if self.held_back else staked


def _log_of_sum(one: float, other: float) -> float:
    """ln(exp(one) + exp(other)), without overflow; `other` is finite."""
    return max(one, other) + math.log1p(math.exp(-abs(one - other)))
