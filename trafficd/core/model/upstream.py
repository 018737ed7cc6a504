"""The places that instances run at, as the journal knows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Beside:
    """Another instance of an upstream, beside the one that is `serving`: of a version that has a share of its own, or
    of the one before, kept warm until `keep_until` (s since the epoch; None: as long as it has a share).

    `rollout` is the one that left it there.
    """

    dial: str
    version: str
    rollout: str
    keep_until: float | None = None
    retiring_at: float | None = None  # since when it gets no traffic any more, and is drained and stopped

    @property
    def retiring(self) -> bool:
        return self.retiring_at is not None

    def key(self, upstream: str) -> str:
        """What its health is known by: no upstream has such an id."""
        return f"{upstream}/{self.dial}"


@dataclass(frozen=True)
class Gating:
    """A `ready` by hand that has not passed its gate yet. `swapped`: something new runs there."""

    since: float
    swapped: bool
    version: str | None
    dial: str


@dataclass(frozen=True)
class Ejection:
    """An upstream was sent nothing from `since` until `until`; the `row`-th time in a row. `over`: it has returned."""

    since: float
    until: float
    reason: str
    row: int = 1
    over: bool = False


@dataclass(frozen=True)
class Upstream:
    """One place an instance runs at, as the journal knows it.

    `serving` is the address that may receive traffic, None while the upstream is out of it by a step of
    a rollout; `drained` is the operator's word and outlives rollouts. `gating` is set while a `ready` by
    hand is under way.
    """

    id: str
    dial: str
    version: str | None = None
    spare_dial: str | None = None
    serving: str | None = None
    drained: bool = False
    gating: Gating | None = None
    removed: bool = False
    unproven: bool = False  # it began to be replaced in place, and has not passed a gate since
    beside: tuple[Beside, ...] = ()
    group: str | None = None  # a zone or host: of two groups nothing is out of traffic at once (`groups`)
    ejection: Ejection | None = None  # the last one, over or not

    def other(self, version: str) -> Beside | None:
        """The instance of this version beside the serving one, if it is there to stay."""
        return next((one for one in self.beside if one.version == version and not one.retiring), None)

    @property
    def ejected(self) -> bool:
        """Whether it is out of traffic because it answered worse than the others."""
        return self.ejection is not None and not self.ejection.over
