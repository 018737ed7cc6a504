"""Which instances the judge compares with which, at each moment. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trafficd.core.model import Rollout, Service, Upstream
from trafficd.core.routing import instances


@dataclass(frozen=True)
class Judged:
    """`canary`: versions by address; `stable`: addresses. `step`: another one wants a PASS of its own. `rollout` and
    `stage` say what goes on with that, where it is a rollout, and `since` (s) when the stage or the share began."""

    canary: Mapping[str, str | None]
    stable: frozenset[str]
    step: tuple[str, float]
    rollout: str | None = None
    stage: int = 0
    since: float | None = None


def judged(service: Service) -> Judged | None:
    """What is to be judged now: the version that a rollout brings, or the canary whose share was set by hand."""
    live = service.live
    if live is not None and live.failing:
        return None
    if live is not None and live.policy.beside:
        return _beside(service, live)
    if live is not None:
        return _watched(service, live) if live.policy.watch_time else None
    percent, canary = by_hand(service)
    return Judged(canary, _regular(service), ("", percent), since=service.canary_at) if canary else None


def by_hand(service: Service) -> tuple[float, Mapping[str, str | None]]:
    """The share, in percent, that was given by hand, and the versions by address that have it; none while a rollout
    is live."""
    if not service.canary_percent or service.live is not None:
        return 0.0, {}
    others = [u for u in _serving(service) if not service.regular(u) and u.version not in service.shares]
    return service.canary_percent, {u.serving or "": u.version for u in others}


def _beside(service: Service, live: Rollout) -> Judged | None:
    percent = service.parts().get(live.version)
    if live.stage is None or not percent:
        return None
    canary: dict[str, str | None] = {dial: live.version for _, dial in instances(service, live.version)}
    step = (f"{live.id} {live.stage}", percent)
    return Judged(canary, _regular(service), step, live.id, live.stage, live.stage_at) if canary else None


def _watched(service: Service, live: Rollout) -> Judged | None:
    """Of a rollout that replaces one by one: the new ones beside those whose turn has not come."""
    new = {u.serving or "": u.version for u in _serving(service) if u.version == live.version}
    old = frozenset(_regular(service) - new.keys())
    return Judged(new, old, (live.id, 0.0), live.id) if new and old else None


def _serving(service: Service) -> Iterator[Upstream]:
    return (u for u in service.upstreams.values() if u.serving is not None and not u.drained)


def _regular(service: Service) -> frozenset[str]:
    return frozenset(u.serving for u in _serving(service) if u.serving is not None and service.regular(u))
