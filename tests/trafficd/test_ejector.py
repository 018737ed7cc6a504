"""Answers of a log become ejections of real engines, which outlive a restart, end by time, and end by hand."""

from __future__ import annotations

import time

import pytest

from proxy.accessline import Answer, Cut
from tests.trafficd.conftest import Begin
from tests.trafficd.home import A, B, C, Home, section
from trafficd.canary.ejector import Ejector
from trafficd.core import events as ev
from trafficd.core.model import Health

WEB = "/v1/services/web"
WHY = "10 of 10 answers were bad"


def answer(upstream: str | None, number: int, *, status: int = 200, stratum: str = "") -> Answer:
    client = f"192.0.2.{number % 250}"
    return Answer(
        time.time(), "web", upstream, status, 0.02, 0.01, Cut.NO, 0, client, "GET", "/", stratum, upstream is not None
    )


async def watched(home: Home, bad: str = B, *, stratum: str = "") -> Ejector:
    """Ten answers of each upstream in each of some seconds that are only made believe; those of one are bad."""
    ejector = Ejector(home.operators)
    began = time.time()
    await ejector.turn(began)
    for second in range(3):
        for number in range(30):
            dial = (A, B, C)[number % 3]
            one = answer(dial, number, status=500 if dial == bad else 200, stratum=stratum)
            ejector.take(one._replace(at=began + second))
        ejector.take(answer(None, 1, status=502))
        await ejector.turn(began + second + 1)
    return ejector


@pytest.fixture
def outliers() -> dict[str, object]:
    return {"enabled": True, "eject_for": 60}


async def test_one_that_fails_is_sent_nothing_and_that_is_said(begin: Begin, outliers: dict[str, object]) -> None:
    home = await begin(web=section(outliers=outliers))
    ejector = await watched(home)
    assert ejector.wanted
    assert home.pool.shares() == {A: 50, C: 50}
    view = await home.upstream("b")
    assert (view["ready"], view["health"], view["share"]) == (False, "up", 0)
    assert view["ejected_until"] > time.time() + 50
    assert view["reason"].startswith("ejected for ")
    assert " answers were bad, of the others' 0 of " in view["reason"]
    assert (await home.upstream("a"))["ejected_until"] is None
    (event,) = await home.journalled("upstream_ejected")
    assert (event["data"]["upstream"], event["data"]["row"]) == ("b", 1)


async def test_another_one_that_fails_stays_and_that_is_said(begin: Begin, outliers: dict[str, object]) -> None:
    home = await begin(web=section(outliers=outliers))
    await watched(home)
    await watched(home, bad=C)
    assert home.pool.shares() == {A: 50, C: 50}
    (line,) = (await home.get(WEB)).json["trouble"]
    assert line.startswith("c answers badly and is not ejected")
    assert line.endswith("out already: b (max_ejected)")


async def test_nobody_is_ejected_by_what_no_user_asked(begin: Begin, outliers: dict[str, object]) -> None:
    home = await begin(web=section(outliers=outliers))
    await watched(home, stratum="testers")
    assert len(home.pool.shares()) == 3


async def test_nobody_is_ejected_where_nobody_wants_that(begin: Begin) -> None:
    home = await begin(web=section())
    ejector = await watched(home)
    assert not ejector.wanted
    assert len(home.pool.shares()) == 3


async def test_a_log_that_cannot_be_read_is_said(begin: Begin, outliers: dict[str, object]) -> None:
    home = await begin(web=section(outliers=outliers))
    ejector = Ejector(home.operators, blind="no log")
    await ejector.turn(time.time())
    assert home.engine.trouble.lines() == ["nobody looks for outliers: no log"]
    ejector.blind = ""
    await ejector.turn(time.time())
    assert home.engine.trouble.lines() == []


async def test_a_journal_that_cannot_be_written_is_said_and_tried_again(
    begin: Begin, outliers: dict[str, object]
) -> None:
    home = await begin(web=section(outliers=outliers))
    home.journal.full = "disk full"
    ejector = await watched(home)
    assert home.engine.trouble.outliers.startswith("b answers badly and cannot be ejected: disk full")
    assert len(home.pool.shares()) == 3
    home.journal.full = ""
    await ejector.turn(time.time())
    assert home.engine.trouble.outliers == ""
    assert home.pool.shares() == {A: 50, C: 50}


async def eject(home: Home, seconds: float) -> None:
    event = ev.UpstreamEjected("web", "b", time.time() + seconds, WHY)
    await home.operators["web"].eject(event, lambda state, world: True)
    assert home.pool.shares() == {A: 50, C: 50}


async def test_it_returns_by_itself_also_to_a_daemon_that_looks_for_none(begin: Begin) -> None:
    home = await begin(web=section())
    await eject(home, 1.0)
    await home.restart()
    assert home.pool.shares() == {A: 50, C: 50}
    assert home.engine.state.upstreams["b"].ejected
    await home.until(lambda: len(home.pool.shares()) == 3)
    (event,) = await home.journalled("upstream_returned")
    assert event["data"] == {"upstream": "b", "actor": ""}


async def test_ready_lets_it_in_at_once(begin: Begin) -> None:
    home = await begin(web=section())
    await eject(home, 600)
    answer = await home.post(f"{WEB}/upstreams/b/ready")
    assert (answer.status, answer.json["ready"], answer.json["ejected_until"]) == (200, True, None)
    assert len(home.pool.shares()) == 3
    again = await home.post(f"{WEB}/upstreams/b/ready")
    assert again.status == 200
    assert len(await home.journalled("upstream_returned")) == 1


async def test_an_ejected_one_serves_when_no_other_is_up(begin: Begin) -> None:
    home = await begin(web=section())
    await eject(home, 600)
    for dial in (A, C):
        home.probe.dead[dial] = "down"
    await home.until(lambda: home.pool.shares() == {B: 100})
    assert home.engine.world().health["a"] is Health.DOWN
    assert "so they serve" in (await home.get(WEB)).json["panic"]


async def test_a_rollout_ends_it(begin: Begin) -> None:
    home = await begin(web=section())
    await eject(home, 600)
    ended = await home.ended(await home.deploy())
    assert ended["state"] == "succeeded", ended
    assert home.engine.state.upstreams["b"].ejection is None
    await home.until(lambda: len(home.pool.shares()) == 3)
