"""Does one upstream answer worse than the others of its service? Then it is sent nothing for a while. Pure.

The question is the canary's, asked of every upstream beside all others together: given a tick's bad answers, how many
should be its own? So a fault that all of them have (a database that is gone) is nobody's, and ejects nobody.

- An upstream has two judges that begin anew, one every 30 s, so that a good past does not have to be outweighed, and
  one every 300 s, so that thin traffic adds up.
- `Rules.alpha` bounds false ejections in an hour of a whole service whose upstreams are equally good: each judge has
  alpha / 2 * its seconds / 3600 / upstreams.
- What is asked of is the evidence now, not the highest that it ever was: who has come round is left alone.
- Never ejected is the last upstream that carries traffic, nor so many that fewer than `Rules.least` do, nor more than
  `Rules.most` at a time. While a rollout is live or a canary has a share nobody is: those have their own judges.
- The time out of traffic is `eject_for`, times the number of ejections in a row, at most `ROW` times.

Returning is the plan's decision (`returned`), by time alone: a daemon that judges nothing any more returns them, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trafficd.core.analysis import Counts
from trafficd.core.events import UpstreamEjected, UpstreamReturned
from trafficd.core.judge import Judge, within_0_and_1
from trafficd.core.model import Service, Upstream, World
from trafficd.core.routing import available
from trafficd.core.ticks import LONGEST, SHORTEST

TERMS = (30.0, 300.0)  # s that judges last
RENEWED = max(TERMS)
ROW = 10
_HOUR = 3600.0


@dataclass(frozen=True)
class Rules:
    """`tolerance`: how many times the odds of a bad answer may be the others'. `eject_for` in seconds. `most`: so many
    are ejected at a time; `least`: so many must carry traffic without it."""

    alpha: float = 0.001
    tolerance: float = 2.0
    eject_for: float = 30.0
    most: int = 1
    least: int = 1


class Suspect(NamedTuple):
    """An upstream that answers worse than the others do: its own answers, and theirs."""

    upstream: str
    evidence: float
    own: Counts
    others: Counts

    @property
    def reason(self) -> str:
        return (
            f"{self.own.bad} of {self.own.total} answers were bad, of the others' {self.others.bad} of "
            f"{self.others.total} (E = {self.evidence:.3g})"
        )


class _Term:
    """What one judge knows of an upstream, from `begin` on."""

    def __init__(self, rules: Rules, upstreams: int, begin: float, length: float) -> None:
        alpha = rules.alpha / len(TERMS) * length / _HOUR / upstreams
        self.needed = 1 / alpha
        self.begin, self.length = begin, length
        self.judge = Judge(alpha, rules.tolerance, margin=rules.tolerance)
        self.own = self.others = Counts()

    def over(self, now: float) -> bool:
        return not 0 <= now - self.begin < self.length

    def tick(self, own: Counts, others: Counts) -> None:
        self.judge.tick(*own, *others)
        self.own, self.others = _sum(self.own, own), _sum(self.others, others)

    @property
    def guilty(self) -> bool:
        return self.judge.evidence >= self.needed


class _Case:
    """The judges of one upstream, which is judged since `since`."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.terms: dict[float, _Term] = {}

    def renew(self, rules: Rules, upstreams: int, now: float) -> None:
        for length in TERMS:
            if length not in self.terms or self.terms[length].over(now):
                self.terms[length] = _Term(rules, upstreams, now, length)

    @property
    def worst(self) -> _Term | None:
        """The judge that has most against it, of those that have enough."""
        return max((one for one in self.terms.values() if one.guilty), key=lambda one: one.judge.evidence, default=None)


