"""What a reload refuses: what the daemon stands on, what a live rollout stands on, and a handler left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trafficd.config import Config, load
from trafficd.reload import refusals

WEB = """
[services.web]
hosts = ["example.com"]
route = "{route}"
upstreams = [{{id = "a", dial = "127.0.0.1:80"}}, {{id = "b", dial = "127.0.0.1:81"}}]
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[str], Config]:
    def load_text(text: str) -> Config:
        path = tmp_path / "trafficd.toml"
        path.write_text(text)
        return load(path)

    return load_text


@pytest.mark.parametrize(("after", "said"), [("", "gone"), (WEB.format(route="own"), "adopted no more")])
def test_an_adopted_handler_is_not_left_with_slots_that_nobody_moves(
    loaded: Callable[[str], Config], after: str, said: str
) -> None:
    old, new = loaded(WEB.format(route="adopt")), loaded(after)
    (refusal,) = refusals(old, new, {})
    assert f"services.web was adopted and is {said}: say `trafficd leave web` first" in refusal
    assert refusals(old, new, {}, left={"web"}) == []
    assert refusals(new, old, {}) == [], "to be adopted is no matter"
    assert refusals(old, old, {}) == []


def test_a_route_of_our_own_may_go(loaded: Callable[[str], Config]) -> None:
    assert refusals(loaded(WEB.format(route="own")), loaded(""), {}) == []


def test_pins_stay_while_a_rollout_is_live(loaded: Callable[[str], Config]) -> None:
    before, pin = WEB.format(route="own"), '{header = "X", values = ["y"]}'
    for key, line in (("preview", f"preview = {pin}"), ("pins", f"pins = {{a = {pin}}}")):
        old, new = loaded(before), loaded(f"{before}{line}\n")
        (refusal,) = refusals(old, new, {"web": "r-1"})
        assert f"r-1 is live and services.web.{key} changed" in refusal
        assert refusals(old, new, {}) == []


def test_where_the_daemon_lives_stays(loaded: Callable[[str], Config]) -> None:
    (refusal,) = refusals(loaded('[daemon]\nstate_dir = "/a"'), loaded('[daemon]\nstate_dir = "/b"'), {})
    assert refusal.startswith("daemon.state_dir changed")
