"""Runs a plan: in this process and event loop, or in processes of its own; and makes the report of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from loadtest.apart import PROGRESS, Counted, count_apart
from loadtest.metrics import Metrics, Snapshot
from loadtest.model import Loss, Outcome, Plan, Report, SelfCheck
from loadtest.pacer import pacer
from loadtest.selfcheck import Watch, self_check
from loadtest.worker import work


async def run(
    plan: Plan,
    *,
    stop: asyncio.Event | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    on_progress: Callable[[Report], None] | None = None,
) -> Report:
    """Run a plan to its end, or until `stop` is set; requests in flight then finish, or time out.

    With one process it is this one, and with `on_outcome`, too: that is called in the event loop, once for every
    request sent, in order of finishing; what it raises ends the run. `on_progress` gets a report of what there is so
    far, twice a second. Raises PlanError for a request that cannot be written.
    """
    if plan.processes > 1 and on_outcome is None:
        return await run_apart(plan, stop=stop, on_progress=on_progress, processes=plan.processes)
    planned = pacer(plan).planned
    start = time.monotonic_ns()
    metrics = Metrics(start, closed=not plan.open_loop)
    telling = None
    if on_progress is not None:
        telling = asyncio.create_task(_tell(metrics, planned, on_progress))
    try:
        with Watch() as watch:
            await work(plan, metrics, start_ns=start, stop=stop, on_outcome=on_outcome)
            watched = watch.seen()
    finally:
        if telling is not None:
            telling.cancel()
    return _report(plan, planned, Counted(metrics.snapshot(), watched), stop)


async def run_apart(
    plan: Plan,
    *,
    stop: asyncio.Event | None = None,
    on_loss: Callable[[Loss], None] | None = None,
    on_progress: Callable[[Report], None] | None = None,
    processes: int = 1,
) -> Report:
    """The same in processes of its own: for a program whose event loop is not the generator's. `on_loss` hears of
    each request that is lost, as it is lost. A process that dies makes the run invalid. Raises LoadtestError."""
    planned = pacer(plan).planned

    def told(counted: Snapshot) -> None:
        if on_progress is not None:
            on_progress(counted.report(planned=planned, check=SelfCheck(None)))

    counted = await count_apart(plan, processes=processes, stop=stop, on_loss=on_loss, on_progress=told)
    return _report(plan, planned, counted, stop)


def _report(plan: Plan, planned: int | None, counted: Counted, stop: asyncio.Event | None) -> Report:
    """What a run that was stopped did not send is not behind the schedule."""
    stopped = stop is not None and stop.is_set()
    skipped = 0 if planned is None or stopped else planned - counted.snapshot.sent
    check = self_check(plan, counted.snapshot, counted.watched, counted.faults, skipped=skipped)
    report = counted.snapshot.report(planned=planned, check=check)
    return replace(report, hdr=counted.snapshot.encoded())


async def _tell(metrics: Metrics, planned: int | None, on_progress: Callable[[Report], None]) -> None:
    while True:
        await asyncio.sleep(PROGRESS)
        on_progress(metrics.snapshot().report(planned=planned, check=SelfCheck(None)))
