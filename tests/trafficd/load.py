"""A load generator that sends nothing: each request of the plan is answered as a test says, again and again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.model import ErrorKind, LoadtestError, Loss, Plan, Report
from tests.verify.reports import report
from trafficd.verify.load import OnCut
from trafficd.verify.target import Target
from trafficd.verify.verdict import Sockets

_TURN = 0.005  # s between two answers of each request


@dataclass
class FakeLoad:
    """`status` is what each request (by its number) is answered with, 200 by default. `lose` and `cut` are for the test
    to call while there is load."""

    status: dict[int, int] = field(default_factory=dict)
    p99: float = 10.0
    broken: str = ""  # why it cannot go on
    sockets: Sockets = field(default_factory=lambda: Sockets(opened=2))
    plans: list[Plan] = field(default_factory=list)
    running: int = 0
    holding: int = 0
    lose: Callable[[], None] = lambda: None
    cut: Callable[[], None] = lambda: None

    async def send(
        self,
        plan: Plan,
        *,
        stop: asyncio.Event,
        on_loss: Callable[[Loss], None],
        on_progress: Callable[[Report], None],
    ) -> Report:
        self.plans.append(plan)
        answers: dict[int, Counter[int]] = {number: Counter() for number in range(len(plan.requests))}
        losses: list[Loss] = []

        def lose() -> None:
            losses.append(Loss(7, time.time(), ErrorKind.DROPPED, 0, 3, "connection closed", None))
            on_loss(losses[-1])

        def now() -> Report:
            errors = {ErrorKind.DROPPED: len(losses)} if losses else {}
            return report({n: dict(c) for n, c in answers.items()}, errors=errors, p99=self.p99, losses=losses)

        self.lose = lose
        self.running += 1
        assert plan.duration is not None
        until = time.monotonic() + plan.duration
        try:
            while not stop.is_set() and time.monotonic() < until:
                if self.broken:
                    raise LoadtestError(self.broken)
                for number, counts in answers.items():
                    counts[self.status.get(number, 200)] += 1
                on_progress(now())
                await asyncio.sleep(_TURN)
            return now()
        finally:
            self.running -= 1

    async def hold(
        self, target: Target, *, stop: asyncio.Event, on_cut: OnCut, on_progress: Callable[[Sockets], None]
    ) -> Sockets:
        def cut() -> None:
            self.sockets = Sockets(self.sockets.opened, self.sockets.closed, self.sockets.cut + 1)
            on_cut(time.time(), target.sockets[0].path, "no close frame received or sent")
            on_progress(self.sockets)

        self.cut = cut
        on_progress(self.sockets)
        self.holding += 1
        try:
            await stop.wait()
            return self.sockets
        finally:
            self.holding -= 1
