"""How a run is going, on one line of a terminal. Where it is not shown, nothing is written at all."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loadtest.model import Plan, Report
from loadtest.verdict import count_status


class Progress:
    """A context: the line is there while it is entered, and gone after it."""

    def __init__(self, plan: Plan, *, shown: bool, console: Console | None = None) -> None:
        self._plan = plan
        self._console = console or Console(stderr=True)
        # no thread of its own: it is drawn anew when there is something new
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if shown else None
        self._began = time.monotonic()
        self._last: tuple[float, int] = (0.0, 0)  # s since the start, and answers by then

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, report: Report) -> None:
        if self._live is None:
            return
        elapsed = time.monotonic() - self._began
        before, answered = self._last
        rate = (report.answered - answered) / (elapsed - before) if elapsed > before else 0.0
        self._last = (elapsed, report.answered)
        self._live.update(line(report, elapsed=elapsed, rate=rate, goal=goal(self._plan)), refresh=True)


def goal(plan: Plan) -> str:
    """What the run ends with."""
    if plan.duration is not None:
        return f"{plan.duration:g} s"
    return f"{plan.total:,} requests"


def line(report: Report, *, elapsed: float, rate: float, goal: str) -> Text:
    """`elapsed` in seconds; `rate`: answers a second of late; the p99 is that of all answers so far."""
    troubles = {**{kind.value: count for kind, count in report.errors.items()}, "5xx": count_status(report, "5xx")}
    found = ", ".join(f"{count:,} {name}" for name, count in troubles.items() if count)
    p99 = "-" if report.response is None else f"{report.response.p99:.1f} ms"
    return Text.assemble(
        f"{elapsed:.1f} s of {goal}   ",
        (f"{report.sent:,}", "bold"),
        " sent   ",
        (f"{rate:,.0f}", "bold"),
        "/s   ",
        f"p99 {p99}   ",
        (found, "bold red") if found else ("no errors", "green"),
        no_wrap=True,
        overflow="ellipsis",
    )
