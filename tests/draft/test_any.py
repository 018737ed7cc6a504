"""Whatever Caddy and the Engines say: the draft loads, and every handler is in it or named."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.draft.world import Json, caddy, container, drafted, loaded, machine, proxy, site
from trafficd.draft import summary
from trafficd.draft.containers import Container

_ODD = st.text(st.characters(codec="utf-8"), max_size=12)
_NAMES = st.sampled_from(["web", "web-1", "Web", "a", "x" * 80]) | _ODD
_HOSTS = st.sampled_from(["example.com", "www.example.com", "*.example.com", "localhost", "{env.H}"]) | _ODD
_DIALS = st.builds(
    "{}:{}".format, st.sampled_from(["127.0.0.1", "localhost", "10.0.0.1", "[::1]", ""]), st.integers(0, 70_000)
)
_TIMES = st.integers(-1, 10**20) | st.sampled_from(["5s", "1ns", "1h0m1.5s", "9000h", "soon"]) | _ODD
_ACTIVE = st.fixed_dictionaries(
    {},
    optional={
        "uri": st.sampled_from(["/healthz", "/a b", "healthz"]) | _ODD,
        "interval": _TIMES,
        "timeout": _TIMES,
        "passes": st.integers(-1, 9),
        "fails": st.integers(-1, 9),
        "expect_status": st.integers(-1, 700),
        "headers": st.dictionaries(st.sampled_from(["Host", "X-A", "Content-Length"]) | _ODD, st.lists(_ODD | _HOSTS)),
        "port": st.integers(0, 9000),
    },
)
_TLS = st.fixed_dictionaries(
    {}, optional={"insecure_skip_verify": st.booleans(), "server_name": _HOSTS, "root_ca_pem_files": st.lists(_ODD)}
)
_TRANSPORT = st.fixed_dictionaries(
    {}, optional={"tls": _TLS, "versions": st.lists(st.sampled_from(["1.1", "2", "h2c"]))}
)


@st.composite
def _sites(draw: st.DrawFn) -> Json:
    more: dict[str, Any] = {}
    if draw(st.booleans()):
        more["health_checks"] = {"active": draw(_ACTIVE)}
    if draw(st.booleans()):
        more["transport"] = draw(_TRANSPORT)
    if draw(st.booleans()):
        more["@id"] = draw(_NAMES)
    return site(proxy(*draw(st.lists(_DIALS, max_size=4)), **more), *draw(st.lists(_HOSTS, max_size=2)))


@st.composite
def _containers(draw: st.DrawFn) -> Container:
    ports = st.builds("{}:{}".format, st.sampled_from(["0.0.0.0", "::", "127.0.0.1"]), st.integers(0, 70_000))
    return container(
        draw(_NAMES),
        draw(st.sampled_from(["shop/web:v1", "shop/web", "sha256:ab", "caddy"]) | _ODD),
        at=draw(st.none() | ports),
        env=(f"PORT={draw(st.integers(0, 70_000))}",),
        check=["CMD-SHELL", f"curl http://x:{draw(_ODD)}/{draw(_ODD)}"],
        temporary=draw(st.booleans()),
        pulled=draw(st.booleans()),
    )


@given(st.lists(_sites(), max_size=4), st.data())
def test_whatever_is_found_the_draft_loads(sites: list[Json], data: st.DataObject) -> None:
    dials = [one["dial"] for each in sites for one in each["handle"][0]["routes"][0]["handle"][0]["upstreams"]]
    containers = data.draw(st.lists(_containers(), max_size=3))
    serving = [container(f"c{i}", at=f"0.0.0.0:{dial.rpartition(':')[2]}") for i, dial in enumerate(dials)]
    here = machine(*containers, *(serving if data.draw(st.booleans()) else ()), hosts=("127.0.0.1", "localhost", "::1"))
    found = drafted(caddy(*sites), here)
    assert len(found.services) + len(found.unfit) == len(sites)
    with tempfile.TemporaryDirectory() as directory:
        config = loaded(found, Path(directory))
    assert list(config.services) == [one.name for one in found.services]
    for one in found.services:
        assert tuple(upstream.dial for upstream in config.services[one.name].upstreams) == one.handler.dials
    assert all(line.isprintable() for line in summary.text(found, "t.toml").split("\n"))
