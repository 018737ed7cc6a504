"""One process's part of a run: its lanes, its share of the schedule, and its time-outs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns

from loadtest.dial import Dialer
from loadtest.exchange import Opener
from loadtest.feed import feed
from loadtest.lane import Course, Lane
from loadtest.metrics import Metrics
from loadtest.model import Outcome, Plan
from loadtest.wire import Encoder, Recipes

_NO_LIMIT = 1 << 61


@dataclass(frozen=True)
class Part:
    """Which of the processes this is: it takes the slots `index`, `index + of`, ..."""

    index: int = 0
    of: int = 1

    def share(self, count: int) -> int:
        """Its part of so many lanes or requests."""
        return len(range(self.index, count, self.of))


async def work(
    plan: Plan,
    metrics: Metrics,
    *,
    start_ns: int,
    part: Part = Part(),
    stop: asyncio.Event | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> None:
    """Do this process's part of a plan, from `start_ns` (monotonic clock) on, to its end or until `stop` is set;
    requests in flight then finish, or time out. What `on_outcome` raises ends the run. Raises PlanError.
    """
    run = _Run(plan, part, metrics, start_ns, on_outcome)
    await run.execute(stop)


class _Run:
    def __init__(
        self,
        plan: Plan,
        part: Part,
        metrics: Metrics,
        start_ns: int,
        on_outcome: Callable[[Outcome], None] | None,
    ) -> None:
        self._ended = asyncio.get_running_loop().create_future()
        self._active = 0  # requests under way
        self._on_outcome = on_outcome
        self._timer: asyncio.TimerHandle | None = None
        self._timeout_ns = _NO_LIMIT if plan.timeout is None else round(plan.timeout * 1e9)
        encoder = Encoder(keepalive=plan.keepalive, proxy=plan.proxy)
        chance = random.Random(f"{plan.seed} {part.index}")
        lanes = part.share(plan.connections)
        if plan.duration is None and plan.total is not None:
            lanes = min(lanes, part.share(plan.total))
        self._opener = _opener(plan, lanes)
        self._course = Course(
            plan=plan,
            feed=feed(plan, part.index, part.of, start_ns, self._look_soon),
            recipes=Recipes(plan, encoder, chance),
            encoder=encoder,
            opener=self._opener,
            metrics=metrics,
            on_outcome=None if on_outcome is None else self._tell,
            timeout_ns=self._timeout_ns,
            begin=self._begun,
            idle=self._idle,
        )
        self._lanes = [Lane(self._course) for _ in range(lanes)]
        self._start_ns = start_ns

    async def execute(self, stop: asyncio.Event | None) -> None:
        stopping = None if stop is None else asyncio.create_task(self._halt_at(stop))
        try:
            if (wait := self._start_ns - monotonic_ns()) > 0:
                await asyncio.sleep(wait / 1e9)
            if stop is not None and stop.is_set():
                self._course.feed.halt()
            now = monotonic_ns()
            for lane in self._lanes:
                lane.begin(now)
            self._arm()
            self._look()
            await self._ended
        finally:
            self._course.feed.halt()
            if self._timer is not None:
                self._timer.cancel()
            if stopping is not None:
                stopping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await stopping
            for lane in self._lanes:
                lane.abandon()
            await self._opener.close()

    async def _halt_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._course.feed.halt()
        self._look()

    # what lanes call

    def _begun(self) -> None:
        self._active += 1

    def _idle(self) -> None:
        self._active -= 1
        if not self._active:
            self._look_soon()

    def _look_soon(self) -> None:
        """Not at once: the lane that has just been given the last slot is about to begin."""
        asyncio.get_running_loop().call_soon(self._look)

    def _tell(self, outcome: Outcome) -> None:
        try:
            assert self._on_outcome is not None
            self._on_outcome(outcome)
        except BaseException as error:
            self._course.feed.halt()
            if not self._ended.done():
                self._ended.set_exception(error)

    def _look(self) -> None:
        """Whether the run is over: nothing is under way, and nothing will be begun."""
        if not self._active and self._course.feed.over and not self._ended.done():
            self._ended.set_result(None)

    # time-outs: one timer for all, at the earliest deadline that there was when it was set

    def _arm(self) -> None:
        if self._timeout_ns == _NO_LIMIT:
            return
        now = monotonic_ns()
        due = min((lane.deadline_ns for lane in self._lanes), default=now + self._timeout_ns)
        wait = max(0, min(due, now + self._timeout_ns) - now)
        self._timer = asyncio.get_running_loop().call_later(math.ceil(wait / 1e6) / 1e3, self._expire)

    def _expire(self) -> None:
        now = monotonic_ns()
        for lane in self._lanes:
            if lane.deadline_ns <= now:
                lane.expire()
        self._arm()


def _opener(plan: Plan, lanes: int) -> Opener:
    if not plan.http2:
        return Dialer(plan)
    from loadtest.seating import Seating  # its library takes a while to import, and is mostly not wanted

    return Seating(plan, lanes)
