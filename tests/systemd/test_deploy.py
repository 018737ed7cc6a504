"""Deploys of template units under load, on a real systemd: here, and over SSH."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.ssh.sshd import NEEDS_SSHD, SSHD, Sshd
from tests.system.conftest import QUICK
from tests.system.load import load
from tests.system.test_deploy import deploy, versions
from tests.system.test_faults import begin, ended
from tests.systemd.machine import Machine, needs_systemd
from tests.systemd.stage import Units, from_readme
from trafficd.client import Json

pytestmark = [pytest.mark.slow, needs_systemd]

UNIT = "/etc/systemd/system/web@.service"
BY_FILE = 'unit = "web@{port}"\nversion_file = "/etc/web/{port}.env"'


def settings(systemd: str) -> str:
    return f"{QUICK}\n[services.web.systemd]\n{systemd}\n"


@contextlib.asynccontextmanager
async def raised(machine: Machine, name: str, **given: Any) -> AsyncIterator[Units]:
    directory = machine.shared / name
    directory.mkdir()
    given = {"swap": 'driver = "systemd"', "settings": settings(BY_FILE), "instances": 2, **given}
    stage = Units(machine=machine, directory=directory, **given)
    stage.release("v1")
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        yield stage
    finally:
        await stage.aclose()


def output(rollout: Json) -> str:
    return "\n".join(str(step.get("output") or "") for step in rollout["steps"])


async def called_off(stage: Units, version: str) -> Json:
    """A rollout that is given up, without a revert, while systemd starts its first unit."""
    rollout, units = begin(stage, version), [stage.unit(stage.dial(index), version) for index in range(2)]
    client = stage.client()
    while "activating" not in stage.ctl("is-active", *units, check=False).split():
        view = await asyncio.to_thread(client.call, "GET", f"/v1/rollouts/{rollout}")
        assert view["state"] == "running", (view, stage.machine.journal())
        await asyncio.sleep(0.05)
    await asyncio.to_thread(client.call, "POST", f"/v1/rollouts/{rollout}/abort", {"revert": False})
    client.close()
    return await ended(stage, rollout)


async def test_in_place(machine: Machine) -> None:
    """The unit of the README. A version that crashes, and one that is never well, are taken back, in their own words;
    a killed daemon finds its swap again; where there is no unit nothing is touched."""
    machine.write(UNIT, from_readme(UNIT))
    machine.ctl("daemon-reload")
    async with raised(machine, "in-place") as stage:
        first, second = stage.dial(0), stage.dial(1)
        stage.release("v2")
        async with load(stage.url, sockets=2) as result:
            rollout = await deploy(stage, "v2")
        assert rollout["state"] == "succeeded", (rollout, stage.daemon_log(), machine.journal())
        assert not result.troubles()
        assert versions(stage) == {"a": "v2", "b": "v2"}
        assert stage.told(first).endswith("VERSION=v2")
        assert stage.starts("v2") == 2

        stage.release("bad", before="echo no such table: users >&2; exit 70")
        stage.release("sick", before="echo waiting for the database >&2", options="--warm-up 999")
        async with load(stage.url) as result:
            crashed = await deploy(stage, "bad")
            never_well = await deploy(stage, "sick", healthy_deadline="2s")
        assert crashed["state"] == never_well["state"] == "reverted"
        assert "no such table: users" in crashed["reason"], crashed["reason"]
        assert "status=70" in output(crashed), "systemd's own words"
        assert "waiting for the database" in never_well["reason"], never_well["reason"]
        assert not result.troubles()
        assert versions(stage) == {"a": "v2", "b": "v2"}
        assert {stage.told(first), stage.told(second)} == {"# written by trafficd\nVERSION=v2"}

        stage.release("v3")
        async with load(stage.url) as result:
            identity = begin(stage, "v3")
            async with asyncio.timeout(30):
                while not stage.starts("v3"):
                    await asyncio.sleep(0.05)
            stage.kill_daemon()
            await stage.wait_socket()
            killed = await ended(stage, identity)
        assert killed["state"] == "succeeded", (killed, stage.daemon_log(), machine.journal())
        assert not result.troubles()
        assert stage.starts("v3") == 2, "each once"

        stage.settings = settings(BY_FILE.replace("web@", "nosuch@"))
        stage.start_daemon()
        await stage.wait_ready()
        missing = await deploy(stage, "v4")
        assert missing["state"] == "failed"
        assert "there is no such unit" in missing["reason"], missing["reason"]
        assert stage.active("web@*") == sorted([stage.unit(first), stage.unit(second)])
        assert stage.told(first).endswith("VERSION=v3")


SLOW = 3  # s
# Two upstreams of one host are prepared one after the other, so it need not expect itself.
FETCH = f"""#!/bin/sh
unit=/etc/systemd/system/shop-$TRAFFICD_VERSION@.service
sed "s/[$][{{]VERSION[}}]/$TRAFFICD_VERSION/; /EnvironmentFile/d" {UNIT} >$unit
[ $TRAFFICD_VERSION != slow ] || sed -i "s/^ExecStart=/ExecStartPre=sleep {SLOW}\\n&/" $unit
systemctl daemon-reload
"""


async def test_the_version_in_the_name(machine: Machine) -> None:
    """The user's own program brings the units; whether a unit starts with the host goes on to the next one."""
    machine.write(UNIT, from_readme(UNIT))
    machine.write("/srv/fetch", FETCH)
    machine.run("env", "TRAFFICD_VERSION=v1", "/srv/fetch")
    swap = 'driver = "systemd"\nprepare = ["/srv/fetch"]'
    named = settings('unit = "shop-{version}@{port}"')
    async with raised(machine, "named", swap=swap, settings=named, template="shop-{version}@{port}") as stage:
        stage.release("v2")
        stage.release("slow")
        async with load(stage.url) as result:
            rollout = await deploy(stage, "v2")
            crashed = await deploy(stage, "gone")  # its unit is brought, its program is not there
            given_up = await called_off(stage, "slow")
        assert rollout["state"] == "succeeded", (rollout, stage.daemon_log(), machine.journal())
        assert crashed["state"] == "reverted"
        assert "did not stay up" in crashed["reason"], crashed["reason"]
        assert not result.troubles()
        assert given_up["state"] == "failed"
        first, second = stage.dial(0), stage.dial(1)
        await asyncio.sleep(SLOW)
        assert stage.starts("slow") == 0, "systemd did not go on with it"
        left = second if stage.unit(second, "v2") in stage.active("shop-*") else first
        assert stage.active("shop-*") == [stage.unit(left, "v2")]
        for version, enabled in (("v1", "disabled"), ("gone", "disabled"), ("slow", "disabled"), ("v2", "enabled")):
            assert machine.ctl("is-enabled", stage.unit(left, version), check=False) == enabled


