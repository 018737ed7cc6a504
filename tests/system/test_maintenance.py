"""Maintenance: Caddy answers by itself, nothing is lost, and a deploy goes on behind it."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.system.conftest import BY_BOTH, QUICK, Raise
from tests.system.load import load, unexpected
from tests.system.test_deploy import deploy, service, versions
from trafficd.client import Json, RefusedError
from trafficd.demo.stage import Stage

pytestmark = BY_BOTH
TEXT = QUICK + '[services.web.maintenance]\nstatus = 503\nbody = "<p>Moving {soon} {\\"x\\"}</p>"\nretry_after = "5m"\n'


async def maintenance(stage: Stage, *, on: bool) -> Json:
    client = stage.client()
    try:
        body = {"on": on, "reason": "database"}
        return await asyncio.to_thread(client.call, "POST", "/v1/services/web/maintenance", body)
    finally:
        client.close()


@pytest.mark.slow
async def test_maintenance_answers_for_a_while_and_a_deploy_goes_on_behind_it(raise_stage: Raise) -> None:
    stage = await raise_stage(settings=TEXT)
    async with load(stage.url, sockets=2) as result:
        assert (await maintenance(stage, on=True))["maintenance"]["reason"] == "database"
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(stage.url)
        assert (answer.status_code, answer.text) == (503, '<p>Moving {soon} {"x"}</p>')
        assert answer.headers["Retry-After"] == "300"
        assert (await deploy(stage, "v2"))["state"] == "succeeded"
        # Neither the end of the daemon nor its return ends it.
        stage.stop_daemon()
        stage.start_daemon()
        await stage.wait_socket()
        await asyncio.sleep(0.5)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(stage.url)).status_code == 503
        assert (await maintenance(stage, on=False))["maintenance"] is None
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(stage.url)).text.startswith("v2 GET")
    troubles = unexpected(stage, result)
    assert troubles.pop("503") > 0
    assert not troubles
    assert versions(stage) == dict.fromkeys("abc", "v2")
    assert all(one["ready"] and one["weight"] for one in service(stage)["upstreams"])


@pytest.mark.slow
async def test_where_caddy_speaks_tls_to_the_upstreams_it_is_refused(raise_stage: Raise) -> None:
    tls = QUICK + "[services.web.transport]\ntls = true\ntls_insecure = true\n"
    stage = await raise_stage(instances=0, settings=tls)
    with pytest.raises(RefusedError, match="trafficd hold"):
        await maintenance(stage, on=True)
    assert service(stage)["maintenance"] is None
