"""What concerns Caddy's configuration."""

from __future__ import annotations

import asyncio
import sys

import click

from proxy.admin import Admin
from trafficd import config as configuration
from trafficd import preview, show
from trafficd.api.views import preview_view
from trafficd.client import Json
from trafficd.commands.common import NOT_ACHIEVED, Options, actor, connected, name_in_path

_BY_FILE = "Of this configuration file, without a daemon."


@click.command()
@click.option("--config", "path", help=f"{_BY_FILE} Nothing is written.")
@connected
def plan(options: Options, path: str | None) -> None:
    """What would be written into Caddy's configuration, before anything is touched."""
    view = _preview(path) if path is not None else options.client().call("GET", "/v1/plan")
    options.say(view, show.plan)
    if any(one["refused"] and one["route"] != "import" for one in view["services"]):
        sys.exit(NOT_ACHIEVED)


def _preview(path: str) -> Json:
    async def look() -> preview.Preview:
        config = configuration.load(path)
        admin = Admin(config.caddy.admin, timeout=config.caddy.timeout)
        try:
            return await preview.preview(config, admin)
        finally:
            await admin.aclose()

    return preview_view(asyncio.run(look())).model_dump(mode="json")


@click.command()
@click.argument("service")
@click.option("--config", "path", help=_BY_FILE)
@connected
def caddyfile(options: Options, service: str, path: str | None) -> None:
    """The snippet that a Caddyfile imports, for route = "import"."""
    if path is not None:
        view = {"service": service, "snippet": preview.caddyfile(configuration.load(path), service)}
    else:
        view = options.client().call("GET", f"/v1/services/{name_in_path(service)}/caddyfile")
    options.say(view, lambda answer: str(answer["snippet"]).rstrip("\n"))


@click.command()
@click.argument("service")
@connected
def leave(options: Options, service: str) -> None:
    """Let Caddy go on with plain upstreams, as if trafficd had never been there."""
    options.say(options.client().call("POST", f"/v1/services/{name_in_path(service)}/leave", {}, actor()), show.service)


@click.command()
@click.argument("service")
@connected
def join(options: Options, service: str) -> None:
    """Steer a service again that was left."""
    options.say(options.client().call("POST", f"/v1/services/{name_in_path(service)}/join", {}, actor()), show.service)


@click.command()
@click.argument("service")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.option("--reason", default="", help="Why; shown in the status.")
@connected
def maintenance(options: Options, service: str, switch: str, reason: str) -> None:
    """Let Caddy answer every request itself, with the text of [services.SERVICE.maintenance]."""
    body = {"on": switch == "on", "reason": reason}
    answer = options.client().call("POST", f"/v1/services/{name_in_path(service)}/maintenance", body, actor())
    options.say(answer, show.service)


COMMANDS = (plan, caddyfile, leave, join, maintenance)
