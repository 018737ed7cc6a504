"""All metrics of a canary together: one verdict, with the numbers behind it.

FAIL when the errors' own evidence reaches 2/alpha, so that the trip wire keeps its speed, or when the mean of all other
metrics' evidence does (a mean of e-values is one): together a canary that is no worse in any of them fails with
probability at most alpha. FAIL is latched. A part of each metric's evidence is held back for what breaks late (see
`renewal`). PASS when each metric in `required` has a proof of its own, and the others do not lean towards FAIL. HOLD
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from trafficd.core.in_flight import InFlight
from trafficd.core.judge import AbsoluteLimit, Judge, Proof, Verdict, within_0_and_1
from trafficd.core.renewal import HELD_BACK
from trafficd.core.ticks import NONE_BAD, Tick

ERRORS = "errors"
ERROR_LIMIT = "error_limit"
IN_FLIGHT = "in_flight"

LATENCY_ODDS = 2.0
IN_FLIGHT_ODDS = 4.0
LATENCY_MARGIN = 4.0  # a PASS may be asked of latency too: then it rules out more than what is tolerated
WARM_UP = 30.0


class Counts(NamedTuple):
    """What was judged of one arm."""

    total: int = 0
    bad: int = 0


NOTHING = Counts()


class Metric(NamedTuple):
    """What is known of one metric: E against "the canary is no worse than tolerated", and the proofs towards a PASS."""

    name: str
    evidence: float
    canary: Counts
    stable: Counts
    proofs: tuple[Proof, ...]
    repeats: int = 0  # bad requests of the canary that count as good: their client had had its one

    @property
    def proof(self) -> Proof | None:
        """The first proof that holds."""
        return next((proof for proof in self.proofs if proof.holds), None)


class Analysis(NamedTuple):
    """The verdict, and why: `needed` is what the evidence of errors, or the mean of the others', fails at."""

    verdict: Verdict
    why: str
    needed: float
    errors: float
    others: float
    metrics: tuple[Metric, ...]


