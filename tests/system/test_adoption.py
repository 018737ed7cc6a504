"""The tutorial's Caddyfile, taken over both ways on a Caddy of somebody else's, under load."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.canary.arms import Instance, users
from tests.system.ask import call
from tests.system.ask import until as state_until
from tests.system.conftest import QUICK
from tests.system.load import CONNECTIONS, Load, load
from tests.system.strangers import StrangersCaddy
from tests.system.test_deploy import deploy, service, versions
from tests.system.test_faults import begin, ended
from trafficd.client import Json, RefusedError
from trafficd.demo.stage import Stage

Beside = Callable[..., Awaitable[tuple[Stage, StrangersCaddy]]]
ADOPT = 'hosts = ["localhost"]\nroute = "adopt"'
IMPORT = 'hosts = ["localhost"]\nroute = "import"'
SLOW_GATE = QUICK.replace("300ms", "1500ms")


@pytest.fixture
async def beside() -> AsyncIterator[Beside]:
    """Instances and a stranger's Caddy in front of them; the daemon is not started yet."""
    stages: list[tuple[Stage, StrangersCaddy]] = []

    async def start(stands: str, **settings: Any) -> tuple[Stage, StrangersCaddy]:
        stage = Stage(**{"instances": 2, "settings": QUICK, "managed": False, "stands": stands, **settings})
        caddy = StrangersCaddy(stage)
        stages.append((stage, caddy))
        stage.start_instances()
        await caddy.start(caddy.tutorial())
        return stage, caddy

    yield start
    for stage, caddy in stages:
        await asyncio.to_thread(caddy.end)
        await stage.aclose()


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):
            await asyncio.sleep(0.02)


def taken_over(stage: Stage) -> bool:
    """Whether what is open can be counted: then requests go by slots."""
    view = service(stage)
    return not view["trouble"] and all(one["in_flight"] is not None for one in view["upstreams"])


def snippet(stage: Stage) -> str:
    client = stage.client()
    try:
        return str(client.call("GET", "/v1/services/web/caddyfile")["snippet"])
    finally:
        client.close()


def imported(stage: Stage, caddy: StrangersCaddy) -> str:
    """The Caddyfile with the snippet in place of its reverse_proxy."""
    file = caddy.home / "web.caddy"
    file.write_text(snippet(stage))
    return caddy.tutorial(f"import {file}")


async def serve(stage: Stage) -> None:
    stage.start_daemon()
    await stage.wait_ready()


def lost_by_one_write(result: Load) -> int:
    """What the load lost, all of it as kept-alive connections that went away."""
    troubles = result.troubles()
    assert set(troubles) <= {"dropped", "truncated"}, troubles
    return sum(troubles.values())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["adopt", "import"])
async def test_the_tutorials_site_is_taken_over_under_load_and_then_loses_nothing(beside: Beside, way: str) -> None:
    stage, caddy = await beside(ADOPT if way == "adopt" else IMPORT)
    async with load(caddy.url) as result:
        await serve(stage)
        if way == "import":
            await caddy.reload(imported(stage, caddy))
        await until(lambda: taken_over(stage))
    lost = lost_by_one_write(result)
    print(f"taken over by {way}: {lost} of {result.sent} requests lost, {CONNECTIONS} connections")
    assert lost <= CONNECTIONS
    etag = await caddy.etag()
    async with load(caddy.url, sockets=2) as result:
        rollout = await deploy(stage, "v2")
    assert rollout["state"] == "succeeded", rollout
    assert not result.troubles()
    assert result.sockets is not None
    assert result.sockets.cut == 0
    assert versions(stage) == dict.fromkeys("ab", "v2")
    assert await caddy.etag() == etag
    async with httpx.AsyncClient(verify=False, trust_env=False) as client:
        answer = await client.get(f"{caddy.url}/")
    assert (answer.headers["X-Site"], answer.headers["X-App-Version"]) == ("tutorial", "v2")
    # Another daemon's life changes nothing in Caddy.
    stage.stop_daemon()
    await serve(stage)
    await until(lambda: taken_over(stage))
    assert await caddy.etag() == etag
    log = (stage.directory / "daemon.log").read_text()
    assert "is also named at" not in log, "the handler itself is no stranger that names its addresses too"


