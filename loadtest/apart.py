"""Runs a plan in processes of its own: several of them for more than one core, or one for a program whose event loop
is not the generator's.

The other side is `loadtest.child`. Both are the same program: what goes between them is pickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from loadtest.metrics import Snapshot
from loadtest.model import LoadtestError, Loss, Plan
from loadtest.selfcheck import Watched
from loadtest.worker import Part

HEAD = struct.Struct("!I")
PROGRESS = 0.5  # s between two snapshots
_LEAD = 50_000_000  # ns from the word to start until the start, so that all begin together
_GRACE = 5.0  # s beyond a request's time-out that a worker may take to end


class Counted(NamedTuple):
    """What one process, or all of them together, have counted."""

    snapshot: Snapshot
    watched: Watched
    faults: tuple[str, ...] = ()  # of processes that ended by themselves


async def count_apart(
    plan: Plan,
    *,
    processes: int,
    stop: asyncio.Event | None = None,
    on_loss: Callable[[Loss], None] | None = None,
    on_progress: Callable[[Snapshot], None] | None = None,
) -> Counted:
    """Run the plan in so many processes, or in as many as get a connection: the slots of one without any would be
    sent by nobody. Raises `LoadtestError` when one cannot be started, `PlanError`."""
    processes = min(processes, plan.connections)
    workers = [_Worker(plan, Part(index, processes), on_loss) for index in range(processes)]
    stopping = asyncio.create_task(stop.wait() if stop is not None else asyncio.Event().wait())
    telling = None if on_progress is None else asyncio.create_task(_tell(workers, on_progress))
    try:
        for worker in workers:
            await worker.start()
        start = time.monotonic_ns() + _LEAD
        running = asyncio.gather(*(worker.run(start) for worker in workers))
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        for worker in workers:
            worker.stop()
        patience = None if plan.timeout is None else plan.timeout + _GRACE
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await running
        for worker in workers:
            worker.judge()
        return _together([worker.counted for worker in workers], start, plan)
    finally:
        for task in (stopping, telling):
            if task is not None:
                task.cancel()
        for worker in workers:
            await worker.aclose()


async def _tell(workers: list[_Worker], on_progress: Callable[[Snapshot], None]) -> None:
    while True:
        await asyncio.sleep(PROGRESS)
        counted = [worker.counted.snapshot for worker in workers if worker.counted is not None]
        if counted:
            whole = copy.deepcopy(counted[0])
            for one in counted[1:]:
                whole.merge(copy.deepcopy(one))
            on_progress(whole)


def _together(counted: list[Counted | None], start: int, plan: Plan) -> Counted:
    whole = Counted(Snapshot(start, closed=not plan.open_loop), Watched())
    for index, one in enumerate(counted):
        if one is None:
            whole = whole._replace(faults=(*whole.faults, f"process {index} ended without a word"))
            continue
        whole.snapshot.merge(one.snapshot)
        whole = whole._replace(watched=whole.watched.beside(one.watched), faults=whole.faults + one.faults)
    return whole


class _Worker:
    """The other side of one process."""

    def __init__(self, plan: Plan, part: Part, on_loss: Callable[[Loss], None] | None) -> None:
        self._plan, self._part, self._on_loss = plan, part, on_loss
        self._process: asyncio.subprocess.Process | None = None
        self._last = False  # `counted` is all of it
        self.counted: Counted | None = None

    async def start(self) -> None:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadtest.child"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C is for the program, which then tells us
            )
        except OSError as error:
            raise LoadtestError(f"a generating process cannot be started: {error}") from error
        self._send((self._plan, self._part))
        if await self._receive() != "ready":
            raise LoadtestError("a generating process ended before it began: what it said is on stderr")

    async def run(self, start: int) -> None:
        self._send(start)
        while (told := await self._receive()) is not None:
            if isinstance(told, Loss):
                if self._on_loss is not None:
                    self._on_loss(told)
            elif isinstance(told, Exception):
                raise told
            else:
                self.counted, self._last = told
                if self._last:
                    return
        lost = Counted(Snapshot(start, closed=not self._plan.open_loop), Watched())
        fault = f"process {self._part.index} died: what it had not told yet is not counted"
        self.counted = (self.counted or lost)._replace(faults=(fault,))

    def judge(self) -> None:
        """The run is over: one that has not told its end yet did not come to it."""
        if self.counted is not None and not self._last and not self.counted.faults:
            fault = f"process {self._part.index} did not end in time: what it had not told yet is not counted"
            self.counted = self.counted._replace(faults=(fault,))

    def stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def aclose(self) -> None:
        if self._process is not None:
            if self._process.returncode is None and self.counted is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._process.wait()
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            await self._process.wait()

    def _send(self, value: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(framed(value))

    async def _receive(self) -> Any:
        """None at the end."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            (size,) = HEAD.unpack(await self._process.stdout.readexactly(HEAD.size))
            return pickle.loads(await self._process.stdout.readexactly(size))
        except asyncio.IncompleteReadError:
            return None


def framed(value: object) -> bytes:
    body = pickle.dumps(value)
    return HEAD.pack(len(body)) + body
