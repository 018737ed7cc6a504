"""Is the canary worse than the stable version that serves beside it? One metric's test, a tick at a time.

In a tick both arms have requests and K of them are bad, x of those the canary's. If the arms are equally good, x given
K is hypergeometric, whatever the tick's error rate or its split of traffic is: that is why the evidence stays valid
while the share ramps and the base rate moves, where counts pooled over the steps would not be.

- FAIL: the evidence against "no worse than `tolerated_odds`" has reached 1/alpha. It stays FAIL. A canary that is no
  worse ever gets there with probability at most alpha, however often one looks.
- PASS needs a proof of its own, at 1/beta: that the odds of a bad request are less than `margin` times the stable's, or
  that its rate of bad requests is below `p_max`.
- HOLD otherwise: silence proves nothing, either way.

Sources: ter Schure, Perez-Ortiz, Ly, Gruenwald, "The anytime-valid logrank test" (NEJSDS 2024); Lindon & Malek,
"Anytime-valid inference for multinomial count data" (NeurIPS 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from trafficd.core.evidence import Bets, log_binomial_factor, log_normalisers
from trafficd.core.renewal import STEP, RenewedBets

WORSE_BETS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
BETTER_BETS = (2 / 3, 1 / 2, 1 / 4)
RARE_BETS = (0.0, 1 / 4, 1 / 2)  # as parts of p_max


class Verdict(StrEnum):
    FAIL = "FAIL"
    PASS = "PASS"
    HOLD = "HOLD"


class Proof(NamedTuple):
    """What a PASS rests on: the evidence for `claim` (against its contrary), which is enough at `needed`."""

    claim: str
    evidence: float
    needed: float

    @property
    def holds(self) -> bool:
        return self.evidence >= self.needed


@dataclass
class Judge:
    """One metric's test. `alpha` bounds false FAILs, `beta` false PASSes by each proof; odds are ratios of odds.

    `tolerated_odds`: how much worse a canary may be without FAIL; `margin`: how much worse is ruled out by a PASS;
    `p_max`: the rate of bad requests below which a PASS needs no comparison. `held_back`: the part of the evidence
    against the canary that is kept for what breaks late (see `renewal`). Raises ValueError for values out of range.
    """

    alpha: float = 0.01
    tolerated_odds: float = 1.0
    beta: float = field(default=0.05, kw_only=True)
    margin: float = field(default=2.0, kw_only=True)
    p_max: float = field(default=0.01, kw_only=True)
    held_back: float = field(default=0.0, kw_only=True)
    failed: bool = field(default=False, init=False)
    _worse: RenewedBets = field(init=False)
    _better: Bets = field(init=False)
    _rare: Bets = field(init=False)
    _odds: frozenset[float] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "p_max"):
            within_0_and_1(name, getattr(self, name))
        if not 0 < self.tolerated_odds <= self.margin < math.inf:
            raise ValueError(
                f"0 < tolerated_odds <= margin must hold, but they are {self.tolerated_odds:g} and {self.margin:g}"
            )
        self._worse = RenewedBets(WORSE_BETS, self.held_back)
        self._better = Bets(BETTER_BETS)
        self._rare = Bets(tuple(part * self.p_max for part in RARE_BETS))
        worse = {bet * self.tolerated_odds for bet in WORSE_BETS}
        better = {bet * self.margin for bet in BETTER_BETS}
        self._odds = frozenset(worse | better | {self.tolerated_odds, self.margin})

    def tick(
        self, canary_total: int, canary_bad: int, stable_total: int, stable_bad: int, *, canary_repeats: int = 0
    ) -> Verdict:
        """Take one tick's requests of both arms, and say where we are.

        `canary_repeats` of `canary_total` were bad too, but of a client that had its one bad request in this tick:
        the comparison counts them as good (see `ticks`), the proof that bad requests are rare does not.
        Raises ValueError where a count is below zero or the bad are more than all.
        """
        _check("canary", canary_total, canary_bad, canary_repeats)
        _check("stable", stable_total, stable_bad, 0)
        if canary_total and stable_total and canary_bad + stable_bad:
            self._compare(canary_total, canary_bad, stable_total, stable_bad)
        lost = canary_bad + canary_repeats
        self._rare.multiply(log_binomial_factor(bet, self.p_max, canary_total, lost) for bet in self._rare.bets)
        self.failed = self.failed or self._worse.log_evidence >= -math.log(self.alpha)
        return self.verdict

    def _compare(self, canary: int, canary_bad: int, stable: int, stable_bad: int) -> None:
        z = log_normalisers(self._odds, canary, stable, canary_bad + stable_bad)
        for bets, null in ((self._worse, self.tolerated_odds), (self._better, self.margin)):
            bets.multiply(canary_bad * math.log(bet) - z[bet * null] + z[null] for bet in bets.bets)

    def begin_step(self) -> None:
        """A new step wants its own PASS; the evidence against the canary is kept, and more of it staked anew."""
        self._worse.stake(STEP)
        self._better.begin()
        self._rare.begin()

    @property
    def evidence(self) -> float:
        """The current E against "the canary is no worse". FAIL needed 1/alpha once; E itself may fall again."""
        return self._worse.evidence

    @property
    def proofs(self) -> tuple[Proof, Proof]:
        """The two ways to PASS, the relative one first."""
        needed = 1 / self.beta
        return (
            Proof(f"odds of a bad request below {self.margin:g} times the stable's", self._better.evidence, needed),
            Proof(f"less than {100 * self.p_max:g} % bad requests", self._rare.evidence, needed),
        )

    @property
    def verdict(self) -> Verdict:
        if self.failed:
            return Verdict.FAIL
        # A PASS is not latched: a canary that went bad after it has its proof taken away before it fails.
        needed = -math.log(self.beta)
        passed = self._better.log_evidence >= needed or self._rare.log_evidence >= needed
        return Verdict.PASS if passed else Verdict.HOLD


@dataclass
class AbsoluteLimit:
    """Is the canary's rate of bad requests above `limit`? A comparison is blind when both arms are broken.

    The bets are odds, as above: a rate whose odds are 1.5 to 30 times those of the limit. Never says PASS.
    """

    limit: float
    alpha: float = 0.01
    held_back: float = field(default=0.0, kw_only=True)
    failed: bool = field(default=False, init=False)
    _above: RenewedBets = field(init=False)

    def __post_init__(self) -> None:
        within_0_and_1("limit", self.limit)
        within_0_and_1("alpha", self.alpha)
        odds = self.limit / (1 - self.limit)
        self._above = RenewedBets(tuple(bet * odds / (1 + bet * odds) for bet in WORSE_BETS), self.held_back)

    def tick(self, canary_total: int, canary_bad: int) -> Verdict:
        """Take the canary's requests of one tick. Raises ValueError as `Judge.tick` does."""
        _check("canary", canary_total, canary_bad, 0)
        self._above.multiply(
            log_binomial_factor(rate, self.limit, canary_total, canary_bad) for rate in self._above.bets
        )
        self.failed = self.failed or self._above.log_evidence >= -math.log(self.alpha)
        return self.verdict

    def begin_step(self) -> None:
        """More of the evidence is staked anew."""
        self._above.stake(STEP)

    @property
    def evidence(self) -> float:
        return self._above.evidence

    @property
    def verdict(self) -> Verdict:
        return Verdict.FAIL if self.failed else Verdict.HOLD


def within_0_and_1(name: str, value: float) -> None:
    """Raises ValueError where it is not."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, but is {value:g}")


def _check(arm: str, total: int, bad: int, repeats: int) -> None:
    for name, count in ((f"{arm}_total", total), (f"{arm}_bad", bad), (f"{arm}_repeats", repeats)):
        if count < 0:
            raise ValueError(f"{name} is {count}, below zero")
    if bad + repeats > total:
        also = f" and {arm}_repeats {repeats}" if repeats else ""
        raise ValueError(f"{arm}_bad is {bad}{also}, more than {arm}_total, which is {total}")
