"""What concerns Caddy's configuration."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

import click

from proxy.admin import Admin
from trafficd import config as configuration
from trafficd import preview, show
from trafficd.api.forecast import forecast_view, wanted
from trafficd.api.views import preview_view
from trafficd.canary.forecast import forecast
from trafficd.client import Client, Json, RefusedError
from trafficd.commands.common import NOT_ACHIEVED, Options, actor, connected, name_in_path
from trafficd.errors import ConfigError, InvalidError

_NOT_FOUND = 404
_BY_FILE = "Of this configuration file, without a daemon."


@click.command()
@click.option("--config", "path", help=f"{_BY_FILE} Nothing is written.")
@click.option("--within", default="5m", show_default=True, help="The time that a canary's verdict is wanted in.")
@connected
def plan(options: Options, path: str | None, within: str) -> None:
    """What would be written into Caddy's configuration, before anything is touched.

    And how soon a canary of each service would be judged, with its present traffic.
    """
    view = _of_file(path, within) if path is not None else _of_daemon(options.client(), within)
    options.say(view, show.plan)
    if any(one["refused"] and one["route"] != "import" for one in view["services"]):
        sys.exit(NOT_ACHIEVED)


def _of_daemon(client: Client, within: str) -> Json:
    view = client.call("GET", "/v1/plan")
    for one in view["services"]:
        query = urlencode({"within": within})
        try:
            one["forecast"] = client.call("GET", f"/v1/services/{one['service']}/forecast?{query}")
        except RefusedError as error:
            if error.status != _NOT_FOUND:  # a service that the daemon takes up with its next reload
                raise
            one["forecast"] = None
    return view


def _of_file(path: str, within: str) -> Json:
    config, seconds = configuration.load(path), _wanted(within)
    log = None if config.caddy.access_log is None else Path(config.caddy.access_log)
    view = _preview(config)
    for one in view["services"]:
        found = forecast(one["service"], config.services[one["service"]], log, time.time(), within=seconds)
        one["forecast"] = forecast_view(found).model_dump(mode="json")
    return view


def _wanted(within: str) -> float:
    try:
        return wanted(within)
    except InvalidError as error:
        raise ConfigError(f"--{error}") from error


def _preview(config: configuration.Config) -> Json:
    async def look() -> preview.Preview:
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
