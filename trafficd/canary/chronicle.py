"""Keeps the report of each rollout that is judged: what the judge says of it, and whom its version answered.

It begins when the rollout is first judged and goes on until its end has been in the log for a while, so that requests
which began after a FAIL are seen too. After a restart it goes on with what was kept; answers that were logged
meanwhile are read from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.accessline import Answer, Cut
from trafficd.canary.compare import USERS, Comparison, Route
from trafficd.canary.errors import Errors
from trafficd.core import stages
from trafficd.core.judged import Judged
from trafficd.core.model import Direction, Rollout, StepKey, StepKind
from trafficd.errors import StateError
from trafficd.operate import Operator
from trafficd.report.course import Course, Record, Worst
from trafficd.report.shelf import Shelf

log = logging.getLogger("trafficd.canary")

_EVERY = 5.0  # s between writes
_PATIENCE = 2.0  # s that judging waits for a file to be read
_AFTER = 3.0  # s after the end of a rollout that its last answers are waited for


class Tenure(NamedTuple):
    """When an address was the new version's (s since the epoch): what was asked there before and after was not."""

    since: float
    until: float | None = None

    def covers(self, moment: float) -> bool:
        return self.since <= moment and (self.until is None or moment < self.until)


@dataclass
class _Kept:
    """One rollout whose course goes on."""

    course: Course
    operator: Operator
    tenures: Mapping[str, Tenure] = field(default_factory=dict)
    comparison: Comparison | None = None
    written_at: float = 0.0
    due: bool = True
    closed: bool = False
    strata: Set[str] = field(init=False)  # that are judged beside the users'
    errors: Errors = field(init=False)

    def __post_init__(self) -> None:
        canary = self.operator.section.canary
        self.strata, self.errors = frozenset(canary.strata), Errors.of(canary)


