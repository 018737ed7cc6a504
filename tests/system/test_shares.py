"""How exact a share is on a real Caddy, and how fast it is taken away, whatever else is stuck."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from loadtest import runner
from loadtest.model import Outcome, Plan, RequestSpec
from proxy.accessline import BadLineError, Decoder
from proxy.server import CaddyServer
from tests.canary.arms import users
from tests.system.ask import call, service, until
from tests.system.conftest import QUICK, Raise
from tests.system.test_faults import kill
from tests.system.test_strategies import begin, ended, judged, share
from trafficd.client import Json
from trafficd.demo import replace
from trafficd.demo.stage import Stage, free_ports

pytestmark = pytest.mark.slow

GATES = [{"percent": percent, "gate": True} for percent in (1, 5, 25, 50)]


async def at_gate(stage: Stage, rollout: str, number: int) -> Json:
    """Promote the gates before this one, and come to it."""
    view = await until(stage, lambda view: view["rollout"]["stage"] is not None)
    while view["rollout"]["stage"] < number:
        await call(stage, "POST", f"/v1/rollouts/{rollout}/promote", gate=view["rollout"]["stage"])
        view = await service(stage)
    return view


async def answered_by(stage: Stage, requests: int) -> Counter[str]:
    """Who answers so many requests, by version."""
    outcomes: list[Outcome] = []
    plan = Plan((RequestSpec(f"{stage.url}/"),), 20, requests, None, timeout=30.0, attribute="X-App-Version")
    await runner.run(plan, on_outcome=outcomes.append)
    assert Counter(str(outcome.error or outcome.status) for outcome in outcomes) == {"200": requests}
    return Counter(str(outcome.attribute) for outcome in outcomes)


async def test_a_share_is_exact_and_does_not_rise_when_a_stable_instance_dies(
    raise_stage: Raise, tmp_path: Path
) -> None:
    """10,000 requests each: within one of a hundred slots."""
    async with judged(raise_stage, tmp_path) as stage:
        rollout = await begin(stage, "v2", "canary", steps=GATES)
        for number, percent in enumerate((1, 5, 25, 50)):
            await at_gate(stage, rollout, number)
            seen = await answered_by(stage, 10_000)
            print(f"{percent} %: {seen['v2']} of 10,000")
            assert abs(seen["v2"] - 100 * percent) <= 100
        replace.stop(stage.app_directory / f"{stage.ports[0]}.pid", grace=0.0)
        await until(stage, lambda view: view["upstreams"][0]["health"] == "down")
        assert share(await service(stage), "v2") == 50
        seen = await answered_by(stage, 4_000)
        print(f"one of three stable ones down: {seen['v2']} of 4,000 at 50 %")
        assert seen["v2"] <= 2_040


@pytest.mark.parametrize("affinity", ["cookie", "client_ip"])
async def test_users_stay_and_only_come_until_all_go_at_once(raise_stage: Raise, tmp_path: Path, affinity: str) -> None:
    """500 users through 1, 5, 25 and 50 %, and an abort."""
    async with judged(raise_stage, tmp_path, service=f'affinity = "{affinity}"') as stage:
        everybody = [User(number, stage.public) for number in range(500)]
        rollout = await begin(stage, "v2", "canary", steps=GATES)
        before: set[int] = set()
        for number, percent in enumerate((1, 5, 25, 50)):
            await at_gate(stage, rollout, number)
            canary = await on_canary(everybody)
            print(f"{affinity}, {percent} %: {len(canary)} of 500 users")
            assert before <= canary, "nobody leaves while the share grows"
            assert canary == await on_canary(everybody), "nor from one request to the next"
            before = canary
        assert 150 < len(before) < 350
        await call(stage, "POST", f"/v1/rollouts/{rollout}/abort")
        assert await on_canary(everybody) == set()
        assert (await ended(stage, rollout))["state"] == "reverted"


@dataclass
class User:
    """Somebody with an address and a cookie jar of their own."""

    number: int
    port: int
    cookies: dict[str, str] = field(default_factory=dict)

    async def version(self) -> str:
        source = f"127.2.{self.number // 200}.{self.number % 200 + 1}"
        transport = httpx.AsyncHTTPTransport(local_address=source, verify=False)
        async with httpx.AsyncClient(
            transport=transport, cookies=self.cookies, verify=False, trust_env=False
        ) as client:
            response = await client.get(f"http://127.0.0.1:{self.port}/", timeout=30)
            self.cookies |= dict(client.cookies)
        assert response.status_code == 200
        return response.headers["X-App-Version"]


async def on_canary(everybody: list[User]) -> set[int]:
    found: set[int] = set()
    for start in range(0, len(everybody), 50):
        some = everybody[start : start + 50]
        seen = await asyncio.gather(*(user.version() for user in some))
        found |= {user.number for user, version in zip(some, seen, strict=True) if version == "v2"}
    return found


# -- away --------------------------------------------------------------------------------------------------


async def test_from_the_verdict_to_the_last_new_request_it_is_a_tenth_of_a_second(
    raise_stage: Raise, tmp_path: Path
) -> None:
    async with judged(raise_stage, tmp_path, swap_options=["bad=--answers 500"]) as stage:
        async with users(stage.public):
            await asyncio.sleep(1)
            await begin(stage, "bad2", "canary", steps=[25])
            view = await until(stage, lambda view: view["rollout"]["ended_at"] is not None)
            assert view["rollout"]["reason"].startswith("aborted by judge: errors")
            await asyncio.sleep(0.5)
        aborted = await event(stage, "abort_requested")
        last = last_begun(tmp_path / "access.log", {stage.spare_dial(index) for index in range(3)})
        print(f"from the verdict to the last new request on the canary: {1000 * (last - aborted):.0f} ms")
        assert last - aborted <= 0.1


async def event(stage: Stage, kind: str) -> float:
    """When the newest event of this kind was journalled."""
    found = (await call(stage, "GET", "/v1/events?service=web&limit=200"))["events"]
    return max(float(one["at"]) for one in found if one["type"] == kind)


def last_begun(log: Path, dials: set[str]) -> float:
    """When the last request began that one of these addresses answered (s since the epoch)."""
    decoder, last = Decoder(), 0.0
    for line in log.read_bytes().splitlines():
        with contextlib.suppress(BadLineError):
            answer = decoder.decode(line)
            if answer is not None and answer.upstream in dials:
                last = max(last, answer.at - (answer.duration or 0.0))
    assert last, "the canary answered nothing at all"
    return last


async def test_an_abort_works_while_the_log_stalls_and_a_gate_waits(raise_stage: Raise, tmp_path: Path) -> None:
    async with judged(raise_stage, tmp_path) as stage:
        rollout = await begin(stage, "v2", "canary", steps=GATES)
        await at_gate(stage, rollout, 3)
        log = tmp_path / "access.log"
        await answered_by(stage, 100)
        log.unlink()  # Caddy writes on into what has no name any more, and a daemon that begins now cannot read it
        kill(stage)
        stage.start_daemon()
        await stage.wait_socket()
        await until(stage, lambda view: "writes no access log" in str(view["trouble"]))
        await call(stage, "POST", f"/v1/rollouts/{rollout}/abort")
        assert set(await answered_by(stage, 500)) == {"v1"}
        assert (await ended(stage, rollout))["state"] == "reverted"


class Far(Stage):
    """An installation whose daemon comes to Caddy's admin API by a way that can be blocked."""

    way: int = 0

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.way or self.admin_port}"


