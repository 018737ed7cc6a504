"""How much traffic a service has at present, by the end of the access log.

What cannot be read, or is too little to tell, is not known: it is never taken for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from proxy.accessline import Answer
from proxy.accesslog import Follower, before_end
from proxy.errors import ProxyError
from trafficd.canary.errors import STANDARD, Errors

WINDOW = 300.0  # s that are looked at
TAIL = 4 << 20  # bytes of the log that are read for it
_SHORTEST = 20.0  # s under which the log is too young to tell a rate,
_ENOUGH = 200  # but with so many requests


@dataclass(frozen=True)
class Recent:
    """The requests of the last `seconds`: all of them, those that were bad without the canary's, and from how many
    clients they came."""

    seconds: float
    requests: int
    stable: int
    stable_bad: int
    clients: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def bad(self) -> float:
        """The part of bad ones (0 to 1); 0 where there was no request."""
        return self.stable_bad / self.stable if self.stable else 0.0


def measure(
    path: Path,
    service: str,
    now: float,
    *,
    strata: Set[str] = frozenset({""}),
    canary: Set[str] = frozenset(),
    errors: Errors = STANDARD,
) -> Recent | str:
    """The requests of these strata at `now` (s since the epoch), or why nothing is known of them. `canary`: addresses
    whose answers say nothing of the stable version. Blocking."""
    try:
        answers = _tail(path)
    except ProxyError as error:
        return str(error)
    if answers is None:
        return f"Caddy writes no access log at {path}: may its user write there?"
    return recent(answers, service, now, strata=strata, canary=canary, errors=errors)


def recent(
    answers: Iterable[Answer],
    service: str,
    now: float,
    *,
    strata: Set[str],
    canary: Set[str] = frozenset(),
    errors: Errors = STANDARD,
) -> Recent | str:
    """The same from answers in the order of the log, of all services: the first one says since when we know."""
    listed = list(answers)
    if not listed:
        return "no request stands in the access log yet"
    # Where the log begins within the window, it was most likely begun by its first line: that one is no measure.
    since = max(now - WINDOW, min(answer.at for answer in listed))
    inside = [one for one in listed if one.at > since]
    seconds = now - since
    if seconds < _SHORTEST and len(inside) < _ENOUGH:
        return f"the access log begins {max(seconds, 0.0):.0f} s ago: too short to tell a rate"
    mine = [one for one in inside if one.service == service and one.stratum in strata and one.upstream is not None]
    stable = [one for one in mine if one.upstream not in canary]
    return Recent(
        max(seconds, 1e-3),
        len(mine),
        len(stable),
        sum(map(errors.met, stable)),
        len({one.client for one in mine}),
    )


def _tail(path: Path) -> list[Answer] | None:
    """The end of the log; None where there is none. Raises `ProxyError`."""
    place = before_end(path, TAIL)
    if place is None:
        return None
    follower = Follower(path, place)
    try:
        answers = follower.read(TAIL)
        if follower.behind:  # a line for each request: what was written meanwhile is less than that
            answers += follower.read(TAIL)
        return answers
    finally:
        follower.close()