@NEEDS_SSHD
async def test_beside_the_old_one_over_ssh(machine: Machine) -> None:
    """Old and new run side by side for a while, and in the end what starts with the host is what has the traffic."""
    machine.write(UNIT, from_readme(UNIT))
    sshd = Sshd(machine.shared / "sshd")
    machine.write("/etc/systemd/system/sshd.service", f"[Service]\nExecStart={SSHD} -D -e -f {sshd.configure()}\n")
    machine.ctl("daemon-reload")
    machine.ctl("start", "sshd")
    ssh = f'[ssh]\nknown_hosts = "{sshd.known_hosts}"\nidentity_files = ["{sshd.identity}"]\n'
    swap = f'driver = "systemd"\nhost = "{sshd.host}"'
    beside = settings(BY_FILE).replace("min_healthy_time", 'order = "start_first"\nmin_healthy_time') + ssh
    async with raised(machine, "beside", inside=False, spares=True, swap=swap, settings=beside) as stage:
        old = sorted(stage.unit(stage.dial(index)) for index in range(2))
        new = sorted(stage.unit(stage.spare_dial(index)) for index in range(2))
        stage.release("v2")
        stage.release("bad", before="echo no such table: users >&2; exit 70")
        async with load(stage.url, sockets=2) as result:
            rollout = await deploy(stage, "v2")
            crashed = await deploy(stage, "bad")
        assert rollout["state"] == "succeeded", (rollout, stage.daemon_log(), machine.journal())
        assert crashed["state"] == "reverted"
        assert "no such table: users" in crashed["reason"], crashed["reason"]
        assert "on 127.0.0.1" in crashed["reason"]
        assert not result.troubles()
        assert stage.active("web@*") == new
        assert [machine.ctl("is-enabled", unit, check=False) for unit in [*old, *new]] == [
            *("disabled", "disabled"),
            *("enabled", "enabled"),
        ]


async def test_the_units_of_a_user(machine: Machine) -> None:
    """`scope = "user"`: the same of `systemctl --user`, and of a user's own journal."""
    machine.start_user_manager()
    machine.write(UNIT.replace("/system/", "/user/"), from_readme(UNIT).replace("multi-user", "default"))
    machine.user_ctl("daemon-reload")
    async with raised(machine, "user", user=True, settings=settings(f'{BY_FILE}\nscope = "user"')) as stage:
        units = sorted(stage.unit(stage.dial(index)) for index in range(2))
        stage.release("v2")
        stage.release("bad", before="echo no such table: users >&2; exit 70")
        async with load(stage.url) as result:
            rollout = await deploy(stage, "v2")
            crashed = await deploy(stage, "bad")
        assert rollout["state"] == "succeeded", (rollout, stage.daemon_log(), machine.journal())
        assert crashed["state"] == "reverted"
        assert "no such table: users" in crashed["reason"], crashed["reason"]
        assert "status=70" in output(crashed), "systemd's own words"
        assert not result.troubles()
        assert versions(stage) == {"a": "v2", "b": "v2"}
        assert stage.active("web@*") == units
        assert machine.ctl("is-active", *units, check=False).split() == ["inactive"] * 2, "none of the system's"
