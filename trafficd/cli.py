"""The command line: `trafficd run` is the daemon, every other command a client of its API.

Exit status: 0 done; 1 not achieved (reverted, lost requests, refused); 2 usage or configuration; 3 daemon not
reachable.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import orjson
import uvloop
from click.core import ParameterSource

import trafficd
from proxy.admin import Admin
from proxy.errors import ProxyError
from trafficd import cli_site, cli_verify, daemon, preview, show
from trafficd import config as configuration
from trafficd.api.views import preview_view
from trafficd.client import Client, Json, RefusedError, read_token
from trafficd.errors import ConfigError, ConflictError, DaemonUnreachableError, TrafficdError
from trafficd.listen import hand_over

_RELOAD = 30.0  # s that a reload may take

NOT_ACHIEVED, USAGE, UNREACHABLE = 1, 2, 3

_ROLLOUT_ID = re.compile(r"r-\d{8}-\d{6}-[0-9a-f]{6}", re.ASCII)


@contextmanager
def exit_status(*, as_json: bool = False) -> Iterator[None]:
    """Turn errors into a message on stderr and an exit status; with `as_json` also into an object on stdout."""
    try:
        yield
    except (TrafficdError, ProxyError) as error:
        if as_json:
            title, status = getattr(error, "title", "Not achieved"), getattr(error, "status", 500)
            click.echo(to_json({"title": title, "status": status, "detail": str(error)}))
        click.echo(f"trafficd: {error}", err=True)
        sys.exit(_exit_status(error))


def _exit_status(error: Exception) -> int:
    match error:
        case DaemonUnreachableError():
            return UNREACHABLE
        case ConfigError():
            return USAGE
        # The daemon is well and the request is not: another name, another value, another token.
        case RefusedError() if error.status < 500 and error.status != 409:
            return USAGE
        case _:
            return NOT_ACHIEVED


class Options:
    """Where the daemon is, and how to answer."""

    def __init__(self, socket: str, url: str | None, token_file: str | None, as_json: bool) -> None:
        self.socket, self.url, self.token_file, self.as_json = socket, url, token_file, as_json

    def client(self) -> Client:
        token = read_token(self.token_file) if self.token_file else None
        client = Client(self.socket, self.url, token)
        click.get_current_context().call_on_close(client.close)
        return client

    def say(self, answer: Json, text: Callable[[Json], str]) -> None:
        click.echo(to_json(answer) if self.as_json else text(answer))


def to_json(value: Json) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def connected(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every client command takes."""

    @click.option(
        "--socket",
        envvar="TRAFFICD_SOCKET",
        default=configuration.DEFAULT_SOCKET,
        show_default=True,
        help="The daemon's unix socket.",
    )
    @click.option("--url", envvar="TRAFFICD_URL", help="The daemon over TCP, with --token-file.")
    @click.option("--token-file", envvar="TRAFFICD_TOKEN_FILE", help="File that holds the daemon's token.")
    @click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
    @click.pass_context
    def wrapped(
        context: click.Context, /, socket: str, url: str | None, token_file: str | None, as_json: bool, **rest: Any
    ) -> None:
        if context.get_parameter_source("socket") is ParameterSource.COMMANDLINE:
            # Said now, so it goes before what the environment says: not another daemon than the one meant.
            if context.get_parameter_source("url") is ParameterSource.COMMANDLINE:
                raise click.UsageError("--socket and --url name two daemons; give one of them")
            url = None
        with exit_status(as_json=as_json):
            context.invoke(command, Options(socket, url, token_file, as_json), **rest)

    wrapped.__doc__ = command.__doc__
    wrapped.__name__ = command.__name__
    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(trafficd.__version__)
def main() -> None:
    """Zero-downtime deploys behind Caddy."""


