"""`trafficd report`: what became of a rollout, and why, as a client of the API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click

from trafficd import show
from trafficd.client import Client, Json, RefusedError
from trafficd.commands.common import ROLLOUT_ID, Options, connected, name_in_path
from trafficd.errors import ConfigError, NotFoundError


@click.command()
@click.argument("rollout", required=False)
@click.option("--html", "page", metavar="FILE", help="Write it as a page to FILE; - is stdout.")
@connected
def report(options: Options, rollout: str | None, page: str | None) -> None:
    """Who did what, what the judge said, and whom the new version answered for how long.

    ROLLOUT is an id, or a service for its newest one; without it, the newest of all.
    """
    if page is not None and options.as_json:
        raise click.UsageError("--json and --html are two forms of the same; give one of them")
    client = options.client()
    path = f"/v1/rollouts/{_named(client, rollout)}/report"
    if page is None:
        options.say(client.call("GET", path), as_text)
        return
    _write(client.fetch(f"{path}?format=html"), page)


def _named(client: Client, name: str | None) -> str:
    if name is not None and ROLLOUT_ID.fullmatch(name):
        return name
    of = "" if name is None else f"&service={name_in_path(name)}"
    found = client.call("GET", f"/v1/rollouts?limit=1{of}")["rollouts"]
    if not found:
        raise NotFoundError("there has been no rollout" + (f" of {name}" if name else ""))
    return str(found[0]["id"])


def _write(body: bytes, page: str) -> None:
    if page == "-":
        click.echo(body, nl=False)
        return
    try:
        Path(page).write_bytes(body)
    except OSError as error:
        raise ConfigError(f"--html {page}: cannot be written: {error.strerror}") from error


def judged(client: Client, rollout: str) -> bool:
    """Whether the answers of a rollout were judged, as far as the daemon can say."""
    try:
        return client.call("GET", f"/v1/rollouts/{rollout}/report")["judge"] is not None
    except RefusedError:
        return False


# -- as text -----------------------------------------------------------------------------------------------


def as_text(view: Json) -> str:
    """How it ended first, then why, then the figures."""
    return "\n".join(_lines(view))


def _lines(view: Json) -> Iterator[str]:
    asked = view["asked"]
    yield f"{view['state'].upper()}: {view['service']} to {asked['version']} ({view['id']})"
    if view["reason"]:
        yield f"  {view['reason']}"
    yield from (f"  warning: {text}" for text in view["warnings"] if text not in view["reason"])
    by = f" by {asked['actor']}" if asked["actor"] else ""
    note = f": {asked['message']}" if asked["message"] else ""
    yield f"asked       {asked['strategy']}, {_clock(view['started_at'])}{by}{note}"
    yield f"took        {view['seconds']:.1f} s, {len(view['steps'])} steps{_cut(view['cut'])}"
    if view["verification"] is not None:
        found = view["verification"]
        yield f"verified    {found['id']} {found['state']}: {found['sent']} requests sent, {found['lost']} lost"
    judge = view["judge"]
    if judge is None:
        yield f"not judged  {view['not_judged']}"
    else:
        yield from _judged(judge)
    if view["stages"]:
        yield ""
        columns = ("STAGE", "BEGAN", "TOOK", "VERDICT", "REQUESTS", "BAD", "CLIENTS", "HAD TRAFFIC")
        yield show.listing(columns, map(_stage, view["stages"]))
    if judge is not None:
        yield ""
        rows = [row for stage in view["stages"] for row in _metrics(stage)]
        yield show.listing(("STAGE", "METRIC", "EVIDENCE", "BAD OF NEW", "BAD OF STABLE"), rows)
        yield f"errors fail at {judge['evidence']['needed']:g}, and so does the mean of all others"


def _judged(judge: Json) -> Iterator[str]:
    yield f"judge       {judge['verdict']}: {judge['why']}"
    seen = judge["exposure"]
    requests = f"{seen['requests']} requests ({seen['bad']} bad)"
    yield f"exposed     {_clients(seen)} clients, {requests}, for {seen['seconds']:.1f} s"
    failure, worst = judge["failure"], judge["worst_route"]
    if failure is not None:
        last = f", the last {failure['seconds']:.3f} s later" if failure["last_after"] is not None else ""
        cut = f"; {failure['cut_after']} were cut short, begun who knows when" if failure["cut_after"] else ""
        yield f"after FAIL  {failure['requests_after']} requests began on the new version{last}{cut}"
    if worst is not None:
        yield f"worst route {worst['route']}: {_of(worst['canary'])} bad, of the stable version {_of(worst['stable'])}"
    for gap in judge["evidence"]["gaps"]:
        yield f"gap         {gap['why']}, {_clock(gap['since'])}, for {gap['until'] - gap['since']:.1f} s"


def _cut(cut: Json) -> str:
    if not any(cut.values()):
        return ""
    return f"; {cut['requests']} requests and {cut['streams']} streams were cut by drains"


def _clients(seen: Json) -> str:
    return f"{'at least ' if seen['at_least'] else ''}{seen['clients']}"


def _of(counts: Json) -> str:
    return f"{counts['bad']} of {counts['total']}"


def _name(stage: Json) -> str:
    return "-" if stage["percent"] is None else f"{stage['number'] + 1}: {stage['percent']:g} %"


def _stage(stage: Json) -> tuple[str, ...]:
    took = "goes on" if stage["seconds"] is None else f"{stage['seconds']:.1f} s"
    begun = (_name(stage), _clock(stage["begin"]).partition(" ")[2], took)
    verdict = "not judged" if stage["judge"] is None else stage["judge"]["verdict"]
    seen = stage["exposure"]
    if seen is None:
        return (*begun, verdict, "-", "-", "-", "-")
    return (*begun, verdict, str(seen["requests"]), str(seen["bad"]), _clients(seen), f"{seen['seconds']:.1f} s")


def _metrics(stage: Json) -> Iterator[tuple[str, ...]]:
    for one in stage["judge"]["metrics"] if stage["judge"] is not None else ():
        yield _name(stage), one["name"], f"{one['evidence']:.3g}", _of(one["canary"]), _of(one["stable"])


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
