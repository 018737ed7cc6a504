"""What all commands share: where the daemon is, how errors end, how an answer is printed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import orjson
from click.core import ParameterSource

from proxy.errors import ProxyError
from trafficd import config as configuration
from trafficd.client import Client, Json, RefusedError, read_token
from trafficd.errors import ConfigError, DaemonUnreachableError, TrafficdError

NOT_ACHIEVED, USAGE, UNREACHABLE = 1, 2, 3
ROLLOUT_ID = re.compile(r"r-\d{8}-\d{6}-[0-9a-f]{6}", re.ASCII)


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


def name_in_path(text: str) -> str:
    """A name that may stand in a path. Raises `ConfigError`."""
    try:
        return configuration.parse_name(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def actor() -> dict[str, str]:
    """Who asks: for the journal."""
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or ""
    return {"X-Trafficd-Actor": "".join(c for c in user if c.isascii() and c.isprintable())[:100]}
