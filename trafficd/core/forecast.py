"""How long will a verdict take, at this rate, share and rate of errors? For `plan`, before any traffic moves.

Each bet's evidence grows evenly, at its mean rate for ticks with many requests; the time is where the mean over the
bets reaches what is needed. So it is near the mean time of a simulation, and many a run takes twice as long.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from trafficd.core.evidence import log_binomial_factor, log_mean_exp, log_normaliser
from trafficd.core.judge import BETTER_BETS, RARE_BETS, WORSE_BETS, within_0_and_1
from trafficd.core.ticks import LONGEST, SHORTEST

TICK = 1_000_000  # requests of the tick whose growth is taken for the mean: whole numbers show rates down to 1e-5
LONGEST_FORECAST = 365 * 86_400.0


class Traffic(NamedTuple):
    """Requests a second of both arms, the canary's part of them, and the parts of bad ones in either arm (0 to 1)."""

    rate: float
    share: float
    stable_bad: float
    canary_bad: float

    def growth(self, bets: tuple[float, ...], null: float) -> list[float]:
        """The log-growth a second of each bet against the odds ratio `null`."""
        canary = round(TICK * self.share)
        stable = TICK - canary
        lost = round(canary * self.canary_bad)
        bad = lost + round(stable * self.stable_bad)
        at_null = log_normaliser(null, canary, stable, bad)
        logs = [lost * math.log(bet) - log_normaliser(bet * null, canary, stable, bad) + at_null for bet in bets]
        return [log / TICK * self.rate for log in logs]

    def rare_growth(self, p_max: float) -> list[float]:
        """The same for the bets that the canary's rate of bad requests is below `p_max`."""
        rate = self.rate * self.share
        growths = []
        for part in RARE_BETS:
            lost = log_binomial_factor(part * p_max, p_max, 1, 1) * self.canary_bad if self.canary_bad else 0.0
            growths.append(rate * (lost + log_binomial_factor(part * p_max, p_max, 1, 0) * (1 - self.canary_bad)))
        return growths

    @property
    def tick(self) -> float:
        """Seconds until a tick closes: both arms have a request in it."""
        thinner = self.rate * min(self.share, 1 - self.share)
        return min(max(SHORTEST, 1 / thinner), LONGEST)


def at_odds(base: float, ratio: float) -> float:
    """The rate of bad requests whose odds are `ratio` times those of the rate `base`."""
    return ratio * base / (1 - base + ratio * base)


def seconds_to_fail(traffic: Traffic, *, alpha: float = 0.01, tolerated_odds: float = 1.0) -> float | None:
    """When a judge with this alpha says FAIL (errors in a panel have half of its alpha); None: not within a year.

    Raises ValueError where the traffic is none, or a part is out of range.
    """
    _check(traffic)
    return _time(traffic.growth(WORSE_BETS, tolerated_odds), 1 / alpha, traffic.tick)


def seconds_to_pass(traffic: Traffic, *, beta: float = 0.05, margin: float = 2.0, p_max: float = 0.01) -> float | None:
    """When the first of the two proofs of a PASS is there; None: not within a year. Errors as above."""
    _check(traffic)
    relative = _time(traffic.growth(BETTER_BETS, margin), 1 / beta, traffic.tick)
    rare = _time(traffic.rare_growth(p_max), 1 / beta, traffic.tick)
    return min((time for time in (relative, rare) if time is not None), default=None)


def _check(traffic: Traffic) -> None:
    within_0_and_1("share", traffic.share)
    if traffic.rate <= 0:
        raise ValueError(f"rate must be above 0, but is {traffic.rate:g}")
    for name, part in (("stable_bad", traffic.stable_bad), ("canary_bad", traffic.canary_bad)):
        if not 0 <= part <= 1:
            raise ValueError(f"{name} must lie from 0 to 1, but is {part:g}")


def _time(growths: list[float], needed: float, tick: float) -> float | None:
    """Where the mean of exp(growth * time) reaches `needed`, in whole ticks."""

    def enough(ticks: int) -> bool:
        return log_mean_exp([growth * ticks * tick for growth in growths]) >= math.log(needed)

    low, high = 0, max(1, int(LONGEST_FORECAST / tick))
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * tick
