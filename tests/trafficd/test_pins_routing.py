"""The engine hands on who is pinned, as it is decided, and takes what a pin leads to for up after a restart."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.trafficd.home import A, B, C, Home
from trafficd.core.model import Health
from trafficd.core.plan import Decision
from trafficd.engine import Engine


class Pinning(Engine):
    """An engine that decides as ever, and that these are pinned."""

    pins: Mapping[str, Mapping[str, int]] = {}

    def decide(self) -> Decision:
        return replace(super().decide(), pins=self.pins)


async def beside(home: Home) -> Pinning:
    """One over the same pool and journal, which does not run by itself."""
    engine = Pinning("web", home.engine.parts)
    engine.take(await home.journal.load("web"))
    for upstream in engine.state.upstreams.values():
        engine.monitor.assume_up(upstream.id, upstream.dial)
    return engine


async def test_who_is_pinned_is_handed_to_the_pool_and_logged(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    engine = await beside(home)
    everybody = home.pool.shares()
    await engine.routed()
    assert home.pool.pins == {}
    engine.pins = {"preview": {C: 1}, "old": {A: 3, B: 1}, "nobody": {}}
    with caplog.at_level(logging.INFO, "trafficd.engine"):
        await engine.routed()
    assert (home.pool.pins["preview"], home.pool.pins["old"]) == ({C: 1}, {A: 3, B: 1})
    assert home.pool.shares() == everybody
    assert f"pinned by old: {A} 75 %, {B} 25 %; pinned by preview: {C} 100 %" in caplog.text
    assert "nobody" not in caplog.text
    engine.pins = {}
    await engine.routed()
    assert home.pool.pins == {}


async def test_what_only_a_pin_leads_to_is_up_after_a_restart_until_it_is_probed(home: Home) -> None:
    await home.post("/v1/services/web/upstreams/c/drain")
    engine = await beside(home)
    engine.pins = {"preview": {C: 1}}
    await engine.routed()
    assert C not in home.pool.shares()
    home.probe.dead[C] = "not yet"
    fresh = Pinning("web", home.engine.parts)
    fresh.take(await home.journal.load("web"))
    fresh.start()
    assert fresh.monitor.health()["c"] is Health.UP
    await fresh.stop()
