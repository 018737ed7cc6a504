"""How long will a verdict take, at this rate, share and rate of errors? For `plan`, before any traffic moves.

Each bet's evidence grows evenly, at its mean rate for ticks of the size that this traffic makes; the time is where the
mean over the bets reaches what is needed. So it is near the mean time of a simulation, and many a run takes twice as
long. Where bad requests are so rare that most runs see none before they PASS, it is the time of those.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from trafficd.core.evidence import log_binomial_factor, log_mean_exp, log_normaliser, log_normalisers
from trafficd.core.judge import BETTER_BETS, RARE_BETS, WORSE_BETS, within_0_and_1
from trafficd.core.ticks import LONGEST, SHORTEST

TICK = 1_000_000  # requests of the tick whose growth is taken for the mean: whole numbers show rates down to 1e-5
LONGEST_FORECAST = 365 * 86_400.0
FEW = 12.0  # requests of the thinner arm in a tick, up to which the tick's size makes a difference
NEGLIGIBLE = 1e-9  # a probability that changes no forecast


class Traffic(NamedTuple):
    """Requests a second of both arms, the canary's part of them, and the parts of bad ones in either arm (0 to 1)."""

    rate: float
    share: float
    stable_bad: float
    canary_bad: float

    def growth(self, bets: tuple[float, ...], null: float) -> list[float]:
        """The log-growth a second of each bet against the odds ratio `null`."""
        if self.thinner * self.tick > FEW:
            return self._growth_at_length(bets, null)
        # Of a tick with few requests most of the bad ones are used up to learn how many there are: to be counted out.
        met = 1 - math.exp(-self.thinner * LONGEST)  # of the ticks both arms are in so many
        length = (self.tick - LONGEST * (1 - met)) / met
        thin, other = max(1.0, self.thinner * self.tick / met), max(1.0, (self.rate - self.thinner) * length)
        canary, stable = (thin, other) if self.share <= 0.5 else (other, thin)
        growths = [0.0] * len(bets)
        for canary_total, canary_part in _whole(canary):
            for stable_total, stable_part in _whole(stable):
                weight = canary_part * stable_part * met / self.tick
                means = self._mean_logs(bets, null, canary_total, stable_total)
                growths = [growth + weight * mean for growth, mean in zip(growths, means, strict=True)]
        return growths

    def _growth_at_length(self, bets: tuple[float, ...], null: float) -> list[float]:
        """The same for ticks with many requests."""
        canary = round(TICK * self.share)
        stable = TICK - canary
        lost = round(canary * self.canary_bad)
        bad = lost + round(stable * self.stable_bad)
        at_null = log_normaliser(null, canary, stable, bad)
        logs = [lost * math.log(bet) - log_normaliser(bet * null, canary, stable, bad) + at_null for bet in bets]
        return [log / TICK * self.rate for log in logs]

    def _mean_logs(self, bets: tuple[float, ...], null: float, canary: int, stable: int) -> list[float]:
        """The mean of ln of each bet's factor over what may be bad in one tick of so many requests."""
        odds = {null, *(bet * null for bet in bets)}
        of_canary, of_stable = _binomial(canary, self.canary_bad), _binomial(stable, self.stable_bad)
        means = [0.0] * len(bets)
        for bad in range(1, len(of_canary) + len(of_stable) - 1):
            z = log_normalisers(odds, canary, stable, bad)
            fewest = max(0, bad - len(of_stable) + 1)
            for lost in range(fewest, min(bad, len(of_canary) - 1) + 1):
                weight = of_canary[lost] * of_stable[bad - lost]
                for number, bet in enumerate(bets):
                    means[number] += weight * (lost * math.log(bet) - z[bet * null] + z[null])
        return means

    def rare_growth(self, p_max: float) -> list[float]:
        """The same for the bets that the canary's rate of bad requests is below `p_max`."""
        rate = self.rate * self.share
        growths = []
        for part in RARE_BETS:
            lost = log_binomial_factor(part * p_max, p_max, 1, 1) * self.canary_bad if self.canary_bad else 0.0
            growths.append(rate * (lost + log_binomial_factor(part * p_max, p_max, 1, 0) * (1 - self.canary_bad)))
        return growths

    @property
    def thinner(self) -> float:
        """Requests a second of the arm that has fewer."""
        return self.rate * min(self.share, 1 - self.share)

    @property
    def tick(self) -> float:
        """Seconds until a tick closes, on the average: both arms have a request in it, or it is `LONGEST`."""
        late, never = math.exp(-self.thinner * SHORTEST), math.exp(-self.thinner * LONGEST)
        return SHORTEST + (late - never) / self.thinner


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
    rare = _rare_time(traffic, 1 / beta, p_max)
    return min((time for time in (relative, rare) if time is not None), default=None)


def _rare_time(traffic: Traffic, needed: float, p_max: float) -> float | None:
    """One bad request loses the bet that there is none, so runs with and without one are far apart: their mean is
    nobody's time, and it is the more frequent kind that counts."""
    clean = traffic._replace(canary_bad=0.0)
    time = _time(clean.rare_growth(p_max), needed, traffic.tick)
    if time is not None and (1 - traffic.canary_bad) ** (time * traffic.rate * traffic.share) >= 0.5:
        return time
    return _time(traffic.rare_growth(p_max), needed, traffic.tick)


def _whole(count: float) -> list[tuple[int, float]]:
    """The two whole numbers beside it, and their parts in it."""
    part = count - math.floor(count)
    return [(number, p) for number, p in ((math.floor(count), 1 - part), (math.ceil(count), part)) if p > 0]


def _binomial(total: int, part: float) -> list[float]:
    """The probabilities of 0, 1, ... bad of `total`, as far as they are worth it."""
    if part >= 1:
        return [0.0] * total + [1.0]
    found, rest = [(1 - part) ** total], 1.0
    while (rest := rest - found[-1]) > NEGLIGIBLE and len(found) <= total:
        bad = len(found)
        found.append(found[-1] * (total - bad + 1) / bad * part / (1 - part))
    return found


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
    return round(high * tick, 2)
