"""One line of progress."""

from __future__ import annotations

import io

from rich.console import Console

from loadtest.model import ErrorKind, Plan, RequestSpec
from loadtest.progress import Progress, goal, line
from tests.loadtest.reports import nothing, report

PLAN = Plan((RequestSpec("http://h/"),), total=12_000)


def test_line() -> None:
    told = line(report(sent=12_345), elapsed=7.25, rate=1234.5, goal="30 s").plain
    assert told.split("   ") == ["7.2 s of 30 s", "12,345 sent", "1,234/s", "p99 6.0 ms", "2 dropped, 3 5xx"]
    told = line(report(status={200: 5}, errors={}), elapsed=1, rate=0, goal="30 s").plain
    assert told.endswith("no errors")
    assert "p99 -" in line(nothing(), elapsed=1, rate=0, goal="30 s").plain


def test_goal() -> None:
    assert goal(PLAN) == "12,000 requests"
    assert goal(Plan((RequestSpec("http://h/"),), duration=90)) == "90 s"


def test_shown_on_a_terminal_and_gone_afterwards() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Progress(PLAN, shown=True, console=console) as progress:
        progress.update(report(errors={ErrorKind.DROPPED: 2}))
        assert "2 dropped" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")


def test_not_shown_elsewhere() -> None:
    out = io.StringIO()
    with Progress(PLAN, shown=False, console=Console(file=out)) as progress:
        progress.update(report())
    assert out.getvalue() == ""
