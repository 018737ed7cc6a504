"""What Docker's own configuration knows about registries: `~/.docker/config.json`, or that of DOCKER_CONFIG.

Credential helpers are programs of the user's, run without a shell: told the registry on stdin, they answer in JSON.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trafficd.errors import TrafficdError

_HUB = "https://index.docker.io/v1/"
_PATIENCE = 20.0  # s for a helper
_NONE = b"credentials not found"


def registry_of(image: str) -> str:
    """The registry of an image's name, as Docker's configuration calls it."""
    first, slash, _ = image.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost")
    return first if named and first not in ("docker.io", "index.docker.io") else _HUB


def full_name(image: str) -> str:
    """With its registry, also where that is the usual one."""
    if registry_of(image) != _HUB or image.startswith(("docker.io/", "index.docker.io/")):
        return image
    return f"docker.io/{image}" if "/" in image else f"docker.io/library/{image}"


def config_path(environ: Mapping[str, str]) -> Path:
    directory = environ.get("DOCKER_CONFIG")
    return (Path(directory) if directory else Path.home() / ".docker") / "config.json"


def helper_of(config: Mapping[str, Any], registry: str) -> str | None:
    """The helper that keeps a registry's credentials."""
    name = (config.get("credHelpers") or {}).get(registry) or config.get("credsStore")
    return str(name) if name else None


def stored(config: Mapping[str, Any], registry: str) -> dict[str, str] | None:
    """What stands in the file itself. Raises `ValueError` where it is damaged."""
    auths = config.get("auths") or {}
    host = _bare(registry)
    entry = auths.get(registry) or next((value for name, value in auths.items() if _bare(name) == host), None)
    if not entry:
        return None
    if entry.get("identitytoken"):
        return {"identitytoken": entry["identitytoken"]}
    if entry.get("auth"):
        try:
            user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError(f"auths.{registry}.auth is no base64") from error
        return {"username": user, "password": password.rstrip("\0")}
    if entry.get("username"):
        return {"username": entry["username"], "password": entry.get("password", "")}
    return None


def _bare(name: str) -> str:
    return re.sub(r"^https?://", "", name).partition("/")[0]


async def credentials(image: str, environ: Mapping[str, str] = os.environ) -> dict[str, str] | None:
    """What to show the registry of an image; None: nothing. Raises `TrafficdError`."""
    path, registry = config_path(environ), registry_of(image)
    try:
        config = json.loads(await asyncio.to_thread(path.read_text))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TrafficdError(f"{path}, with the registry's credentials, cannot be read: {error}") from error
    helper = helper_of(config, registry)
    if helper is not None and (answer := await _ask(helper, registry, environ)) is not None:
        return answer
    try:
        return stored(config, registry)
    except ValueError as error:
        raise TrafficdError(f"{path}: {error}") from error


async def _ask(helper: str, registry: str, environ: Mapping[str, str]) -> dict[str, str] | None:
    program = f"docker-credential-{helper}"
    if not re.fullmatch(r"[A-Za-z0-9._-]+", helper):
        raise TrafficdError(f"{helper!r}, the credential helper of {registry}, is no name of a program")
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environ),
        )
    except OSError as error:
        raise TrafficdError(f"{program}, which keeps the credentials of {registry}: {error.strerror}") from error
    try:
        async with asyncio.timeout(_PATIENCE):
            said, _ = await process.communicate(registry.encode())
    except TimeoutError:
        raise TrafficdError(f"{program} did not answer within {_PATIENCE:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        if _NONE in said:
            return None
        raise TrafficdError(f"{program} exited with status {process.returncode}: {said.decode(errors='replace')[:200]}")
    try:
        answer = json.loads(said)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise TrafficdError(f"{program} gave no credentials for {registry}: its answer is not as agreed") from None
    return {"identitytoken": secret} if user == "<token>" else {"username": user, "password": secret}
