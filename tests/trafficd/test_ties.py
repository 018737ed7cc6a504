"""Leave, join and maintenance by the API: what is journalled, routed and refused."""

from __future__ import annotations

from dataclasses import replace

from proxy.errors import CaddyRefusedError, CaddyUnreachableError
from tests.trafficd.home import A, B, C, Home
from trafficd.core.machine import fold
from trafficd.core.model import Service
from trafficd.retention import snapshot

WEB = "/v1/services/web"
STATIC = "127.0.0.1:2"


async def test_maintenance_gives_all_traffic_to_the_static_answer_and_back(home: Home) -> None:
    begun = await home.post(f"{WEB}/maintenance", {"reason": "database"}, X_Trafficd_Actor="ann")
    assert begun.json["maintenance"]["reason"] == "database"
    assert set(home.pool.shares()) == {STATIC}
    assert (await home.post(f"{WEB}/maintenance", {"reason": "database"})).status == 200
    assert len(await home.journalled("maintenance_begun")) == 1, "asked again, nothing changes"
    await home.restart()
    assert set(home.pool.shares()) == {STATIC}
    assert (await home.post(f"{WEB}/maintenance", {"on": False})).json["maintenance"] is None
    await home.until(lambda: set(home.pool.shares()) == {A, B, C})


async def test_a_rollout_goes_on_behind_maintenance(home: Home) -> None:
    await home.post(f"{WEB}/maintenance")
    rollout = await home.deploy("v2")
    assert (await home.ended(rollout))["state"] == "succeeded"
    assert set(home.pool.shares()) == {STATIC}, "and nobody sees it"
    await home.post(f"{WEB}/maintenance", {"on": False})
    await home.until(lambda: set(home.pool.shares()) == {A, B, C})


async def test_maintenance_outranks_a_hold_and_the_hold_comes_back_after_it(home: Home) -> None:
    await home.post(f"{WEB}/hold")
    await home.post(f"{WEB}/maintenance")
    assert set(home.pool.shares()) == {STATIC}
    await home.post(f"{WEB}/maintenance", {"on": False})
    assert home.pool.shares() == {}
    await home.post(f"{WEB}/release")
    await home.until(lambda: set(home.pool.shares()) == {A, B, C})


async def test_maintenance_that_caddy_cannot_give_is_refused_with_its_reason(home: Home) -> None:
    home.ties.refusal = CaddyRefusedError("it speaks TLS")
    assert (await home.post(f"{WEB}/maintenance")).json["detail"] == "it speaks TLS"
    home.ties.refusal = CaddyUnreachableError("nobody is there")
    assert (await home.post(f"{WEB}/maintenance")).status == 503
    assert set(home.pool.shares()) == {A, B, C}


async def test_a_service_that_was_left_is_not_steered_until_it_is_joined(home: Home) -> None:
    assert (await home.post(f"{WEB}/leave")).json["left"]
    assert (await home.post(f"{WEB}/leave")).json["left"]
    assert home.ties.asked == [("leave", "web")]
    for path, body in (
        ("rollouts", {"version": "v2"}),
        ("upstreams/a/drain", {}),
        ("hold", {}),
        ("maintenance", {}),
    ):
        refused = await home.post(f"{WEB}/{path}", body)
        assert refused.status == 409, path
        assert "trafficd join web" in refused.detail
    table = home.pool.table
    home.probe.dead[A] = "gone"
    await home.restart()
    await home.until(lambda: "a" not in {u for u, h in home.engine.world().health.items() if h == "up"})
    assert home.pool.table == table, "nothing is written while Caddy goes on without us"
    assert not (await home.post(f"{WEB}/join")).json["left"]
    await home.until(lambda: set(home.pool.shares()) == {B, C})


async def test_what_cannot_be_left_stays_joined(home: Home) -> None:
    home.ties.refusal = CaddyRefusedError("it is your Caddyfile")
    refused = await home.post(f"{WEB}/leave")
    assert (refused.status, refused.detail) == (409, "it is your Caddyfile")
    assert not (await home.get(WEB)).json["left"]
    assert (await home.post(f"{WEB}/upstreams/a/drain")).status == 200


async def test_no_leaving_under_a_live_rollout(home: Home) -> None:
    await home.deploy("v2", min_healthy_time="60s")
    refused = await home.post(f"{WEB}/leave")
    assert refused.status == 409
    assert "abort web" in refused.detail


async def test_a_snapshot_keeps_both(home: Home) -> None:
    await home.post(f"{WEB}/maintenance", {"reason": "database"})
    await home.post(f"{WEB}/leave")
    state = home.engine.state
    assert fold(Service("web"), [(0.0, snapshot(state))]) == replace(state, rollout=None)
    assert state.left
    assert state.maintenance is not None
