"""One generating process of `loadtest.apart`.

    python -m loadtest.child

reads a plan and its part of it from stdin, waits for the time to start, and works until it is done or stdin ends (also
because the other side died). It writes what it counted twice a second, each lost request as it comes, and the end.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from typing import Any

import uvloop

from loadtest import pipes
from loadtest.apart import HEAD, PROGRESS, Counted, framed
from loadtest.metrics import Metrics
from loadtest.model import Plan, PlanError
from loadtest.selfcheck import Watch
from loadtest.worker import Part, work


def _write(value: object) -> None:
    pipes.write(framed(value))


def _read() -> Any:
    head = sys.stdin.buffer.read(HEAD.size)
    if len(head) < HEAD.size:
        sys.exit(1)
    return pickle.loads(sys.stdin.buffer.read(*HEAD.unpack(head)))


async def _work(plan: Plan, part: Part) -> None:
    stop = asyncio.Event()
    start = await asyncio.to_thread(_read)
    pipes.at_end_of_stdin(stop.set)
    metrics = Metrics(start, closed=not plan.open_loop)
    metrics.on_loss = _write
    with Watch() as watch:
        telling = asyncio.create_task(_tell_parent(metrics, watch))
        try:
            await work(plan, metrics, start_ns=start, part=part, stop=stop)
        finally:
            telling.cancel()
    _write((Counted(metrics.snapshot(), watch.seen()), True))


async def _tell_parent(metrics: Metrics, watch: Watch) -> None:
    while True:
        await asyncio.sleep(PROGRESS)
        _write((Counted(metrics.snapshot(), watch.seen()), False))


def main() -> None:
    plan, part = _read()
    _write("ready")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(plan, part))
    except PlanError as error:
        _write(error)


if __name__ == "__main__":
    main()
