"""Evidence as bets: an e-process starts at 1 and is multiplied, tick by tick, by factors of mean at most 1 while
its null hypothesis holds. It passes 1/alpha with probability at most alpha, however often one looks (Ville 1939).

Everything is kept as natural logarithms: a product over an hour of ticks leaves the range of a float both ways.
The numbers that `Bets` gives out are cut off at e^700, so that they stay finite in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

LARGEST_LOG = 700.0
SHORT = 32  # so few terms stay in the range of a float without logarithms, up to ten million requests
NEGLIGIBLE = 1e-17  # a term this much smaller than its sum no longer changes a float


@dataclass
class Bets:
    """Several e-processes against one null, and their mean, which is one too: nobody must know the right bet."""

    bets: tuple[float, ...]
    logs: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything: an evidence of 1."""
        self.logs = [0.0] * len(self.bets)

    def multiply(self, log_factors: Iterable[float]) -> None:
        """Take one tick: the log of each bet's factor, in the order of `bets`."""
        self.logs = [log + factor for log, factor in zip(self.logs, log_factors, strict=True)]

    @property
    def log_evidence(self) -> float:
        """ln E; minus infinity once every bet is lost."""
        return log_mean_exp(self.logs)

    @property
    def evidence(self) -> float:
        return math.exp(min(self.log_evidence, LARGEST_LOG))


def log_mean_exp(logs: list[float]) -> float:
    """ln of the mean of exp(log), without overflow."""
    top = max(logs)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(log - top) for log in logs) / len(logs))


def log_normalisers(all_odds: Iterable[float], canary: int, stable: int, bad: int) -> dict[float, float]:
    """ln of Z(w) = sum over y of C(canary, y) C(stable, bad - y) w^y for each w, but for one constant of the counts.

    Z normalises Fisher's noncentral hypergeometric distribution: of `bad` bad requests, y are the canary's, when the
    odds of a bad one are w times the stable's.
    """
    low, high = max(0, bad - stable), min(canary, bad)
    if high - low >= SHORT:
        return {odds: _log_sum_outwards(odds, canary, stable, bad) for odds in all_odds}
    spare = stable - bad
    weights = [1.0]
    for y in range(low, high):
        weights.append(weights[-1] * (canary - y) * (bad - y) / ((y + 1) * (spare + y + 1)))
    weights.reverse()
    return {odds: low * math.log(odds) + math.log(_polynomial(weights, odds)) for odds in all_odds}


def log_normaliser(odds: float, canary: int, stable: int, bad: int) -> float:
    """The same for one w."""
    return log_normalisers((odds,), canary, stable, bad)[odds]


def _polynomial(coefficients: list[float], at: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * at + coefficient
    return value


def _log_sum_outwards(odds: float, canary: int, stable: int, bad: int) -> float:
    """ln of Z for many terms: starts at the greatest and goes outwards until the rest is lost in rounding.

    The terms are log-concave, so a tick of thousands of bad requests needs a few hundred of them.
    """
    low, high = max(0, bad - stable), min(canary, bad)
    mode = min(max(_mode(odds, canary, stable, bad), low), high)
    spare = stable - bad  # the stable's good requests, were every bad one its own; below zero where it cannot be
    total = term = 1.0
    for y in range(mode, high):
        term *= odds * (canary - y) * (bad - y) / ((y + 1) * (spare + y + 1))
        total += term
        if term < NEGLIGIBLE * total:
            break
    term = 1.0
    for y in range(mode, low, -1):
        term *= y * (spare + y) / (odds * (canary - y + 1) * (bad - y + 1))
        total += term
        if term < NEGLIGIBLE * total:
            break
    lgamma = math.lgamma
    choices = lgamma(mode + 1) + lgamma(canary - mode + 1) + lgamma(bad - mode + 1) + lgamma(spare + mode + 1)
    return mode * math.log(odds) - choices + math.log(total)


def _mode(odds: float, canary: int, stable: int, bad: int) -> int:
    """Where two neighbouring terms are alike: the smaller root of a quadratic, written so that w = 1 is no special."""
    a = odds - 1
    b = (canary + bad + 2) * odds + stable - bad
    c = (canary + 1) * (bad + 1) * odds
    return int(2 * c / (b + math.sqrt(max(b * b - 4 * a * c, 0.0))))


def log_binomial_factor(bet: float, null: float, total: int, bad: int) -> float:
    """ln of the likelihood ratio of `bad` of `total` at the rate `bet` against the rate `null` (0 < null < 1).

    Of mean 1 at the rate `null`; below 1 at a higher one for a bet under the null, at a lower one for a bet over it.
    """
    if bad and bet == 0:
        return -math.inf
    lost = bad * math.log(bet / null) if bad else 0.0
    return lost + (total - bad) * (math.log1p(-bet) - math.log1p(-null))