@pytest.mark.slow
async def test_nothing_is_taken_over_before_somebody_is_ready(beside: Beside) -> None:
    never = QUICK.replace("[services.web.health]", '[services.web.health]\npath = "/slow?seconds=9"')
    stage, caddy = await beside(ADOPT, settings=never)
    etag = await caddy.etag()
    stage.start_daemon()
    await stage.wait_socket()
    await asyncio.sleep(1.5)
    assert "no upstream has passed a probe" in service(stage)["trouble"][0]
    assert await caddy.etag() == etag
    with pytest.raises(RefusedError, match="cannot be counted"):
        await asyncio.to_thread(drain, stage, force=True)


def drain(stage: Stage, **body: object) -> Json:
    client = stage.client()
    try:
        return client.call("POST", "/v1/services/web/upstreams/a/drain", body)
    finally:
        client.close()


@pytest.mark.slow
async def test_a_reload_with_the_snippet_keeps_a_drain_and_what_is_open_stays_visible(beside: Beside) -> None:
    stage, caddy = await beside(IMPORT, settings=QUICK.replace('drain_timeout = "3s"', 'drain_timeout = "20s"'))
    await serve(stage)
    text = imported(stage, caddy)
    await caddy.reload(text)
    await until(lambda: taken_over(stage))
    async with httpx.AsyncClient(verify=False, trust_env=False, timeout=30) as client:
        slow = [asyncio.create_task(client.get(f"{caddy.url}/slow?seconds=3")) for _ in range(4)]
        await until(lambda: [one["in_flight"] for one in service(stage)["upstreams"]] == [2, 2])
        draining = asyncio.create_task(asyncio.to_thread(drain, stage))
        await until(lambda: service(stage)["upstreams"][0]["share"] == 0)
        await caddy.reload(text)
        a, b = service(stage)["upstreams"]
        assert (a["in_flight"], a["share"], b["in_flight"]) == (2, 0, 2)
        assert not draining.done()
        assert (await draining)["drained"]
        assert [(await answer).status_code for answer in slow] == [200] * 4
        answers = [await client.get(f"{caddy.url}/") for _ in range(20)]
    assert {answer.headers["X-App-Instance"] for answer in answers} == {stage.dial(1)}


@pytest.mark.slow
async def test_a_reload_without_us_is_noticed_and_nothing_is_guessed(beside: Beside) -> None:
    stage, caddy = await beside(f"{ADOPT}\nrestore = false", settings=SLOW_GATE)
    await serve(stage)
    await until(lambda: taken_over(stage))
    rollout = begin(stage, "v2")
    await caddy.reload(caddy.tutorial())
    begun = time.monotonic()
    await until(lambda: service(stage)["rollout"]["paused"])
    assert time.monotonic() - begun < 2.0
    view = service(stage)
    assert "no longer has our route of web" in view["trouble"][0]
    assert [one["in_flight"] for one in view["upstreams"]] == [None, None], "what goes elsewhere is not counted"
    stage.stop_daemon()
    await serve_again(stage)
    client = stage.client()
    client.call("POST", f"/v1/rollouts/{rollout}/resume", {})
    client.close()
    assert (await ended(stage, rollout))["state"] == "succeeded"


async def serve_again(stage: Stage) -> None:
    stage.start_daemon()
    await stage.wait_socket()
    await until(lambda: taken_over(stage))


@pytest.mark.parametrize(
    "resume", [pytest.param(True, marks=pytest.mark.slow), False], ids=["with --resume", "without"]
)
@pytest.mark.slow
async def test_a_strangers_caddy_that_is_killed_in_mid_rollout_is_taken_over_again(
    beside: Beside, resume: bool
) -> None:
    stage, caddy = await beside(ADOPT, settings=SLOW_GATE)
    await serve(stage)
    await until(lambda: taken_over(stage))
    rollout = begin(stage, "v2")
    await asyncio.sleep(0.3)
    caddy.end(signal.SIGKILL)
    await asyncio.sleep(1.0)
    await caddy.start(caddy.tutorial(), resume=resume)
    await until(lambda: taken_over(stage))
    view = await ended(stage, rollout)
    assert view["state"] == "succeeded", view
    async with load(caddy.url) as result:
        await asyncio.sleep(0.5)
    assert not result.troubles()


