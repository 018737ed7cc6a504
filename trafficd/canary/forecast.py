"""The forecast of one service: its present traffic, and how soon a canary with which share would be judged by it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from trafficd.canary.errors import Errors
from trafficd.canary.recent import Recent, measure
from trafficd.config import ServiceSection
from trafficd.core.outlook import Outlook, outlook

WITHIN = 300.0  # s in which a verdict is wanted, where nobody says otherwise


@dataclass(frozen=True)
class Forecast:
    """`within` in seconds; `why` there is no outlook, `recent` is None where not even the traffic is known."""

    service: str
    within: float
    why: str | None = None
    recent: Recent | None = None
    outlook: Outlook | None = None
    notes: tuple[str, ...] = ()


def forecast(
    service: str,
    section: ServiceSection,
    log: Path | None,
    now: float,
    *,
    within: float = WITHIN,
    canary: Set[str] = frozenset(),
    unlogged: str = "",
) -> Forecast:
    """By the end of the access log, at `now` (s since the epoch). `canary`: the addresses of one that has a share now;
    `unlogged`: why its answers are not in the log, as Caddy's configuration has it. Blocking: it reads files and
    counts for some time."""
    if not section.logged:
        how = 'control = "admin"' if section.routed else 'route = "none"'
        return Forecast(service, within, f"its canaries are not judged: with {how} its requests are not logged")
    if unlogged:
        return Forecast(service, within, f"its canaries are not judged: {unlogged}")
    if log is None:
        return Forecast(service, within, "how much traffic it has is not known: set caddy.access_log")
    strata, errors = frozenset({"", *section.canary.strata}), Errors.of(section.canary)
    found = measure(log, service, now, strata=strata, canary=canary, errors=errors)
    if isinstance(found, str):
        return Forecast(service, within, f"how much traffic it has is not known: {found}")
    if not found.requests:
        none = f"the log has no request of it in the last {found.seconds:.0f} s: no verdict comes of that"
        return Forecast(service, within, none, found)
    if found.stable and found.stable_bad == found.stable:
        return Forecast(service, within, "every request fails already: no canary can be worse", found)
    looked = outlook(found.rate, found.bad, within, alpha=section.canary.alpha, slots=section.slots)
    return Forecast(service, within, None, found, looked, tuple(_notes(section, found, looked)))


def _notes(section: ServiceSection, found: Recent, looked: Outlook) -> list[str]:
    notes = []
    # One bad request a client and tick is what is counted: few clients have few of them, whatever their rate is.
    if found.clients < min(10, found.requests):
        notes.append(f"the requests come from {found.clients} clients only, so it takes longer than this")
    if section.affinity != "none":
        notes.append(f'affinity = "{section.affinity}": a bad request of a client counts once, so it may take longer')
    if looked.suggested is None and "verify" not in section.canary.strata:
        notes.append('load may stand in for users: canary.strata = ["verify"], and trafficd verify')
    return notes
