"""What `prepare` refuses while the old instance still has its traffic, and with which remedy."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from trafficd.config.docker import DockerSection
from trafficd.errors import TrafficdError
from trafficd.ports import Swap
from trafficd.swap.docker.engine import Engine
from trafficd.swap.docker.engines import Engines
from trafficd.swap.docker.job import Job, Setting

DIAL = "127.0.0.1:8080"


class World:
    """An Engine's books: containers by name, each with its ports and labels."""

    url = "unix:///engine.sock"

    def __init__(self) -> None:
        self.containers: dict[str, dict[str, Any]] = {}
        self.networks: set[str] = set()

    def add(self, name: str, *, told: str = "8080", state: str = "running", **labels: str) -> None:
        ports = [{"IP": "127.0.0.1", "PublicPort": 8080, "PrivatePort": 80}] if state == "running" else []
        self.containers[name] = {
            "Id": f"id-{name}",
            "Name": f"/{name}",
            "Names": [f"/{name}"],
            "Labels": {f"trafficd.{key}": value for key, value in labels.items()},
            "Config": {"Image": "shop/web:v1"},
            "Image": "sha256:1",
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": told}]}},
            "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}},
            "Ports": ports,
        }
        self.containers[name]["State"] = state

    async def listing(self, **labels: str) -> list[dict[str, Any]]:
        return [
            one
            for one in self.containers.values()
            if all(one["Labels"].get(f"trafficd.{name}") == value for name, value in labels.items())
        ]

    async def inspect(self, wanted: str) -> dict[str, Any] | None:
        found = (one for name, one in self.containers.items() if wanted in (name, one["Id"]))
        return next(({**one, "State": {"Status": one["State"]}} for one in found), None)

    async def image(self, name: str) -> dict[str, Any]:
        return {"Id": "sha256:1", "Config": {}}

    async def has_network(self, name: str) -> bool:
        return name in self.networks


async def refusal(world: World, **settings: Any) -> str:
    """Why `prepare` refuses; empty where it does not."""
    given = {"image": "shop/web:{version}", "port": 80, "pull": "missing"} | settings
    setting = Setting(DockerSection.model_validate(given), Engines(), "d1", routed=True, reserved=frozenset())
    swap = Swap("prepare", "web", "a", "v2", "v1", "", DIAL, "r1", 60.0, time.time())
    try:
        await Job(setting, swap, cast(Engine, world)).prepare()
    except TrafficdError as error:
        return str(error)
    return ""


async def test_a_network_that_is_not_there() -> None:
    world = World()
    world.networks.add("front")
    assert await refusal(world, networks=["front"]) == ""
    assert "docker network create back" in await refusal(world, networks=["front", "back"])


@pytest.mark.parametrize("told", ["", "8080-8090"])
async def test_a_port_that_the_engine_chose_would_be_another_one_on_the_way_back(told: str) -> None:
    world = World()
    world.add("web-1", told=told)
    assert "no way back" in await refusal(world, take_over=True)
    world.add("web-1")
    assert await refusal(world, take_over=True) == ""


async def test_whoever_else_has_the_address_is_named_with_what_helps() -> None:
    world = World()
    world.add("web-1")
    assert "set docker.take_over = true" in await refusal(world)
    assert "names another, web-a" in await refusal(world, take_over="web-{upstream}")
    world.add("ours", state="exited", service="web", upstream="a", version="v1", dial=DIAL)
    assert "docker stop web-1 && docker start ours" in await refusal(world, take_over=True)


async def test_one_to_be_taken_over_that_did_not_start_is_no_stranger() -> None:
    world = World()
    world.add("web-1")
    world.containers["web-1"]["State"] = "created"
    assert await refusal(world, take_over=True) == ""


async def test_what_another_daemon_has_at_the_address_is_named_as_its_own() -> None:
    world = World()
    world.add("web-1", service="web", upstream="a", version="v1", dial=DIAL, daemon="d2")
    assert "belongs to another trafficd (its id d2): set docker.take_over = true" in await refusal(world)
    assert await refusal(world, take_over=True) == ""
    world.add("web-1", service="web", upstream="a", version="v1", dial=DIAL, daemon="d1")
    assert await refusal(world) == ""