@pytest.mark.slow
async def test_leaving_and_joining_again_and_what_is_refused_in_between(beside: Beside) -> None:
    stage, caddy = await beside(ADOPT)
    await serve(stage)
    await until(lambda: taken_over(stage))
    client = stage.client()
    async with load(caddy.url) as result:
        view = await asyncio.to_thread(client.call, "POST", "/v1/services/web/leave", {})
    assert view["left"]
    assert lost_by_one_write(result) <= CONNECTIONS
    etag = await caddy.etag()
    with pytest.raises(RefusedError, match="trafficd join web"):
        client.call("POST", "/v1/services/web/rollouts", {"version": "v2"})
    with pytest.raises(RefusedError, match="trafficd join web"):
        client.call("POST", "/v1/services/web/upstreams/a/drain", {})
    # It stays so, whoever restarts, and Caddy serves on with nobody beside it.
    stage.stop_daemon()
    async with load(caddy.url) as result:
        await serve(stage)
        await asyncio.sleep(1.5)
    assert not result.troubles()
    assert await caddy.etag() == etag
    assert not client.call("POST", "/v1/services/web/join", {})["left"]
    client.close()
    await until(lambda: taken_over(stage))
    async with load(caddy.url) as result:
        assert (await deploy(stage, "v2"))["state"] == "succeeded"
    assert not result.troubles()


@pytest.mark.slow
async def test_an_import_is_not_ours_to_leave(beside: Beside) -> None:
    stage, caddy = await beside(IMPORT)
    await serve(stage)
    await caddy.reload(imported(stage, caddy))
    await until(lambda: taken_over(stage))
    client = stage.client()
    with pytest.raises(RefusedError, match=f"reverse_proxy {stage.dial(0)} {stage.dial(1)}"):
        client.call("POST", "/v1/services/web/leave", {})
    assert not client.call("GET", "/v1/services/web")["left"]
    client.close()


# -- a canary ------------------------------------------------------------------------------------------

PAGES = """
    log {
        output file LOG
    }
    reverse_proxy DIALS {
        @error status 5xx
        handle_response @error {
            respond "please come back" 200
        }
    }
"""


async def failed_canary(stage: Stage, canary: Instance, theirs: Path) -> tuple[Json, Counter[str], int]:
    """A canary gets a share under load until the judge takes it away: the service then, what users were answered, and
    how many lines the site's own log has more."""
    await canary.start()
    await call(stage, "POST", "/v1/services/web/upstreams", id="c", dial=canary.dial, version="v2")
    await state_until(stage, lambda view: view["upstreams"][-1]["health"] == "up")
    before = _lines(theirs)
    async with users(stage.public) as answers:
        await asyncio.sleep(2)
        await call(stage, "PUT", "/v1/services/web/canary", percent=25)
        view = await state_until(stage, lambda view: view["canary_percent"] == 0, 20)
    return view, answers, _lines(theirs) - before


def _lines(file: Path) -> int:
    return len(file.read_bytes().splitlines())


@pytest.mark.slow
async def test_a_canary_behind_an_adopted_handler_is_judged_by_what_it_answered(tmp_path: Path) -> None:
    """Its users see a page with 200 in place of each 500."""
    stage = Stage(
        instances=2,
        settings=QUICK,
        managed=False,
        stands='route = "adopt"',
        caddy=f'access_log = "{tmp_path}/access.log"',
    )
    caddy, canary = StrangersCaddy(stage, scheme="http"), Instance("errors")
    theirs = tmp_path / "theirs.log"
    pages = PAGES.replace("LOG", str(theirs)).replace("DIALS", f"{stage.dial(0)} {stage.dial(1)}")
    try:
        stage.start_instances()
        await caddy.start(f"{{\nadmin 127.0.0.1:{stage.admin_port}\n}}\nhttp://:{stage.public} {{{pages}}}")
        await serve(stage)
        await until(lambda: taken_over(stage))
        etag = await caddy.etag()
        view, answers, lines = await failed_canary(stage, canary, theirs)
        assert view["analysis"]["verdict"] == "FAIL"
        assert view["analysis"]["why"].startswith("errors"), view["analysis"]
        assert canary.seen > 0
        assert set(answers) == {"200"}
        assert answers["200"] <= lines <= answers["200"] + 10
        forecast = await call(stage, "GET", "/v1/services/web/forecast")
        assert forecast["traffic"]["rate"] > 0
        stage.stop_daemon()
        await serve_again(stage)
        assert await caddy.etag() == etag
    finally:
        await asyncio.to_thread(caddy.end)
        await canary.stop()
        await stage.aclose()


