"""Pins: what matches them, their handlers in the route, their tables."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from proxy.admin import Admin
from proxy.adopt import leave
from proxy.errors import AddressError, SlotError
from proxy.handler import Json, Route, build_route, ensure, present
from proxy.install import prepare_root
from proxy.model import NOBODY
from proxy.pins import Pin
from proxy.pools import OpenCounts, SlotPool, pin_directories
from proxy.slots import SlotDirectory
from proxy.ways import Own

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
PREVIEW = Pin("preview", "header", "X-Preview", ("yes",))
OLD = Pin("old", "cookie", "version", ("v1", "v0.9"))


def route(**changes: Any) -> Route:
    return Route("web", "/slots/web/current", **{"slots": 100, "listen": (":80",), **changes})


def cases(built: Json) -> list[Json]:
    found: list[Json] = built["handle"][-1]["routes"]
    return found


# -- matching ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["", " ", "a ", " a", "a\n", "a\x00", "é", "{env.X}", "a}", "*", "a*", "*a", "x" * 201]
)
def test_values_that_no_header_has_or_that_caddy_would_read_otherwise_are_refused(value: str) -> None:
    with pytest.raises(AddressError):
        Pin("p", "header", "X", (value,))


@pytest.mark.parametrize("value", ["", "a b", "a;b", "a,b", 'a"b', "a\\b", "a\t", "é", "{x}", "x" * 201])
def test_values_that_no_cookie_has_are_refused(value: str) -> None:
    with pytest.raises(AddressError):
        Pin("p", "cookie", "c", (value,))


@pytest.mark.parametrize(
    ("by", "name"), [("header", "Cookie"), ("header", "host"), ("header", "a b"), ("cookie", "a=b")]
)
def test_what_is_no_sign_of_anybodys_choice_is_refused(by: Any, name: str) -> None:
    with pytest.raises(AddressError):
        Pin("p", by, name, ("x",))


@pytest.mark.parametrize("name", ["", "..", "a/b", "client_ip"])
def test_names_that_cannot_be_a_path_or_be_logged_are_refused(name: str) -> None:
    with pytest.raises(AddressError):
        Pin(name, "cookie", "c", ("x",))


def test_a_pin_has_a_value() -> None:
    with pytest.raises(AddressError, match="no values"):
        Pin("p", "cookie", "c", ())


def test_every_character_of_a_cookie_means_itself() -> None:
    """Go's regular expressions are like Python's here; that they are is looked at on a real Caddy, too."""
    signs = "!#$%&'*+-.^_`|~"
    pin = Pin("p", "cookie", f"c{signs}", (f"v{signs}()[]?/:=<>@",))
    pattern = re.compile(pin.matcher()["header_regexp"]["Cookie"]["pattern"])
    assert pattern.search(f"a=b; c{signs}=v{signs}()[]?/:=<>@")
    assert not pattern.search(f"a=b; c{signs}=vX{signs}()[]?/:=<>@")
    assert not pattern.search(f"c{signs.replace('.', 'x')}=v{signs}()[]?/:=<>@")


# -- in the route --------------------------------------------------------------------------------------


def test_a_pin_has_the_handlers_of_everybody_over_its_own_slots() -> None:
    preview, old, everybody = cases(build_route(route(pins=(PREVIEW, OLD))))
    assert preview["match"] == [PREVIEW.matcher()]
    assert old["match"] == [OLD.matcher()]
    assert "match" not in everybody
    assert {case["group"] for case in (preview, old, everybody)} == {"trafficd.pins"}
    assert everybody["handle"] == build_route(route())["handle"]
    assert _over(preview["handle"], "/slots/web/pins/preview/current", 16) == _over(
        everybody["handle"], "/slots/web/current", 100
    )


def _over(handle: list[Json], path: str, slots: int) -> str:
    """The handlers, with the placeholders of these slots taken out; fails where there are others."""
    text = str(handle)
    assert set(re.findall(r"\{file\.(.*?)/s?\d+\}", text)) == {path}
    for name in ("s", ""):
        dials = [{"dial": f"{{file.{path}/{name}{number:03d}}}"} for number in range(slots)]
        assert text.count(str(dials)) == 1
        text = text.replace(str(dials), f"SLOTS{name}")
    return text


def test_a_small_service_has_no_more_slots_for_a_pin_than_for_everybody() -> None:
    preview, everybody = cases(build_route(route(slots=3, pins=(PREVIEW,))))
    assert _over(preview["handle"], "/slots/web/pins/preview/current", 3)
    assert _over(everybody["handle"], "/slots/web/current", 3)


@pytest.mark.parametrize("affinity", ["cookie", "client_ip"])
def test_who_is_pinned_is_bound_by_nothing_else_and_streams_are_counted_as_everybodys(affinity: str) -> None:
    preview, everybody = cases(build_route(route(affinity=affinity, pins=(PREVIEW,))))
    (pinned,), (general,) = preview["handle"], everybody["handle"]
    assert pinned["load_balancing"]["selection_policy"] == {"policy": "round_robin"}
    assert general["load_balancing"]["selection_policy"] != {"policy": "round_robin"}
    assert pinned.keys() == general.keys(), "one handler as well, since counts of streams are not looked for apart"


def test_each_way_says_its_stratum_once() -> None:
    built = build_route(route(pins=(PREVIEW,), access_log="/log"))
    strata = [
        [handler["value"] for handler in handle if handler.get("key") == "stratum"]
        for handle in (built["handle"], *(case["handle"] for case in cases(built)))
    ]
    assert strata == [[], ["preview"], ["{http.request.header.X-Trafficd-Stratum}"]]


def test_a_route_with_other_pins_is_another_route_and_written_in_place() -> None:
    with_pins = ensure(None, [route(pins=(PREVIEW,))])
    assert present(with_pins, route(pins=(PREVIEW,)))
    assert not present(with_pins, route())
    assert not present(with_pins, route(pins=(PREVIEW, OLD)))
    assert ensure(with_pins, [route()]) == ensure(None, [route()])


def test_who_leaves_has_plain_upstreams_and_no_pins_and_may_leave_twice() -> None:
    pinned = route(pins=(PREVIEW, OLD), access_log="/log")
    before = ensure(None, [pinned])
    left = leave(before, pinned, {A: 1, B: 3})
    assert left == leave(ensure(None, [pinned.unpinned]), pinned.unpinned, {A: 1, B: 3})
    assert leave(left, pinned, {A: 1, B: 3}) == left
    assert ensure(left, [pinned]) == before, "and may come back"


# -- tables --------------------------------------------------------------------------------------------


class Start:
    """One start of a daemon over these directories: they are mended, and the tables learned."""

    def __init__(self, root: Path, *pins: Pin, slots: int = 20) -> None:
        self.route = Route("web", f"{root}/web/current", slots, pins=pins)
        self.directory = SlotDirectory(root, "web", slots)
        self.notes: list[str] = []

    async def pool(self) -> SlotPool:
        directories = [self.directory, *pin_directories(self.directory, self.route)]
        self.notes = prepare_root(self.directory.root, directories)
        pool = SlotPool(self.directory, OpenCounts(Admin("http://127.0.0.1:9")), Own(self.route))
        await pool.open()
        return pool

    def table(self, pin: str) -> set[str]:
        """The addresses in force for a pin, as Caddy reads them."""
        current = self.directory.path / "pins" / pin / "current"
        names = sorted(os.listdir(current))
        assert names == sorted([f"{n:03d}" for n in range(16)] + [f"s{n:03d}" for n in range(16)])
        return {(current / name).read_text() for name in names if not name.startswith("s")}


async def test_a_pin_goes_where_it_is_told_and_else_where_everybody_goes(tmp_path: Path) -> None:
    start = Start(tmp_path / "slots", PREVIEW, OLD)
    pool = await start.pool()
    assert pool.pinned() == {"preview": {}, "old": {}}
    assert start.table("preview") == {NOBODY}, "it is there before Caddy looks for it"
    assert await pool.shift({A: 1})
    assert start.table("preview") == start.table("old") == {A}
    assert await pool.shift({A: 1}, {"preview": {C: 1}, "no such pin": {B: 1}})
    assert not await pool.shift({A: 1}, {"preview": {C: 2}})
    assert (start.table("preview"), start.table("old"), pool.shares()) == ({C}, {A}, {A: 20})
    assert await pool.shift({B: 1, A: 1}, {"preview": {C: 1}})
    assert (start.table("preview"), start.table("old")) == ({C}, {A, B})
    assert pool.pinned() == {"preview": {C: 16}, "old": {A: 8, B: 8}}
    assert await pool.shift({B: 1, A: 1}, {"preview": {C: 0}}), "no weight is nothing said"
    assert start.table("preview") == {A, B}
    await pool.aclose()


async def test_while_nobody_serves_a_pin_of_which_nothing_is_said_holds_too(tmp_path: Path) -> None:
    start = Start(tmp_path / "slots", PREVIEW, OLD)
    pool = await start.pool()
    await pool.shift({A: 1}, {"preview": {C: 1}})
    assert await pool.shift({}, {"preview": {C: 1}})
    assert (start.table("preview"), start.table("old")) == ({C}, {NOBODY})
    assert await pool.shift({})
    assert start.table("preview") == {NOBODY}
    await pool.aclose()


async def test_a_restart_keeps_every_pin_where_it_is_and_finds_nothing_wrong(tmp_path: Path) -> None:
    pool = await Start(tmp_path / "slots", PREVIEW).pool()
    await pool.shift({A: 1}, {"preview": {B: 1}})
    await pool.aclose()
    start = Start(tmp_path / "slots", PREVIEW, OLD)
    again = await start.pool()
    assert [note for note in start.notes if "slots/web" in note] == []
    assert again.pinned() == {"preview": {B: 16}, "old": {}}
    await again.aclose()


async def test_a_pin_that_is_configured_no_more_goes_with_everybody_until_caddy_has_forgotten_it(
    tmp_path: Path,
) -> None:
    pool = await Start(tmp_path / "slots", PREVIEW, OLD).pool()
    await pool.shift({A: 1}, {"preview": {B: 1}})
    await pool.aclose()
    start = Start(tmp_path / "slots", OLD)
    pool = await start.pool()
    await pool.shift({C: 1})
    assert start.table("preview") == {C}
    await pool.tidy()
    assert os.listdir(start.directory.path / "pins") == ["old"]
    await pool.aclose()
    pool = await (start := Start(tmp_path / "slots")).pool()
    await pool.tidy()
    assert not (start.directory.path / "pins").exists()
    assert await pool.shift({A: 1})
    await pool.aclose()


async def test_what_one_pin_cannot_have_keeps_no_other_back_and_is_tried_again(tmp_path: Path) -> None:
    start = Start(tmp_path / "slots", PREVIEW, OLD)
    pool = await start.pool()
    await pool.shift({A: 1})
    place = start.directory.path / "pins" / "preview"
    place.rename(place.with_name("elsewhere"))
    place.write_text("in the way")
    with pytest.raises(SlotError, match="pins/preview"):
        await pool.shift({B: 1})
    assert (pool.shares(), start.table("old")) == ({B: 20}, {B})
    place.unlink()
    place.with_name("elsewhere").rename(place)
    assert start.table("preview") == {A}
    assert await pool.shift({B: 1}), "there was something left to do"
    assert start.table("preview") == {B}
    await pool.aclose()


async def test_what_everybody_knows_needs_no_file_for_a_pin(tmp_path: Path) -> None:
    """So an abort moves the pins on a full disk, too."""
    start = Start(tmp_path / "slots", PREVIEW)
    pool = await start.pool()
    await pool.shift({A: 1, B: 1}, {"preview": {C: 1}})
    known = set(os.listdir(start.directory.path / "addresses"))
    assert await pool.shift({A: 1, B: 1})
    assert start.table("preview") == {A, B}
    assert set(os.listdir(start.directory.path / "addresses")) == known
    assert not (start.directory.path / "pins" / "preview" / "addresses").exists()
    await pool.aclose()


async def test_a_pin_that_is_damaged_is_mended(tmp_path: Path) -> None:
    pool = await Start(tmp_path / "slots", PREVIEW).pool()
    await pool.shift({A: 1}, {"preview": {B: 1}})
    await pool.aclose()
    start = Start(tmp_path / "slots", PREVIEW)
    (start.directory.path / "pins" / "preview" / "current" / "003").unlink()
    (start.directory.path / "pins" / "notes.txt").write_text("hello")
    pool = await start.pool()
    assert any("pins/preview/current was not whole" in note for note in start.notes)
    assert start.table("preview")
    await pool.tidy()
    assert os.listdir(start.directory.path / "pins") == ["preview"]
    await pool.aclose()


async def test_others_may_read_the_pins_whatever_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        start = Start(tmp_path / "slots", PREVIEW)
        await (await start.pool()).aclose()
    finally:
        os.umask(mask)
    for name in ("", "pins", "pins/preview", "pins/preview/current"):
        assert stat.S_IMODE((start.directory.path / name).stat().st_mode) == 0o755, name
