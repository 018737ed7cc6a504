"""`trafficd init` on the tutorial's Caddyfile and containers: with what it writes, unedited, a deploy loses nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docker.engine import Dockerd, Json, needs_docker
from tests.docker.stage import ROOT, mounts
from tests.ssh.sshd import NEEDS_SSHD, Sshd
from tests.system.load import load
from tests.system.strangers import StrangersCaddy, listened_at
from trafficd.demo.stage import Stage, free_ports
from trafficd.draft.containers import How, serving
from trafficd.draft.machines import machines

pytestmark = [needs_docker, pytest.mark.slow, pytest.mark.timeout(300)]

# The sample app on all addresses of its container, as the tutorial's apps listen.
APP = """#!/bin/sh
export PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
exec {python} -c '
import sys
from aiohttp import web
from trafficd.demo.app import Behaviour, build
web.run_app(build(Behaviour("{version}", sys.argv[1])), host="0.0.0.0", port=int(sys.argv[2]), print=None,
            access_log=None, shutdown_timeout=30, backlog=1024)
' "$NAME" "${{PORT:-3000}}"
"""
INSIDE = 3000  # where the app listens in a network of its own
SERVICE = "localhost"  # called after the site
NETWORK = "shop_default"  # as Compose would name it: no dockerd that somebody else starts here takes it away
SUBNET = f"172.31.{os.getpid() % 250}.0/24"


@dataclass
class Beginner(Stage):
    """Somebody who has a Caddy with the tutorial's Caddyfile, and two containers."""

    managed: bool = False
    instances: int = 2
    looked_at: str = f"/v1/services/{SERVICE}"
    environment: dict[str, str] = field(default_factory=dict)

    def toml(self) -> str:
        """What `trafficd init` wrote."""
        return self.config.read_text()

    def start_instances(self) -> None:
        self.app_directory.mkdir(exist_ok=True)

    async def start_containers(self, dockerd: Dockerd, *, published: bool) -> None:
        """The tutorial's `docker run -p`, or `docker run --network host`."""
        if published:
            network = {"Name": NETWORK, "Driver": "bridge", "IPAM": {"Config": [{"Subnet": SUBNET}]}}
            await dockerd.call("POST", "/networks/create", network)
        for index in range(self.instances):
            port = str(self.ports[index])
            host: Json = {"Binds": mounts(), "RestartPolicy": {"Name": "always"}}
            if published:
                host["NetworkMode"] = NETWORK
                host["PortBindings"] = {f"{INSIDE}/tcp": [{"HostIp": "", "HostPort": port}]}
            else:
                host["NetworkMode"] = "host"
            body = {
                "Image": "shop/web:v1",
                "Env": [f"NAME=web-{index + 1}", "SECRET=s3", *([] if published else [f"PORT={port}"])],
                "ExposedPorts": {f"{INSIDE}/tcp": {}},
                "HostConfig": host,
            }
            made = await dockerd.call("POST", f"/containers/create?name=web-{index + 1}", body)
            await dockerd.call("POST", f"/containers/{made['Id']}/start")

    async def init(self, dockerd: Dockerd) -> str:
        """Run `trafficd init`; what it says."""
        return await self.run(
            *("init", "--caddy", self.admin_url, "--output", str(self.config)), DOCKER_HOST=dockerd.url
        )

    async def run(self, *arguments: str, **environment: str) -> str:
        """A command of trafficd, which has to succeed."""
        told = {"TRAFFICD_SOCKET": str(self.socket), **environment}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trafficd", *arguments),
            env={**os.environ, **told},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode() + self.daemon_log()
        return out.decode()

    def start_daemon(self) -> None:
        """With the file as it is; where it keeps its state and its socket is not what is tried here."""
        places = {
            "TRAFFICD_DAEMON__STATE_DIR": f"{self.directory}/state",
            "TRAFFICD_DAEMON__SOCKET": str(self.socket),
            **self.environment,
        }
        with (self.directory / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "trafficd", "run", "--config", str(self.config)],
                env={**os.environ, **places},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@pytest.fixture(params=["published", "host"])