@pytest.mark.slow
async def test_a_canary_behind_an_imported_snippet_is_judged_once_the_snippet_has_the_log(tmp_path: Path) -> None:
    stage = Stage(instances=2, settings=QUICK, managed=False, stands='route = "import"')
    caddy, canary, theirs = StrangersCaddy(stage, scheme="http"), Instance("errors"), tmp_path / "theirs.log"

    def site(inside: str) -> str:
        settings = f"{{\nadmin 127.0.0.1:{stage.admin_port}\n}}\n"
        log = f"log {{\noutput file {theirs}\n}}"
        return f"{settings}http://x:{stage.public} {{\n{log}\n{inside}\n}}\n"

    async def bring() -> None:
        file = caddy.home / "web.caddy"
        file.write_text(snippet(stage))
        await caddy.reload(site(f"import {file}"))

    try:
        stage.start_instances()
        await caddy.start(site(f"reverse_proxy {stage.dial(0)} {stage.dial(1)}"))
        stage.start_daemon()
        await stage.wait_socket()
        await bring()
        await until(lambda: taken_over(stage))
        stage.stop_daemon()
        stage.caddy = f'access_log = "{tmp_path}/access.log"'
        stage.start_daemon()
        await stage.wait_socket()
        view = await state_until(stage, lambda view: bool(view["trouble"]))
        assert "Write it again with `trafficd caddyfile web`" in view["trouble"][0]
        await bring()
        await until(lambda: taken_over(stage))
        view, answers, lines = await failed_canary(stage, canary, theirs)
        assert view["analysis"]["why"].startswith("errors"), view["analysis"]
        assert set(answers) == {"200", "500"}
        assert sum(answers.values()) <= lines, "the site's own log goes on"
    finally:
        await asyncio.to_thread(caddy.end)
        await canary.stop()
        await stage.aclose()


# -- the plan ------------------------------------------------------------------------------------------


async def plan(stage: Stage, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trafficd", "plan", *arguments), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.slow
async def test_the_plan_shows_the_write_and_touches_nothing(beside: Beside) -> None:
    stage, caddy = await beside(ADOPT)
    stage.config.write_text(stage.toml())
    etag = await caddy.etag()
    status, text = await plan(stage, "--config", str(stage.config))
    assert status == 0
    assert f"2 entries ({stage.dial(0)}, {stage.dial(1)}) -> 100 slots" in text
    assert "least_conn becomes round_robin" in text
    assert "loses the requests that are just arriving" in text
    assert await caddy.etag() == etag
    await serve(stage)
    await until(lambda: taken_over(stage))
    status, text = await plan(stage, "--socket", str(stage.socket))
    assert (status, text.splitlines()[-1]) == (0, "nothing is written")


@pytest.mark.slow
async def test_an_ambiguous_handler_is_refused_with_the_candidates(beside: Beside) -> None:
    stage, caddy = await beside(ADOPT)
    both = f"reverse_proxy /api/* {stage.dial(0)}\nreverse_proxy {stage.dial(1)}"
    await caddy.reload(caddy.tutorial(both))
    etag = await caddy.etag()
    stage.config.write_text(stage.toml())
    status, text = await plan(stage, "--config", str(stage.config))
    assert status == 1
    assert "2 reverse_proxy handlers for localhost" in text
    assert stage.dial(0) in text
    await serve(stage)
    await asyncio.sleep(1.5)
    assert "2 reverse_proxy handlers for localhost" in service(stage)["trouble"][0]
    assert await caddy.etag() == etag, "nothing was touched"
