"""The same deploys, through Caddy's admin API, under the eyes of hey and of loadtest.

Every change of Caddy's configuration loses requests that are just arriving on kept-alive connections. hey's client
sends those again and says nothing; loadtest lists them.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from typing import Any

import orjson

from tests.bench.figure import Figure
from trafficd.demo.stage import Stage

VERSIONS = ("v2", "v3", "v4", "v5")
CONNECTIONS = 32
SETTINGS = """
[services.web.rollout]
min_healthy_time = "1s"
drain_timeout = "15s"
"""


async def measure() -> list[Figure]:
    if shutil.which("hey") is None:
        print("skipped: blindness, as hey is not installed (apt-get install hey)", file=sys.stderr, flush=True)
        return []
    heys, ours, changes = await _deploy()
    rows = {int(status): int(count) for status, count in re.findall(r"\[(\d{3})\]\t(\d+) responses", heys)}
    errors = [int(count) for count in re.findall(r"^  \[(\d+)\]\t", heys.partition("Error distribution")[2], re.M)]
    print(heys[heys.index("Status code distribution") :], file=sys.stderr)
    for kind, count in ours["errors"].items():
        print(f"loadtest: {count} {kind}", file=sys.stderr)
    what = f"{len(VERSIONS)} deploys by control = admin ({changes} changes)"
    lost = sum(ours["errors"].values())
    return [
        Figure(f"{what}: hey, answers with 200", rows.get(200, 0), "requests"),
        Figure(f"{what}: hey, lost or not 200", sum(rows.values()) - rows.get(200, 0) + sum(errors), "requests"),
        Figure(f"{what}: loadtest, answers with 200", ours["status"].get("200", 0), "requests"),
        Figure(f"{what}: loadtest, lost", lost, "requests", least=1),
        Figure(
            f"{what}: loadtest, answered and not 200", ours["requests"]["answered"] - ours["status"]["200"], "requests"
        ),
    ]


async def _deploy() -> tuple[str, Any, int]:
    """What hey said, what loadtest said, and how often Caddy's configuration was changed."""
    stage = Stage(instances=2, settings=SETTINGS, service='control = "admin"')
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        before = stage.shifts()
        watching = [
            await asyncio.to_thread(_start, argv, stage.url)
            for argv in (["hey"], [sys.executable, "-m", "loadtest", "--json"])
        ]
        await asyncio.sleep(2)
        for version in VERSIONS:
            await asyncio.to_thread(_roll, stage, version)
        await asyncio.sleep(1)
        said = [await asyncio.to_thread(_stop, process) for process in watching]
        return said[0], orjson.loads(said[1]), stage.shifts() - before
    finally:
        await stage.aclose()


def _start(argv: list[str], url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*argv, "-z", "10m", "-c", str(CONNECTIONS), f"{url}/"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _stop(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=30)[0]


def _roll(stage: Stage, version: str) -> None:
    client = stage.client()
    try:
        begun = client.call("POST", "/v1/services/web/rollouts", {"version": version})
        for _ in client.events(begun["id"]):
            pass
        ended = client.call("GET", f"/v1/rollouts/{begun['id']}")
        assert ended["state"] == "succeeded", ended
    finally:
        client.close()
