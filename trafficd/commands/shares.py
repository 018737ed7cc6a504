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


COMMANDS = (canary, freeze, thaw, hold, release)
