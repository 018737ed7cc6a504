"""What a canary would bring to light, and when, with the traffic that there is now. Pure; for `plan`.

Two canaries stand for the bad ones: one with three times the stable version's errors (at least one percentage point
more, as a rate that is hardly above nothing is nobody's regression), and one that fails every request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trafficd.core.forecast import Traffic, seconds_to_fail, seconds_to_pass
from trafficd.core.renewal import HELD_BACK

WORSE = 3.0
AT_LEAST = 0.01
ERRORS_PART = 0.5 * (1 - HELD_BACK)  # of alpha: the half that errors have, of which a part is held back for later
PERCENTS = (1.0, 5.0, 25.0, 50.0)
_CANDIDATES = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0)


class At(NamedTuple):
    """One share, in percent, and the seconds until each verdict; None: not within a year."""

    percent: float
    worse: float | None  # FAIL of a canary with more errors
    broken: float | None  # FAIL of one that answers nothing well
    good: float | None  # PASS of one that is as the stable version


class Outlook(NamedTuple):
    """`worse_bad`: the part of bad requests (0 to 1) of the canary that is worse. `suggested`: the smallest share, in
    percent, with which that one fails and a good one passes within the wanted time; None: half of the traffic is too
    little."""

    worse_bad: float
    shares: tuple[At, ...]
    suggested: float | None


def outlook(rate: float, bad: float, within: float, *, alpha: float = 0.01, slots: int = 100) -> Outlook:
    """At so many requests a second, of which the part `bad` (0 to 1) is bad; `within` in seconds, `alpha` that of the
    whole panel. No share is smaller than one of the `slots`. Raises ValueError for values out of range."""
    worse_bad = min(1.0, max(WORSE * bad, bad + AT_LEAST))

    def at(percent: float) -> At:
        def fails(part: float) -> float | None:
            return seconds_to_fail(Traffic(rate, percent / 100, bad, part), alpha=alpha * ERRORS_PART)

        return At(percent, fails(worse_bad), fails(1.0), seconds_to_pass(Traffic(rate, percent / 100, bad, bad)))

    possible: Iterator[float] = (percent for percent in _CANDIDATES if percent * slots >= 100)
    suggested = next((percent for percent in possible if _decided(at(percent), within)), None)
    return Outlook(worse_bad, tuple(map(at, PERCENTS)), suggested)


def _decided(one: At, within: float) -> bool:
    return all(time is not None and time <= within for time in (one.worse, one.good))
