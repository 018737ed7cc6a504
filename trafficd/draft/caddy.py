"""Caddy's configuration, of the Caddy that runs or of a file. Where neither can be read there is nothing to draft from,
so that is an error."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import orjson

from proxy.admin import Admin
from proxy.errors import CaddyUnreachableError
from proxy.handler import Json
from proxy.server import find_binary
from trafficd.config.sections import CaddySection
from trafficd.draft.services import Seen
from trafficd.errors import ConfigError

_CADDY = 5.0  # s for one call of the admin API
_ADAPT = 30.0  # s


async def found(
    admin: str | None, file: Path | None, usual: Sequence[Path], usual_admin: str = CaddySection().admin
) -> Seen:
    """Caddy's configuration: of the `file`; else of the Caddy at `admin`; where neither is given of the one at
    `usual_admin`, else of the first of the `usual` files. Raises `ConfigError` or `ProxyError`."""
    if file is not None:
        return await asyncio.to_thread(of_file, file)
    url = admin or usual_admin
    try:
        config = await _running(url)
    except CaddyUnreachableError:
        if admin is not None:
            raise
        return await asyncio.to_thread(_instead, usual, f"no Caddy answers at {url}")
    if config:
        return Seen(config, url, f"the running Caddy at {url}", running=True)
    empty = f"the Caddy at {url} has an empty configuration"
    if admin is not None:
        raise ConfigError(f"{empty}; load one, or give --caddyfile PATH")
    return await asyncio.to_thread(_instead, usual, empty)


async def _running(url: str) -> Json | None:
    admin = Admin(url, timeout=_CADDY)
    try:
        config, _ = await admin.config()
        return config
    finally:
        await admin.aclose()


def _instead(usual: Sequence[Path], why: str) -> Seen:
    for file in usual:
        if file.is_file():
            return of_file(file)
    looked = " nor ".join(str(file) for file in usual)
    raise ConfigError(
        f"{why}, and there is neither {looked}. Start Caddy, or say where it is: --caddy http://HOST:PORT, "
        "--caddy unix:///run/caddy/admin.sock, or --caddyfile PATH"
    )


def of_file(file: Path) -> Seen:
    """The configuration of a Caddyfile, or of Caddy's JSON. Raises `ConfigError`."""
    config = _read(file)
    return Seen(config, _admin_of(config, file), f"the file {file.absolute()}", running=False)


def _read(file: Path) -> Json:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; give another one with --caddyfile") from error
    return _parsed(file, text if file.suffix == ".json" else _adapted(file))


def _adapted(file: Path) -> bytes:
    """The JSON of a Caddyfile. Raises `ConfigError` with Caddy's own words."""
    command = [str(find_binary()), "adapt", "--config", str(file.absolute()), "--adapter", "caddyfile"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ADAPT, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{file}: `caddy adapt` did not end within {_ADAPT:g} s") from None
    if done.returncode:
        raise ConfigError(
            f"{file}: Caddy does not understand it: {_words(done.stderr)}\nMend it (`caddy adapt --config {file}` says "
            "the same), or start your own Caddy with it: what runs is read from there, with all its modules"
        )
    return done.stdout


def _parsed(file: Path, text: bytes) -> Json:
    try:
        config = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{file}: no JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _words(log: bytes) -> str:
    """What Caddy said last, of its JSON lines."""
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    for line in reversed(lines):
        with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
            entry = orjson.loads(line)
            if entry["level"] != "error":
                continue
            return f"{entry['msg']} {entry.get('error', '')}".strip()
    return lines[-1] if lines else "it gave no reason"


def _admin_of(config: Json, file: Path) -> str:
    """Where a Caddy with this configuration has its admin API."""
    given = config.get("admin")
    section = given if isinstance(given, dict) else {}
    if section.get("disabled"):
        raise ConfigError(
            f"{file} has `admin off`, and trafficd reads from Caddy's admin API what is open on an instance. Take that "
            "line out (it listens on localhost alone), and run trafficd init again"
        )
    listen = str(section.get("listen") or "")
    if listen.startswith("unix/"):
        return f"unix://{listen.removeprefix('unix/').partition('|')[0]}"
    host, _, port = listen.removeprefix("tcp/").rpartition(":")
    if not port.isdigit():
        return CaddySection().admin
    return f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]', 'localhost') else host}:{port}"