async def beginner(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Beginner, Dockerd, StrangersCaddy]]:
    published = request.param == "published"
    dockerd = Dockerd()
    # The published ones, as the tutorial has them, are deployed with every default.
    quick = {} if published else {f"TRAFFICD_SERVICES__{SERVICE.upper()}__ROLLOUT__MIN_HEALTHY_TIME": "1s"}
    stage = Beginner(environment=quick)
    caddy = StrangersCaddy(stage)
    try:
        await dockerd.start()
        for version in ("v1", "v2"):
            script = APP.format(root=ROOT, python=sys.executable, version=version)
            await dockerd.image(f"shop/web:{version}", script)
        stage.start_instances()
        await stage.start_containers(dockerd, published=published)
        await caddy.start(tutorial(stage, caddy))
        yield stage, dockerd, caddy
    finally:
        await asyncio.to_thread(caddy.end)
        await stage.aclose()
        if published and dockerd.process is not None:
            for one in await dockerd.containers():
                await dockerd.call("DELETE", f"/containers/{one['Id']}?force=true")
            await dockerd.call("DELETE", f"/networks/{NETWORK}")
        await dockerd.aclose()


def tutorial(stage: Beginner, caddy: StrangersCaddy) -> str:
    """The Caddyfile of the tutorial's page."""
    return caddy.tutorial(f"""reverse_proxy {stage.dial(0)} {stage.dial(1)} {{
        health_uri /healthz
        health_interval 1s
        lb_policy round_robin
        fail_duration 30s
    }}""")


async def test_the_tutorials_installation_is_deployed_with_what_init_writes(
    beginner: tuple[Beginner, Dockerd, StrangersCaddy],
) -> None:
    stage, dockerd, caddy = beginner
    said = await stage.init(dockerd)
    assert f"trafficd deploy {SERVICE} v2" in said
    assert "LOOK" not in said
    written = stage.config.read_text()
    stage.start_daemon()
    await stage.wait_ready()
    etag = await adopted(stage, caddy)
    async with load(caddy.url) as result:
        await stage.run("deploy", SERVICE, "v2")
    assert not result.troubles()
    assert result.sent > 500
    assert await caddy.etag() == etag, "Caddy was not touched by the deploy"
    assert stage.config.read_text() == written
    shown = await stage.run("status", SERVICE)
    assert all(f"{name}" in shown for name in ("web-1", "web-2", "v2"))
    running = [one for one in await dockerd.containers() if one["State"] == "running"]
    assert sorted(one["Labels"]["trafficd.version"] for one in running) == ["v2", "v2"]
    for one in running:
        inspect = await dockerd.call("GET", f"/containers/{one['Id']}/json")
        assert "SECRET=s3" in inspect["Config"]["Env"], "what it had it has"


@NEEDS_SSHD
@pytest.mark.asyncio(loop_scope="module")
async def test_an_engine_over_ssh_is_seen_as_one_that_is_here(dockerd: Dockerd, tmp_path: Path) -> None:
    """But for the sockets of its processes: there a variable is believed."""
    port = free_ports(1)[0]
    body = {"Image": "shop/web:v1", "Env": [f"PORT={port}"], "HostConfig": {"NetworkMode": "host"}}
    made = await dockerd.call("POST", "/containers/create?name=web", body)
    await dockerd.call("POST", f"/containers/{made['Id']}/start")
    async with asyncio.timeout(20):
        await listened_at(port)
    sshd = Sshd(tmp_path / "sshd")
    sshd.start()
    try:
        urls = [dockerd.url, f"{sshd.host}{dockerd.socket}"]
        here, there = await machines(urls, frozenset({"127.0.0.1", "192.0.2.1"}), None, sshd.settings)
    finally:
        sshd.end()
    assert (here.failure, there.failure) == (None, None)
    assert here.hosts == there.hosts == {"127.0.0.1"}
    found = [serving(f"127.0.0.1:{port}", [one]) for one in (here, there)]
    assert [one and (one.how, one.container.name, one.container.pulled) for one in found] == [
        (How.LISTENS, "web", False),
        (How.TOLD, "web", False),
    ]


async def adopted(stage: Beginner, caddy: StrangersCaddy) -> str:
    """Wait until the handler is taken over; Caddy's configuration then."""
    client = stage.client()
    try:
        async with asyncio.timeout(20):
            while True:
                view = await asyncio.to_thread(client.call, "GET", stage.looked_at)
                if not view["trouble"] and all(one["in_flight"] is not None for one in view["upstreams"]):
                    return await caddy.etag()
                await asyncio.sleep(0.1)
    finally:
        client.close()
