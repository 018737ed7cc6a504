"""One upstream, by hand."""

from __future__ import annotations

import sys

import click

from trafficd import show
from trafficd.commands.common import NOT_ACHIEVED, Options, actor, connected, name_in_path

# -- upstreams ---------------------------------------------------------------------------------------------


@click.command()
@click.argument("service")
@click.argument("upstream")
@click.option("--timeout", help='How long open requests may take, such as "30s". [drain_timeout]')
@click.option("--no-wait", is_flag=True, help="Return when no new request goes there.")
@click.option("--force", is_flag=True, help="Even if it is the last ready one.")
@connected
def drain(options: Options, service: str, upstream: str, timeout: str | None, no_wait: bool, force: bool) -> None:
    """Take an upstream out of traffic and wait for its open requests."""
    body = {"timeout": timeout, "wait": not no_wait, "force": force}
    path = f"/v1/services/{name_in_path(service)}/upstreams/{name_in_path(upstream)}/drain"
    answer = options.client().call("POST", path, body, actor())
    options.say(answer, lambda report: show.drained(upstream, report))
    if not no_wait and not answer["drained"]:
        sys.exit(NOT_ACHIEVED)


@click.command()
@click.argument("service")
@click.argument("upstream")
@click.option("--version", help="The version that runs there now.")
@click.option("--dial", help="The address it runs at now.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the gate.")
@connected
def ready(options: Options, service: str, upstream: str, version: str | None, dial: str | None, no_wait: bool) -> None:
    """Put an upstream into traffic, after its gate."""
    body = {"version": version, "dial": dial, "wait": not no_wait}
    path = f"/v1/services/{name_in_path(service)}/upstreams/{name_in_path(upstream)}/ready"
    options.say(options.client().call("POST", path, body, actor()), show.upstream)


COMMANDS = (drain, ready)
