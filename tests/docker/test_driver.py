"""The driver on a real Engine: what runs afterwards, whatever it was interrupted at."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from tests.docker.engine import SERVES, Counting, Dockerd, needs_docker
from trafficd.config.docker import DockerSection
from trafficd.demo.stage import free_ports
from trafficd.ports import Outcome, Swap
from trafficd.swap.docker.driver import DockerDriver
from trafficd.swap.docker.engines import Engines

pytestmark = [needs_docker, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


class Shop:
    """One upstream on an Engine behind a counting socket, and its driver; `again` is the next daemon's."""

    def __init__(self, dockerd: Dockerd, counting: Counting, daemon: str = "d1", **settings: Any) -> None:
        given = {
            "engine": counting.url,
            "image": "shop/web:{version}",
            "pull": "missing",
            "networks": ["host"],
            "environment": {"PORT": "{port}"},
            "stop_grace": 2,
        }
        self.section = DockerSection.model_validate(given | settings)
        self.dockerd, self.counting, self.daemon = dockerd, counting, daemon
        self.dial, self.spare = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.all_engines: list[Engines] = []
        self.again()

    def again(self) -> None:
        self.engines = Engines()
        self.all_engines.append(self.engines)
        self.driver = DockerDriver(
            self.section,
            self.engines,
            self.daemon,
            lambda upstream: self.section.engine,
            lambda upstream: self.dial,
            patience=5,
        )

    def swap(self, version: str, previous: str | None, rollout: str = "r1", **changes: Any) -> Swap:
        base = Swap("swap", "web", "a", version, previous, self.dial, self.dial, rollout, 60.0, time.time())
        return replace(base, **changes)

    async def run(self, swap: Swap) -> Outcome:
        return await self.driver(swap)

    async def answers(self, dial: str) -> str | None:
        """The version that answers at an address."""
        host, _, port = dial.rpartition(":")
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                return (await reader.read()).decode().rpartition("\r\n")[2].strip()
            finally:
                writer.close()
        return None

    async def until_answers(self, dial: str, version: str) -> None:
        async with asyncio.timeout(10):
            while await self.answers(dial) != version:
                await asyncio.sleep(0.05)

    async def made(self) -> dict[str, str]:
        """State by version of all containers, but those of other daemons."""
        found = {}
        for one in await self.dockerd.containers():
            if one["Labels"].get("trafficd.daemon", self.daemon) != self.daemon:
                continue
            key = one["Labels"].get("trafficd.version", "foreign")
            assert key not in found, "two containers of one version"
            found[key] = one["State"]
        return found


Open = Callable[..., Shop]


@pytest_asyncio.fixture(loop_scope="module")
async def shop(dockerd: Dockerd) -> AsyncIterator[Open]:
    opened: list[Shop] = []
    async with Counting(dockerd) as counting:

        def make(**settings: Any) -> Shop:
            opened.append(Shop(dockerd, counting, **settings))
            return opened[-1]

        yield make
        for engines in (engines for one in opened for engines in one.all_engines):
            await engines.aclose()


async def test_in_place_and_back_in_the_container_of_before(shop: Open) -> None:
    web = shop()
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    await web.until_answers(web.dial, "v1")
    first = (await web.dockerd.containers())[0]["Id"]
    outcome = await web.run(web.swap("v2", "v1"))
    assert outcome.ok, outcome
    assert outcome.dial is None
    await web.until_answers(web.dial, "v2")
    assert await web.made() == {"v1": "exited", "v2": "running"}
    back = await web.run(web.swap("v1", "v2"))
    assert back.ok, back
    await web.until_answers(web.dial, "v1")
    (one,) = await web.dockerd.containers()
    assert one["Id"] == first, "it was started again, and what this rollout had brought is gone"


async def test_only_the_newest_versions_are_kept_with_their_images(shop: Open) -> None:
    web = shop(keep=2)
    before = None
    for number in range(1, 6):
        assert (await web.run(web.swap(f"v{number}", before, f"r{number}"))).ok
        before = f"v{number}"
    assert await web.made() == {"v3": "exited", "v4": "exited", "v5": "running"}
    tags = {tag for one in await web.dockerd.call("GET", "/images/json") for tag in one["RepoTags"] or []}
    assert "shop/web:v6" in tags, "never ran, and is nobody's business"
    assert "shop/web:v3" in tags
    assert not tags & {"shop/web:v1", "shop/web:v2"}
    for version in ("v1", "v2"):  # for the other tests
        await web.dockerd.image(f"shop/web:{version}", SERVES.replace("{version}", version), env=f"RELEASE={version}")


