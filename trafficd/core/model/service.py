"""A service, with everything that the journal knows about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from trafficd.core.model.rollout import Rollout
from trafficd.core.model.upstream import Beside, Upstream


@dataclass(frozen=True)
class Freeze:
    """No rollouts begin until `until` (None: until somebody thaws the service)."""

    reason: str
    until: float | None
    actor: str

    def holds(self, now: float) -> bool:
        return self.until is None or now < self.until


@dataclass(frozen=True)
class Maintenance:
    """Every request gets one static answer, which Caddy itself gives at `dial`."""

    dial: str
    reason: str
    since: float


@dataclass(frozen=True)
class Service:
    """Everything the journal knows about one service."""

    name: str
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    stable: str | None = None
    mixing: str | None = None  # a second version that may receive traffic beside the stable one
    carried: tuple[str, ...] = ()  # versions of rollouts that did not get to their end, and still serve
    canary_percent: float | None = None  # of the versions that have no share of their own
    canary_at: float | None = None  # since when these instances have this share (s since the epoch)
    shares: Mapping[str, float] = field(default_factory=dict)  # in percent, of versions beside the stable one
    pins: Mapping[str, str] = field(default_factory=dict)  # the version that a pin leads to
    held: bool = False
    maintenance: Maintenance | None = None
    left: bool = False  # Caddy goes on without us, with plain upstreams
    freeze: Freeze | None = None
    rollout: Rollout | None = None  # the newest one that has begun, live or ended
    queued: Rollout | None = None  # the newest one that was queued and has not begun, pending or ended
    displaced: tuple[Rollout, ...] = ()  # pending ones that a newer wish replaced, until their end is journalled
    history: tuple[str, ...] = ()  # stable versions, oldest first

    @property
    def live(self) -> Rollout | None:
        return self.rollout if self.rollout is not None and self.rollout.live else None

    @property
    def pending(self) -> Rollout | None:
        return self.queued if self.queued is not None and self.queued.live else None

    def named(self, rollout: str) -> Rollout | None:
        """The rollout of this id, if it is one of those that matter now."""
        known = (self.rollout, self.queued, *self.displaced)
        return next((one for one in known if one is not None and one.id == rollout), None)

    def regular(self, upstream: Upstream) -> bool:
        """Whether the upstream's version takes part in ordinary traffic.

        Versions that nobody named are taken for the stable one.
        """
        known = (None, self.stable, self.mixing, *self.carried)
        return self.stable is None or upstream.version in known

    def parts(self) -> dict[str, float]:
        """The shares of versions beside the stable one as they hold now, in percent: none where a rollout fails."""
        live = self.live
        gone = live.version if live is not None and live.policy.beside and live.failing else None
        return {version: percent for version, percent in self.shares.items() if version != gone}

    def with_upstream(self, upstream: Upstream) -> Service:
        """The service with this upstream in place of the one of its id, if there was one."""
        return replace(self, upstreams={**self.upstreams, upstream.id: upstream})

    def besides(self) -> Iterator[tuple[Upstream, Beside]]:
        """All instances beside serving ones, with their upstreams."""
        for upstream in self.upstreams.values():
            for one in upstream.beside:
                yield upstream, one
