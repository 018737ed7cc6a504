"""Runs a plan: workers that take slots from the pacer, send, and hand each outcome to the fold.

A worker has one connection at a time. A request is taken up once, written at most once, and has one outcome.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from loadtest import pacer
from loadtest.connection import Connection, Exchange, Failure, prepare
from loadtest.dial import Dialer
from loadtest.histogram import Histogram
from loadtest.metrics import Metrics
from loadtest.model import Latency, Outcome, Plan, Report, SelfCheck

_MOST_LAG_MS = 100.0
_MOST_LOOP_LAG_MS = 50.0
_WATCH_INTERVAL = 0.02  # s


async def run(
    plan: Plan,
    *,
    stop: asyncio.Event | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    on_progress: Callable[[Report], None] | None = None,
) -> Report:
    """Run a plan to its end, or until `stop` is set; requests in flight then finish, or time out.

    `on_outcome` is called in the event loop, once for every request sent, in order of finishing; what it
    raises ends the run. Raises PlanError for a request that cannot be written.
    """
    return await _Run(plan, on_outcome).execute(stop)


class _Run:
    def __init__(self, plan: Plan, on_outcome: Callable[[Outcome], None] | None) -> None:
        self._plan = plan
        self._wires = [prepare(spec, keepalive=plan.keepalive) for spec in plan.requests]
        self._pacer = pacer.pacer(plan)
        self._ticks = None if plan.qps is None else pacer.Ticks(plan.qps)
        self._dialer = Dialer(plan)
        self._metrics = Metrics()
        self._on_outcome = on_outcome
        self._loop_lag = Histogram()
        self._hits = 0
        self._idle_closed = 0
        self._halted = False
        self._parked: set[asyncio.Future[None]] = set()
        self._start = 0

    async def execute(self, stop: asyncio.Event | None) -> Report:
        planned = self._pacer.planned
        watchers = [asyncio.create_task(self._watch_loop())]
        if stop is not None:
            watchers.append(asyncio.create_task(self._watch_stop(stop)))
        cpu_before = time.process_time()
        self._start = time.monotonic_ns()
        count = min(self._plan.connections, planned or self._plan.connections)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(count):
                    workers.create_task(self._work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            cpu = time.process_time() - cpu_before
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await self._dialer.close()
        check = self_check(
            self._plan,
            cpu_us=1e6 * cpu / self._metrics.sent if self._metrics.sent else None,
            lag=self._metrics.lag.latency(),
            loop_lag=self._loop_lag.latency(),
        )
        return self._metrics.report(planned=planned, idle_closed=self._idle_closed, started_ns=self._start, check=check)

    # workers

    async def _work(self) -> None:
        connection: Connection | None = None
        tick = -1
        while not self._halted:
            if self._ticks is not None:
                tick, wait = self._ticks.pace(self._elapsed(), tick)
                if not await self._wait_for_tick(wait):
                    return
            slot = self._pacer.pace(self._elapsed(), self._hits)
            if slot is None:
                if self._ticks is not None:
                    self._halt()  # the others wait for ticks they have no use for
                return
            hit = self._hits
            self._hits += 1
            if slot.wait and not await self._sleep_until(slot.at):
                return
            connection = await self._perform(hit, self._start + slot.at, connection)

    async def _wait_for_tick(self, wait: int) -> bool:
        """False when the run is over before the tick."""
        at = self._elapsed() + wait
        if self._plan.duration is not None and at >= self._plan.duration * pacer.SECOND:
            return False
        return await self._sleep_until(at)

    async def _perform(self, hit: int, scheduled: int, connection: Connection | None) -> Connection | None:
        """Send one request and record what became of it. Returns the connection if it stays open."""
        started = time.monotonic_ns()
        if connection is not None and not connection.usable:
            self._idle_closed += 1
            connection = None
        opened = connection or await self._dialer.open(self._plan.timeout)
        if isinstance(opened, Failure):
            self._record(_unsent(hit, scheduled, started, opened))
            return None
        spent = (time.monotonic_ns() - started) / pacer.SECOND
        left = None if self._plan.timeout is None else self._plan.timeout - spent
        exchange = await opened.exchange(self._wires[hit % len(self._wires)], left)
        self._record(_outcome(hit, scheduled, started, opened.number, exchange))
        return opened if opened.reusable else None

    def _record(self, outcome: Outcome) -> None:
        self._metrics.add(outcome)
        if self._on_outcome is not None:
            self._on_outcome(outcome)

    # time

    def _elapsed(self) -> int:
        return time.monotonic_ns() - self._start

    async def _sleep_until(self, at: int) -> bool:
        """Sleep until `at` ns after the start, at most 1 ms longer; False when the run was halted.

        uvloop's timers are whole milliseconds and may fire early: round up, then look at the clock again.
        """
        loop = asyncio.get_running_loop()
        while (rest := at - self._elapsed()) > 0 and not self._halted:
            parked = loop.create_future()
            timer = loop.call_later(math.ceil(rest / 1e6) / 1e3, _wake, parked)
            self._parked.add(parked)
            try:
                await parked
            finally:
                timer.cancel()
                self._parked.discard(parked)
        return not self._halted

    def _halt(self) -> None:
        """No request is taken up from now on."""
        self._halted = True
        for parked in self._parked:
            _wake(parked)

    async def _watch_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._halt()

    async def _watch_loop(self) -> None:
        """Measure how late the event loop runs what is due."""
        while True:
            due = time.monotonic_ns() + round(_WATCH_INTERVAL * pacer.SECOND)
            await asyncio.sleep(_WATCH_INTERVAL)
            self._loop_lag.record(time.monotonic_ns() - due)


def self_check(plan: Plan, *, cpu_us: float | None, lag: Latency | None, loop_lag: Latency | None) -> SelfCheck:
    """Whether the generator kept to its own schedule. A closed loop has none to keep to."""
    if plan.rate is None:
        return SelfCheck(cpu_us)
    if loop_lag is not None and loop_lag.p99 > _MOST_LOOP_LAG_MS:
        why = f"the generator's event loop ran up to {loop_lag.max:.0f} ms late: this machine is too busy"
        return SelfCheck(cpu_us, False, why)
    if lag is not None and lag.p99 > _MOST_LAG_MS:
        why = f"schedule lag p99 is {lag.p99:.0f} ms: all {plan.connections} connections were busy, use more"
        return SelfCheck(cpu_us, False, why)
    return SelfCheck(cpu_us)


def _outcome(hit: int, scheduled: int, started: int, connection: int | None, exchange: Exchange) -> Outcome:
    failure = exchange.failure
    return Outcome(
        hit=hit,
        connection=connection,
        status=exchange.status if failure is None else None,
        error=None if failure is None else failure.kind,
        scheduled_ns=scheduled,
        started_ns=started,
        written_ns=exchange.written_ns,
        first_byte_ns=exchange.first_byte_ns,
        finished_ns=exchange.finished_ns,
        size=exchange.size,
        attribute=exchange.attribute,
        detail="" if failure is None else failure.detail,
    )


def _unsent(hit: int, scheduled: int, started: int, failure: Failure) -> Outcome:
    return Outcome(
        hit=hit,
        connection=None,
        status=None,
        error=failure.kind,
        scheduled_ns=scheduled,
        started_ns=started,
        written_ns=None,
        first_byte_ns=None,
        finished_ns=time.monotonic_ns(),
        size=0,
        attribute=None,
        detail=failure.detail,
    )


def _wake(parked: asyncio.Future[None]) -> None:
    if not parked.done():
        parked.set_result(None)
