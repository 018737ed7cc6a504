"""The command line: hey's flags, without hey's faults.

Exit status 0 when every request was answered and none with a 5xx, 1 when not or when a --fail-if holds,
2 for a command that cannot be run.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import uvloop
from click.core import ParameterSource

from loadtest import arguments, pipes, report, runner, verdict
from loadtest import options as flags
from loadtest.command import Command, NewFile, OldFile, Option, Parsed
from loadtest.model import LoadtestError, Plan, PlanError, Report
from loadtest.options import Options

# What is for one kind of run is imported by that: the libraries behind it take a third of the start.
if TYPE_CHECKING:
    from loadtest import sockets
    from loadtest.websocket import WebSocketPlan

T = TypeVar("T")

_DURATION = Parsed("duration", arguments.duration)
_RATE = Parsed("rate", arguments.rate)
_NAME = Parsed("name", arguments.header_name)
_COUNT = Parsed("n", arguments.count)

_how_much = partial(click.option, cls=Option, group="How much")
_when = partial(click.option, cls=Option, group="At what rate, whatever the answers do (open loop)")
_what = partial(click.option, cls=Option, group="What is sent")
_how = partial(click.option, cls=Option, group="How it is sent")
_output = partial(click.option, cls=Option, group="What comes out")


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("url", required=False)
@_how_much("-n", "--requests", "total", type=_COUNT, default=200, help="Requests to send, exactly. [200]")
@_how_much("-c", "--concurrency", "connections", type=_COUNT, default=50, help="Concurrent workers. [50]")
@_how_much("-z", "--duration", type=_DURATION, help="Send for this long, like 10s or 3m, instead of -n requests.")
@_how_much(
    "-q",
    "--qps",
    type=Parsed("rate", arguments.rate_or_none),
    default="0",
    help="Requests a second of each worker. [no limit]",
)
@_how_much("-t", "--timeout", type=_DURATION, default="20", help="Time-out of a request in seconds; 0: none. [20]")
@_how_much("-cpus", "--cpus", "processes", type=_COUNT, default=1, help="Processes that send, one a core. [1]")
@_when("--rate", type=_RATE, help="Requests a second in all.")
@_when("--poisson", is_flag=True, help="With gaps as independent users make them, not even ones.")
@_when(
    "--stages",
    type=Parsed("stages", arguments.stages),
    metavar="TIME:RATE,...",
    help="Change the rate, evenly, to RATE within TIME, and so on; it begins at --rate or 0. Like 10s:100,30s:1000",
)
@_what("-m", "--method", type=Parsed("method", arguments.method), default="GET", help="Method. [GET]")
@_what(
    "-H",
    "--header",
    "headers",
    type=Parsed("header", arguments.header),
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A header; repeatable.",
)
@_what("-A", "--accept", type=Parsed("value", arguments.header_value), help="Accept header.")
@_what("-T", "--content-type", type=Parsed("value", arguments.header_value), help="Content-Type header. [text/html]")
@_what("-d", "--data", "body", help="Body.")
@_what("-D", "--data-file", "body_file", type=OldFile(), help="Body from a file; - is stdin.")
@_what("-U", "--user-agent", type=Parsed("value", arguments.header_value), help="User-Agent header. [loadtest]")
@_what("-host", "--host", type=Parsed("value", arguments.header_value), help="Host header.")
@_what(
    "-a",
    "--auth",
    type=Parsed("auth", arguments.basic),
    metavar="USER:PASSWORD",
    help="Credentials (basic authentication).",
)
@_what(
    "--requests-file",
    type=OldFile(),
    help='Requests to send in turn: URLs, paths, or lines of JSON like {"path": "/", "method": "PUT", "headers": {}, '
    '"body": "", "weight": 2, "template": true}. A template has {{seq}}, {{uuid}} or {{random:1:100}} filled in.',
)
@_what("--sequence-header", type=_NAME, metavar="NAME", help="A header that carries the number of the request.")
@_how(
    "-x",
    "--proxy",
    type=Parsed("proxy", arguments.proxy),
    help="HTTP proxy: host:port, or http://user:password@host:port.",
)
@_how("-h2", "--http2", is_flag=True, help="HTTP/2.")
@_how("--streams", type=_COUNT, default=10, help="Requests at a time on one connection, with HTTP/2. [10]")
@_how(
    "--cacert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Trust the authorities of this PEM file, not those of the system.",
)
@_how("--unix", metavar="PATH", help="Connect to this unix socket.")
@_how("--connect", type=Parsed("host:port", arguments.address), help="Connect here, not to the URL's host and port.")
@_how("--insecure", "-k", is_flag=True, help="Do not verify certificates.")
@_how("--disable-compression", is_flag=True, help="Do not ask for compressed answers.")
@_how("--disable-keepalive", is_flag=True, help="A connection for each request.")
@_how("--disable-redirects", is_flag=True, help="Take a redirect as an answer.")
@_how(
    "--max-connection-age",
    type=Parsed("duration", arguments.positive_duration),
    help="Use no connection for longer than this.",
)
@_how("--requests-per-connection", type=_COUNT, help="Use no connection for more requests.")
@_how("--retry-stale", is_flag=True, help="Send again, once, what a kept-alive connection dropped; counted apart.")
@_how("--websocket", is_flag=True, help="Hold -c WebSockets for -z, with pings, and report every one that is cut.")
@_output(
    "-o",
    "--output",
    type=click.Choice(["csv"]),
    help="A row for each answer, in hey's columns, not a summary; from one process.",
)
@_output("--json", "as_json", is_flag=True, help="One JSON object, not a summary.")
@_output("--html", type=NewFile(), help="Also write a page with charts over time.")
@_output("--hdr", type=NewFile(), help="Also write the distributions as an HdrHistogram log (V2).")
@_output("--attribute", type=_NAME, metavar="HEADER", help="Count answers by the value of this response header.")
@_output(
    "--fail-if",
    type=Parsed("condition", verdict.parse_condition),
    multiple=True,
    metavar="CONDITION",
    help="Exit 1 when it holds: 'lost>0', 'p99>50ms', '5xx>0.1%', 'rps<1000', 'invalid>0'; repeatable.",
)
@_output("--no-progress", is_flag=True, help="Do not show progress on the terminal.")
@click.pass_context
def main(context: click.Context, /, **given: Any) -> None:
    """Send requests to URL, none of them twice, and count every outcome.

    Exits 1 when a request was lost or answered 5xx, or when a --fail-if holds. Flags may be written with one dash or
    two, and with a = before the value.
    """
    options = Options(**given)
    try:
        passed = _hold(context, options) if options.websocket else _load(options)
    except PlanError as error:
        raise click.UsageError(str(error)) from None
    except LoadtestError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(0 if passed else 1)


def _load(options: Options) -> bool:
    """Send requests, and print what became of them. Raises PlanError."""
    plan = flags.plan(options)
    measured = _measure(plan, options)
    judged = verdict.judge(measured, options.fail_if)
    if options.html is not None:
        from loadtest.html import to_html

        options.html.write_text(to_html(measured, plan=plan, verdict=judged), encoding="utf-8")
    if options.hdr is not None:
        from loadtest import hdrlog

        options.hdr.write_text(hdrlog.to_log(measured), encoding="ascii")
    if options.as_json:
        _print(report.to_json(measured) + "\n")
    elif options.output is None:
        _print(report.to_text(measured, plan.requests))
    _complain(judged.reasons)
    return judged.passed


def _measure(plan: Plan, options: Options) -> Report:
    rows = None
    if options.output == "csv":
        from loadtest.csv import Rows

        rows = Rows(sys.stdout, time.monotonic_ns())
    shown = not options.no_progress and sys.stderr.isatty() and not (rows is not None and sys.stdout.isatty())
    on_outcome = None if rows is None else rows.add

    def send(on_progress: Callable[[Report], None] | None) -> Report:
        return _until_signal(lambda stop: runner.run(plan, stop=stop, on_outcome=on_outcome, on_progress=on_progress))

    if not shown:
        return send(None)
    from loadtest.progress import Progress

    with Progress(plan, shown=True) as progress:
        return send(progress.update)


def _hold(context: click.Context, options: Options) -> bool:
    """Hold WebSockets, and print how they ended. Raises PlanError."""
    from loadtest import sockets

    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in flags.OF_WEBSOCKETS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise PlanError(f"{parameter.opts[0]} has no meaning with --websocket: leave it out")
    plan = flags.websocket_plan(options)
    held = _until_signal(partial(_hold_for, plan, options.duration or None))
    _print(sockets.to_json(held) + "\n" if options.as_json else sockets.to_text(held))
    reasons = sockets.reasons(held)
    _complain(reasons)
    return not reasons


async def _hold_for(plan: WebSocketPlan, seconds: float | None, stop: asyncio.Event) -> sockets.Held:
    """Hold the connections for `seconds`, or until `stop` is set where they are None."""
    from loadtest import sockets
    from loadtest.websocket import hold

    began_ns = time.monotonic_ns()
    if seconds is not None:
        asyncio.get_running_loop().call_later(seconds, stop.set)
    held = await hold(plan, stop=stop)
    return sockets.Held(held, began_ns, time.monotonic_ns(), time.time())


def _complain(reasons: tuple[str, ...]) -> None:
    if reasons:
        click.echo(f"failed: {', '.join(reasons)}", err=True)


def _print(text: str) -> None:
    try:
        sys.stdout.fileno()
    except (OSError, ValueError):  # no file: somebody collects the output
        click.echo(text, nl=False)
    else:
        pipes.write(text.encode())


def _until_signal(act: Callable[[asyncio.Event], Awaitable[T]]) -> T:
    """Run `act` on uvloop. The first SIGINT or SIGTERM sets its event, which ends it in good order, the second ends
    it at once."""

    async def run() -> T:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def on_signal() -> None:
            stop.set()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        return await act(stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        return loop.run(run())
