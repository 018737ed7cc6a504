"""What Docker's own configuration knows about registries; helpers are real programs."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from trafficd.errors import TrafficdError
from trafficd.swap.docker.credentials import credentials, full_name, registry_of

HUB = "https://index.docker.io/v1/"


@pytest.mark.parametrize(
    ("image", "registry", "full"),
    [
        ("web:v1", HUB, "docker.io/library/web:v1"),
        ("shop/web:v1", HUB, "docker.io/shop/web:v1"),
        ("docker.io/shop/web", HUB, "docker.io/shop/web"),
        ("ghcr.io/shop/web:v1", "ghcr.io", "ghcr.io/shop/web:v1"),
        ("localhost/web", "localhost", "localhost/web"),
        ("reg:5000/web:v1", "reg:5000", "reg:5000/web:v1"),
    ],
)
def test_registry_of_an_image(image: str, registry: str, full: str) -> None:
    assert (registry_of(image), full_name(image)) == (registry, full)


def environ(directory: Path, config: object) -> dict[str, str]:
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return {"DOCKER_CONFIG": str(directory), "PATH": f"{directory}:{os.environ['PATH']}"}


def helper(directory: Path, script: str) -> None:
    path = directory / "docker-credential-test"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def test_what_docker_login_left(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:pass:word").decode()
    told = environ(tmp_path, {"auths": {"ghcr.io": {"auth": auth}, HUB: {"identitytoken": "t"}}})
    assert await credentials("ghcr.io/shop/web:v1", told) == {"username": "me", "password": "pass:word"}
    assert await credentials("shop/web:v1", told) == {"identitytoken": "t"}
    assert await credentials("quay.io/shop/web:v1", told) is None
    assert await credentials("x", {"DOCKER_CONFIG": str(tmp_path / "none")}) is None


async def test_a_helper_is_asked_on_its_stdin(tmp_path: Path) -> None:
    helper(
        tmp_path, 'read registry; [ "$1 $registry" = "get ghcr.io" ] && echo \'{"Username": "me", "Secret": "s$(id)"}\''
    )
    told = environ(tmp_path, {"credHelpers": {"ghcr.io": "test"}})
    assert await credentials("ghcr.io/web:v1", told) == {"username": "me", "password": "s$(id)"}
    assert await credentials("quay.io/web:v1", told) is None, "another registry's helper"


async def test_a_store_may_have_tokens_or_nothing(tmp_path: Path) -> None:
    helper(tmp_path, 'echo \'{"Username": "<token>", "Secret": "t"}\'')
    told = environ(tmp_path, {"credsStore": "test"})
    assert await credentials("ghcr.io/web:v1", told) == {"identitytoken": "t"}
    helper(tmp_path, "echo credentials not found in native keychain; exit 1")
    assert await credentials("ghcr.io/web:v1", told) is None


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo locked >&2; exit 3", "status 3: locked"), ("echo nonsense", "not as agreed"), (None, "docker-credential-")],
)
async def test_a_helper_that_fails_says_which_and_how(tmp_path: Path, script: str | None, said: str) -> None:
    if script is not None:
        helper(tmp_path, script)
    with pytest.raises(TrafficdError, match=said):
        await credentials("ghcr.io/web:v1", environ(tmp_path, {"credsStore": "test"}))


@pytest.mark.parametrize(
    "config", ["{", {"auths": {"ghcr.io": {"auth": "%%%"}}}, {"credsStore": "../../bin/sh"}], ids=str
)
async def test_a_damaged_file_is_named(tmp_path: Path, config: object) -> None:
    with pytest.raises(TrafficdError, match=r"config\.json|no name of a program"):
        await credentials("ghcr.io/web:v1", environ(tmp_path, config))
