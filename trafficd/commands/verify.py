"""`trafficd verify`: a rollout under load, and its verdict, as a client of the API."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from trafficd import show
from trafficd.client import Client, Json
from trafficd.commands.common import NOT_ACHIEVED, Options, actor, connected
from trafficd.errors import ConfigError, DaemonUnreachableError, TrafficdError

_LOOK = 0.5  # s between looks at a verification
_COMES_BACK = 15.0  # s that a daemon may be away meanwhile
_SHOWN = 20  # lost requests that are listed

_STAGES = {
    "warm_up": "warm-up",
    "rollout": "rollout",
    "cycle": "drain and ready of each upstream",
    "cool_down": "cool-down",
    "rollback": "rollback",
}


@click.command()
@click.argument("service")
@click.argument("version", required=False)
@click.option("--message", help="Why; kept in the journal.")
@click.option("--rate", type=float, help="Requests a second in all.")
@click.option("--connections", type=int, help="Connections that the requests are spread over.")
@click.option("--warm-up", help="How long there is load before the rollout.")
@click.option("--cool-down", help="How long the load goes on after the rollout.")
@click.option("--timeout", help='Of one request, such as "20s".')
@click.option("--p99-factor", type=float, help="Fail when p99 is over so many times that of the warm-up.")
@click.option("--on-fail", type=click.Choice(["report", "revert"]), help="revert: take the version back.")
@click.option("--html", "page", metavar="FILE", help="Write a page with the course of it to FILE.")
@click.option("--no-wait", is_flag=True, help="Return when the load has begun.")
@connected
def verify(
    options: Options, service: str, version: str | None, page: str | None, no_wait: bool, **given: str | float | None
) -> None:
    """Roll VERSION out under load, and say whether anything was lost.

    Without VERSION each upstream is drained and made ready again. What is sent, and what it must be answered, is
    configured in [services.SERVICE.verify]. Exit status 0: passed; 1: failed.
    """
    if page is not None and no_wait:
        raise click.UsageError("--html is written at the end, which --no-wait does not wait for")
    if page is not None and not os.access(Path(page).absolute().parent, os.W_OK):
        raise ConfigError(f"--html {page}: cannot be written there")
    wanted = {"service": service, "version": version, **given}
    client = options.client()
    found = client.call("POST", "/v1/verifications", {k: v for k, v in wanted.items() if v is not None}, actor())
    if no_wait:
        options.say(found, verification)
        return
    try:
        found = _follow(client, found, live=not options.as_json)
    except KeyboardInterrupt:
        raise TrafficdError(
            f"no longer watching; verification {found['id']} goes on. To give it up: trafficd abort {service}"
        ) from None
    options.say(found, verification)
    if page is not None:
        _write(client, found["id"], page)
    if found["state"] != "passed":
        sys.exit(NOT_ACHIEVED)


def _write(client: Client, name: str, page: str) -> None:
    try:
        Path(page).write_bytes(client.fetch(f"/v1/verifications/{name}/page"))
    except OSError as error:
        raise ConfigError(f"--html {page}: cannot be written: {error.strerror}") from error


def _follow(client: Client, begun: Json, *, live: bool) -> Json:
    """Look until it has ended; its last state. A daemon that is restarted meanwhile comes back and says how it is."""
    terminal = live and sys.stdout.isatty()
    last, told, seen_at = begun, "", time.monotonic()
    while last["state"] == "running":
        line = _progress(last)
        if terminal:
            click.echo(f"\r\x1b[2K{line}", nl=False)
        elif live and line.partition(":")[0] != told:
            told = line.partition(":")[0]
            click.echo(f"{time.strftime('%H:%M:%S')} {line}")
        time.sleep(_LOOK)
        try:
            last, seen_at = client.call("GET", f"/v1/verifications/{begun['id']}"), time.monotonic()
        except DaemonUnreachableError:
            if time.monotonic() - seen_at > _COMES_BACK:
                raise
    if terminal:
        click.echo("\r\x1b[2K", nl=False)
    return last


def _progress(view: Json) -> str:
    stage = _STAGES[view["stages"][-1]["stage"]] if view["stages"] else "begins"
    now = ", ".join(_step(step) for step in view["steps"] if step["end"] is None)
    return f"{stage}{f', {now}' if now else ''}: {view['sent']} requests sent, {view['lost']} lost"


def _step(step: Json) -> str:
    return " ".join(filter(None, (step["step"], step["upstream"], "(going back)" if step["back"] else "")))


# -- as text -----------------------------------------------------------------------------------------------


def verification(view: Json) -> str:
    """The verdict first, then why, then the figures."""
    return "\n".join(_lines(view))


def _lines(view: Json) -> Iterator[str]:
    what = f"{view['service']} {view['version']}" if view["version"] else f"{view['service']}, drain and ready of each"
    yield f"{view['state'].upper()}: {what} ({view['id']})"
    yield from (f"  {reason}" for reason in view["reasons"])
    yield from (f"  note: {note}" for note in view["notes"])
    if view["rollout"]:
        yield f"rollout     {view['rollout']} {view['rollout_state'] or ''}".rstrip()
    for name, key in (("warm-up", "warm_up"), ("under it", "during")):
        if view[key] is not None:
            yield f"{name:<11} {_figures(view[key])}"
    yield from (_tally(tally) for tally in view["requests"] if _strange(tally))
    if view["websockets"] is not None:
        sockets = view["websockets"]
        yield (
            f"websockets  {sockets['opened']} opened, {sockets['cut']} cut, {sockets['closed']} closed in good order, "
            f"{sockets['failed']} not opened"
        )
    if view["losses"]:
        yield ""
        yield show.listing(("AT", "KIND", "REQUEST", "PHASE", "UPSTREAM", ""), map(_loss, view["losses"][:_SHOWN]))
        if len(view["losses"]) > _SHOWN:
            yield f"... and {len(view['losses']) - _SHOWN} more: --json has them"


def _figures(part: Json) -> str:
    status = ", ".join(f"{count} x {code}" for code, count in part["status"].items()) or "no answer"
    errors = "".join(f", {count} {kind}" for kind, count in part["errors"].items() if count)
    latency = part["latency"] or {}
    times = "".join(f", {name} {latency[name]:.1f} ms" for name in ("p50", "p99", "max") if name in latency)
    by = ", ".join(f"{sum(counts.values())} by {who}" for who, counts in part["answered_by"].items())
    return f"{part['sent']} requests: {status}{errors}, {part['lost']} lost{times}" + (f" ({by})" if by else "")


def _strange(tally: Json) -> bool:
    """Whether a request was answered in more than one way, or otherwise than expected."""
    return len({*tally["warm_up"], *tally["rollout"]}) > 1


def _tally(tally: Json) -> str:
    old = " (of the old version)" if tally["compatible"] else ""
    before, after = (
        ", ".join(f"{count} x {code}" for code, count in tally[key].items()) or "none" for key in ("warm_up", "rollout")
    )
    return f"  {tally['request']}{old}: warm-up {before}; since {after}"


def _loss(lost: Json) -> tuple[str, ...]:
    at = time.strftime("%H:%M:%S", time.localtime(lost["at"])) + f"{lost['at'] % 1:.3f}"[1:]
    who = lost["answered_by"] or lost["upstream"] or ""
    return at, lost["kind"], lost["request"], lost["phase"], who, lost["detail"]
