"""Freeze: no rollout begins, with a reason and an end; going back stays possible."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.trafficd.home import Home

WEB = "/v1/services/web"


async def test_nothing_begins_while_frozen_and_the_refusal_says_why(home: Home) -> None:
    assert (await home.post(f"{WEB}/freeze", {"reason": "Friday night"}, X_Trafficd_Actor="ann")).status == 200
    refused = await home.post(f"{WEB}/rollouts", {"version": "v2"})
    assert refused.status == 409
    assert "until somebody thaws it by ann: Friday night" in refused.json["detail"]
    assert (await home.ask("GET", WEB)).json["freeze"] == {"reason": "Friday night", "until": None, "actor": "ann"}
    assert (await home.post(f"{WEB}/thaw")).json["freeze"] is None
    assert (await home.post(f"{WEB}/rollouts", {"version": "v2"})).status == 201


async def test_a_freeze_ends_by_itself(home: Home) -> None:
    await home.post(f"{WEB}/freeze", {"reason": "release", "for": "100ms"})
    assert (await home.post(f"{WEB}/rollouts", {"version": "v2"})).status == 409
    await home.until(lambda: not home.engine.state.freeze.holds(time.time()))  # type: ignore[union-attr]
    assert (await home.ask("GET", WEB)).json["freeze"] is None
    assert (await home.post(f"{WEB}/rollouts", {"version": "v2"})).status == 201


async def test_an_end_may_be_a_point_in_time(home: Home) -> None:
    end = datetime.now(UTC) + timedelta(hours=60)
    answer = await home.post(f"{WEB}/freeze", {"reason": "holidays", "until": end.isoformat()})
    assert answer.json["freeze"]["until"] == pytest.approx(end.timestamp())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"reason": ""},
        {"reason": "x", "for": "0s"},
        {"reason": "x", "until": "2020-01-01T00:00:00Z"},
        {"reason": "x", "until": "tomorrow"},
        {"reason": "x", "until": "2099-01-01T00:00:00"},
        {"reason": "x", "for": "1h", "until": "2099-01-01T00:00:00Z"},
    ],
)
async def test_a_freeze_without_reason_or_sensible_end_is_refused(home: Home, body: dict[str, str]) -> None:
    assert (await home.post(f"{WEB}/freeze", body)).status == 422
    assert home.engine.state.freeze is None


async def test_repeating_a_freeze_changes_nothing(home: Home) -> None:
    for _ in range(2):
        await home.post(f"{WEB}/freeze", {"reason": "Friday night"})
    assert len(await home.journalled("frozen")) == 1
    for _ in range(2):
        await home.post(f"{WEB}/thaw")
    assert len(await home.journalled("thawed")) == 1


async def test_going_back_is_not_forbidden(home: Home) -> None:
    await home.ended(await home.deploy("v2"))
    await home.post(f"{WEB}/freeze", {"reason": "Friday night"})
    answer = await home.post(f"{WEB}/rollback")
    assert (answer.status, answer.json["version"]) == (201, "v1")
