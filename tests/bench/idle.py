"""An idle daemon: 50 upstreams probed every 2 s."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.bench.figure import Figure
from trafficd.demo.stage import Stage

UPSTREAMS, SECONDS = 50, 30.0
SETTINGS = """
[services.web.health]
interval = "2s"
"""


class Idle(Stage):
    """Fifty addresses, all served by this process: only the daemon is measured."""

    servers: list[asyncio.Server]

    def start_instances(self) -> None:
        self.app_directory.mkdir()

    async def listen(self) -> None:
        self.servers = [
            await asyncio.start_server(self.answer, "127.0.0.1", self.ports[index]) for index in range(self.instances)
        ]

    def hang_up(self) -> None:
        for server in self.servers:
            server.close()

    @staticmethod
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def measure() -> list[Figure]:
    stage = Idle(instances=UPSTREAMS, settings=SETTINGS)
    await stage.listen()
    try:
        stage.start_instances()
        stage.start_daemon()
        await stage.wait_ready()
        assert stage.daemon is not None
        await asyncio.sleep(3)
        before = cpu_seconds(stage.daemon.pid)
        await asyncio.sleep(SECONDS)
        share = 100 * (cpu_seconds(stage.daemon.pid) - before) / SECONDS
        resident = resident_mb(stage.daemon.pid)
    finally:
        await stage.aclose()
        stage.hang_up()
    return [
        Figure(f"idle daemon, {UPSTREAMS} upstreams every 2 s: resident", resident, "MB", 90.0),
        Figure(f"idle daemon, {UPSTREAMS} upstreams every 2 s: share of a core", share, "%", 4.0),
    ]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
