"""`trafficd init`: a configuration drafted from the Caddy and the containers that are there."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import click

from trafficd import config as configuration
from trafficd.commands.common import exit_status, to_json
from trafficd.config import values
from trafficd.config.docker import DEFAULT_ENGINE, parse_engine
from trafficd.draft import summary
from trafficd.draft.look import Sources, look
from trafficd.draft.services import Draft, draft
from trafficd.draft.writing import document
from trafficd.errors import ConfigError, TrafficdError
from trafficd.swap.docker.engines import Certificates

_STDOUT = "-"


@click.command()
@click.option("--caddy", metavar="URL", help="Admin API of a running Caddy. [http://127.0.0.1:2019]")
@click.option(
    "--caddyfile",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Read this file instead. [where no Caddy runs: ./Caddyfile, /etc/caddy/Caddyfile]",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="URL",
    help=f"Docker or Podman: unix://, ssh://user@host, tcp://; repeatable. [$DOCKER_HOST, {DEFAULT_ENGINE}]",
)
@click.option(
    "--output",
    metavar="FILE",
    default="trafficd.toml",
    show_default=True,
    help='Where to write; "-" is standard output.',
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Tell what was found as JSON.")
def init(
    caddy: str | None, caddyfile: Path | None, engines: tuple[str, ...], output: str, force: bool, as_json: bool
) -> None:
    """Write a first configuration, from the Caddy and the containers that are there.

    Only looks: Caddy's configuration, the Engines' lists, and one GET of each instance's health page. Nothing is
    changed but the file that is written.
    """
    with exit_status(as_json=as_json):
        _refuse_clash(caddy, caddyfile, output, force, as_json)
        sources = Sources(_admin(caddy), caddyfile, _engines(engines), _certificates())
        found = draft(asyncio.run(look(sources)))
        _refuse_nothing(found)
        text = document(found)
        _check(text)
        path = None if output == _STDOUT else output
        if path is None:
            click.echo(text, nl=False)
        else:
            _write(Path(path), text)
        said = to_json(summary.view(found, path)) if as_json else summary.text(found, path)
        click.echo(said, err=path is None)


def _refuse_clash(caddy: str | None, caddyfile: Path | None, output: str, force: bool, as_json: bool) -> None:
    if caddy is not None and caddyfile is not None:
        raise ConfigError("--caddy and --caddyfile name two configurations; give one of them")
    if as_json and output == _STDOUT:
        raise ConfigError("--json and --output - would both go to standard output; give a file")
    if output != _STDOUT and not force and Path(output).exists():
        raise ConfigError(f"{output} is there already; --force writes over it, --output FILE writes elsewhere")


def _admin(caddy: str | None) -> str | None:
    try:
        return None if caddy is None else values.admin(caddy)
    except ValueError as error:
        raise ConfigError(f"--caddy: {error}") from error


def _engines(given: tuple[str, ...]) -> tuple[str, ...]:
    asked = given or (os.environ.get("DOCKER_HOST") or DEFAULT_ENGINE,)
    try:
        return tuple(dict.fromkeys(map(parse_engine, asked)))
    except ValueError as error:
        raise ConfigError(f"{'--engine' if given else 'the variable DOCKER_HOST'}: {error}") from error


def _certificates() -> Certificates | None:
    """Those that Docker's own client would show."""
    directory = os.environ.get("DOCKER_CERT_PATH")
    if not directory:
        return None
    return Certificates(*(Path(directory).absolute() / name for name in ("ca.pem", "cert.pem", "key.pem")))


def _refuse_nothing(found: Draft) -> None:
    if found.services:
        return
    reasons = "".join(f"\n  - {one.candidate}: {one.reason}" for one in found.unfit)
    raise TrafficdError(
        f"{found.seen.origin} has no reverse_proxy that trafficd could deploy behind, so nothing is written."
        + (f" It has:{reasons}" if reasons else " It has none at all")
    )


def _check(text: str) -> None:
    """What is written can be loaded. Raises `TrafficdError` where it cannot: that is nobody's fault but ours."""
    with tempfile.TemporaryDirectory(prefix="trafficd-init-") as directory:
        file = Path(directory) / "trafficd.toml"
        file.write_text(text, encoding="utf-8")
        try:
            configuration.load(file)
        except ConfigError as error:
            raise TrafficdError(
                f"the drafted configuration does not load, which is a fault of trafficd init (or of a TRAFFICD_* "
                f"variable that is set here), so nothing is written. Please report it with this: {error}"
            ) from error


def _write(path: Path, text: str) -> None:
    """Whole or not at all: what is written over stays where the disk is full."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        scratch.unlink(missing_ok=True)
