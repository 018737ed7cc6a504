"""How soon a canary would be judged, as the API tells it, and as `trafficd plan` prints it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.proxy import logfile
from tests.trafficd.home import A, Home
from trafficd import show

FORECAST = "/v1/services/web/forecast"


async def logged(home: Home, path: Path, gap: float = 0.1, **changes: object) -> None:
    """The daemon with a log of the last two minutes, a request every `gap` seconds."""
    write(path, gap, 120.0, **changes)
    home.access_log = path
    await home.restart()
    await home.settled()


def write(path: Path, gap: float, seconds: float, **changes: object) -> None:
    now = time.time()
    lines = (
        logfile.line(number, ts=now - seconds + number * gap, answered=A, upstream=A, **changes)
        for number in range(int(seconds / gap))
    )
    path.write_bytes(b"".join(lines))


async def test_a_forecast_says_rate_times_and_a_share(home: Home, tmp_path: Path) -> None:
    await logged(home, tmp_path / "access.log", gap=0.02)
    found = (await home.get(f"{FORECAST}?within=2m")).json
    assert (found["service"], found["within"], found["why"]) == ("web", 120, None)
    assert found["traffic"]["rate"] == pytest.approx(50, rel=0.1)
    assert found["worse_bad"] == 0.01
    assert [one["percent"] for one in found["shares"]] == [1, 5, 25, 50]
    assert found["suggested"] is not None
    slow, fast = found["shares"][0], found["shares"][-1]
    assert all(slow[key] > fast[key] for key in ("fail_worse", "fail_broken", "pass_good"))
    assert (await home.get(FORECAST)).json["within"] == 300


async def test_what_is_not_known_is_null(home: Home, tmp_path: Path) -> None:
    found = (await home.get(FORECAST)).json
    assert (found["traffic"], found["shares"], found["suggested"]) == (None, [], None)
    assert "set caddy.access_log" in found["why"]
    home.access_log = tmp_path / "none" / "access.log"
    await home.restart()
    assert "writes no access log" in (await home.get(FORECAST)).json["why"]
    await logged(home, tmp_path / "access.log", service="shop")
    found = (await home.get(FORECAST)).json
    assert (found["traffic"]["rate"], found["traffic"]["requests"], found["suggested"]) == (0, 0, None)


async def test_why_an_adopted_handler_is_not_logged_is_the_reason(home: Home, tmp_path: Path) -> None:
    await logged(home, tmp_path / "access.log")
    home.engine.trouble.say("unlogged", "its answers are not logged: somebody names the loggers")
    assert (await home.get(FORECAST)).json["why"] == (
        "its canaries are not judged: its answers are not logged: somebody names the loggers"
    )
    assert not home.engine.judged
    assert (await home.get("/v1/services/web")).json["trouble"], "it is said"
    assert (await home.get("/healthz")).status == 200, "and may be how somebody wants it"


@pytest.mark.parametrize("within", ["soon", "0s", "-1", "9999d", "1" * 2000, ""])
async def test_a_time_that_is_none_is_refused(home: Home, within: str) -> None:
    refused = await home.get(f"{FORECAST}?within={within}")
    assert refused.status == 422
    assert "within" in refused.detail


async def test_a_service_that_is_not_there(home: Home) -> None:
    assert (await home.get("/v1/services/shop/forecast")).status == 404


def test_as_text() -> None:
    view = {
        "service": "web",
        "within": 300.0,
        "why": None,
        "traffic": {"seconds": 300.0, "requests": 600, "rate": 2.0, "stable_requests": 600, "stable_bad": 6,
                    "clients": 40},
        "worse_bad": 0.03,
        "shares": [{"percent": 5.0, "fail_worse": 5483.0, "fail_broken": 31.0, "pass_good": None}],
        "suggested": None,
        "notes": ["a note"],
    }  # fmt: skip
    plan = {
        "admin": "http://127.0.0.1:2019", "difference": [], "cost": "nothing is written",
        "services": [{"service": "web", "route": "own", "control": "slots", "present": True, "notes": [],
                      "refused": None, "cost": "nothing", "forecast": view}],
    }  # fmt: skip
    text = show.plan(plan)
    assert "2 requests/s in the last 5 min, 6 of 600 bad, from 40 clients" in text
    assert "3 % BAD FAILS" in text
    assert "about 1.5 h" in text
    assert "about 31 s" in text
    assert "not within a year" in text
    assert "too little traffic for a verdict within 5 min" in text
    assert "- a note" in text
    suggested = show.plan({**plan, "services": [{**plan["services"][0], "forecast": {**view, "suggested": 25.0}}]})  # type: ignore[dict-item]
    assert "for a verdict within 5 min: trafficd canary web 25" in suggested
    assert show.plan({**plan, "services": [{**plan["services"][0], "forecast": None}]}).count("canary") == 0  # type: ignore[dict-item]
