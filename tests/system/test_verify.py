"""`trafficd verify` on a real Caddy: what passes, what fails, and what is taken back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.system.conftest import QUICK, Raise
from tests.system.test_deploy import service, versions
from trafficd.cli import main
from trafficd.client import Json
from trafficd.demo.stage import Stage

VERIFY = """
[services.web.verify]
rate = 60
connections = 10
warm_up = "700ms"
cool_down = "700ms"
attribute = "X-App-Version"
requests = [
    {path = "/", status = [200], weight = 2},
    {path = "/orders", method = "POST", body = "one", headers = {"Content-Type" = "text/plain"}},
]
compatible = [{path = "/old.js", status = [200]}]
websockets = [{path = "/ws", connections = 3, interval = "100ms"}]
"""
FAST = QUICK.replace('min_healthy_time = "300ms"', 'min_healthy_time = "100ms"').replace("3s", "300ms")
BAD = ("bad=--answers 500", "v3=--without /old.js")


async def verify(stage: Stage, *arguments: str) -> tuple[Result, Json]:
    """`trafficd verify web ...`, as a user would; and what is kept of it."""
    command = ["verify", "web", *arguments]
    environment = {"TRAFFICD_SOCKET": str(stage.socket), "TRAFFICD_URL": None, "TRAFFICD_TOKEN_FILE": None}
    result = await asyncio.to_thread(CliRunner(env=environment).invoke, main, command)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    client = stage.client()
    try:
        found: Json = client.call("GET", "/v1/verifications?service=web&limit=1")["verifications"][0]
    finally:
        client.close()
    return result, found


@pytest.mark.slow
async def test_nothing_is_lost_by_a_good_rollout_nor_by_drain_and_ready(raise_stage: Raise, tmp_path: Path) -> None:
    stage = await raise_stage(instances=2, settings=FAST + VERIFY)
    result, found = await verify(stage, "v2", "--html", str(tmp_path / "page.html"))
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "PASSED: web v2" in result.stdout
    assert (found["state"], found["lost"], found["losses"], found["reasons"]) == ("passed", 0, [], [])
    assert found["rollout_state"] == "succeeded"
    assert versions(stage) == dict.fromkeys("ab", "v2")
    assert found["websockets"]["closed"] >= 1, "streams of replaced instances were closed in good order"
    assert found["websockets"]["cut"] == 0
    by = found["during"]["answered_by"]
    assert set(by) == {"v1", "v2"}
    assert all(set(counts) == {"200"} for counts in by.values())
    assert {(one["request"], one["compatible"]) for one in found["requests"]} == {
        ("GET /", False),
        ("POST /orders", False),
        ("GET /old.js", True),
    }
    assert all(one["rollout"]["200"] > 10 for one in found["requests"]), found["requests"]
    assert {one["step"] for one in found["steps"]} == {"drain", "swap", "gate", "admit"}
    assert "v2" in (tmp_path / "page.html").read_text()

    result, found = await verify(stage)
    assert result.exit_code == 0, result.output
    assert [(one["step"], one["upstream"]) for one in found["steps"]] == [
        (step, upstream) for upstream in "ab" for step in ("drain", "ready")
    ]
    assert (found["lost"], found["rollout"]) == (0, None)
    assert versions(stage) == dict.fromkeys("ab", "v2")
    assert all(one["ready"] for one in service(stage)["upstreams"])


@pytest.mark.slow
async def test_what_is_no_good_is_told_and_taken_back_where_so_configured(raise_stage: Raise) -> None:
    stage = await raise_stage(instances=2, settings=FAST + VERIFY, swap_options=BAD)
    result, found = await verify(stage, "bad1", "--on-fail", "revert")
    assert result.exit_code == 1
    assert "FAILED: web bad1" in result.stdout
    assert any("answers 5xx, none in the warm-up: " in reason and "500" in reason for reason in found["reasons"]), found
    assert found["rollout_state"] == "reverted" or found["rollback"], "however far it had come by then"
    assert versions(stage) == dict.fromkeys("ab", "v1")
    assert all(one["ready"] for one in service(stage)["upstreams"])

    result, found = await verify(stage, "v3")
    assert result.exit_code == 1
    (reason,) = found["reasons"]
    assert reason.startswith("GET /old.js (asked for by clients of the old version) was answered 404")
    assert reason in result.stdout
    assert (found["rollout_state"], found["rollback"]) == ("succeeded", None)
    assert versions(stage) == dict.fromkeys("ab", "v3"), "it is only reported by default"
