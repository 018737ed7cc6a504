"""Who has traffic, and whether rollouts may begin."""

from __future__ import annotations

import click

from trafficd import show
from trafficd.commands.common import Options, actor, connected, name_in_path

# -- shares ------------------------------------------------------------------------------------------------


@click.command()
@click.argument("service")
@click.argument("percent", type=click.FloatRange(0, 100))
@connected
def canary(options: Options, service: str, percent: float) -> None:
    """Give the upstreams of another version than the stable one this share."""
    answer = options.client().call("PUT", f"/v1/services/{name_in_path(service)}/canary", {"percent": percent}, actor())
    options.say(answer, show.service)


@click.command()
@click.argument("service")
@click.argument("version")
@click.argument("percent", type=click.FloatRange(0, 100))
@connected
def share(options: Options, service: str, version: str, percent: float) -> None:
    """Give a version beside the stable one a share of its own."""
    body = {"version": version, "percent": percent}
    options.say(
        options.client().call("PUT", f"/v1/services/{name_in_path(service)}/shares", body, actor()), show.service
    )


@click.command()
@click.argument("service")
@click.argument("version")
@connected
def retire(options: Options, service: str, version: str) -> None:
    """Take a version beside the stable one out of traffic, drain its instances, and stop them."""
    path, body = f"/v1/services/{name_in_path(service)}/retire", {"version": version}
    options.say(options.client().call("POST", path, body, actor()), show.service)


@click.command()
@click.argument("service")
@click.argument("pin")
@click.argument("version", required=False)
@connected
def pin(options: Options, service: str, pin: str, version: str | None) -> None:
    """Lead requests with a configured pin to a version; without VERSION, to where all others go."""
    path = f"/v1/services/{name_in_path(service)}/pins/{name_in_path(pin)}"
    options.say(options.client().call("PUT", path, {"version": version}, actor()), show.service)


@click.command()
@click.argument("service")
@click.option("--reason", required=True, help="Why no rollout is to begin; shown to whoever tries.")
@click.option("--for", "duration", help='How long, such as "12h".')
@click.option("--until", help="Until when, such as 2026-12-27T08:00:00+01:00.")
@connected
def freeze(options: Options, service: str, reason: str, duration: str | None, until: str | None) -> None:
    """Let no rollout begin; a rollback may. Without --for and --until: until thawed."""
    given = {"reason": reason, "for": duration, "until": until}
    body = {key: value for key, value in given.items() if value is not None}
    answer = options.client().call("POST", f"/v1/services/{name_in_path(service)}/freeze", body, actor())
    options.say(answer, show.service)


@click.command()
@click.argument("service")
@connected
def thaw(options: Options, service: str) -> None:
    """Let rollouts begin again."""
    options.say(options.client().call("POST", f"/v1/services/{name_in_path(service)}/thaw", {}, actor()), show.service)


@click.command()
@click.argument("service")
@connected
def hold(options: Options, service: str) -> None:
    """Let requests wait at the proxy, with nobody behind it."""
    options.say(options.client().call("POST", f"/v1/services/{name_in_path(service)}/hold", {}, actor()), show.service)


@click.command()
@click.argument("service")
@connected
def release(options: Options, service: str) -> None:
    """Let waiting requests go."""
    options.say(
        options.client().call("POST", f"/v1/services/{name_in_path(service)}/release", {}, actor()), show.service
    )


COMMANDS = (canary, share, retire, pin, freeze, thaw, hold, release)
