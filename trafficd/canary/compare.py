"""One canary beside its stable version, from single answers to a verdict. Pure.

An answer belongs to the arm of the upstream that gave it, and may be an error (`trafficd.canary.errors`) or slow. What
testers and our own load generators sent is another stratum, and left out; where it is named, it is judged in ticks of
its own. Each tick's factor holds given that tick's counts, so the evidence of all strata may be multiplied, which
counts pooled over them could not be: one stratum has more errors than another, and another share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.accessline import Answer
from trafficd.canary.errors import STANDARD, Errors
from trafficd.core.analysis import ERRORS, Analysis, Counts, Panel
from trafficd.core.judge import Verdict
from trafficd.core.latency import Thresholds, freeze
from trafficd.core.ticks import LONGEST, Arm, Request, Tick, Ticks

USERS = ""  # the stratum of whoever does not name one
_MOST_ROUTES = 1_000
_MOST_CLIENTS = 100_000
_SWITCHING_PROTOCOLS = 101


@dataclass(frozen=True)
class Arms:
    """The addresses of both arms. An answer from elsewhere belongs to neither. `strata` are those that are judged
    beside the users'."""

    canary: frozenset[str]
    stable: frozenset[str]
    strata: frozenset[str] = frozenset()

    def of(self, answer: Answer) -> Arm | None:
        """The arm that an answer is judged in."""
        return self.whose(answer) if answer.stratum == USERS or answer.stratum in self.strata else None

    def whose(self, answer: Answer) -> Arm | None:
        """The arm that gave it, to whomever."""
        if answer.upstream is None:
            return None
        if answer.upstream in self.canary:
            return Arm.CANARY
        return Arm.STABLE if answer.upstream in self.stable else None


@dataclass(frozen=True)
class Settings:
    """`alpha`: false FAILs in all canaries; `limit`: a rate of errors that the canary must not exceed (None: any that
    the stable version has, too); `sticky`: cookie or client address choose the arm; `outside`: metrics whose counts
    come through `count`, and `required` those of them that a PASS needs a proof of."""

    alpha: float = 0.01
    limit: float | None = None
    errors: Errors = STANDARD
    sticky: bool = False
    outside: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()


class Route(NamedTuple):
    """Requests and bad ones of both arms, of one method and first part of a path."""

    name: str
    canary: int
    canary_bad: int
    stable: int
    stable_bad: int


