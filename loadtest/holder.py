"""Holds WebSockets in a process of its own, for a program whose event loop is not the generator's.

    python -m loadtest.holder

reads one line of JSON, an array of plans, from stdin, and holds them until stdin ends (also because the other side
died). It writes lines of JSON: `{"cut": [plan, seconds since the epoch, detail]}` for each stream that was cut, and
`{"reports": [...]}`, one for each plan, when something changed and at the end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson
import uvloop

from loadtest import pipes
from loadtest.model import LoadtestError
from loadtest.websocket import Ending, WebSocketPlan, WebSocketReport, hold

_SETTLE = 0.2  # s between two reports
_GRACE = 15.0  # s that the last pongs and closing may take
_LIMIT = 64 * 1024 * 1024  # bytes of one line


class Cut(NamedTuple):
    """One stream that ended without a close frame."""

    plan: int  # which of the plans
    at: float  # s since the epoch
    detail: str


class HolderError(LoadtestError):
    """The process that holds the WebSockets ended by itself."""


async def hold_apart(
    plans: Sequence[WebSocketPlan],
    *,
    stop: asyncio.Event,
    on_cut: Callable[[Cut], None] | None = None,
    on_progress: Callable[[list[WebSocketReport]], None] | None = None,
) -> list[WebSocketReport]:
    """Hold the connections of all plans until `stop` is set; the last reports. Raises `HolderError`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.holder"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LIMIT,
        start_new_session=True,  # a Ctrl-C is for the program, which then tells us
    )
    assert process.stdin is not None
    process.stdin.write(orjson.dumps([dataclasses.asdict(plan) for plan in plans]) + b"\n")
    reading = asyncio.create_task(_read(process, on_cut, on_progress))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        process.stdin.close()
        async with asyncio.timeout(_GRACE):
            reports = await reading
        if not stopping.done() or reports is None:
            raise HolderError("the process that holds the WebSockets ended by itself")
        return reports
    except TimeoutError:
        raise HolderError(f"the process that holds the WebSockets did not end within {_GRACE:g} s") from None
    finally:
        stopping.cancel()
        reading.cancel()
        if process.returncode is None and not (reading.done() and not reading.cancelled()):
            process.kill()
        await process.wait()


async def _read(
    process: asyncio.subprocess.Process,
    on_cut: Callable[[Cut], None] | None,
    on_progress: Callable[[list[WebSocketReport]], None] | None,
) -> list[WebSocketReport] | None:
    assert process.stdout is not None
    reports = None
    async for line in process.stdout:
        told = orjson.loads(line)
        if "cut" in told and on_cut is not None:
            on_cut(Cut(*told["cut"]))
        elif "reports" in told:
            reports = [_report(one) for one in told["reports"]]
            if on_progress is not None:
                on_progress(reports)
    return reports


def _report(fields: dict[str, Any]) -> WebSocketReport:
    cuts, closes = ([Ending(*one) for one in fields.pop(name)] for name in ("cuts", "closes"))
    return WebSocketReport(**fields, cuts=cuts, closes=closes)


# -- in the process ----------------------------------------------------------------------------------------


class _Holder:
    def __init__(self, plans: Sequence[WebSocketPlan]) -> None:
        self._plans = plans
        self._reports = [WebSocketReport() for _ in plans]
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        pipes.at_end_of_stdin(self._stop.set)
        telling = asyncio.create_task(self._tell())
        holding = [
            hold(plan, stop=self._stop, on_cut=partial(self._cut, number), on_change=partial(self._change, number))
            for number, plan in enumerate(self._plans)
        ]
        self._reports = list(await asyncio.gather(*holding))
        telling.cancel()
        self._write_reports()

    def _change(self, number: int, report: WebSocketReport) -> None:
        self._reports[number] = report
        self._changed.set()

    def _cut(self, number: int, ending: Ending) -> None:
        ago = (time.monotonic_ns() - ending.at_ns) / 1e9
        _write({"cut": [number, time.time() - ago, ending.detail]})

    async def _tell(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._write_reports()
            await asyncio.sleep(_SETTLE)

    def _write_reports(self) -> None:
        _write({"reports": [dataclasses.asdict(report) for report in self._reports]})


def _write(value: dict[str, Any]) -> None:
    pipes.write(orjson.dumps(value, default=tuple) + b"\n")  # an Ending is a NamedTuple


def _plan(fields: dict[str, Any]) -> WebSocketPlan:
    fields["dial"] = tuple(fields["dial"]) if fields["dial"] else None
    fields["headers"] = tuple((name, value) for name, value in fields["headers"])
    return WebSocketPlan(**fields)


def main() -> None:
    plans = [_plan(fields) for fields in orjson.loads(sys.stdin.buffer.readline())]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Holder(plans).run())


if __name__ == "__main__":
    main()