async def test_two_daemons_on_one_engine_leave_each_others_containers_and_images_alone(shop: Open) -> None:
    """Production and staging, with services of the same names; production deploys less often."""
    settings = {"keep": 1, "pull": "never"}
    production, staging = shop(**settings), shop(daemon="d2", **settings)
    began = time.time()

    async def deploy(web: Shop, version: str, before: str | None, rollout: str) -> None:
        prepared = await web.run(web.swap(version, before, rollout, action="prepare", dial=None, previous_dial=""))
        assert prepared.ok, prepared
        outcome = await web.run(web.swap(version, before, rollout, since=began, timeout=600.0))
        assert outcome.ok, outcome
        await web.until_answers(web.dial, version)

    await deploy(production, "v1", None, "r1")
    await deploy(staging, "v1", None, "r1")  # of the very same step, too
    await deploy(production, "v2", "v1", "r2")
    await deploy(staging, "v2", "v1", "r2")
    await deploy(staging, "v3", "v2", "r3")
    await deploy(staging, "v4", "v3", "r4")
    assert await staging.made() == {"v3": "exited", "v4": "running"}
    assert await production.made() == {"v1": "exited", "v2": "running"}
    await deploy(production, "v1", "v2", "r3")
    await deploy(staging, "v3", "v4", "r5")
    await production.until_answers(production.dial, "v1")
    assert await production.made() == {"v1": "running", "v2": "exited"}
    assert await staging.made() == {"v3": "running", "v4": "exited"}


async def test_what_another_daemon_has_at_the_address_is_replaced_only_when_asked_for(shop: Open) -> None:
    theirs = shop()
    assert (await theirs.run(theirs.swap("v1", None))).ok
    for asked in (False, True):
        web = shop(daemon="d2", take_over=asked)
        web.dial = theirs.dial
        prepared = await web.run(web.swap("v2", "v1", action="prepare", dial=None, previous_dial=""))
        assert prepared.ok is asked
        assert ("belongs to another trafficd (its id d1)" in prepared.reason) is not asked
        assert await web.driver.explain("web", "a", web.dial) is None
    assert (await web.run(web.swap("v2", "v1"))).ok
    await web.until_answers(web.dial, "v2")
    assert (await theirs.made(), await web.made()) == ({"v1": "exited"}, {"v2": "running"})
    assert (await web.run(web.swap("v1", "v2"))).ok
    await web.until_answers(web.dial, "v1")
    assert (await theirs.made(), await web.made()) == ({"v1": "running"}, {})


async def test_beside_on_a_free_port_and_retired(shop: Open) -> None:
    web = shop()
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    outcome = await web.run(web.swap("v2", "v1", dial=None))
    assert outcome.ok, outcome
    assert outcome.dial is not None
    assert outcome.dial.startswith("127.0.0.1:20")
    await web.until_answers(outcome.dial, "v2")
    assert await web.answers(web.dial) == "v1"
    retired = await web.run(web.swap("v1", None, action="retire", previous_dial=""))
    assert retired.ok, retired
    assert await web.made() == {"v1": "exited", "v2": "running"}
    taken_back = await web.run(web.swap("v2", None, action="retire", dial=outcome.dial, previous_dial=""))
    assert taken_back.ok
    assert await web.made() == {"v1": "exited"}, "what the rollout itself had brought is removed"


async def test_what_crashes_at_start_says_why_and_leaves_nothing(shop: Open) -> None:
    web = shop()
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    for dial in (web.dial, web.spare, None):
        outcome = await web.run(web.swap("crashes", "v1", f"r {dial}", dial=dial))
        assert not outcome.ok
        assert "no such table: users" in outcome.reason
        assert "70" in outcome.reason
        assert "no such table" in outcome.output
        assert set(await web.made()) == {"v1"}
        back = await web.run(web.swap("v1", "crashes", f"r {dial}"))
        assert back.ok
        await web.until_answers(web.dial, "v1")


async def test_an_image_that_does_not_exist_fails_in_prepare(shop: Open) -> None:
    web = shop()
    for pull in ("missing", "never", "always"):
        web.section = web.section.model_copy(update={"pull": pull})
        web.again()
        outcome = await web.run(web.swap("v99", "v1", action="prepare", dial=None, previous_dial=""))
        assert not outcome.ok
        assert "shop/web:v99" in outcome.reason
    assert not web.counting.calls


async def test_what_ran_before_is_not_pulled_even_with_always(shop: Open) -> None:
    web = shop(pull="always")
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    assert (await web.run(web.swap("v2", "v1"))).ok
    outcome = await web.run(web.swap("v1", "v2", "r2", action="prepare", dial=None, previous_dial=""))
    assert outcome.ok, outcome
    assert "not pulled" in outcome.output
    assert "sha256:" in outcome.output, "the digest is recorded"
    await web.dockerd.call("DELETE", "/images/shop/web:v1?force=true")
    assert (await web.run(web.swap("v1", "v2", "r2"))).ok
    await web.until_answers(web.dial, "v1")
    await web.dockerd.image("shop/web:v1", SERVES.replace("{version}", "v1"), env="RELEASE=v1")


