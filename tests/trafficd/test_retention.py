"""The journal forgets old rollouts, and where a service stands is known all the same."""

from __future__ import annotations

from dataclasses import replace

from tests.trafficd.home import Home
from trafficd.core.machine import fold
from trafficd.core.model import Service
from trafficd.retention import forget, snapshot

WEB = "/v1/services/web"


async def deployed(home: Home, *versions: str) -> list[str]:
    rollouts = []
    for version in versions:
        rollouts.append(await home.deploy(version))
        assert (await home.ended(rollouts[-1]))["state"] == "succeeded"
    return rollouts


async def test_old_rollouts_go_and_a_restart_knows_all_that_matters(home: Home) -> None:
    old, newest = await deployed(home, "v2", "v3")
    await home.post(f"{WEB}/upstreams/a/drain")
    await home.post(f"{WEB}/freeze", {"reason": "Friday night"})
    before = home.engine.state
    assert await forget(home.engine, home.journal, older_than=-1.0) > 10
    await home.restart()
    assert home.engine.state == before
    assert (await home.get(f"/v1/rollouts/{old}")).status == 404
    assert (await home.get(f"/v1/rollouts/{newest}")).json["state"] == "succeeded"
    assert (await home.post(f"{WEB}/rollback")).json["version"] == "v2", "the version before is still known"


async def test_what_is_young_stays_and_nothing_is_written(home: Home) -> None:
    await deployed(home, "v2", "v3")
    assert await forget(home.engine, home.journal, older_than=3600.0) == 0
    assert await home.journalled("snapshotted") == []


async def test_a_live_rollout_is_never_forgotten(home: Home) -> None:
    await deployed(home, "v2")
    live = await home.deploy("v3", min_healthy_time="60s")
    assert await forget(home.engine, home.journal, older_than=-1.0) == 0
    assert (await home.get(f"/v1/rollouts/{live}")).status == 200


async def test_a_snapshot_alone_is_the_service_without_its_rollouts(home: Home) -> None:
    await deployed(home, "v2")
    state = home.engine.state
    assert fold(Service("web"), [(0.0, snapshot(state))]) == replace(state, rollout=None)
