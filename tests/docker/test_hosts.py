"""The tutorial's scenario: two hosts with an sshd and an Engine each, reached over SSH, under hey and loadtest, while
versions are deployed in both orders and connections are cut."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docker.engine import Counting, needs_docker
from tests.docker.hosts import RemoteHost, free_network
from tests.docker.stage import DockerStage, program
from tests.ssh.sshd import NEEDS_SSHD
from tests.system.conftest import QUICK
from tests.system.load import load
from tests.system.test_deploy import deploy, versions

pytestmark = [
    needs_docker,
    NEEDS_SSHD,
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip (package iproute2)"),
    pytest.mark.skipif(shutil.which("hey") is None, reason="needs hey"),
    pytest.mark.slow,
    pytest.mark.timeout(240),
]

LOAD = ("hey", "-z", "60s", "-c", "5")


@dataclass
class Hosts(DockerStage):
    """`counting`: a socket before each host's Engine, to which the forwarded one leads."""

    hosts: list[RemoteHost] = field(default_factory=list)
    counting: list[Counting] = field(default_factory=list)

    def dial(self, index: int) -> str:
        return f"{self.hosts[index].address}:8080"

    def toml(self) -> str:
        sshds = [host.sshd for host in self.hosts]
        known = self.directory / "known_hosts"
        known.write_bytes(b"".join(sshd.known_hosts.read_bytes() for sshd in sshds))
        keys = [str(sshd.identity) for sshd in sshds]
        return f'{super().toml()}\n[ssh]\nknown_hosts = "{known}"\nidentity_files = {keys!r}\nconnect_timeout = "5s"\n'


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hosts]:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    network = free_network()
    hosts = [RemoteHost(tmp_path / f"host{number}", network, number) for number in (0, 1)]
    counting = [Counting(host.dockerd) for host in hosts]
    stage: Hosts | None = None
    try:
        for host, socket in zip(hosts, counting, strict=True):
            await host.start()
            await socket.start()
        dependency = await asyncio.start_server(_hang_up, hosts[0].near, 0)
        needs = "{}:{}".format(*dependency.sockets[0].getsockname())
        for version in ("v1", "v2", "v3"):
            script = program(version, f"--host 0.0.0.0 --warm-up 3 --needs {needs} --stops-in 5")
            for host in hosts:
                await host.dockerd.image(f"shop/web:{version}", script)
        stage = Hosts(
            settings=QUICK.replace('"8s"', '"20s"'),
            dockerds=[host.dockerd for host in hosts],
            engines=[f"{host.sshd.host}{socket.socket}" for host, socket in zip(hosts, counting, strict=True)],
            hosts=hosts,
            counting=counting,
        )
        await stage.start()
        yield stage
        dependency.close()
    finally:
        if stage is not None:
            await stage.aclose()
        for socket in counting:
            await socket.aclose()
        for host in hosts:
            await host.aclose()


async def hey(url: str, over: asyncio.Event) -> list[str]:
    """What hey says, each time that it was run until that was over."""
    runs = []
    while not over.is_set():
        process = await asyncio.create_subprocess_exec(*LOAD, url, stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
        runs.append(said.decode())
    return runs


def cut_at_starts_and_stops(stage: Hosts, cut: list[str]) -> list[asyncio.Task[None]]:
    """Kill the connection while the Engine starts a container, and while it stops one (which takes it 5 s); there the
    second host's whole sshd is gone for a while, too."""
    restarts: list[asyncio.Task[None]] = []

    async def restart(host: RemoteHost) -> None:
        host.sshd.stop()
        await asyncio.sleep(2)
        await asyncio.to_thread(host.sshd.start)

    for host, socket in zip(stage.hosts, stage.counting, strict=True):

        def on_call(n: int, line: str, host: RemoteHost = host) -> bool:
            what = re.search("/(start|stop)", line)
            if what is not None and (done := f"{host.name} {what[1]}") not in cut:
                cut.append(done)
                if what[1] == "stop" and host is stage.hosts[1]:
                    restarts.append(asyncio.create_task(restart(host)))
                else:
                    assert host.sshd.cut()
            return False

        socket.on_call = on_call
    return restarts


async def test_two_hosts_are_deployed_over_ssh_in_both_orders_and_nothing_is_lost(stage: Hosts) -> None:
    cut: list[str] = []
    over = asyncio.Event()
    async with load(stage.url, gets=3, posts=3, slow=1) as result:
        heying = asyncio.create_task(hey(stage.url, over))
        rollout = await deploy(stage, "v2", order="stop_first")
        assert rollout["state"] == "succeeded", (rollout, stage.daemon_log())
        assert versions(stage) == dict.fromkeys("ab", "v2")
        assert await stage.standing() == {"a": ["v2"], "b": ["v2"]}
        restarts = cut_at_starts_and_stops(stage, cut)
        rollout = await deploy(stage, "v3", order="start_first")
        assert rollout["state"] == "succeeded", (rollout, stage.daemon_log())
        assert versions(stage) == dict.fromkeys("ab", "v3")
        assert await stage.standing() == {"a": ["v3"], "b": ["v3"]}
        over.set()
        runs = await heying
        await asyncio.gather(*restarts)
    assert sorted(cut) == [f"{host.name} {what}" for host in stage.hosts for what in ("start", "stop")]
    assert len(restarts) == 1
    for said in runs:
        assert "Error distribution" not in said, said
        assert re.findall(r"\[(\d+)\]\s+\d+ responses", said) == ["200"], said
    assert not result.troubles(), stage.daemon_log()
    assert result.sent > 1000
