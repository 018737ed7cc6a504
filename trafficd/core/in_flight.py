"""Does the canary hang? An access log is written when a request ends, so a canary that answers nothing is silent in it.

Samples of in-flight counts say more, but two samples a second apart mostly show the same requests: to test each would
count one slow request many times. So the unit is the request here too. A cohort is the requests that started between
two samples: those open at its end, less those open at its beginning, plus those that ended in between. It is judged
`patience` later: a request of it that is still open is bad. Every request is in one cohort, so the judge's guarantee
holds as it does for errors, for long polls too: given how many are still open, it is chance which arm they are on.

A lost log record makes a request that was open at a sample look open for good: on both arms alike, so it is noise. A
log that stalls is more than noise while the arms differ in speed: give None for the counts then.
Feed it ordinary requests only, all of them that the counts contain: no upgraded streams, in counts or ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from trafficd.core.judge import Judge
from trafficd.core.ticks import LONGEST, SHORTEST, Arm


@dataclass
class _Flow:
    """One arm's part of a cohort."""

    open_before: int
    open_after: int = 0
    left: int = 0  # requests that ended while the cohort grew, whenever they started
    done: int = 0  # requests of the cohort that have ended, whenever that was

    @property
    def started(self) -> int:
        return max(self.open_after - self.open_before + self.left, 0)

    @property
    def still_open(self) -> int:
        return min(max(self.started - self.done, 0), self.started)


@dataclass
class _Cohort:
    begin: float
    flows: dict[Arm, _Flow]
    end: float | None = None

    def spans(self, at: float) -> bool:
        return self.begin <= at and (self.end is None or at < self.end)


@dataclass
class InFlight:
    """Feed it the end of every request, and samples of both arms' counts; times in seconds.

    `judge` is better given some tolerated odds: a cold canary is slower without hanging.
    """

    judge: Judge
    patience: float = 2.0
    canary: int = 0
    canary_open: int = 0
    stable: int = 0
    stable_open: int = 0
    _cohorts: deque[_Cohort] = field(init=False, default_factory=deque)
    _pending: dict[Arm, tuple[int, int]] = field(init=False, default_factory=lambda: dict.fromkeys(Arm, (0, 0)))
    _pending_since: float | None = field(init=False, default=None)

    def ended(self, arm: Arm, started: float, ended: float) -> None:
        """Take a request's record, in any order, up to `patience` late."""
        for cohort in self._cohorts:
            cohort.flows[arm].done += cohort.spans(started)
            cohort.flows[arm].left += cohort.spans(ended)

    def sample(self, at: float, canary_open: int | None, stable_open: int | None) -> int:
        """Take both arms' counts at `at`, and judge what is due; gives the number of ticks judged.

        None is a count that could not be read; give it too while the reader of the log is behind. Nothing is judged
        then, and the cohort grows until the next sample.
        """
        if canary_open is None or stable_open is None:
            return 0
        self._close(at, {Arm.CANARY: canary_open, Arm.STABLE: stable_open})
        judged = 0
        while self._cohorts and (end := self._cohorts[0].end) is not None and end + self.patience <= at:
            judged += self._judge(self._cohorts.popleft())
        return judged

    def _close(self, at: float, counts: dict[Arm, int]) -> None:
        if self._cohorts:  # the last one always grows
            growing = self._cohorts[-1]
            if at - growing.begin < SHORTEST:
                return
            growing.end = at
            for arm, count in counts.items():
                growing.flows[arm].open_after = count
        self._cohorts.append(_Cohort(at, {arm: _Flow(count) for arm, count in counts.items()}))

    def _judge(self, cohort: _Cohort) -> bool:
        """Cohorts are put together until both arms are in them, as ticks are."""
        since = cohort.begin if self._pending_since is None else self._pending_since
        for arm, flow in cohort.flows.items():
            total, still = self._pending[arm]
            self._pending[arm] = (total + flow.started, still + flow.still_open)
        (canary, canary_open), (stable, stable_open) = self._pending[Arm.CANARY], self._pending[Arm.STABLE]
        if not (canary and stable) and (cohort.end or cohort.begin) - since < LONGEST:
            self._pending_since = since
            return False
        self.judge.tick(canary, canary_open, stable, stable_open)
        self.canary, self.canary_open = self.canary + canary, self.canary_open + canary_open
        self.stable, self.stable_open = self.stable + stable, self.stable_open + stable_open
        self._pending, self._pending_since = dict.fromkeys(Arm, (0, 0)), None
        return True
