"""When things happened: the stages of a verification, the steps of its rollout, and what went on at a moment. Pure.

Times are seconds since the epoch, those of the journal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from trafficd.core.model import Direction, StepRecord


class Stage(StrEnum):
    """What a verification is at."""

    WARM_UP = "warm_up"
    ROLLOUT = "rollout"
    CYCLE = "cycle"  # without a version: each upstream is drained and made ready again
    COOL_DOWN = "cool_down"
    ROLLBACK = "rollback"  # the rollout had succeeded, and the verification had not


@dataclass(frozen=True)
class Begun:
    """From when on the verification was in a stage."""

    stage: Stage
    at: float


@dataclass(frozen=True)
class Span:
    """One step, of one upstream or of the whole rollout. `back`: it brought the old version back."""

    what: str
    upstream: str | None
    begin: float
    end: float | None = None
    back: bool = False

    @property
    def text(self) -> str:
        where = f" {self.upstream}" if self.upstream else ""
        return f"{self.what}{where}" + (" (bringing the old version back)" if self.back else "")

    def covers(self, at: float) -> bool:
        return self.begin <= at and (self.end is None or at < self.end)


@dataclass(frozen=True)
class Moment:
    """What went on at one point of time."""

    stage: Stage
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        return ", ".join(span.text for span in self.spans) or self.stage.value.replace("_", "-")

    @property
    def upstream(self) -> str | None:
        """The upstream that was being worked on, or those, where there were several."""
        names = dict.fromkeys(span.upstream for span in self.spans if span.upstream)
        return ", ".join(names) or None


@dataclass(frozen=True)
class Timeline:
    """The stages in order, and all steps."""

    stages: tuple[Begun, ...]
    spans: tuple[Span, ...] = ()

    def at(self, at: float) -> Moment:
        """What went on then. Before the first stage: the first."""
        begun = [one.stage for one in self.stages if one.at <= at]
        spans = tuple(span for span in self.spans if span.covers(at))
        return Moment(begun[-1] if begun else self.stages[0].stage, spans)


def spans(steps: Iterable[StepRecord]) -> tuple[Span, ...]:
    """The steps of a rollout."""
    return tuple(
        Span(
            step.key.kind.value.replace("_", " "),
            step.key.upstream,
            step.started_at,
            step.ended_at,
            step.key.direction is Direction.REVERT,
        )
        for step in steps
    )
