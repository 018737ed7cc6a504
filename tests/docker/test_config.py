"""`[services.NAME.docker]`: values, and what does not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trafficd.config import ServiceSection
from trafficd.config.docker import DockerSection
from trafficd.errors import ConfigError, HostRefusedError, HostUnreachableError, TrafficdError
from trafficd.swap.docker.engine import Engine, UnreachableError
from trafficd.swap.docker.engines import Engines, split
from trafficd.swap.docker.envfile import parse_env, read_env_files


def service(docker: dict[str, Any] | None, **more: Any) -> ServiceSection:
    given: dict[str, Any] = {
        "upstreams": [{"id": "a", "dial": "127.0.0.1:8080"}],
        "swap": {"driver": "docker"},
    }
    if docker is not None:
        given["docker"] = docker
    return ServiceSection.model_validate(given | more)


WEB = {"image": "shop/web:{version}", "port": 8080}


def test_defaults() -> None:
    section = service(WEB).docker
    assert section is not None
    assert (section.engine, section.pull, section.keep) == ("unix:///var/run/docker.sock", "always", 3)
    policy = service(WEB).policy(2)
    assert policy.prepares
    assert policy.retires


def test_values() -> None:
    given = DockerSection.model_validate(WEB | {"memory": "5g", "cpus": 0.5, "port_range": "30000-30009"})
    assert (given.memory, given.port_range) == (5 << 30, (30000, 30009))
    for engine in ("unix:///run/podman/podman.sock", "ssh://deploy@web1", "ssh://deploy@web1:2222/run/podman.sock"):
        assert service(WEB | {"engine": engine}).docker is not None


@pytest.mark.parametrize(
    ("docker", "place", "said"),
    [
        ({"image": "shop/web", "port": 1}, "docker.image", "{version}"),
        ({"port": 1}, "docker.image", "Field required"),
        ({"image": "web:{version}"}, "docker.port", "Field required"),
        (WEB | {"restart": "always"}, "docker.restart", "unless-stopped"),
        (WEB | {"memory": "much"}, "docker.memory", "512m"),
        (WEB | {"volumes": ["/data"]}, "docker.volumes.0", "/in/the/container"),
        (WEB | {"labels": {"trafficd.x": "1"}}, "docker.labels", "own"),
        (WEB | {"networks": ["host", "b"]}, "docker.networks", "no other"),
        (WEB | {"networks": ["host"], "publish": "0.0.0.0"}, "docker.publish", "nothing is published"),
        (WEB | {"engine": "tcp://10.0.0.5:2375"}, "docker.engine", "root"),
        (WEB | {"engine": "http://10.0.0.5"}, "docker.engine", "unix://"),
        (WEB | {"engine": "ssh://web1"}, "docker.engine", "user is needed"),
        (WEB | {"engine": "ssh://deploy@web1:99999/run/docker.sock"}, "docker.engine", "65535"),
        (WEB | {"tls_ca": "/x"}, "docker.tls_ca", "belong together"),
        (WEB | {"port_range": "8000-9000"}, "upstreams.0.dial", "docker.port_range"),
        (WEB | {"port_range": "9-1"}, "docker.port_range", "not a range"),
        (None, "docker", "needs this section"),
    ],
)
def test_faults_with_their_places(docker: dict[str, Any] | None, place: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        service(docker)
    faults = {".".join(map(str, fault["loc"])): fault["msg"] for fault in caught.value.errors()}
    assert said in faults[place], faults


def test_what_means_nothing_with_another_driver() -> None:
    with pytest.raises(ValidationError) as caught:
        service(
            WEB,
            swap={"driver": "external"},
            upstreams=[{"id": "a", "dial": "127.0.0.1:8080", "engine": "unix:///run/docker.sock"}],
        )
    places = {".".join(map(str, fault["loc"])) for fault in caught.value.errors()}
    assert places == {"docker", "upstreams.0.engine"}


def test_a_worker_has_no_port() -> None:
    worker: dict[str, Any] = {"route": "none", "upstreams": [{"id": "a"}], "health": {"command": ["true"]}}
    assert service({"image": "jobs:{version}"}, **worker).docker is not None
    with pytest.raises(ValidationError, match="nobody calls a worker"):
        service(WEB, **worker)


def test_files_of_variables(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# a comment\n\nA=1\nB=x=y # kept\nC=\n")
    assert read_env_files([path]) == {"A": "1", "B": "x=y # kept", "C": ""}
    path.write_bytes("\ufeffA=1\r\nB=x\u2028y\x85\x0cz\nC=1\r2\n".encode())
    assert read_env_files([path]) == {"A": "1", "B": "x\u2028y\x85\x0cz", "C": "1\r2"}
    with pytest.raises(ConfigError, match="line 1"):
        parse_env("NAME", "env")
    with pytest.raises(ConfigError, match="env_files"):
        read_env_files([tmp_path / "none"])


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("ssh://deploy@web1", ("deploy@web1", "/var/run/docker.sock")),
        ("ssh://deploy@web1:22/run/podman.sock", ("deploy@web1:22", "/run/podman.sock")),
    ],
)
def test_an_engine_over_ssh(url: str, parts: tuple[str, str]) -> None:
    assert split(url) == parts


async def test_a_host_that_was_lost_is_reached_again_before_its_engine_is_asked(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []
    away = False

    async def forward(host: str, remote: str) -> Path:
        asked.append((host, remote))
        if away:
            raise HostUnreachableError("no route to web1")
        return tmp_path / "local.sock"

    url = "ssh://deploy@web1"
    engines = Engines(forward=forward)
    first = await engines.client(url)
    assert await engines.client(url) is first
    assert first.docker_host == "unix://localhost"
    engines.lost(url)
    away = True
    for _ in range(3):
        with pytest.raises(UnreachableError, match="no route to web1"):
            await Engine(engines, url).listing()
    away = False
    assert await engines.client(url) is first, "however often it is lost, there is one client, and one to be closed"
    assert await engines.client(url) is first
    assert asked == [("deploy@web1", "/var/run/docker.sock")] * 5
    await engines.aclose()
    with pytest.raises(TrafficdError, match="ssh"):
        await Engines().client(url)


async def test_a_host_that_refuses_is_not_asked_again() -> None:
    async def forward(host: str, remote: str) -> Path:
        raise HostRefusedError("another key")

    with pytest.raises(HostRefusedError, match="another key"):
        await Engine(Engines(forward=forward), "ssh://deploy@web1").listing()
