"""The plan leaves out what Caddy never sees."""

from __future__ import annotations

from pathlib import Path

from proxy.admin import Admin
from tests.proxy.caddy import RealCaddy
from trafficd.config import Config, load
from trafficd.preview import preview

JOBS = """
[services.jobs]
route = "none"
upstreams = [{id = "a", version = "v1"}]
[services.jobs.health]
command = ["check"]
"""


def config(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "trafficd.toml"
    file.write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\n{text}')
    return load(file)


async def test_workers_alone_need_no_caddy(tmp_path: Path) -> None:
    admin = Admin("http://127.0.0.1:9", timeout=1.0)
    found = await preview(config(tmp_path, JOBS), admin, former=frozenset({"jobs"}))
    assert (found.services, found.difference, found.cost) == ((), (), "nothing is written")
    await admin.aclose()


async def test_workers_beside_a_service_with_a_route_are_not_in_it(tmp_path: Path) -> None:
    caddy = RealCaddy(tmp_path)
    await caddy.start()
    try:
        web = f'[services.web]\nlisten = ["127.0.0.1:{caddy.port}"]\nupstreams = [{{id = "a", dial = "127.0.0.1:9"}}]\n'
        found = await preview(config(tmp_path, JOBS + web), caddy.admin)
        assert [one.service for one in found.services] == ["web"]
        assert any("trafficd-web" in line for line in found.difference)
    finally:
        await caddy.aclose()
