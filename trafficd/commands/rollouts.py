"""Rollouts: begin one, steer it, give it up."""

from __future__ import annotations

import sys

import click

from trafficd import show
from trafficd.client import Client, Json
from trafficd.commands.common import NOT_ACHIEVED, ROLLOUT_ID, Options, actor, connected, name_in_path
from trafficd.commands.report import judged
from trafficd.errors import ConfigError, ConflictError, TrafficdError

# -- rollouts ----------------------------------------------------------------------------------------------


@click.command()
@click.argument("service")
@click.argument("version")
@click.option("--strategy", default="rolling", show_default=True)
@click.option("--message", default="", help="Why; kept in the journal.")
@click.option("--max-parallel", help='Upstreams at a time: a number or "25%".')
@click.option("--steps", help='canary: the shares, such as "1, 5, 25:gate, 100".')
@click.option("--step-min-time", help="canary: how long a step lasts at least.")
@click.option("--step-max-time", help="canary: how long a step waits for its verdict.")
@click.option("--on-inconclusive", type=click.Choice(["hold", "abort", "promote"]), help="canary: without a verdict.")
@click.option("--percent", type=float, help="rainbow: the share that the version keeps.")
@click.option("--keep-old", help="canary, blue_green: how long the old version stays warm.")
@click.option("--watch-time", help="How long a new instance is watched before the next is touched.")
@click.option("--idempotency-key", help="Repeat the command with the same key to join its rollout.")
@click.option("--queue", is_flag=True, help="Where a rollout is live, begin after it.")
@click.option("--supersede", is_flag=True, help="Where a rollout is live, stop it where it stands and take over.")
@click.option("--no-wait", is_flag=True, help="Return when it has begun, or is queued.")
@connected
def deploy(
    options: Options,
    service: str,
    version: str,
    strategy: str,
    message: str,
    idempotency_key: str | None,
    queue: bool,
    supersede: bool,
    no_wait: bool,
    **overrides: str | float | None,
) -> None:
    """Bring a service to a version.

    STRATEGY: rolling replaces one by one; canary gives the new version a growing share beside the old one, as its
    answers allow; blue_green flips at once; rainbow lets it run beside the others with a share of its own; hold lets
    requests wait while a single instance is replaced.
    """
    if queue and supersede:
        raise click.UsageError("--queue waits for the live rollout and --supersede stops it; give one of them")
    body: Json = {"version": version, "strategy": strategy, "message": message}
    if queue or supersede:
        body["if_live"] = "queue" if queue else "supersede"
    body |= {name: value for name, value in overrides.items() if value is not None}
    headers = actor() | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
    client = options.client()
    rollout = client.call("POST", f"/v1/services/{name_in_path(service)}/rollouts", body, headers)
    _follow(options, client, rollout, wait=not no_wait)


@click.command()
@click.argument("service")
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@connected
def rollback(options: Options, service: str, no_wait: bool) -> None:
    """Bring a service back to the version before."""
    client = options.client()
    rollout = client.call("POST", f"/v1/services/{name_in_path(service)}/rollback", {}, actor())
    _follow(options, client, rollout, wait=not no_wait)


def _follow(options: Options, client: Client, rollout: Json, *, wait: bool) -> None:
    if wait:
        try:
            rollout = show.follow(client, rollout, live=not options.as_json)
        except KeyboardInterrupt:
            raise TrafficdError(
                f"no longer watching; the rollout goes on. To give it up: trafficd abort {rollout['id']}"
            ) from None
    options.say(rollout, show.rollout)
    if wait and rollout["state"] != "succeeded" and not options.as_json and judged(client, rollout["id"]):
        click.echo(f"  why, and whom it met: trafficd report {rollout['id']}")
    if wait and rollout["state"] != "succeeded":
        sys.exit(NOT_ACHIEVED)


def _rollout_of(client: Client, name: str | None) -> str:
    """The id of a rollout named by itself or by its service; of the one live rollout where none is named."""
    if name is not None and ROLLOUT_ID.fullmatch(name):
        return name
    if name is not None:
        found = [client.call("GET", f"/v1/services/{name_in_path(name)}")]
    else:
        found = client.call("GET", "/v1/services")["services"]
    live = [one["rollout"] for one in found if one["rollout"] is not None and one["rollout"]["ended_at"] is None]
    if not live:
        pending = "".join(f"; {one['queued']['id']} is pending: name it by its id" for one in found if one["queued"])
        raise ConflictError((f"service {name} has no live rollout" if name else "there is no live rollout") + pending)
    if len(live) > 1:
        which = ", ".join(f"{one['id']} ({one['service']})" for one in live)
        raise ConfigError(f"{len(live)} rollouts are live, so say which, or its service: {which}")
    return str(live[0]["id"])


@click.command()
@click.argument("rollout", required=False)
@click.option("--no-revert", is_flag=True, help="Leave replaced instances as they are, out of traffic.")
@connected
def abort(options: Options, rollout: str | None, no_revert: bool) -> None:
    """All traffic to the old version, at once. ROLLOUT is an id or a service; without it, the live one.

    A verification whose rollout has not begun yet is given up.
    """
    client = options.client()
    try:
        path = f"/v1/rollouts/{_rollout_of(client, rollout)}/abort"
    except ConflictError:
        verification = _verification_of(client, rollout)
        if verification is None:
            raise
        given_up = client.call("POST", f"/v1/verifications/{verification}/abort", {}, actor())
        options.say(given_up, lambda view: f"{view['id']} of {view['service']} is given up")
        return
    options.say(client.call("POST", path, {"revert": not no_revert}, actor()), show.rollout)


def _verification_of(client: Client, service: str | None) -> str | None:
    """The one that is under way; None where there is none, or several."""
    query = "" if service is None else f"?service={name_in_path(service)}"
    found = client.call("GET", f"/v1/verifications{query}")["verifications"]
    live = [one["id"] for one in found if one["state"] == "running"]
    return str(live[0]) if len(live) == 1 else None


@click.command()
@click.argument("rollout", required=False)
@click.option("--all", "everything", is_flag=True, help="All traffic at once, also where the rollout has gates.")
@connected
def promote(options: Options, rollout: str | None, everything: bool) -> None:
    """Go on where a rollout waits for somebody; else give its version all traffic at once.

    ROLLOUT is an id or a service; without it, the live one.
    """
    client = options.client()
    path = f"/v1/rollouts/{_rollout_of(client, rollout)}"
    now = client.call("GET", path)
    # The step that was looked at: should somebody else have promoted it meanwhile, this one goes no further.
    body: Json = {"gate": now["stage"]} if now.get("waits_for_promote") and not everything else {}
    if everything:
        body["all"] = True
    options.say(client.call("POST", f"{path}/promote", body, actor()), show.rollout)


def _action(name: str, text: str) -> click.Command:
    @click.command(name=name, help=text)
    @click.argument("rollout", required=False)
    @connected
    def command(options: Options, rollout: str | None) -> None:
        client = options.client()
        path = f"/v1/rollouts/{_rollout_of(client, rollout)}/{name}"
        options.say(client.call("POST", path, {}, actor()), show.rollout)

    return command


_WHICH = "ROLLOUT is an id or a service; without it, the live one."

COMMANDS = (
    deploy,
    rollback,
    abort,
    _action("pause", f"Begin no further upstream. {_WHICH}"),
    promote,
    _action("resume", f"Go on with a paused rollout. {_WHICH}"),
)