@dataclass
class Chronicle:
    """Whatever goes wrong here is said, and keeps nobody from judging."""

    shelf: Shelf
    operators: Mapping[str, Operator]
    _kept: dict[str, _Kept] = field(default_factory=dict)  # by rollout
    _current: dict[str, _Kept] = field(default_factory=dict)  # by service
    _recalled: bool = False
    _writing: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether the log is to be read for it."""
        return bool(self._current)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            log.exception("unexpected, in the report of a rollout")
            for kept in self._kept.values():
                what = f"unexpected {type(error).__name__} (please report; the log has it): {error}"
                kept.operator.engine.trouble.say("report", f"the report of {kept.course.rollout} is not kept: {what}")
                self.shelf.open.pop(kept.course.rollout, None)
            self._kept, self._current = {}, {}

    async def turn(self, wanted: Mapping[str, Judged], now: float) -> None:
        """Before the log is read: open, close, and write what is due."""
        with self._apart():
            if not self._recalled:
                self._recalled = True
                await self._recall(now)
            for name, found in wanted.items():
                if found.rollout is not None:
                    await self._open(name, found.rollout, now)
            for kept in self._kept.values():
                self._follow(kept, wanted.get(kept.course.service), now)
            self._drop_written()
            self._write(now)

    async def _recall(self, now: float) -> None:
        """Go on with what an earlier daemon was ended in the midst of, also where it is not judged any more."""
        for name, operator in self.operators.items():
            live = operator.state.live
            if live is not None and operator.engine.judged and await self._found(live.id) is not None:
                await self._open(name, live.id, now)

    async def _open(self, name: str, rollout: str, now: float) -> None:
        if rollout in self._kept:
            return
        before = await self._found(rollout)
        course = Course(rollout, name, now) if before is None else Course.resume(before, now)
        self._kept[rollout] = self._current[name] = _Kept(course, self.operators[name])
        self.shelf.open[rollout] = course

    async def _found(self, rollout: str) -> Record | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self.shelf.record(rollout)
        except (StateError, TimeoutError) as error:
            log.error("%s; the report of %s begins anew", str(error) or "the disk does not answer", rollout)
            return None

    def _follow(self, kept: _Kept, found: Judged | None, now: float) -> None:
        """How the rollout stands now."""
        rollout = kept.operator.state.named(kept.course.rollout)
        if found is None or found.rollout != kept.course.rollout:
            kept.course.leave(now)
            found = None
        if rollout is not None:
            kept.tenures = tenures(rollout, found)
            kept.due = _enter(kept.course, rollout, found, kept.tenures) or kept.due
        ended_at = now - _AFTER if rollout is None else rollout.ended_at
        if ended_at is not None and now >= ended_at + _AFTER and not kept.closed:
            kept.course.close(ended_at)
            kept.closed = kept.due = True
            if self._current.get(kept.course.service) is kept:
                del self._current[kept.course.service]

    # -- what is told to it ----------------------------------------------------------------------------

    def take(self, answer: Answer) -> None:
        """One answer of the log."""
        kept = self._current.get(answer.service)
        if kept is None or answer.upstream is None or (answer.stratum != USERS and answer.stratum not in kept.strata):
            return
        tenure = kept.tenures.get(answer.upstream)
        # An answer that was cut short has no duration in the log.
        began = None if answer.cut is not Cut.NO and not answer.duration else answer.at - answer.duration
        if tenure is not None and tenure.covers(answer.at if began is None else began):
            with self._apart():
                kept.course.take(answer.client, began=began, ended=answer.at, bad=kept.errors.met(answer))

    def judged(self, name: str, found: Judged, comparison: Comparison, now: float) -> None:
        """What the judge says now."""
        kept, rollout = self._current.get(name), self.operators[name].state.rollout
        if kept is None or rollout is None or not rollout.id == found.rollout == kept.course.rollout:
            return
        with self._apart():
            if kept.comparison is not comparison:
                kept.comparison = comparison
                kept.course.anew(now, comparison.since)
            entered = _enter(kept.course, rollout, found, kept.tenures)
            turned = kept.course.see(now, comparison.analysis, _worst(comparison.worst))
            kept.due = kept.due or entered or turned

    # -- files -----------------------------------------------------------------------------------------

    @property
    def writing(self) -> bool:
        """Whether a write is under way."""
        return self._writing is not None and not self._writing.done()

    def _drop_written(self) -> None:
        """Let go of what is over and on disk."""
        if self.writing:
            return
        for rollout in [name for name, kept in self._kept.items() if kept.closed and not kept.course.changed]:
            del self._kept[rollout]
            self.shelf.open.pop(rollout, None)

    def _write(self, now: float) -> None:
        """Begin to write what is due, unless a write is still under way."""
        if self.writing:
            return
        due = [kept for kept in self._kept.values() if kept.course.changed and _is_due(kept, now)]
        for kept in due:
            kept.written_at, kept.due = now, False
        if due:
            self._writing = asyncio.create_task(self._written(due), name="reports")

    async def _written(self, due: Iterable[_Kept]) -> None:
        for kept in due:
            try:
                await self.shelf.keep(kept.course)
                trouble = ""
            except StateError as error:
                trouble = str(error)
            kept.operator.engine.trouble.say("report", trouble)

    async def aclose(self) -> None:
        """The daemon stops: write what there is."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._written(list(self._kept.values()))


def _is_due(kept: _Kept, now: float) -> bool:
    """Now and then; at once where something happened, unless writing does not work at all."""
    return now - kept.written_at >= _EVERY or (kept.due and not kept.operator.engine.trouble.report)


def tenures(rollout: Rollout, found: Judged | None) -> dict[str, Tenure]:
    """Since when, and until when, each address is the new version's: from its step into traffic on, or from the begin
    of the rollout, until a revert puts something else there, or the rollout is over."""
    began = {step.key: step.started_at for step in reversed(rollout.steps)}
    over = rollout.ended_at
    whole = {} if found is None else dict.fromkeys(found.canary, Tenure(rollout.started_at, over))
    for name, task in rollout.forward.items():
        since = began.get(StepKey(name, Direction.FORWARD, StepKind.ADMIT))
        if task.new_dial is None or since is None:
            continue
        replaced = began.get(StepKey(name, Direction.REVERT, StepKind.SWAP)) if task.in_place else None
        whole[task.new_dial] = Tenure(since, over if replaced is None else replaced)
    return whole


def _enter(course: Course, rollout: Rollout, found: Judged | None, known: Mapping[str, Tenure]) -> bool:
    """Tell the course the stage that the rollout is in; whether it is another one. A rollout that replaces one by one
    has no share of its own, and one stage."""
    if not rollout.policy.beside:
        return bool(known) and course.enter(0, None, min(tenure.since for tenure in known.values()))
    stage = stages.stage_of(rollout)
    if stage is None or rollout.stage is None:
        return False
    percent = stage.percent if found is None or found.stage != rollout.stage else found.step[1]
    return course.enter(rollout.stage, percent, rollout.stage_at)


def _worst(route: Route | None) -> Worst | None:
    return None if route is None else Worst(*route)
