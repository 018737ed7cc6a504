"""The command line: `trafficd run` is the daemon, every other command a client of its API.

Exit status: 0 done; 1 not achieved (reverted, lost requests, refused); 2 usage or configuration; 3 daemon not
reachable.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time

import click
import uvloop

import trafficd
from trafficd import config as configuration
from trafficd.client import Client, Json
from trafficd.commands.common import Options, connected, exit_status
from trafficd.errors import TrafficdError
from trafficd.listen import hand_over

_RELOAD = 30.0  # s that a reload may take


class _Commands(click.Group):
    """The clients of the API beside the daemon itself, imported when one is asked for: what they need for terminals
    would only lie in the daemon's memory, and the daemon would only hold up the clients."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._clients().get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._clients()})

    def _clients(self) -> dict[str, click.Command]:
        from trafficd.commands import caddy, init, judge, look, report, rollouts, shares, site, upstreams, verify

        several = (*look.COMMANDS, *upstreams.COMMANDS, *rollouts.COMMANDS, *shares.COMMANDS, *caddy.COMMANDS)
        return {
            command.name or "": command
            for command in (*several, init.init, judge.judge, report.report, site.site, verify.verify)
        }


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(trafficd.__version__)
def main() -> None:
    """Zero-downtime deploys behind Caddy."""


@main.command()
@click.option("--config", "path", help="Configuration file. [$TRAFFICD_CONFIG, else /etc/trafficd/trafficd.toml]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def run(path: str | None, log_level: str) -> None:
    """Run the daemon. SIGTERM ends it, SIGINT a Caddy of our own with it; SIGHUP takes up a changed configuration."""
    # One that comes from now on waits until the daemon can hear it, and does not end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "asyncio", "asyncssh"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It tells of every line that is no HTTP, with a traceback; our own errors are logged by the API.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    from trafficd import daemon

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


@main.command()
@click.option("--fast", is_flag=True, help="Shorter waits: the whole in about ten seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(fast: bool, as_json: bool) -> None:
    """A real Caddy, three instances, load, and a deploy: nothing is lost."""
    from trafficd.demo import run as demonstration  # the one command that also needs the load generator

    with exit_status():
        sys.exit(demonstration.main(fast=fast, as_json=as_json))


if __name__ == "__main__":
    main()
