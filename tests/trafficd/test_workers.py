"""A service of workers over the API and the command line: what works as for any other, and what is refused."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from tests.trafficd.conftest import Begin
from tests.trafficd.home import A, Home, Json, section
from tests.trafficd.test_cli import only_json, trafficd
from trafficd.config import ServiceSection
from trafficd.core import events as ev
from trafficd.core.place import worker

JOBS = "/v1/services/jobs"


def jobs(*versions: str | None, **changes: Any) -> ServiceSection:
    """Workers a, b, c, ... with short times."""
    upstreams = [
        {"id": chr(ord("a") + number), "version": version} for number, version in enumerate(versions or ("v1",) * 3)
    ]
    settings: Json = {
        "route": "none",
        "upstreams": upstreams,
        "health": {"command": ["check"], "interval": 0.05, "fall": 1},
        "rollout": {"min_healthy_time": 0.02, "healthy_deadline": 0.5} | changes.pop("rollout", {}),
        "swap": {"driver": "command", "command": ["replace"]},
    }
    return ServiceSection.model_validate(settings | changes)


@pytest.fixture
async def home(begin: Begin) -> Home:
    return await begin(jobs=jobs())


async def deployed(home: Home, version: str = "v2", **body: Any) -> Json:
    """A rollout to its end."""
    answer = await home.post(f"{JOBS}/rollouts", {"version": version, **body})
    assert answer.status == 201, answer
    await home.until(lambda: home.engines["jobs"].state.live is None)
    return (await home.get(f"/v1/rollouts/{answer.json['id']}")).json


# -- rolled as any other -----------------------------------------------------------------------------------


async def test_a_rollout_and_back(home: Home) -> None:
    rollout = await deployed(home)
    assert (rollout["state"], rollout["upstreams"]) == ("succeeded", dict.fromkeys("abc", "done"))
    assert {(one.dial, one.previous_dial, one.previous_version) for one in home.driver.swaps} == {(None, "", "v1")}
    drains = [one for one in rollout["steps"] if one["step"] == "drain"]
    assert [one["cut"] for one in drains] == [None] * 3, "nothing was counted"
    assert max(one["ended_at"] - one["started_at"] for one in drains) < 0.2, "there is no quiet window to wait for"
    await home.post(f"{JOBS}/rollback")
    await home.until(lambda: home.engines["jobs"].state.stable == "v1")
    assert [one["version"] for one in (await home.get(JOBS)).json["upstreams"]] == ["v1"] * 3


async def test_a_version_that_is_never_healthy_is_taken_back(home: Home) -> None:
    task = asyncio.create_task(deployed(home, "bad"))
    await home.until(lambda: home.engines["jobs"].state.upstreams["a"].version == "bad")
    home.probe.dead[worker("a")] = "check exited with status 1: no broker"
    await home.until(lambda: len(home.driver.swaps) == 2)
    home.probe.dead.clear()
    rollout = await task
    assert (rollout["state"], "no broker" in rollout["failure"]) == ("reverted", True)
    assert [(one.upstream, one.version) for one in home.driver.swaps] == [("a", "bad"), ("a", "v1")]


async def test_min_ready_guards_the_others(begin: Begin) -> None:
    home = await begin(jobs=jobs("v1", "v1", rollout={"min_ready": 1}))
    assert (await home.post(f"{JOBS}/upstreams/b/drain")).json["drained"]
    answer = await home.post(f"{JOBS}/upstreams/a/drain")
    assert (answer.status, "without it nobody works" in answer.detail, "proxy" in answer.detail) == (409, True, False)
    rollout = await deployed(home)
    # b, out of the count by an operator, goes first and stays out of it; so a must not be taken out as well.
    assert [(one.upstream, one.version) for one in home.driver.swaps] == [("b", "v2"), ("b", "v1")]
    assert (rollout["state"], "min_ready is 1" in rollout["failure"]) == ("reverted", True)


async def test_a_single_worker_is_replaced_and_min_ready_of_all_is_refused(begin: Begin) -> None:
    home = await begin(jobs=jobs("v1"))
    assert (await deployed(home))["state"] == "succeeded"
    answer = await home.post(f"{JOBS}/rollouts", {"version": "v3", "min_ready": 1})
    assert (answer.status, "Set min_ready = 0" in answer.detail) == (409, True)
    assert "spare_dial" not in answer.detail


async def test_pause_resume_and_abort(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    begun = (await home.post(f"{JOBS}/rollouts", {"version": "v2"})).json["id"]
    await home.until(lambda: home.driver.swaps)
    assert (await home.post(f"/v1/rollouts/{begun}/pause")).json["paused"]
    home.driver.wait.set()
    await asyncio.sleep(0.2)
    assert {one.upstream for one in home.driver.swaps} == {"a"}
    assert not (await home.post(f"/v1/rollouts/{begun}/resume")).json["paused"]
    await home.until(lambda: len(home.driver.swaps) >= 2)
    await home.post(f"/v1/rollouts/{begun}/abort")
    await home.until(lambda: home.engines["jobs"].state.live is None)
    assert (await home.get(f"/v1/rollouts/{begun}")).json["state"] == "reverted"
    assert {one["version"] for one in (await home.get(JOBS)).json["upstreams"]} == {"v1"}


async def test_after_a_restart_a_worker_counts_when_it_has_been_probed(home: Home) -> None:
    home.probe.dead[worker("a")] = "gone"
    await home.restart()
    await home.until(lambda: home.engines["jobs"].world().up("b"))
    view = {one["id"]: one["ready"] for one in (await home.get(JOBS)).json["upstreams"]}
    assert (view["a"], view["b"]) == (False, True)


async def test_the_caller_replaces_the_workers_of_a_rollout(begin: Begin) -> None:
    home = await begin(jobs=jobs("v1", "v1", swap={"driver": "external"}))
    task = asyncio.create_task(deployed(home))

    def asked_for() -> set[str | None]:
        return {wait.upstream for wait in home.engines["jobs"].waits if "caller" in wait.what}

    for name in "ab":
        await home.until(partial(lambda name: name in asked_for(), name))
        answer = await home.post(f"{JOBS}/upstreams/{name}/ready", {"version": "v2", "dial": A})
        assert (answer.status, "have no address" in answer.detail) == (422, True)
        assert (await home.post(f"{JOBS}/upstreams/{name}/ready", {"version": "v2"})).json["ready"]
    assert (await task)["state"] == "succeeded"


# -- by hand -----------------------------------------------------------------------------------------------


async def test_drain_and_ready_by_hand(home: Home) -> None:
    report = (await home.post(f"{JOBS}/upstreams/a/drain")).json
    assert report == {"drained": True, "in_flight": None, "cut": {"requests": 0, "streams": 0}}
    view = await home.upstream("a", "jobs")
    assert (view["ready"], view["drained"], view["reason"]) == (False, True, "drained by an operator")
    assert (await home.post(f"{JOBS}/upstreams/a/drain", {"wait": False})).json == report
    view = (await home.post(f"{JOBS}/upstreams/a/ready", {"version": "v1"})).json
    assert (view["ready"], view["dial"]) == (True, None)
    home.probe.dead[worker("b")] = "check exited with status 1"
    await home.post(f"{JOBS}/upstreams/b/drain")
    answer = await home.post(f"{JOBS}/upstreams/b/ready")
    assert answer.status == 504
    assert answer.detail.startswith("b did not pass its gate")


async def test_a_worker_is_added_without_an_address_and_others_with_one(begin: Begin) -> None:
    home = await begin(jobs=jobs(), web=section())
    answer = await home.post(f"{JOBS}/upstreams", {"id": "d", "version": "v1"})
    assert (answer.status, answer.json["dial"], answer.json["spare_dial"]) == (201, None, None)
    assert (await home.post(f"{JOBS}/upstreams", {"id": "d", "version": "v1"})).status == 201, "again: no change"
    await home.until(lambda: home.engines["jobs"].world().up("d"))
    for body in ({"id": "e", "dial": "10.9.9.9:80"}, {"id": "e", "spare_dial": "10.9.9.9:80"}):
        answer = await home.post(f"{JOBS}/upstreams", body)
        assert (answer.status, "have no address" in answer.detail) == (422, True)
    answer = await home.post("/v1/services/web/upstreams", {"id": "d"})
    assert (answer.status, answer.detail) == (422, "dial: say at which address d is, as host:port")
    assert (await home.ask("DELETE", f"{JOBS}/upstreams/d")).status == 200
    assert len((await home.get(JOBS)).json["upstreams"]) == 3


# -- what there is no traffic for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "hold", {}, 409, "hold: jobs is a service of workers"),
        ("POST", "release", {}, 409, "release: jobs is a service of workers"),
        ("PUT", "canary", {"percent": 5}, 409, "canary: jobs is a service of workers"),
        ("POST", "rollouts", {"version": "v2", "order": "start_first"}, 422, "no second address"),
    ],
)
async def test_what_is_about_traffic_is_refused(
    home: Home, method: str, path: str, body: Json, status: int, says: str
) -> None:
    answer = await home.ask(method, f"{JOBS}/{path}", body)
    assert (answer.status, says in answer.detail) == (status, True), answer
    assert not await home.journalled("held")


async def test_a_hold_of_when_it_had_a_route_can_be_released(home: Home) -> None:
    await home.engines["jobs"].record(ev.Held("jobs"))
    assert not (await home.post(f"{JOBS}/release")).json["held"]
    assert (await home.post(f"{JOBS}/release")).status == 409


async def test_the_state_has_no_share_and_no_address(home: Home) -> None:
    for one in (await home.get(JOBS)).json["upstreams"]:
        assert [one[key] for key in ("dial", "spare_dial", "share", "weight", "in_flight")] == [None] * 5
        assert (one["ready"], one["health"], one["version"]) == (True, "up", "v1")
    home.probe.dead |= dict.fromkeys(map(worker, "abc"), "check exited with status 1")
    await home.until(lambda: home.engines["jobs"].panic)
    view = (await home.get(JOBS)).json
    assert view["panic"] == "all 3 workers look dead"
    assert view["upstreams"][0]["reason"] == "check exited with status 1"


async def test_the_command_line(begin: Begin) -> None:
    home = await begin(jobs=jobs(), web=section())
    shown = (await trafficd(home, "status", "jobs")).stdout
    assert [line.split() for line in shown.splitlines()[1:3]] == [
        ["UPSTREAM", "VERSION", "DIAL", "READY", "SHARE", "IN", "FLIGHT", "HEALTH"],
        ["a", "v1", "-", "yes", "-", "-", "up"],
    ]
    assert "worker/" not in (await trafficd(home, "status", "--json")).stdout
    assert only_json(await trafficd(home, "status", "jobs", "--json"))["upstreams"][0]["share"] is None
    drained = await trafficd(home, "drain", "jobs", "a")
    assert (drained.exit_code, "a does not count as ready any more" in drained.stdout) == (0, True)
    assert "a (v1) is ready" in (await trafficd(home, "ready", "jobs", "a")).stdout
    assert (await trafficd(home, "deploy", "jobs", "v2")).exit_code == 0
    held = await trafficd(home, "hold", "jobs")
    assert (held.exit_code, "has no traffic" in held.stderr) == (1, True)