@dataclass
class Comparison:
    """Feed it answers in the order of their end; `since` (s) is when the canary got its first traffic, `before` the
    stable version's answers from before that, which say what is slow."""

    arms: Arms
    since: float
    settings: Settings = field(default_factory=Settings)
    before: Iterable[Answer] = ()
    failed_at: float | None = field(default=None, init=False)
    analysis: Analysis = field(init=False)
    clients: set[str] = field(default_factory=set, init=False)  # that the canary answered, up to a number
    _thresholds: Thresholds | None = field(init=False)
    _ticks: dict[str, Ticks] = field(init=False)  # by stratum
    _panel: Panel = field(init=False)
    _routes: dict[str, Counter[str]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        stable = (answer for answer in self.before if self.arms.of(answer) is Arm.STABLE)
        times = [answer.latency for answer in stable if answer.latency is not None]
        self._thresholds = freeze(times)
        metrics = () if self._thresholds is None else self._thresholds.metrics
        self._ticks = {USERS: Ticks(self.since, self.settings.sticky)}
        self._panel = Panel(
            self.since,
            alpha=self.settings.alpha,
            limit=self.settings.limit,
            latency=metrics,
            outside=self.settings.outside,
            required=self.settings.required | {ERRORS},
        )
        self.analysis = self._panel.analyse()

    @property
    def thresholds(self) -> Thresholds | None:
        """What is slow; None where too little was known of the stable version before."""
        return self._thresholds

    def take(self, answer: Answer) -> Verdict:
        """Count one answer; where that leaves us."""
        whose, arm = self.arms.whose(answer), self.arms.of(answer)
        if whose is not None and answer.status != _SWITCHING_PROTOCOLS:
            # Whatever its stratum is: the counts of what is open know of none, so none may seem to stay open for good.
            self._panel.in_flight.ended(whose, answer.at - (answer.duration or answer.latency or 0.0), answer.at)
        if arm is None:
            return self.analysis.verdict
        bad = self._bad(answer)
        self._count(arm, answer, bad)
        self._judge(self._stratum(answer).add(Request(answer.at, arm, answer.client, bad)))
        return self.analysis.verdict

    def _stratum(self, answer: Answer) -> Ticks:
        """The ticks that an answer belongs to. A stratum that has a name is a load generator's: all of it comes from
        one address, so the rule of one bad request a client would leave next to nothing of it; and there is no need,
        as nobody there tries again because something failed."""
        if answer.stratum not in self._ticks:
            self._ticks[answer.stratum] = Ticks(max(self.since, answer.at), by_client=False)
        return self._ticks[answer.stratum]

    def pass_time(self, now: float) -> Verdict:
        """Close the tick that is over by now, answers or none."""
        for ticks in self._ticks.values():
            self._judge(ticks.close(now))
        return self.analysis.verdict

    def sample(self, now: float, canary_open: int | None, stable_open: int | None) -> Verdict:
        """What is open on both arms now; None where that is not known, or while the log is behind."""
        self._keep(now, self._panel.sample(now, canary_open, stable_open))
        return self.analysis.verdict

    def count(self, now: float, metric: str, canary: Counts, stable: Counts) -> Verdict:
        """Judge what a source outside counted of a metric since the last time."""
        self._keep(now, self._panel.count(metric, canary, stable))
        return self.analysis.verdict

    def begin_step(self) -> None:
        """The canary has another share: it wants a PASS of its own."""
        self._panel.begin_step()
        self.analysis = self._panel.analyse()

    @property
    def worst(self) -> Route | None:
        """Where the canary has the most bad requests beyond the stable version's share of them."""
        routes = [_route(name, counts) for name, counts in self._routes.items()]
        worst = max(routes, key=_excess, default=None)
        return worst if worst is not None and _excess(worst) > 0 else None

    def _bad(self, answer: Answer) -> frozenset[str]:
        if self.settings.errors.met(answer):
            return frozenset({ERRORS})
        time = answer.latency  # neither the wait for a slot nor a slow client is the version's doing
        return frozenset() if time is None or self._thresholds is None else self._thresholds.slow(time)

    def _count(self, arm: Arm, answer: Answer, bad: frozenset[str]) -> None:
        if arm is Arm.CANARY and len(self.clients) < _MOST_CLIENTS:
            self.clients.add(answer.client)
        name = f"{answer.method} /{answer.path.split('/', 2)[1] if answer.path.startswith('/') else ''}"
        if not name.isprintable():  # anybody may ask for anything, and it is shown in a terminal
            name = "".join(one if one.isprintable() else "?" for one in name)
        if name not in self._routes and len(self._routes) >= _MOST_ROUTES:
            name = "(others)"
        counts = self._routes.setdefault(name, Counter())
        counts[arm] += 1
        counts[f"{arm} bad"] += ERRORS in bad

    def _judge(self, tick: Tick | None) -> None:
        if tick is not None:
            self._keep(tick.end, self._panel.tick(tick))

    def _keep(self, at: float, analysis: Analysis) -> None:
        self.analysis = analysis
        if analysis.verdict is Verdict.FAIL and self.failed_at is None:
            self.failed_at = at


def _route(name: str, counts: Counter[str]) -> Route:
    return Route(name, counts[Arm.CANARY], counts[f"{Arm.CANARY} bad"], counts[Arm.STABLE], counts[f"{Arm.STABLE} bad"])


def _excess(route: Route) -> float:
    """Bad requests of the canary beyond what the stable version would have had."""
    rate = route.stable_bad / route.stable if route.stable else 0.0
    return route.canary_bad - rate * route.canary


def resume(answers: Iterable[Answer], arms: Arms, since: float, settings: Settings) -> Comparison:
    """A comparison that began at `since`, maybe in the life of another process, with what is known of its answers."""
    known = list(answers)
    # Where nothing is left from before it began, what is slow is learned from the stable version of now.
    comparison = Comparison(arms, since, settings, [one for one in known if one.at < since])
    if comparison.thresholds is None:
        comparison = Comparison(arms, since, settings, known)
    for answer in known:
        if answer.at >= since:
            comparison.take(answer)
    return comparison


def compare(answers: Sequence[Answer], arms: Arms, settings: Settings) -> Comparison | None:
    """All of a past log. None where no answer of the canary is in it."""
    first = next((number for number, answer in enumerate(answers) if arms.of(answer) is Arm.CANARY), None)
    if first is None:
        return None
    comparison = Comparison(arms, answers[first].at, settings, answers[:first])
    for answer in answers[first:]:
        comparison.take(answer)
    comparison.pass_time(answers[-1].at + LONGEST)
    return comparison
