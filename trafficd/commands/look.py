"""What is and what was."""

from __future__ import annotations

import click

from trafficd import show
from trafficd.client import Json
from trafficd.commands.common import Options, connected, name_in_path

# -- state -------------------------------------------------------------------------------------------------


@click.command()
@click.argument("service", required=False)
@connected
def status(options: Options, service: str | None) -> None:
    """What runs where, what has traffic, and what is waited for."""
    client = options.client()
    if service is None:
        options.say(client.call("GET", "/v1/services"), lambda answer: show.services(answer["services"]))
    else:
        options.say(client.call("GET", f"/v1/services/{name_in_path(service)}"), show.service)


@click.command()
@click.argument("service", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@connected
def history(options: Options, service: str | None, limit: int) -> None:
    """The newest rollouts."""
    found = _newest(options, "rollouts", service, limit)
    options.say(found, lambda answer: show.rollouts(answer["rollouts"]))


@click.command()
@click.argument("service", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@connected
def events(options: Options, service: str | None, limit: int) -> None:
    """The newest lines of the journal."""
    found = _newest(options, "events", service, limit)
    options.say(found, lambda answer: show.events(answer["events"]))


def _newest(options: Options, what: str, service: str | None, limit: int) -> Json:
    of = f"&service={name_in_path(service)}" if service else ""
    return options.client().call("GET", f"/v1/{what}?limit={limit}{of}")


COMMANDS = (status, history, events)