@main.command()
@click.option("--config", "path", help="Configuration file. [$TRAFFICD_CONFIG, else /etc/trafficd/trafficd.toml]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def run(path: str | None, log_level: str) -> None:
    """Run the daemon. SIGTERM ends it, SIGINT a Caddy of our own with it; SIGHUP takes up a changed configuration."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It tells of every line that is no HTTP, with a traceback; our own errors are logged by the API.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    with exit_status():
        path = path or configuration.default_path()
        loaded = configuration.load(path)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            sockets = loop.run(daemon.run(loaded, path))
        if sockets is not None:
            arguments = [sys.executable, "-m", "trafficd", "run", "--config", path, "--log-level", log_level]
            # One that comes from now on waits for the next life, which would be ended by it until it is ready.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            os.execve(sys.executable, arguments, {**os.environ, **hand_over(sockets)})


@main.command()
@connected
def reload(options: Options) -> None:
    """Let the daemon take up its changed configuration, without a gap."""
    client = options.client()
    before = client.call("GET", "/healthz")["started_at"]
    client.call("POST", "/v1/reload", {})
    options.say(_restarted(client, before), lambda health: f"reloaded: {health['services']} services")


def _restarted(client: Client, before: float) -> Json:
    """The daemon's health in its next life."""
    deadline = time.monotonic() + _RELOAD
    while True:
        health = client.call("GET", "/healthz")
        if health["started_at"] != before:
            return health
        if time.monotonic() > deadline:
            raise TrafficdError(f"the daemon did not start again within {_RELOAD:g} s; look at its log")
        time.sleep(0.1)


# -- Caddy's configuration ---------------------------------------------------------------------------------

_BY_FILE = "Of this configuration file, without a daemon."


@main.command()
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


@main.command()
@click.argument("service")
@click.option("--config", "path", help=_BY_FILE)
@connected
def caddyfile(options: Options, service: str, path: str | None) -> None:
    """The snippet that a Caddyfile imports, for route = "import"."""
    if path is not None:
        view = {"service": service, "snippet": preview.caddyfile(configuration.load(path), service)}
    else:
        view = options.client().call("GET", f"/v1/services/{_name(service)}/caddyfile")
    options.say(view, lambda answer: str(answer["snippet"]).rstrip("\n"))


@main.command()
@click.argument("service")
@connected
def leave(options: Options, service: str) -> None:
    """Let Caddy go on with plain upstreams, as if trafficd had never been there."""
    options.say(options.client().call("POST", f"/v1/services/{_name(service)}/leave", {}, _actor()), show.service)


@main.command()
@click.argument("service")
@connected
def join(options: Options, service: str) -> None:
    """Steer a service again that was left."""
    options.say(options.client().call("POST", f"/v1/services/{_name(service)}/join", {}, _actor()), show.service)


@main.command()
@click.argument("service")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.option("--reason", default="", help="Why; shown in the status.")
@connected
def maintenance(options: Options, service: str, switch: str, reason: str) -> None:
    """Let Caddy answer every request itself, with the text of [services.SERVICE.maintenance]."""
    body = {"on": switch == "on", "reason": reason}
    answer = options.client().call("POST", f"/v1/services/{_name(service)}/maintenance", body, _actor())
    options.say(answer, show.service)


# -- state -------------------------------------------------------------------------------------------------


@main.command()
@click.argument("service", required=False)
@connected
def status(options: Options, service: str | None) -> None:
    """What runs where, what has traffic, and what is waited for."""
    client = options.client()
    if service is None:
        options.say(client.call("GET", "/v1/services"), lambda answer: show.services(answer["services"]))
    else:
        options.say(client.call("GET", f"/v1/services/{_name(service)}"), show.service)


@main.command()
@click.argument("service", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@connected
def history(options: Options, service: str | None, limit: int) -> None:
    """The newest rollouts."""
    query = f"?limit={limit}" + (f"&service={_name(service)}" if service else "")
    options.say(options.client().call("GET", f"/v1/rollouts{query}"), lambda answer: show.rollouts(answer["rollouts"]))


@main.command()
@click.argument("service", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@connected
def events(options: Options, service: str | None, limit: int) -> None:
    """The newest lines of the journal."""
    query = f"?limit={limit}" + (f"&service={_name(service)}" if service else "")
    options.say(options.client().call("GET", f"/v1/events{query}"), lambda answer: show.events(answer["events"]))


# -- upstreams ---------------------------------------------------------------------------------------------


@main.command()
@click.argument("service")
@click.argument("upstream")
@click.option("--timeout", help='How long open requests may take, such as "30s". [drain_timeout]')
@click.option("--no-wait", is_flag=True, help="Return when no new request goes there.")
@click.option("--force", is_flag=True, help="Even if it is the last ready one.")
@connected
def drain(options: Options, service: str, upstream: str, timeout: str | None, no_wait: bool, force: bool) -> None:
    """Take an upstream out of traffic and wait for its open requests."""
    body = {"timeout": timeout, "wait": not no_wait, "force": force}
    path = f"/v1/services/{_name(service)}/upstreams/{_name(upstream)}/drain"
    answer = options.client().call("POST", path, body, _actor())
    options.say(answer, lambda report: show.drained(upstream, report))
    if not no_wait and not answer["drained"]:
        sys.exit(NOT_ACHIEVED)


@main.command()
@click.argument("service")
@click.argument("upstream")
@click.option("--version", help="The version that runs there now.")
@click.option("--dial", help="The address it runs at now.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the gate.")
@connected
def ready(options: Options, service: str, upstream: str, version: str | None, dial: str | None, no_wait: bool) -> None:
    """Put an upstream into traffic, after its gate."""
    body = {"version": version, "dial": dial, "wait": not no_wait}
    path = f"/v1/services/{_name(service)}/upstreams/{_name(upstream)}/ready"
    options.say(options.client().call("POST", path, body, _actor()), show.upstream)


# -- rollouts ----------------------------------------------------------------------------------------------


@main.command()
@click.argument("service")
@click.argument("version")
@click.option("--strategy", default="rolling", show_default=True)
@click.option("--message", default="", help="Why; kept in the journal.")
@click.option("--max-parallel", help='Upstreams at a time: a number or "25%".')
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
    max_parallel: str | None,
    idempotency_key: str | None,
    queue: bool,
    supersede: bool,
    no_wait: bool,
) -> None:
    """Bring a service to a version."""
    if queue and supersede:
        raise click.UsageError("--queue waits for the live rollout and --supersede stops it; give one of them")
    body: Json = {"version": version, "strategy": strategy, "message": message}
    if queue or supersede:
        body["if_live"] = "queue" if queue else "supersede"
    if max_parallel is not None:
        body["max_parallel"] = max_parallel
    headers = _actor() | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
    client = options.client()
    rollout = client.call("POST", f"/v1/services/{_name(service)}/rollouts", body, headers)
    _follow(options, client, rollout, wait=not no_wait)


@main.command()
@click.argument("service")
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@connected
def rollback(options: Options, service: str, no_wait: bool) -> None:
    """Bring a service back to the version before."""
    client = options.client()
    rollout = client.call("POST", f"/v1/services/{_name(service)}/rollback", {}, _actor())
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
    if wait and rollout["state"] != "succeeded":
        sys.exit(NOT_ACHIEVED)


def _rollout_of(client: Client, name: str | None) -> str:
    """The id of a rollout named by itself or by its service; of the one live rollout where none is named."""
    if name is not None and _ROLLOUT_ID.fullmatch(name):
        return name
    if name is not None:
        found = [client.call("GET", f"/v1/services/{_name(name)}")]
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


@main.command()
@click.argument("rollout", required=False)
@click.option("--no-revert", is_flag=True, help="Leave replaced instances as they are, out of traffic.")
@connected
def abort(options: Options, rollout: str | None, no_revert: bool) -> None:
    """All traffic to the old version, at once. ROLLOUT is an id or a service; without it, the live one."""
    client = options.client()
    path = f"/v1/rollouts/{_rollout_of(client, rollout)}/abort"
    options.say(client.call("POST", path, {"revert": not no_revert}, _actor()), show.rollout)


def _action(name: str, text: str) -> None:
    @main.command(name=name, help=text)
    @click.argument("rollout", required=False)
    @connected
    def command(options: Options, rollout: str | None) -> None:
        client = options.client()
        path = f"/v1/rollouts/{_rollout_of(client, rollout)}/{name}"
        options.say(client.call("POST", path, {}, _actor()), show.rollout)


_WHICH = "ROLLOUT is an id or a service; without it, the live one."
_action("pause", f"Begin no further upstream. {_WHICH}")
_action("resume", f"Go on with a paused rollout. {_WHICH}")
_action("promote", f"Give the new version all traffic. {_WHICH}")


# -- shares ------------------------------------------------------------------------------------------------


@main.command()
@click.argument("service")
@click.argument("percent", type=click.FloatRange(0, 100))
@connected
def canary(options: Options, service: str, percent: float) -> None:
    """Give the upstreams of another version than the stable one this share."""
    answer = options.client().call("PUT", f"/v1/services/{_name(service)}/canary", {"percent": percent}, _actor())
    options.say(answer, show.service)


@main.command()
@click.argument("service")
@click.option("--reason", required=True, help="Why no rollout is to begin; shown to whoever tries.")
@click.option("--for", "duration", help='How long, such as "12h".')
@click.option("--until", help="Until when, such as 2026-12-27T08:00:00+01:00.")
@connected
def freeze(options: Options, service: str, reason: str, duration: str | None, until: str | None) -> None:
    """Let no rollout begin; a rollback may. Without --for and --until: until thawed."""
    given = {"reason": reason, "for": duration, "until": until}
    body = {key: value for key, value in given.items() if value is not None}
    answer = options.client().call("POST", f"/v1/services/{_name(service)}/freeze", body, _actor())
    options.say(answer, show.service)


@main.command()
@click.argument("service")
@connected
def thaw(options: Options, service: str) -> None:
    """Let rollouts begin again."""
    options.say(options.client().call("POST", f"/v1/services/{_name(service)}/thaw", {}, _actor()), show.service)


@main.command()
@click.argument("service")
@connected
def hold(options: Options, service: str) -> None:
    """Let requests wait at the proxy, with nobody behind it."""
    options.say(options.client().call("POST", f"/v1/services/{_name(service)}/hold", {}, _actor()), show.service)


@main.command()
@click.argument("service")
@connected
def release(options: Options, service: str) -> None:
    """Let waiting requests go."""
    options.say(options.client().call("POST", f"/v1/services/{_name(service)}/release", {}, _actor()), show.service)


@main.command()
@click.option("--fast", is_flag=True, help="Shorter waits: the whole in about ten seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(fast: bool, as_json: bool) -> None:
    """A real Caddy, three instances, load, and a deploy: nothing is lost."""
    from trafficd.demo import run as demonstration  # the one command that also needs the load generator

    with exit_status():
        sys.exit(demonstration.main(fast=fast, as_json=as_json))


def _name(text: str) -> str:
    """A name that may stand in a path. Raises `ConfigError`."""
    try:
        return configuration.parse_name(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _actor() -> dict[str, str]:
    """Who asks: for the journal."""
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or ""
    return {"X-Trafficd-Actor": "".join(c for c in user if c.isascii() and c.isprintable())[:100]}


cli_site.register(main, connected)
cli_verify.register(main, connected, _actor)

if __name__ == "__main__":
    main()