@dataclass
class Panel:
    """Feed it ticks; `canary_since` is when the canary got its first traffic (seconds, as in the ticks).

    `latency` names the metrics of `latency.Thresholds`, `outside` those whose counts come through `count`; `limit` is a
    rate of errors that the canary must not exceed (None: no limit). Raises ValueError for values out of range, names
    given twice, and required metrics that there are not.
    """

    canary_since: float
    alpha: float = field(default=0.01, kw_only=True)
    beta: float = field(default=0.05, kw_only=True)
    margin: float = field(default=2.0, kw_only=True)
    p_max: float = field(default=0.01, kw_only=True)
    latency: tuple[str, ...] = field(default=(), kw_only=True)
    outside: tuple[str, ...] = field(default=(), kw_only=True)
    limit: float | None = field(default=None, kw_only=True)
    required: frozenset[str] = field(default=frozenset({ERRORS}), kw_only=True)
    in_flight: InFlight = field(init=False)
    _judges: dict[str, Judge] = field(init=False)
    _counted: dict[str, Counted] = field(init=False)
    _limit: AbsoluteLimit | None = field(default=None, init=False)
    _failed: str = field(default="", init=False)

    def __post_init__(self) -> None:
        within_0_and_1("alpha", self.alpha)
        names = (ERRORS, *self.latency, *self.outside)
        everything = (*names, IN_FLIGHT, ERROR_LIMIT)
        if len(set(everything)) < len(everything):
            raise ValueError(f"each metric needs a name of its own, but they are {', '.join(everything)}")
        if unknown := self.required - set(names) - {IN_FLIGHT}:
            raise ValueError(f"there is no metric {', '.join(sorted(unknown))} that a PASS could require")
        self._judges = {name: self._judge(name) for name in names}
        self._counted = {name: Counted() for name in names}
        self.in_flight = InFlight(self._judge(IN_FLIGHT))
        if self.limit is not None:
            self._limit = AbsoluteLimit(self.limit, self.alpha / 2, held_back=HELD_BACK)

    def _judge(self, name: str) -> Judge:
        odds, margin = 1.0, self.margin
        if name in self.latency:
            odds, margin = LATENCY_ODDS, max(LATENCY_MARGIN, self.margin)
        elif name == IN_FLIGHT:
            odds, margin = IN_FLIGHT_ODDS, max(IN_FLIGHT_ODDS, self.margin)
        return Judge(self.alpha / 2, odds, beta=self.beta, margin=margin, p_max=self.p_max, held_back=HELD_BACK)

    def tick(self, tick: Tick) -> Analysis:
        """Judge the requests of one tick; by latency only once the canary's caches have had time to warm up."""
        warm = tick.begin >= self.canary_since + WARM_UP
        for name in (ERRORS, *(self.latency if warm else ())):
            bad = tick.bad.get(name, NONE_BAD)
            counts = (Counts(tick.canary, bad.canary), Counts(tick.stable, bad.stable))
            self._take(name, *counts, bad.canary_repeats)
        if self._limit is not None:
            self._limit.tick(tick.canary, tick.bad.get(ERRORS, NONE_BAD).canary)
        return self.analyse()

    def count(self, metric: str, canary: Counts, stable: Counts) -> Analysis:
        """Judge what was counted of a metric from outside since the last time; ValueError for an unknown one."""
        if metric not in self.outside:
            raise ValueError(f"{metric} is not a metric from outside; those are: {', '.join(self.outside) or 'none'}")
        self._take(metric, canary, stable, 0)
        return self.analyse()

    def sample(self, at: float, canary_open: int | None, stable_open: int | None) -> Analysis:
        """Take the in-flight counts of both arms (see `InFlight.sample`; the ends go to `in_flight.ended`)."""
        self.in_flight.sample(at, canary_open, stable_open)
        return self.analyse()

    def begin_step(self) -> None:
        """The next share of traffic wants its own PASS; what speaks against the canary is kept."""
        for judge in (*self._judges.values(), self.in_flight.judge):
            judge.begin_step()
        if self._limit is not None:
            self._limit.begin_step()

    def _take(self, name: str, canary: Counts, stable: Counts, repeats: int) -> None:
        self._judges[name].tick(*canary, *stable, canary_repeats=repeats)
        self._counted[name].add(canary, stable, repeats)

    def analyse(self) -> Analysis:
        """Where we are. The others' evidence is a mean, so it is the sum that one metric must bring up alone."""
        metrics = self._metrics()
        errors, rest = metrics[0].evidence, [metric.evidence for metric in metrics[1:]]
        others, needed = sum(rest) / len(rest), 2 / self.alpha
        if not self._failed:
            self._failed = self._failure(metrics, errors, others, needed)
        verdict, why = self._conclude(metrics, others)
        return Analysis(verdict, why, needed, errors, others, metrics)

    def _failure(self, metrics: tuple[Metric, ...], errors: float, others: float, needed: float) -> str:
        if errors >= needed:
            return _worse(metrics[0])
        return _worse(max(metrics[1:], key=lambda metric: metric.evidence)) if others >= needed else ""

    def _conclude(self, metrics: tuple[Metric, ...], others: float) -> tuple[Verdict, str]:
        if self._failed:
            return Verdict.FAIL, self._failed
        required = [metric for metric in metrics if metric.name in self.required]
        if open_ones := [metric.name for metric in required if metric.proof is None]:
            return Verdict.HOLD, f"no proof yet that the canary is as good by {', '.join(open_ones)}"
        if others * self.beta >= 1:
            worst = max(metrics[1:], key=lambda metric: metric.evidence)
            return Verdict.HOLD, f"{worst.name} leans towards a canary that is worse (E = {worst.evidence:.3g})"
        proofs = [
            f"{metric.name}: {metric.proof.claim} (E = {metric.proof.evidence:.3g})"
            for metric in required
            if metric.proof
        ]
        return Verdict.PASS, "; ".join(proofs)

    def _metrics(self) -> tuple[Metric, ...]:
        """All of them, errors first."""
        metrics = []
        for name, judge in self._judges.items():
            counted = self._counted[name]
            metrics.append(Metric(name, judge.evidence, counted.canary, counted.stable, judge.proofs, counted.repeats))
        flight = self.in_flight
        canary, stable = Counts(flight.canary, flight.canary_open), Counts(flight.stable, flight.stable_open)
        metrics.append(Metric(IN_FLIGHT, flight.judge.evidence, canary, stable, flight.judge.proofs))
        if self._limit is not None:
            errors = self._counted[ERRORS]
            metrics.append(Metric(ERROR_LIMIT, self._limit.evidence, errors.canary, NOTHING, ()))
        return tuple(metrics)


@dataclass
class Counted:
    """The sums over all ticks of one metric."""

    canary: Counts = NOTHING
    stable: Counts = NOTHING
    repeats: int = 0

    def add(self, canary: Counts, stable: Counts, repeats: int) -> None:
        self.canary = Counts(self.canary.total + canary.total, self.canary.bad + canary.bad)
        self.stable = Counts(self.stable.total + stable.total, self.stable.bad + stable.bad)
        self.repeats += repeats


def _worse(metric: Metric) -> str:
    canary, stable = metric.canary, metric.stable
    beside = f", of the stable {stable.bad} of {stable.total}" if stable.total else ""
    return (
        f"{metric.name}: of the canary's requests {canary.bad} of {canary.total} were bad{beside} "
        f"(E = {metric.evidence:.3g})"
    )
