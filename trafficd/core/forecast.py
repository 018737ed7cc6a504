"""How long will a verdict take, at this rate, share and rate of errors? For `plan`, before any traffic moves.

The mean log-growth of each bet a second is exact up to treating the arms' bad requests as independent draws; the time is
where the mean over the bets reaches 1/alpha if each grows evenly. So it is near the mean time of a simulation, and about
half of all runs take longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from trafficd.core.evidence import log_binomial_factor, log_mean_exp, log_normaliser
from trafficd.core.judge import BETTER_BETS, RARE_BETS, WORSE_BETS
from trafficd.core.ticks import LONGEST, SHORTEST

LONGEST_FORECAST = 30 * 86_400.0


class Traffic(NamedTuple):
    """Requests a second of both arms together, the canary's part of them, the stable's part of bad ones (all parts
    between 0 and 1)."""

    rate: float
    share: float
    base: float

    @property
    def canary(self) -> float:
        """The canary's requests a second."""
        return self.rate * self.share
