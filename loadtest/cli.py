"""The command line: hey's flags, without hey's faults.

Exit status 0 when every request was answered and none with a 5xx, 1 when not or when a --fail-if holds,
2 for a command that cannot be run.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import click
import uvloop

from loadtest import report, runner, verdict
from loadtest.model import Plan, PlanError, Report, RequestSpec

_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h)")
_USER_AGENT = "loadtest"


class Duration(click.ParamType[float]):
    """ "10s", "5m", "1m30s"; in seconds. A bare number is seconds."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
            return float(value)
        if not re.fullmatch(f"(?:{_AMOUNT.pattern})+", value):
            self.fail(f"{value!r} is not a duration like 10s, 5m or 1m30s", param, ctx)
        return sum(float(number) * _UNITS[unit] for number, unit in _AMOUNT.findall(value))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url")
@click.option("-n", "total", type=int, default=200, show_default=True, help="Requests to send, exactly.")
@click.option("-c", "connections", type=int, default=50, show_default=True, help="Concurrent connections.")
@click.option("-z", "duration", type=Duration(), help="Send for this long instead of -n requests.")
@click.option("-q", "qps", type=float, default=0, help="Requests a second of each worker; 0: no limit.")
@click.option("--rate", type=float, help="Requests a second in all, due whatever the answers do (open loop).")
@click.option("-t", "timeout", type=Duration(), default="20", help="Time-out of a request; 0: none. [20]")
@click.option("-m", "method", default="GET", show_default=True, help="Method.")
@click.option("-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header; repeatable.")
@click.option("-A", "accept", help="Accept header.")
@click.option("-T", "content_type", help="Content-Type of the body. [text/html]")
@click.option("-U", "user_agent", help="User-Agent header.")
@click.option("-d", "body", help="Body.")
@click.option("-D", "body_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Body.")
@click.option("--host", "-host", help="Host header.")
@click.option("--insecure", "-k", is_flag=True, help="Do not verify certificates.")
@click.option("--disable-keepalive", "-disable-keepalive", is_flag=True, help="One request a connection.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--fail-if", multiple=True, metavar="CONDITION", help="Like 'lost>0', 'p99>50ms', '5xx>0.1%'.")
def main(  # one argument an option
    url: str,
    total: int,
    connections: int,
    duration: float | None,
    qps: float,
    rate: float | None,
    timeout: float,
    method: str,
    headers: tuple[str, ...],
    accept: str | None,
    content_type: str | None,
    user_agent: str | None,
    body: str | None,
    body_file: Path | None,
    host: str | None,
    insecure: bool,
    disable_keepalive: bool,
    as_json: bool,
    fail_if: tuple[str, ...],
) -> None:
    """Send requests to URL, none of them twice, and count every outcome.

    Exits 1 when a request was lost or answered 5xx, or when a --fail-if holds.
    """
    try:
        content = _body(body, body_file)
        flags = {"Accept": accept, "Content-Type": content_type, "User-Agent": user_agent, "Host": host}
        defaults = {"User-Agent": _USER_AGENT} | ({"Content-Type": "text/html"} if content else {})
        spec = RequestSpec(url, method.upper(), _headers(headers, flags, defaults), content)
        plan = Plan(
            requests=(spec,),
            connections=connections,
            total=total,
            duration=duration,
            rate=rate,
            qps=qps or None,
            timeout=timeout or None,
            keepalive=not disable_keepalive,
            verify_tls=not insecure,
        )
        conditions = [verdict.parse_condition(text) for text in fail_if]
        measured = _run(plan)
    except PlanError as error:
        raise click.UsageError(str(error)) from None
    judged = verdict.judge(measured, conditions)
    click.echo(report.to_json(measured) if as_json else report.to_text(measured), nl=as_json)
    if not judged.passed:
        click.echo(f"failed: {', '.join(judged.reasons)}", err=True)
    sys.exit(judged.exit_status)


def _run(plan: Plan) -> Report:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        return loop.run(_run_until_signal(plan))


async def _run_until_signal(plan: Plan) -> Report:
    """The first SIGINT or SIGTERM ends the run in good order, the second at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return await runner.run(plan, stop=stop)


def _body(text: str | None, file: Path | None) -> bytes:
    if text is not None and file is not None:
        raise PlanError("-d and -D exclude each other")
    return file.read_bytes() if file is not None else (text or "").encode()


def _headers(
    given: tuple[str, ...], flags: dict[str, str | None], defaults: dict[str, str]
) -> tuple[tuple[str, str], ...]:
    """Headers with a flag of their own win over -H, and both over the defaults; raises PlanError."""
    headers = [(name, value) for name, value in flags.items() if value is not None]
    headers += _missing([_header(text) for text in given], headers)
    return (*headers, *_missing(list(defaults.items()), headers))


def _missing(more: list[tuple[str, str]], headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    taken = {name.lower() for name, _ in headers}
    return [(name, value) for name, value in more if name.lower() not in taken]


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise PlanError(f"-H {text!r} is not like 'Name: value'")
    return name.strip(), value.strip()
