"""The same deploys with `control = "admin"`: dearer, and right all the same."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.system.ask import configuration
from tests.system.conftest import QUICK, Raise
from tests.system.load import load
from tests.system.test_deploy import deploy, service, versions

PATIENT = QUICK.replace('drain_timeout = "3s"', 'drain_timeout = "15s"')

CYCLES = 200


@pytest.mark.slow
async def test_a_rolling_deploy_by_the_admin_api_alone(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=2, service='control = "admin"', settings=PATIENT)
    async with load(stage.url, gets=4, posts=4, slow=0, qps=10) as result:
        rollout = await deploy(stage, "v2")
    assert rollout["state"] == "succeeded", rollout
    assert versions(stage) == dict.fromkeys("ab", "v2")
    assert {one["share"] for one in service(stage)["upstreams"]} == {50.0}
    # Each change may lose the requests that are just arriving; nothing else may be lost.
    assert sum(result.troubles().values()) <= 4 * 8


@pytest.mark.slow
async def test_a_bad_version_is_taken_back(raise_stage: Raise) -> None:
    stage = await raise_stage(
        instances=2,
        service='control = "admin"',
        settings=PATIENT.replace("8s", "2s"),
        swap_options=("bad=--warm-up 999",),
    )
    rollout = await deploy(stage, "bad1")
    assert rollout["state"] == "reverted", rollout
    assert versions(stage) == dict.fromkeys("ab", "v1")


@pytest.mark.slow
async def test_a_restart_changes_nothing_in_caddy(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=2, service='control = "admin"')
    before = await configuration(stage.admin_url)
    stage.stop_daemon()
    stage.start_daemon()
    await stage.wait_ready()
    await asyncio.sleep(1.0)
    assert await configuration(stage.admin_url) == before


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_drained_upstream_gets_nothing_that_began_after_the_drain_returned(raise_stage: Raise) -> None:
    stage = await raise_stage(service='control = "admin"', settings=PATIENT)
    base = "/v1/services/web/upstreams/a"
    transport = httpx.AsyncHTTPTransport(uds=str(stage.socket))
    spans = []
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as api,
        load(stage.url, gets=0, posts=32, slow=0, qps=10) as result,
    ):
        for _ in range(CYCLES):
            assert (await api.post(f"{base}/drain")).json()["drained"]
            begun = time.monotonic_ns()
            await asyncio.sleep(0.12)  # longer than the pace of one connection
            spans.append((begun, time.monotonic_ns()))
            assert (await api.post(f"{base}/ready")).status_code == 200
    assert sum(sum(result.between(*span).values()) for span in spans) > 5 * CYCLES
    for span in spans:
        assert result.between(*span)[stage.dial(0)] == 0
    lost = sum(result.troubles().values())
    print(f"{lost} of {result.sent} requests lost in {2 * CYCLES} changes")
    assert lost <= 2 * CYCLES * 32
