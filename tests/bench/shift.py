"""One shift of 100 slots, beside one change through Caddy's admin API.

Both move the same four upstreams, turn by turn in one run, on a real Caddy without load.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from proxy.admin import Admin
from proxy.handler import Route
from proxy.install import install, prepare_root
from proxy.pools import OpenCounts, SlotPool
from proxy.server import CaddyServer
from proxy.slots import SlotDirectory
from proxy.ways import Own
from tests.bench.figure import Figure
from trafficd.demo.stage import free_ports

ROUNDS = 100


async def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="trafficd-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # noqa: ASYNC240  once, before anything is measured
        admin_port, port = free_ports(2)
        caddy = CaddyServer(directory / "caddy", f"http://127.0.0.1:{admin_port}")
        await caddy.start()
        admin = Admin(caddy.admin_url)
        try:
            by_slots, by_admin = await _turns(directory, admin, port)
        finally:
            await admin.aclose()
            await caddy.stop()
    slots, change = statistics.median(by_slots) * 1e3, statistics.median(by_admin) * 1e3
    return [
        Figure("shift of 100 slots, median", slots, "ms", 5.0),
        Figure("shift of 100 slots, 99th percentile", statistics.quantiles(by_slots, n=100)[98] * 1e3, "ms"),
        Figure("change through the admin API, median", change, "ms"),
        Figure("a shift against a change through the admin API", slots / change, "times"),
    ]


async def _turns(directory: Path, admin: Admin, port: int) -> tuple[list[float], list[float]]:
    slots = SlotDirectory(directory / "slots", "web", 100)
    prepare_root(directory / "slots", [slots])
    route = Route("web", str(slots.current), 100, listen=(f"127.0.0.1:{port}",))
    await install(admin, [Own(route)], directory / "slots")
    pool = SlotPool(slots, OpenCounts(admin), Own(route))
    await pool.open()
    dials = [f"10.0.0.{number}:8080" for number in range(1, 5)]
    by_slots, by_admin = [], []
    for number in range(ROUNDS):
        out = number % 4
        begun = time.perf_counter()
        await pool.shift({dial: 1 for index, dial in enumerate(dials) if index != out})
        by_slots.append(time.perf_counter() - begun)
        config, etag = await admin.config()
        assert config is not None
        config["apps"]["http"]["servers"]["other"] = {"listen": [":0"], "routes": [{"@id": f"n{number}", "handle": []}]}
        begun = time.perf_counter()
        await admin.write(config, etag)
        by_admin.append(time.perf_counter() - begun)
    await pool.aclose()
    return by_slots, by_admin
