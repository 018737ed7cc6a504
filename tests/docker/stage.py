"""A stage whose instances are containers: the sample app in them, run with this machine's own Python."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.docker.engine import Dockerd
from trafficd.client import Json
from trafficd.demo.stage import Stage

ROOT = Path(__file__).parents[2]
APP = """#!/bin/sh
export PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
echo {version} begins at $PORT
exec {python} -m trafficd.demo.app $PORT {version} {options}
"""
PORTS = range(15_000 + 100 * (os.getpid() % 50), 15_100 + 100 * (os.getpid() % 50))
"""For new containers: of this process alone, as others test beside it, and none of `free_port`."""


def program(version: str, options: str = "") -> str:
    """The sample app as the script of an image (`Dockerd.image`). Its Python is mounted: see `mounts`."""
    return APP.format(root=ROOT, python=sys.executable, version=version, options=options)


def mounts() -> list[str]:
    places = {"/usr", "/lib", "/lib64", sys.base_prefix, str(Path(sys.prefix).resolve()), str(ROOT)}
    if (venv := Path(sys.prefix)).is_symlink():
        places.add(str(venv.resolve()))
    return [f"{place}:{place}:ro" for place in sorted(places) if Path(place).exists()]


@dataclass
class DockerStage(Stage):
    """Upstream a on the first Engine, b on the second; what runs at first was started by hand, and is taken over.

    `engines`: how the daemon reaches them, where not by their own sockets. `docker`: more lines of its section.
    """

    instances: int = 2
    dockerds: list[Dockerd] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)
    image: str = "shop/web:{version}"
    pull: str = "missing"
    docker: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.engines = self.engines or [one.url for one in self.dockerds]
        self.swap = (
            f'driver = "docker"\n[services.web.docker]\nimage = "{self.image}"\npull = "{self.pull}"\n{self.docker}\n'
            f'take_over = "web-{{upstream}}"\nenvironment = {{PORT = "{{port}}"}}\n'
            f'port_range = "{PORTS.start}-{PORTS.stop - 1}"\n'
        )

    def toml(self) -> str:
        text = super().toml()
        for index, engine in enumerate(self.engines):
            name = self.upstream_id(index)
            text = text.replace(f'id = "{name}"\n', f'id = "{name}"\nengine = "{engine}"\n')
        return text

    def start_instances(self) -> None:
        self.app_directory.mkdir(exist_ok=True)

    async def start(self) -> None:
        """What runs at first, and the daemon; until all have traffic."""
        self.start_instances()
        for index, dockerd in enumerate(self.dockerds):
            body = {
                "Image": "shop/web:v1",
                "Env": [f"PORT={self.dial(index).rpartition(':')[2]}", "SECRET=s3"],
                "Labels": {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"},
                "HostConfig": {"NetworkMode": "host", "Binds": mounts()},
            }
            made = await dockerd.call("POST", f"/containers/create?name=web-{self.upstream_id(index)}", body)
            await dockerd.call("POST", f"/containers/{made['Id']}/start")
        self.start_daemon()
        await self.wait_ready()

    async def aclose(self) -> None:
        await super().aclose()
        for dockerd in self.dockerds:
            await dockerd.clear()

    async def standing(self) -> dict[str, list[str]]:
        """The versions that run on each host, or are about to: one each, or something was left behind."""
        found = {}
        for index, dockerd in enumerate(self.dockerds):
            found[self.upstream_id(index)] = [
                one["Labels"].get("trafficd.version", one["Names"][0])
                for one in await dockerd.containers()
                if one["State"] != "exited"
            ]
        return found

    def listening(self, view: Json) -> set[str]:
        """The addresses at which something listens: of all that this stage's containers ever had, or may have."""
        mine = {self.dial(index) for index in range(self.instances)} | {f"127.0.0.1:{port}" for port in PORTS}
        return {dial for dial in mine | {one["dial"] for one in view["upstreams"]} if _is_listened_at(dial)}


def _is_listened_at(dial: str) -> bool:
    host, _, port = dial.rpartition(":")
    with socket.socket() as knock:
        return knock.connect_ex((host, int(port))) == 0
