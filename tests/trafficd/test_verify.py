"""Verifications over the API and the command line: what begins, what is refused, what is taken back, what is kept."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.trafficd.conftest import Begin
from tests.trafficd.home import Home, Json, section
from tests.trafficd.test_cli import only_json, trafficd
from trafficd.config import ServiceSection
from trafficd.core import events as ev
from trafficd.retention import keep_short

VERIFICATIONS = "/v1/verifications"
QUICK = {"warm_up": 0.05, "cool_down": 0.05}


def checked(*versions: str, **changes: Any) -> ServiceSection:
    """A service like `section`, with a quick verification that is changed by `verify`."""
    settings = QUICK | changes.pop("verify", {})
    return section(*versions, **changes, verify=settings)


@pytest.fixture
async def home(begin: Begin) -> Home:
    return await begin(web=checked())


async def started(home: Home, version: str | None = "v2", **body: Any) -> str:
    wanted = {"service": "web", **({"version": version} if version else {}), **body}
    answer = await home.post(VERIFICATIONS, wanted, X_Trafficd_Actor="eve")
    assert answer.status == 201, answer
    assert answer.headers["Location"] == f"{VERIFICATIONS}/{answer.json['id']}"
    return str(answer.json["id"])


async def look(home: Home, name: str) -> Json:
    return (await home.get(f"{VERIFICATIONS}/{name}")).json


async def verdict(home: Home, name: str) -> Json:
    """Wait for the end of a verification; what is kept of it."""
    await home.until(lambda: not home.verifier.live)
    return await look(home, name)


async def at_stage(home: Home, stage: str) -> None:
    def reached() -> bool:
        stages = home.verifier._live["web"].record.stages
        return bool(stages) and stages[-1].stage == stage

    await home.until(reached)


async def at_swap(home: Home, **body: Any) -> str:
    """A verification whose rollout stands still in its first swap until `home.driver.wait` is set."""
    home.driver.wait = asyncio.Event()
    name = await started(home, **body)
    await home.until(lambda: home.driver.swaps)
    return name


def go_on(home: Home) -> None:
    assert home.driver.wait is not None
    home.driver.wait.set()


def versions(home: Home) -> set[str | None]:
    return {one.version for one in home.engine.state.upstreams.values()}


# -- passed ------------------------------------------------------------------------------------------------


async def test_a_good_rollout_passes_and_is_found_again_after_a_restart(home: Home) -> None:
    name = await started(home, rate=77)
    found = await verdict(home, name)
    assert (found["state"], found["reasons"], found["lost"], found["actor"]) == ("passed", [], 0, "eve")
    assert (found["version"], found["rollout_state"]) == ("v2", "succeeded")
    assert [one["stage"] for one in found["stages"]] == ["warm_up", "rollout", "cool_down"]
    assert [(one["step"], one["upstream"]) for one in found["steps"]][:3] == [
        ("drain", "a"),
        ("swap", "a"),
        ("gate", "a"),
    ]
    assert found["warm_up"]["sent"] > 0
    assert found["during"]["status"]["200"] > 0
    assert {plan.rate for plan in home.load.plans} == {77}
    assert (home.load.running, home.load.holding) == (0, 0)
    assert versions(home) == {"v2"}
    await home.restart()
    assert await look(home, name) == found
    page = await home.get(f"{VERIFICATIONS}/{name}/page")
    assert (page.status, page.kind) == (200, "text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert (await home.get(VERIFICATIONS)).json["verifications"] == [found]
    assert (await home.get(f"{VERIFICATIONS}?service=web&limit=1")).json["verifications"] == [found]


async def test_without_a_version_each_upstream_is_drained_and_made_ready(home: Home) -> None:
    await home.post("/v1/services/web/upstreams/b/drain")
    found = await verdict(home, await started(home, version=None))
    assert (found["state"], found["rollout"]) == ("passed", None)
    assert [(one["step"], one["upstream"]) for one in found["steps"]] == [
        ("drain", "a"), ("ready", "a"), ("drain", "c"), ("ready", "c"),
    ]  # fmt: skip
    assert home.engine.state.upstreams["b"].drained, "what somebody drained stays so"
    assert not home.engine.state.upstreams["a"].drained
    actors = {one["data"]["actor"] for one in (await home.journalled("drain_requested"))[1:]}
    assert actors == {f"verification {found['id']}"}


async def test_it_is_shown_while_it_is_under_way(home: Home) -> None:
    name = await at_swap(home)
    found = await look(home, name)
    assert (found["state"], found["rollout_state"], found["ended_at"]) == ("running", "running", None)
    assert found["sent"] > 0
    assert [one["step"] for one in found["steps"] if one["end"] is None] == ["swap"]
    page = await home.get(f"{VERIFICATIONS}/{name}/page")
    assert (page.status, "still running" in page.detail) == (409, True)
    go_on(home)
    assert (await verdict(home, name))["state"] == "passed"


# -- failed ------------------------------------------------------------------------------------------------


async def test_a_lost_request_is_listed_with_the_step_and_the_upstream(home: Home) -> None:
    name = await at_swap(home)
    home.load.lose()
    await asyncio.sleep(0.05)
    go_on(home)
    found = await verdict(home, name)
    assert found["state"] == "failed"
    assert found["reasons"] == ["1 request was lost: 1 dropped"]
    (lost,) = found["losses"]
    assert abs(lost["at"] - time.time()) < 60
    assert (lost["kind"], lost["request"], lost["phase"], lost["upstream"]) == ("dropped", "GET /", "swap a", "a")
    assert found["rollout_state"] == "succeeded", "on_fail is report by default"
    assert versions(home) == {"v2"}


async def test_with_revert_the_rollout_is_aborted_as_soon_as_a_request_is_lost(home: Home) -> None:
    name = await at_swap(home, on_fail="revert")
    home.load.lose()
    await home.until(lambda: home.driver.cancelled)  # nobody has let the swap go on
    home.driver.wait = None
    found = await verdict(home, name)
    assert (found["state"], found["rollout_state"]) == ("failed", "reverted")
    assert found["reasons"][0] == "1 request was lost: 1 dropped"
    assert (await home.journalled("abort_requested"))[0]["data"]["actor"] == f"verification {name}"
    assert versions(home) == {"v1"}


async def test_with_revert_what_has_been_rolled_out_already_is_rolled_back_under_load(home: Home) -> None:
    name = await started(home, on_fail="revert", cool_down="5s")
    await at_stage(home, "cool_down")
    home.driver.wait = asyncio.Event()
    home.load.lose()
    await at_stage(home, "rollback")
    assert home.load.running == 1
    go_on(home)
    found = await verdict(home, name)
    assert (found["state"], found["rollout_state"]) == ("failed", "succeeded")
    assert found["rollback"] is not None
    assert (await home.get(f"/v1/rollouts/{found['rollback']}")).json["state"] == "succeeded"
    assert any("rolled back to v1" in note for note in found["notes"])
    assert versions(home) == {"v1"}


async def test_another_rollout_since_then_is_not_rolled_back(home: Home) -> None:
    name = await started(home, on_fail="revert", cool_down="5s")
    await at_stage(home, "cool_down")
    await home.ended(await home.deploy("v3"))
    home.load.lose()
    found = await verdict(home, name)
    assert (found["state"], found["rollback"]) == ("failed", None)
    assert any("another rollout" in note for note in found["notes"])
    assert versions(home) == {"v3"}


async def test_answers_of_the_new_version_are_judged_as_they_come(begin: Begin) -> None:
    home = await begin(web=checked(verify={"compatible": [{"path": "/old.js"}], "on_fail": "revert"}))
    name = await at_swap(home)
    home.load.status[1] = 404
    await home.until(lambda: home.driver.cancelled)
    home.driver.wait = None
    found = await verdict(home, name)
    assert "GET /old.js (asked for by clients of the old version) was answered 404" in found["reasons"][0]
    assert found["rollout_state"] == "reverted"
    assert found["requests"][1]["rollout"]["404"] > 0


async def test_a_cut_websocket_fails(begin: Begin) -> None:
    home = await begin(web=checked(verify={"websockets": [{"path": "/ws"}]}))
    name = await at_swap(home)
    assert home.load.holding == 1
    home.load.cut()
    go_on(home)
    found = await verdict(home, name)
    assert found["reasons"] == ["1 WebSocket was cut without a close frame"]
    (cut,) = found["losses"]
    assert (cut["kind"], cut["request"], cut["phase"]) == ("cut", "WebSocket /ws", "swap a")
    assert home.load.holding == 0


async def test_slower_than_the_warm_up(begin: Begin) -> None:
    home = await begin(web=checked(verify={"p99_factor": 3}))
    name = await at_swap(home)
    home.load.p99 = 100.0
    go_on(home)
    assert "over 3 times that of the warm-up (10.0 ms)" in (await verdict(home, name))["reasons"][0]


async def test_a_rollout_that_does_not_succeed_fails_its_verification(home: Home) -> None:
    home.driver.fails["v2"] = "no such image"
    found = await verdict(home, await started(home))
    assert (found["state"], found["rollout_state"], found["lost"]) == ("failed", "reverted", 0)
    assert "no such image" in found["reasons"][0]


async def test_a_warm_up_that_goes_badly_touches_nothing(begin: Begin) -> None:
    home = await begin(web=checked(verify={"requests": [{"path": "/x", "status": [201]}]}))
    found = await verdict(home, await started(home))
    assert found["reasons"][0].startswith("GET /x was answered 200")
    assert found["notes"] == ["this was in the warm-up: nothing was touched"]
    assert (found["rollout"], home.engine.state.rollout, versions(home)) == (None, None, {"v1"})


@pytest.mark.parametrize("version", ["v2", None])
async def test_a_load_generator_that_breaks_is_no_reason_to_touch_anything(home: Home, version: str | None) -> None:
    home.load.broken = "out of ports"
    found = await verdict(home, await started(home, version))
    assert (found["state"], found["reasons"], versions(home)) == ("failed", ["out of ports"], {"v1"})
    assert home.engine.state.rollout is None


async def test_a_rollout_that_begins_in_the_warm_up_of_a_cycle_is_let_alone(begin: Begin) -> None:
    home = await begin(web=checked(swap={"driver": "external"}, verify={"warm_up": 0.4}))
    name = await started(home, version=None)
    rollout = await home.deploy("v2")
    await home.until(lambda: any("/upstreams/a/ready" in wait.what for wait in home.engine.waits))
    found = await verdict(home, name)
    assert (found["state"], rollout in found["reasons"][0], found["steps"]) == ("failed", True, []), found
    assert home.engine.state.live is not None
    assert any("/upstreams/a/ready" in wait.what for wait in home.engine.waits), "nobody said that it was replaced"


async def test_a_load_generator_that_breaks_in_mid_rollout_is_said_and_nothing_is_taken_back(home: Home) -> None:
    name = await at_swap(home, on_fail="revert")
    home.load.broken = "out of ports"
    await asyncio.sleep(0.05)
    go_on(home)
    found = await verdict(home, name)
    assert (found["state"], found["reasons"]) == ("failed", ["out of ports"])
    assert (versions(home), home.driver.cancelled) == ({"v2"}, 0)


# -- given up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", None])
async def test_one_given_up_in_its_warm_up_touches_nothing(begin: Begin, version: str | None) -> None:
    home = await begin(web=checked(verify={"warm_up": 30.0}))
    name = await started(home, version=version)
    await at_stage(home, "warm_up")
    told = await trafficd(home, "abort", "web")
    assert (told.exit_code, told.stderr, told.stdout) == (0, "", f"{name} of web is given up\n")
    found = await verdict(home, name)
    assert (found["state"], found["rollout"], found["steps"]) == ("failed", None, [])
    assert "given up by" in found["reasons"][0]
    assert "nothing was touched" in found["reasons"][0]
    assert not home.driver.swaps
    assert home.load.running == 0
    again = await home.post(f"{VERIFICATIONS}/{name}/abort", {})
    assert (again.status, "nothing to give up" in again.detail) == (409, True)


async def test_a_cycle_given_up_ends_with_every_upstream_in_traffic(home: Home) -> None:
    name = await started(home, version=None)
    await at_stage(home, "cycle")
    assert (await home.post(f"{VERIFICATIONS}/{name}/abort", {}, X_Trafficd_Actor="eve")).status == 200
    found = await verdict(home, name)
    assert found["state"] == "failed"
    assert "given up by eve" in found["reasons"][0]
    drained = [one["upstream"] for one in found["steps"] if one["step"] == "drain"]
    assert len(drained) < 3
    assert not any(one.drained for one in home.engine.state.upstreams.values())


async def test_one_whose_rollout_is_under_way_is_given_up_by_that(home: Home) -> None:
    name = await at_swap(home)
    answer = await home.post(f"{VERIFICATIONS}/{name}/abort", {})
    assert answer.status == 409
    assert "trafficd abort web" in answer.detail
    go_on(home)
    assert (await verdict(home, name))["state"] == "passed"


# -- refused -----------------------------------------------------------------------------------------------


async def test_one_verification_of_a_service_at_a_time(begin: Begin) -> None:
    other = checked(upstreams=[{"id": name, "dial": f"10.0.1.{name}:80", "version": "v1"} for name in "12"])
    home = await begin(web=checked(), shop=other)
    name = await at_swap(home)
    refused = await home.post(VERIFICATIONS, {"service": "web", "version": "v3"})
    assert (refused.status, name in refused.detail) == (409, True)
    assert (await home.post(VERIFICATIONS, {"service": "shop", "version": "v3"})).status == 201
    go_on(home)
    await verdict(home, name)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"service": "nope"}, 404, "the configuration has: web"),
        ({"version": "v2"}, 422, "service"),
        ({"service": "web", "version": "../x"}, 422, "is not a version"),
        ({"service": "web", "rate": 0}, 422, "rate"),
        ({"service": "web", "warm_up": "0s"}, 422, "warm_up"),
        ({"service": "web", "on_fail": "explode"}, 422, "on_fail"),
        ({"service": "web", "requests": [{"path": "/"}]}, 422, "requests"),
        ({"service": "web", "p99_factor": 0.5}, 422, "p99_factor"),
    ],
)
async def test_what_cannot_be_asked(home: Home, body: Json, status: int, says: str) -> None:
    answer = await home.post(VERIFICATIONS, body)
    assert (answer.status, answer.kind) == (status, "application/problem+json")
    assert says in answer.detail
    assert (await home.get(VERIFICATIONS)).json == {"verifications": []}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/freeze", {"reason": "Friday night"}, "Friday night"),
        ("/hold", {}, "held"),
        ("/maintenance", {"on": True}, "in maintenance"),
        ("/leave", {}, "has left"),
    ],
)
async def test_what_is_refused_is_refused_before_any_load(home: Home, path: str, body: Json, says: str) -> None:
    assert (await home.post(f"/v1/services/web{path}", body)).status == 200
    answer = await home.post(VERIFICATIONS, {"service": "web", "version": "v2"})
    assert (answer.status, says in answer.detail) == (409, True), answer
    assert home.load.plans == []


async def test_beside_a_rollout_nothing_is_verified(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    rollout = await home.deploy("v2")
    for body in ({"service": "web"}, {"service": "web", "version": "v3"}):
        answer = await home.post(VERIFICATIONS, body)
        assert (answer.status, rollout in answer.detail) == (409, True)


async def test_the_only_upstream_is_not_drained(begin: Begin) -> None:
    home = await begin(web=checked("v1"))
    answer = await home.post(VERIFICATIONS, {"service": "web"})
    assert (answer.status, "fewer than two upstreams" in answer.detail) == (409, True)


async def test_workers_are_not_verified(begin: Begin) -> None:
    worker = {
        "route": "none",
        "health": {"command": ["check"]},
        "rollout": {"min_healthy_time": 0.01},
        "upstreams": [{"id": "a", "version": "v1"}],
    }
    home = await begin(web=checked(), jobs=ServiceSection.model_validate(worker))
    answer = await home.post(VERIFICATIONS, {"service": "jobs", "version": "v2"})
    assert (answer.status, "services.jobs.route" in answer.detail) == (422, True)


async def test_what_is_not_there(home: Home) -> None:
    for path in ("v-1", "v-1/page", "%2E%2E"):
        assert (await home.get(f"{VERIFICATIONS}/{path}")).status == 404


# -- a rollout that is asked for with verify ---------------------------------------------------------------

ROLLOUTS = "/v1/services/web/rollouts"


@pytest.mark.parametrize("verify", [True, {"rate": 5, "warm_up": "20ms", "on_fail": "revert"}])
async def test_a_rollout_with_verify_begins_after_the_warm_up(home: Home, verify: object) -> None:
    answer = await home.post(ROLLOUTS, {"version": "v2", "verify": verify, "message": "fix"})
    assert (answer.status, answer.json["version"], answer.json["message"]) == (201, "v2", "fix")
    assert answer.headers["Location"] == f"/v1/rollouts/{answer.json['id']}"
    found = await verdict(home, answer.json["verification"])
    assert (found["state"], found["rollout"]) == ("passed", answer.json["id"])
    if isinstance(verify, dict):
        assert (home.load.plans[0].rate, home.load.plans[0].duration, found["on_fail"]) == (5, 0.02, "revert")


async def test_a_rollout_whose_warm_up_goes_badly_is_refused(begin: Begin) -> None:
    home = await begin(web=checked(verify={"requests": [{"path": "/x", "status": [201]}]}))
    answer = await home.post(ROLLOUTS, {"version": "v2", "verify": True})
    assert (answer.status, "GET /x was answered 200" in answer.detail) == (409, True)
    assert home.engine.state.rollout is None


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"verify": True, "if_live": "queue"}, 422, "if_live"),
        ({"verify": {"rate": {"x": 1}}}, 422, "verify.rate"),
        ({"verify": {"nope": 1}}, 422, "nope"),
        ({"verify": 1}, 422, "verify"),
        ({"max_parallel": {"x": 1}}, 422, "max_parallel"),
    ],
)
async def test_a_rollout_with_a_verify_that_cannot_be(home: Home, body: Json, status: int, says: str) -> None:
    answer = await home.post(ROLLOUTS, {"version": "v2", **body})
    assert (answer.status, says in answer.detail) == (status, True), answer
    assert home.load.plans == []


async def test_the_same_key_is_one_verification(home: Home) -> None:
    for path, body in (
        (VERIFICATIONS, {"service": "web", "version": "v2"}),
        (ROLLOUTS, {"version": "v3", "verify": True}),
    ):
        first = await home.post(path, body, Idempotency_Key=f"k{path}")
        await home.until(lambda: not home.verifier.live)
        again = await home.post(path, body, Idempotency_Key=f"k{path}")
        assert (again.status, again.json, again.headers["Location"]) == (201, first.json, first.headers["Location"])
    assert len((await home.get(VERIFICATIONS)).json["verifications"]) == 2


# -- restarts ----------------------------------------------------------------------------------------------


async def test_a_restart_interrupts_the_verification_and_not_the_rollout(home: Home) -> None:
    name = await at_swap(home)
    await home.restart()
    assert (home.load.running, home.load.holding) == (0, 0)
    found = await look(home, name)
    assert (found["state"], found["ended_at"] is None) == ("interrupted", False)
    assert found["rollout"] in found["reasons"][0]
    go_on(home)
    await home.until(lambda: home.engine.state.live is None)
    assert versions(home) == {"v2"}
    assert (await look(home, name))["state"] == "interrupted"
    assert (await verdict(home, await started(home, "v3")))["state"] == "passed", "the service is free again"


async def test_a_restart_in_a_cycle_makes_the_drained_upstream_ready_again(home: Home) -> None:
    home.pool.stalled = asyncio.Event()  # the drain waits for a count
    name = await started(home, version=None)
    await home.until(lambda: home.engine.state.upstreams["a"].drained)
    home.pool.stalled.set()
    await home.verifier.aclose()  # as if the daemon had died then: nothing more is kept
    assert (await look(home, name))["state"] == "interrupted"
    await home.journal.append(ev.DrainRequested("web", "a"))
    await home.restart()
    await home.until(lambda: not home.engine.state.upstreams["a"].drained)
    assert (await look(home, name))["state"] == "interrupted"


async def test_what_somebody_drained_is_left_alone_by_a_restart(home: Home) -> None:
    name = await at_swap(home)
    await home.post("/v1/services/web/upstreams/c/drain")
    await home.restart()
    assert home.engine.state.upstreams["c"].drained
    assert (await look(home, name))["state"] == "interrupted"
    go_on(home)
    await home.until(lambda: home.engine.state.live is None)


async def test_old_ones_are_forgotten_with_the_rollouts(home: Home) -> None:
    name = await started(home)
    await verdict(home, name)
    for older_than, status in ((3600.0, 200), (-1.0, 404)):
        keeping = asyncio.create_task(keep_short(home.engines.values(), home.journal, older_than))
        await asyncio.sleep(0.1)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert (await home.get(f"{VERIFICATIONS}/{name}")).status == status


# -- the command line --------------------------------------------------------------------------------------


async def test_the_command_line_shows_the_verdict(home: Home) -> None:
    passed = await trafficd(home, "verify", "web", "v2", "--rate", "70")
    assert (passed.exit_code, passed.stderr) == (0, "")
    assert "PASSED: web v2" in passed.stdout
    assert passed.stdout.splitlines()[0].endswith(" lost"), "what goes on is told first"
    as_json = only_json(await trafficd(home, "verify", "web", "--json"))
    assert (as_json["state"], as_json["version"]) == ("passed", None)


async def test_the_command_line_lists_what_was_lost(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    telling = asyncio.create_task(trafficd(home, "verify", "web", "v2", "--on-fail", "revert"))
    await home.until(lambda: home.driver.swaps)
    home.load.lose()
    await home.until(lambda: home.driver.cancelled)
    home.driver.wait = None
    failed = await telling
    assert failed.exit_code == 1
    assert "FAILED: web v2" in failed.stdout
    assert "1 request was lost: 1 dropped" in failed.stdout
    line = next(line for line in failed.stdout.splitlines() if "connection closed" in line)
    assert "dropped" in line
    assert "swap a" in line


async def test_the_command_line_may_not_wait(home: Home) -> None:
    begun = only_json(await trafficd(home, "verify", "web", "v2", "--no-wait", "--json"))
    assert begun["state"] == "running"
    assert (await verdict(home, begun["id"]))["state"] == "passed"


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("verify", 2, "SERVICE"),
        ("verify nope", 2, "the configuration has: web"),
        ("verify web v2 --on-fail explode", 2, "explode"),
        ("verify web v2 --rate -3", 2, "rate"),
        ("verify web v2 --html /nowhere/x.html", 2, "/nowhere/x.html"),
        ("verify web v2 --html /tmp/x.html --no-wait", 2, "--no-wait"),
    ],
)
async def test_what_the_command_line_is_refused(home: Home, command: str, status: int, says: str) -> None:
    result = await trafficd(home, *command.split())
    assert (result.exit_code, says in result.stderr) == (status, True), result.output
    assert home.load.plans == []


async def test_without_a_daemon() -> None:
    assert (await trafficd(None, "verify", "web", "v2", "--url", "http://127.0.0.1:9")).exit_code == 3