async def test_a_cancelled_swap_leaves_no_orphan_and_the_old_one_comes_back(shop: Open) -> None:
    web = shop()
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    count = len(web.counting.calls)
    assert (await web.run(web.swap("v2", "v1", "r1"))).ok
    boundaries = len(web.counting.calls) - count
    assert (await web.run(web.swap("v1", "v2", "r1"))).ok
    assert boundaries == 3, "create, stop, start"
    for number in range(1, boundaries + 1):
        for moment in ("on_call", "on_answer"):
            reached = asyncio.Event()
            first = len(web.counting.calls)

            def cut(n: int, line: str, at: int = first + number, reached: asyncio.Event = reached) -> bool:
                if n == at:
                    reached.set()
                return False

            setattr(web.counting, moment, cut)
            running = asyncio.create_task(web.run(web.swap("v2", "v1", f"r {number} {moment}")))
            await reached.wait()
            running.cancel()
            await asyncio.wait([running])
            assert set(await web.made()) == {"v1"}
            assert (await web.run(web.swap("v1", "v2", f"r {number} {moment}"))).ok
            await web.until_answers(web.dial, "v1")
            assert await web.made() == {"v1": "running"}


async def test_what_is_cancelled_while_the_engine_is_away_is_undone_when_it_is_back(shop: Open) -> None:
    """At a port that the driver chose itself: nobody else knows where the new one runs."""
    web = shop()
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    started = asyncio.Event()
    lost: list[str] = []

    def start(n: int, line: str) -> bool:
        if "/start" in line:
            started.set()
        return False

    def away(n: int, line: str) -> bool:
        if line.startswith("DELETE") and len(lost) < 3:
            lost.append(line)
            return True
        return False

    web.counting.on_answer, web.counting.on_call = start, away
    running = asyncio.create_task(web.run(web.swap("v2", "v1", dial=None)))
    await started.wait()
    running.cancel()
    await asyncio.wait([running])
    assert len(lost) == 3
    assert await web.made() == {"v1": "running"}


@pytest.mark.parametrize(
    ("order", "then"),
    # Resumed in place and at a free port: `test_deploy` has them, with a whole daemon.
    [("spare", "resumed"), ("in place", "reverted"), ("spare", "reverted"), ("free port", "reverted")],
)
async def test_killed_at_any_call_it_is_finished_or_undone(shop: Open, order: str, then: str) -> None:
    """Before a call is passed on, and before its answer is: the two sides of every boundary."""
    web = shop()
    dial = {"in place": web.dial, "spare": web.spare, "free port": None}[order]
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    number, moments = 0, ("on_call", "on_answer")
    while True:
        number += 1
        for moment in moments:
            rollout = f"r {number} {moment}"
            swap = web.swap("v2", "v1", rollout, dial=dial)
            reached = await _killed_at(web, swap, number, moment)
            if not reached:
                assert number > 2, "create and start at least"
                return
            web.again()
            if then == "resumed":
                outcome = await web.run(replace(swap, resumed=True))
                assert outcome.ok, outcome
                where = dial or outcome.dial
                assert where is not None
                await web.until_answers(where, "v2")
            await _back(web, swap, rollout)