@contextlib.asynccontextmanager
async def way_to(port: int, listening: int) -> AsyncIterator[asyncio.Event]:
    """Forward to a port while the event is set; afterwards connections are taken, and nothing comes back."""
    open_way, tasks = asyncio.Event(), set[asyncio.Task[None]]()
    open_way.set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await open_way.wait()
                # Caddy's admin API looks at the Host.
                writer.write(data.replace(f"127.0.0.1:{listening}".encode(), f"127.0.0.1:{port}".encode()))
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        for one in (pump(reader, outer), pump(inner, writer)):
            task = asyncio.create_task(one)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", listening)
    try:
        yield open_way
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def test_an_abort_moves_traffic_while_caddys_admin_api_hangs(tmp_path: Path) -> None:
    stage = Far(instances=2, settings=QUICK, spares=True, managed=False)
    caddy = CaddyServer(tmp_path / "caddy", stage.admin_url)
    await caddy.start()
    stage.way = free_ports(1)[0]
    try:
        async with way_to(stage.admin_port, stage.way) as open_way:
            stage.start_instances()
            stage.start_daemon()
            await stage.wait_ready()
            rollout = await begin(stage, "v2", "canary", steps=GATES)
            await at_gate(stage, rollout, 3)
            assert set(await answered_by(stage, 500)) == {"v1", "v2"}
            open_way.clear()
            loop = asyncio.get_running_loop()
            began = loop.time()
            await call(stage, "POST", f"/v1/rollouts/{rollout}/abort")
            took = loop.time() - began
            assert set(await answered_by(stage, 500)) == {"v1"}
            print(f"an abort while the admin API hangs: {took:.2f} s")
            assert took < 2
            open_way.set()
            assert (await ended(stage, rollout))["state"] == "reverted"
            await asyncio.to_thread(stage.stop_daemon)
    finally:
        await stage.aclose()
        await caddy.stop()
