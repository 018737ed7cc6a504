"""Stands in for `loadtest.runner.run_apart` until that is there: the same signature, in this very process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from loadtest import runner
from loadtest.metrics import Metrics
from loadtest.model import Loss, Outcome, Plan, Report, SelfCheck


async def run_apart(
    plan: Plan,
    *,
    stop: asyncio.Event | None = None,
    on_loss: Callable[[Loss], None] | None = None,
    on_progress: Callable[[Report], None] | None = None,
) -> Report:
    order = [number for number, spec in enumerate(plan.requests) for _ in range(spec.weight)]
    by_request: dict[int, Counter[int]] = {}
    losses: list[Loss] = []
    metrics = Metrics()
    began, began_at = time.monotonic_ns(), time.time()

    def outcome(one: Outcome) -> None:
        metrics.add(one)
        number = order[one.hit % len(order)]
        if one.status is not None:
            by_request.setdefault(number, Counter())[one.status] += 1
        if one.error is not None:
            losses.append(Loss(one.hit, time.time(), one.error, number, one.connection, one.detail, one.attribute))
            if on_loss is not None:
                on_loss(losses[-1])

    def filled(report: Report) -> Report:
        return replace(
            report, began_at=began_at, by_request={n: dict(c) for n, c in by_request.items()}, losses=tuple(losses)
        )

    async def tell() -> None:
        while on_progress is not None:
            await asyncio.sleep(0.25)
            snapshot = metrics.report(planned=None, idle_closed=0, started_ns=began, check=SelfCheck(None))
            on_progress(filled(snapshot))

    telling = asyncio.create_task(tell())
    try:
        expanded = replace(plan, requests=tuple(plan.requests[number] for number in order))
        return filled(await runner.run(expanded, stop=stop, on_outcome=outcome))
    finally:
        telling.cancel()
