"""Pins and the preview in the configuration: what they come to, and what is refused, with its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.pins import Pin
from proxy.ways import Own
from trafficd.config import Config, load
from trafficd.errors import ConfigError
from trafficd.ways import way_of

Load = Callable[[str], Config]

WEB = """
[services.web]
upstreams = [{id = "a", dial = "10.0.0.1:80"}]
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    def load_text(text: str) -> Config:
        path = tmp_path / "trafficd.toml"
        path.write_text(text)
        return load(path)

    return load_text


def faults(loaded: Load, text: str) -> dict[str, str]:
    """What is wrong, by place."""
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    first, *lines = str(caught.value).splitlines()
    assert re.search(rf": {len(lines)} faults?$", first)
    found = dict(line.strip().split(": ", 1) for line in lines)
    assert len(found) == len(lines), "no place twice"
    return found


def test_pins_get_into_the_route_the_preview_first(loaded: Load) -> None:
    config = loaded(
        WEB
        + """
        [services.web.pins.v1]
        cookie = "version"
        values = ["v1", "v1.0"]
        [services.web.preview]
        header = "X-Preview"
        values = ["yes"]
        checks = [{path = "/"}, {path = "/login?x=1", status = [200, 302]}]
        """
    )
    way = way_of("web", config)
    assert isinstance(way, Own)
    assert way.route.pins == (
        Pin("preview", "header", "X-Preview", ("yes",)),
        Pin("v1", "cookie", "version", ("v1", "v1.0")),
    )
    preview = config.services["web"].preview
    assert preview is not None
    assert [(check.path, check.status) for check in preview.checks] == [("/", [200]), ("/login?x=1", [200, 302])]


def test_there_are_none_unless_they_are_asked_for(loaded: Load) -> None:
    config = loaded(WEB)
    assert way_of("web", config).route.pins == ()
    assert config.services["web"].preview is None


@pytest.mark.parametrize(
    ("lines", "place", "why"),
    [
        ("[preview]\nvalues = ['x']", "preview", 'set header = "X-Preview" or cookie'),
        ("[pins.a]\nvalues = ['x']", "pins.a", 'set header = "X-Preview" or cookie'),
        ("[pins.a]\nheader = 'X'\ncookie = 'c'\nvalues = ['x']", "pins.a.cookie", "leave out one"),
        ("[pins.a]\nheader = 'X'", "pins.a.values", "required"),
        ("[pins.a]\nheader = 'X'\nvalues = []", "pins.a.values", "at least 1 item"),
        ("[pins.a]\nheader = 'X'\nvalues = 'x'", "pins.a.values", "valid list"),
        ("[pins.a]\nheader = 'X'\nvalues = ['ok', '{env.X}']", "pins.a.values.1", "without braces"),
        ("[pins.a]\nheader = 'X'\nvalues = ['x*']", "pins.a.values.0", "wildcard"),
        ('[pins.a]\nheader = "X"\nvalues = ["x\\n"]', "pins.a.values.0", "control characters"),
        ("[pins.a]\ncookie = 'c'\nvalues = ['a;b']", "pins.a.values.0", "cannot be in a cookie"),
        ("[pins.a]\ncookie = 'a b'\nvalues = ['x']", "pins.a.cookie", "not the name of a cookie"),
        ("[pins.a]\nheader = 'Cookie'\nvalues = ['x']", "pins.a.header", "set cookie"),
        ("[pins.'a/b']\nheader = 'X'\nvalues = ['x']", "pins.a/b", "is not a name"),
        ("[pins.client_ip]\nheader = 'X'\nvalues = ['x']", "pins.client_ip", "cannot be the name of a pin"),
        ("[pins.a]\nheader = 'X'\nvalues = ['x']\nchecks = []", "pins.a.checks", "no such key"),
        ("[pins.a]\nheader = 'X'\nvalues = ['x', 'x']", "pins.a.values.1", "of pins.a already"),
        (
            "[preview]\nheader = 'X'\nvalues = ['x']\n[pins.a]\nheader = 'x'\nvalues = ['y', 'x']",
            "pins.a.values.1",
            "of preview already",
        ),
        (
            "[preview]\nheader = 'X'\nvalues = ['x']\n[pins.preview]\ncookie = 'c'\nvalues = ['x']",
            "pins.preview",
            "give this one another",
        ),
        ("[preview]\nheader = 'X'\nvalues = ['x']\nchecks = [{}]", "preview.checks.0.path", "required"),
        ("[preview]\nheader = 'X'\nvalues = ['x']\nchecks = [{path = 'x'}]", "preview.checks.0.path", "pattern"),
        (
            "[preview]\nheader = 'X'\nvalues = ['x']\nchecks = [{path = '/', status = []}]",
            "preview.checks.0.status",
            "at least 1 item",
        ),
    ],
)
def test_a_fault_is_named_with_its_place(loaded: Load, lines: str, place: str, why: str) -> None:
    found = faults(loaded, WEB + re.sub(r"(?m)^\[", "[services.web.", lines))
    assert list(found) == [f"services.web.{place}"]
    assert why in found[f"services.web.{place}"]


def test_there_are_not_more_than_caddy_should_be_asked_for(loaded: Load) -> None:
    def pins(count: int) -> str:
        return "".join(f"[services.web.pins.p{n}]\ncookie = 'c'\nvalues = ['{n}']\n" for n in range(count))

    preview = "[services.web.preview]\nheader = 'X'\nvalues = ['x']\n"
    assert len(way_of("web", loaded(WEB + pins(15) + preview)).route.pins) == 16
    assert "at most 16 pins" in faults(loaded, WEB + pins(16) + preview)["services.web.pins"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('route = "adopt"', "needs a route of our own"),
        ('route = "import"', "needs a route of our own"),
        ('control = "admin"', 'needs control = "slots"'),
    ],
)
def test_where_there_can_be_none_that_is_said_for_both(loaded: Load, line: str, why: str) -> None:
    pins = "preview = {header = 'X', values = ['x']}\npins = {a = {header = 'X', values = ['y']}}\n"
    found = faults(loaded, f"{WEB}{line}\n{pins}")
    assert set(found) == {"services.web.preview", "services.web.pins"}
    assert all(why in text for text in found.values())


def test_workers_have_none(loaded: Load) -> None:
    found = faults(
        loaded,
        """
        [services.jobs]
        route = "none"
        upstreams = [{id = "a"}]
        health = {command = ["check"]}
        preview = {header = "X", values = ["x"]}
        pins = {a = {header = "X", values = ["y"]}}
        """,
    )
    assert set(found) == {"services.jobs.preview", "services.jobs.pins"}
    assert all("Caddy never sees" in text for text in found.values())


def test_all_faults_are_told_at_once(loaded: Load) -> None:
    found = faults(
        loaded,
        WEB
        + """
        [services.web.pins.a]
        header = "X Y"
        values = ["{a}", "b"]
        [services.web.pins.b]
        cookie = "c"
        values = ["a b"]
        colour = "red"
        """,
    )
    assert set(found) == {
        "services.web.pins.a.header",
        "services.web.pins.a.values.0",
        "services.web.pins.b.values.0",
        "services.web.pins.b.colour",
    }