@dataclass
class Outliers:
    """Feed it answers roughly in the order of their end, and say before who may be judged (`judge`).

    A tick closes after 1 s at the earliest, once two upstreams have answered in it, and after 60 s at the latest. In a
    tick a client has one bad answer over all upstreams, its first; with `sticky`, one in `RENEWED` seconds.
    Raises ValueError for rules out of range.
    """

    rules: Rules
    sticky: bool = False
    _cases: dict[str, _Case] = field(default_factory=dict, init=False)
    _forgot: float = field(default=0.0, init=False)  # when `_seen` was cleared
    _since: float = field(default=0.0, init=False)
    _totals: Counter[str] = field(default_factory=Counter, init=False)
    _bad: Counter[str] = field(default_factory=Counter, init=False)
    _seen: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        within_0_and_1("alpha", self.rules.alpha)

    def judge(self, upstreams: Collection[str], now: float) -> None:
        """From now on these are judged beside each other. Who comes in, or comes back, has a judge that begins now."""
        for name in self._cases.keys() - set(upstreams):
            del self._cases[name], self._totals[name], self._bad[name]
        if not self._cases:
            self._since = now
        for name in upstreams:
            self._cases.setdefault(name, _Case(now)).renew(self.rules, len(upstreams), now)
        if not 0 <= now - self._forgot < RENEWED:
            self._forgot = now
            self._seen.clear()

    def take(self, at: float, upstream: str, client: str, *, bad: bool) -> None:
        """Count one answer that ended at `at` (seconds); one from before the upstream was judged is no news."""
        case = self._cases.get(upstream)
        if case is None or at < case.since:
            return
        self._totals[upstream] += 1
        if bad and client not in self._seen:
            self._seen.add(client)
            self._bad[upstream] += 1

    def close(self, now: float) -> None:
        """Judge the tick that is over at `now`, if one is; call it at least once a second."""
        age = now - self._since
        answering = sum(1 for total in self._totals.values() if total)
        if age < SHORTEST or (age < LONGEST and answering < 2):
            return
        total, bad = self._totals.total(), self._bad.total()
        for name, case in self._cases.items():
            own = Counts(self._totals[name], self._bad[name])
            for term in case.terms.values():
                term.tick(own, Counts(total - own.total, bad - own.bad))
        self._since = now
        self._totals.clear()
        self._bad.clear()
        if not self.sticky:
            self._seen.clear()

    def suspects(self) -> list[Suspect]:
        """Who answers worse than the others, the worst first."""
        worst = ((name, case.worst) for name, case in self._cases.items())
        found = [Suspect(name, one.judge.evidence, one.own, one.others) for name, one in worst if one is not None]
        return sorted(found, key=lambda suspect: (-suspect.evidence, suspect.upstream))


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(one.total + other.total, one.bad + other.bad)


# -- what is done about it -----------------------------------------------------------------------------


def quiet(service: Service) -> bool:
    """Whether the service is in its ordinary state, in which upstreams are judged beside each other."""
    apart = service.held or service.left or service.maintenance is not None
    return service.live is None and not service.canary_percent and not apart


def judged(service: Service) -> frozenset[str]:
    """The upstreams that are judged now: those that share the ordinary traffic."""
    if not quiet(service):
        return frozenset()
    return frozenset(one.id for one in _sharing(service) if not one.ejected)


def ejection(
    service: Service, world: World, suspects: Sequence[Suspect], rules: Rules, now: float
) -> UpstreamEjected | str | None:
    """Who goes next; or why the worst one stays, in words; None where there is nothing to do."""
    known = judged(service)
    suspect = next((one for one in suspects if one.upstream in known), None)
    if suspect is None:
        return None
    upstream = service.upstreams[suspect.upstream]
    stays = f"{upstream.id} answers badly and is not ejected: {suspect.reason}; "
    out = [one.id for one in _sharing(service) if one.ejected]
    if len(out) >= rules.most:
        return f"{stays}out already: {', '.join(sorted(out))} (max_ejected)"
    rest = available(service, world) - {upstream.id}
    if len(rest) < max(1, rules.least):
        return f"{stays}only {len(rest)} others carry traffic (min_ready is {rules.least})"
    row = _row(upstream, now)
    until = now + rules.eject_for * min(row, ROW)
    return UpstreamEjected(service.name, upstream.id, until, suspect.reason, row)


def returned(service: Service, now: float) -> UpstreamReturned | None:
    """An upstream whose time out of traffic is over."""
    for upstream in service.upstreams.values():
        if upstream.ejection is not None and upstream.ejected and now >= upstream.ejection.until:
            return UpstreamReturned(service.name, upstream.id)
    return None


def _sharing(service: Service) -> Iterator[Upstream]:
    for one in service.upstreams.values():
        if one.serving is not None and not one.drained and service.regular(one):
            yield one


def _row(upstream: Upstream, now: float) -> int:
    """Which ejection in a row this would be: the row ends once it was back for as long as it was out, and for as long
    as a judge lasts."""
    before = upstream.ejection
    if before is None:
        return 1
    good_for = now - before.until
    return before.row + 1 if good_for < max(RENEWED, before.until - before.since) else 1
