"""Instances on two other hosts, replaced over SSH: connections and the daemon are killed in mid-swap."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import trafficd
from tests.ssh.sshd import NEEDS_SSHD, Sshd
from tests.system.conftest import QUICK
from tests.system.load import load, unexpected
from tests.system.test_deploy import deploy, versions
from tests.system.test_faults import begin, ended
from trafficd.demo.stage import Stage

pytestmark = [pytest.mark.slow, NEEDS_SSHD]

ROOT = str(Path(trafficd.__file__).parents[1])


@dataclass
class Fleet(Stage):
    """A stage whose upstream a is on the first of the hosts, b on the second, and c where `swap.host` says."""

    hosts: list[Sshd] = field(default_factory=list)

    def toml(self) -> str:
        first, second = self.hosts
        text = super().toml()
        for name, host in (("a", first), ("b", second)):
            text = text.replace(f'id = "{name}"\n', f'id = "{name}"\nhost = "{host.host}"\n')
        known = self.directory / "known_hosts"
        known.write_bytes(b"".join(host.known_hosts.read_bytes() for host in self.hosts))
        keys = [str(host.identity) for host in self.hosts]
        return f'{text}\n[ssh]\nknown_hosts = "{known}"\nidentity_files = {keys!r}\nconnect_timeout = "5s"\n'

    @property
    def calls(self) -> list[str]:
        """The swaps that were begun, in their order."""
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []

    async def until_swaps(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.calls) < count:
                await asyncio.sleep(0.02)


@pytest.fixture
async def raise_fleet(tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Fleet]]]:
    fleets: list[Fleet] = []

    async def start() -> Fleet:
        hosts = [Sshd(tmp_path / name) for name in ("one", "two")]
        fleet = Fleet(settings=QUICK, hosts=hosts)
        fleets.append(fleet)
        for host in hosts:
            host.start()
        script = (
            f'echo "$TRAFFICD_UPSTREAM $TRAFFICD_VERSION $HOME" >>{fleet.directory}/calls; sleep 1.5; '
            f"PYTHONPATH={ROOT} exec {sys.executable} -m trafficd.demo.replace {fleet.app_directory}"
        )
        argv = ["/bin/sh", "-c", script]
        fleet.swap = f'driver = "command"\ntimeout = "60s"\nhost = "{hosts[0].host}"\ncommand = {argv!r}'
        fleet.start_instances()
        fleet.start_daemon()
        await fleet.wait_ready()
        return fleet

    yield start
    for fleet in fleets:
        await fleet.aclose()
        for host in fleet.hosts:
            host.end()


Raise = Callable[[], Awaitable[Fleet]]


async def test_each_upstream_is_replaced_on_its_host(raise_fleet: Raise) -> None:
    fleet = await raise_fleet()
    async with load(fleet.url) as result:
        rollout = await deploy(fleet, "v2")
    assert rollout["state"] == "succeeded", (rollout, fleet.daemon_log())
    assert not unexpected(fleet, result)
    one, two = (host.home for host in fleet.hosts)
    assert sorted(fleet.calls) == sorted([f"a v2 {one}", f"b v2 {two}", f"c v2 {one}"])


async def test_connections_cut_in_mid_swap(raise_fleet: Raise) -> None:
    fleet = await raise_fleet()
    async with load(fleet.url) as result:
        rollout = begin(fleet, "v2")
        for count in (1, 2, 3):
            await fleet.until_swaps(count)
            await asyncio.sleep(0.3)
            assert sum(host.cut() for host in fleet.hosts)
        view = await ended(fleet, rollout)
    assert view["state"] == "succeeded", (view, fleet.daemon_log())
    assert not unexpected(fleet, result)
    assert len(fleet.calls) == 3
    assert versions(fleet) == dict.fromkeys("abc", "v2")


@pytest.mark.parametrize("cut", [False, True], ids=["connected", "cut as well"])
async def test_killed_in_mid_swap_the_next_daemon_finds_the_swap(raise_fleet: Raise, cut: bool) -> None:
    fleet = await raise_fleet()
    async with load(fleet.url) as result:
        rollout = begin(fleet, "v2")
        await fleet.until_swaps(1)
        assert fleet.stop_daemon(signal.SIGKILL) == -signal.SIGKILL
        if cut:
            for host in fleet.hosts:
                host.cut()
        fleet.start_daemon()
        await fleet.wait_socket()
        await fleet.until_swaps(2)
        assert fleet.stop_daemon(signal.SIGKILL) == -signal.SIGKILL
        await asyncio.sleep(2.5)  # the swap ends while there is no daemon
        fleet.start_daemon()
        await fleet.wait_socket()
        view = await ended(fleet, rollout)
    assert view["state"] == "succeeded", (view, fleet.daemon_log())
    assert not unexpected(fleet, result)
    assert len(fleet.calls) == 3, "each ran once"
    assert versions(fleet) == dict.fromkeys("abc", "v2")


async def test_a_host_that_is_gone_leaves_the_rest_as_it_was(raise_fleet: Raise) -> None:
    """Its sshd does not come back: nothing was sent there, so nothing was replaced there."""
    fleet = await raise_fleet()
    fleet.swap = (fleet.swap or "").replace('timeout = "60s"', 'timeout = "15s"')
    fleet.stop_daemon()
    fleet.start_daemon()
    await fleet.wait_ready()
    fleet.hosts[1].stop()
    async with load(fleet.url) as result:
        rollout = await deploy(fleet, "v2")
    assert rollout["state"] == "reverted", (rollout, fleet.daemon_log())
    assert f"was not started: {fleet.hosts[1].host} cannot be reached" in rollout["reason"]
    assert not unexpected(fleet, result)
    assert versions(fleet) == dict.fromkeys("abc", "v1")


async def test_an_abort_in_mid_swap_ends_the_command_there(raise_fleet: Raise) -> None:
    fleet = await raise_fleet()
    async with load(fleet.url) as result:
        rollout = begin(fleet, "v2")
        await fleet.until_swaps(1)
        client = fleet.client()
        await asyncio.to_thread(client.call, "POST", f"/v1/rollouts/{rollout}/abort", {})
        client.close()
        view = await ended(fleet, rollout)
    assert view["state"] == "reverted", (view, fleet.daemon_log())
    assert not unexpected(fleet, result)
    exits = [path.read_text().strip() for host in fleet.hosts for path in host.runs.glob("*/exit")]
    assert "ended" in exits