async def _killed_at(web: Shop, swap: Swap, number: int, moment: str) -> bool:
    """Whether the swap came to its n-th change at all; it is killed there."""
    reached, first = asyncio.Event(), len(web.counting.calls)

    def cut(n: int, line: str) -> bool:
        if n == first + number:
            reached.set()
        return reached.is_set()

    setattr(web.counting, moment, cut)
    running = asyncio.create_task(web.run(swap))
    waiting = asyncio.create_task(reached.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    if reached.is_set():
        web.driver.leave()
    for task in (running, waiting):
        task.cancel()
    await asyncio.wait([running, waiting])
    web.counting.on_call = web.counting.on_answer = lambda n, line: False
    await web.engines.aclose()
    if not reached.is_set():
        web.again()
    return reached.is_set()


async def _back(web: Shop, swap: Swap, rollout: str) -> None:
    """As the revert of a rollout goes; afterwards there is the old version and nothing else."""
    if swap.dial == web.dial:
        back = await web.run(web.swap("v1", "v2", rollout))
        assert back.ok, back
    else:
        running = asyncio.create_task(web.run(replace(swap, resumed=True)))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        dials = [one["Labels"]["trafficd.dial"] for one in await web.dockerd.containers()]
        for dial in set(dials) - {web.dial}:
            gone = web.swap("v2", None, rollout, action="retire", dial=dial, previous_dial="")
            assert (await web.run(gone)).ok
    await web.until_answers(web.dial, "v1")
    assert await web.made() == {"v1": "running"}


async def test_an_engine_that_gives_no_answer_for_a_while_is_asked_again(shop: Open) -> None:
    web = shop()
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    cut: list[int] = []

    def once(n: int, line: str) -> bool:
        """Every first answer is lost; the Engine has done what it was asked for."""
        if line in lost:
            return False
        lost.add(line)
        cut.append(n)
        return True

    lost: set[str] = set()
    web.counting.on_answer = once
    outcome = await web.run(web.swap("v2", "v1"))
    assert outcome.ok, outcome
    assert len(cut) >= 3
    await web.until_answers(web.dial, "v2")
    assert await web.made() == {"v1": "exited", "v2": "running"}


async def test_a_container_that_was_there_is_taken_over_with_all_it_has(shop: Open) -> None:
    web = shop(take_over="shop-web-1", environment={}, stop_grace=None, networks=None, memory="64m")
    body = {
        "Image": "shop/web:v1",
        "Env": [f"PORT={web.dial.rpartition(':')[2]}", "SECRET=s3"],
        "Labels": {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"},
        "HostConfig": {
            "NetworkMode": "host",
            "Binds": ["/tmp:/data:ro"],
            "RestartPolicy": {"Name": "always"},
            "CapAdd": ["NET_ADMIN"],
        },
        "StopTimeout": 3,
    }
    made = await web.dockerd.call("POST", "/containers/create?name=shop-web-1", body)
    await web.dockerd.call("POST", f"/containers/{made['Id']}/start")
    prepared = await web.run(web.swap("v2", "v1", action="prepare", dial=None, previous_dial=""))
    assert prepared.ok, prepared
    assert "image: shop/web:v1 -> shop/web:v2" in prepared.output
    assert "Memory: none -> 67108864" in prepared.output
    assert "s3" not in prepared.output, "secrets are nobody's"
    changed = [line.split(":")[0].strip() for line in prepared.output.splitlines()[1:]]
    assert set(changed) <= {"image", "Memory", "MemorySwap", "RestartPolicy"}, prepared.output
    assert (await web.run(web.swap("v2", "v1"))).ok
    await web.until_answers(web.dial, "v2")
    new = next(one for one in await web.dockerd.containers() if one["State"] == "running")
    shown = await web.dockerd.call("GET", f"/containers/{new['Id']}/json")
    assert shown["Config"]["Labels"]["com.docker.compose.project"] == "shop"
    assert {"SECRET=s3", "RELEASE=v2"} <= set(shown["Config"]["Env"]), "its own, and the new image's default"
    assert shown["HostConfig"]["Binds"] == ["/tmp:/data:ro"]
    assert shown["HostConfig"]["CapAdd"] == ["NET_ADMIN"]
    assert shown["Config"]["StopTimeout"] == 3
    old = await web.dockerd.call("GET", f"/containers/{made['Id']}/json")
    assert old["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped", "it does not start with its Engine"
    # A second version inherits the same, and the way back leads to the very container that was taken over.
    assert (await web.run(web.swap("v3", "v2", "r2"))).ok
    new = next(one for one in await web.dockerd.containers() if one["State"] == "running")
    shown = await web.dockerd.call("GET", f"/containers/{new['Id']}/json")
    assert {"SECRET=s3", "RELEASE=v3"} <= set(shown["Config"]["Env"])
    assert (await web.run(web.swap("v1", "v3", "r3"))).ok
    await web.until_answers(web.dial, "v1")
    assert (await web.dockerd.call("GET", f"/containers/{made['Id']}/json"))["State"]["Running"]


async def test_a_swap_that_fails_after_a_take_over_finds_the_old_one_again(shop: Open) -> None:
    web = shop(take_over="shop-web-1", environment={}, networks=None)
    body = {
        "Image": "shop/web:v1",
        "Env": [f"PORT={web.dial.rpartition(':')[2]}"],
        "HostConfig": {"NetworkMode": "host"},
    }
    made = await web.dockerd.call("POST", "/containers/create?name=shop-web-1", body)
    await web.dockerd.call("POST", f"/containers/{made['Id']}/start")
    await web.until_answers(web.dial, "v1")
    outcome = await web.run(web.swap("crashes", "v1"))
    assert not outcome.ok
    assert not await web.dockerd.running()
    assert (await web.run(web.swap("v1", "crashes"))).ok
    await web.until_answers(web.dial, "v1")
    (one,) = await web.dockerd.containers()
    assert one["Id"] == made["Id"]


async def test_it_explains_what_the_container_says(shop: Open) -> None:
    web = shop()
    assert (await web.run(web.swap("v1", None, "r0"))).ok
    said = await web.driver.explain("web", "a", web.dial)
    assert said is not None
    assert "runs; its last lines: v1 listens on" in said.reason
    assert await web.driver.explain("web", "b", web.dial) is None
