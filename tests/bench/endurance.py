"""Ten million responses: what the load generator holds in memory at the end, against after the first million."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from tests.bench import nginx
from tests.bench.figure import Figure
from tests.bench.idle import resident_mb

RESPONSES = 10_000_000


async def measure() -> list[Figure]:
    if not nginx.installed():
        print("skipped: endurance, as nginx is not installed (apt-get install nginx)", file=sys.stderr, flush=True)
        return []
    return await asyncio.to_thread(_measure)


def _measure() -> list[Figure]:
    with nginx.nginx() as server, tempfile.TemporaryFile() as out:
        argv = [sys.executable, "-m", "loadtest", "-n", str(RESPONSES), "--json", f"{server.plain}/12"]
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.DEVNULL)
        begun = time.monotonic()
        sizes = []  # s since the start, MB
        while process.poll() is None:
            sizes.append((time.monotonic() - begun, _resident(process.pid)))
            time.sleep(0.2)
        out.seek(0)
        document = orjson.loads(out.read())
    ended = sizes[-1][0]
    early = next(size for at, size in sizes if at >= ended / 10)
    what = f"{RESPONSES:,} responses"
    return [
        Figure(f"{what}: answered", document["status"].get("200", 0), "requests", RESPONSES, RESPONSES),
        Figure(f"{what}: took", ended, "s"),
        Figure(f"{what}: resident at the end", sizes[-2][1], "MB"),
        Figure(f"{what}: grown since the first tenth", sizes[-2][1] - early, "MB", 3.0),
    ]


def _resident(pid: int) -> float:
    """Of a process and of those that it started, in MB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return resident_mb(pid) + sum(_resident(int(child)) for child in children)
