"""Runs a plan in this process: its worker, the watch over the event loop, and the report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from loadtest import pacer
from loadtest.histogram import Histogram
from loadtest.metrics import Metrics
from loadtest.model import Latency, Outcome, Plan, Report, SelfCheck
from loadtest.worker import work

_MOST_LAG_MS = 100.0
_MOST_LOOP_LAG_MS = 50.0
_WATCH_INTERVAL = 0.02  # s
_PROGRESS = 0.5  # s


async def run(
    plan: Plan,
    *,
    stop: asyncio.Event | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    on_progress: Callable[[Report], None] | None = None,
) -> Report:
    """Run a plan to its end, or until `stop` is set; requests in flight then finish, or time out.

    `on_outcome` is called in the event loop, once for every request sent, in order of finishing; what it
    raises ends the run. `on_progress` gets a report of what there is so far, twice a second. Raises PlanError for a
    request that cannot be written.
    """
    start = time.monotonic_ns()
    metrics = Metrics(start, closed=plan.rate is None)
    planned = pacer.pacer(plan).planned
    loop_lag = Histogram()
    watchers = [asyncio.create_task(_watch_loop(loop_lag))]
    if on_progress is not None:
        watchers.append(asyncio.create_task(_tell(metrics, planned, on_progress)))
    cpu = time.process_time()
    try:
        await work(plan, metrics, start_ns=start, stop=stop, on_outcome=on_outcome)
    finally:
        cpu = time.process_time() - cpu
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
    counted = metrics.snapshot()
    check = self_check(
        plan,
        cpu_us=1e6 * cpu / counted.sent if counted.sent else None,
        lag=counted.lag.latency(),
        loop_lag=loop_lag.latency(),
    )
    return counted.report(planned=planned, check=check)


async def _tell(metrics: Metrics, planned: int | None, on_progress: Callable[[Report], None]) -> None:
    while True:
        await asyncio.sleep(_PROGRESS)
        on_progress(metrics.snapshot().report(planned=planned, check=SelfCheck(None)))


async def _watch_loop(lag: Histogram) -> None:
    """Measure how late the event loop runs what is due."""
    while True:
        due = time.monotonic_ns() + round(_WATCH_INTERVAL * pacer.SECOND)
        await asyncio.sleep(_WATCH_INTERVAL)
        lag.record(time.monotonic_ns() - due)


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
