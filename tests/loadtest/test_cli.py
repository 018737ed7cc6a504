"""The command as users run it: a process of its own, on uvloop."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.loadtest import heys, servers
from tests.loadtest.servers import Server, serving

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # the loop of the servers; the command has its own


@dataclass
class Done:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return orjson.loads(self.out)


async def loadtest(*arguments: str, interrupt_when: Callable[[], bool] | None = None) -> Done:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", *arguments, stdout=PIPE, stderr=PIPE
    )
    if interrupt_when is not None:
        while not interrupt_when():
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def test_defaults_are_those_of_hey() -> None:
    async with serving(servers.answer) as server:
        done = await loadtest(server.url())
    assert (done.status, done.err) == (0, "")
    assert "[200]\t200 responses" in done.out
    assert heys.layout(done.out) == heys.LAYOUT
    assert (sum(server.delivered.values()), server.connections) == (200, 50)
    assert server.received[0].headers["user-agent"] == "loadtest"


async def test_losses_fail_and_json_says_so() -> None:
    async with serving(servers.close_unanswered) as server:
        done = await loadtest(server.url(), "-n", "7", "-c", "3", "--json")
    assert done.status == 1
    assert done.document["errors"] == {"dropped": 7}
    assert done.document["requests"] == {"planned": 7, "sent": 7, "answered": 0, "skipped": 0}
    assert sum(server.delivered.values()) == 7
    assert done.err == "failed: 7 dropped\n"


@pytest.mark.parametrize(
    ("behaviour", "arguments", "status"),
    [
        (servers.missing, (), 0),
        (servers.unavailable, (), 1),
        (servers.missing, ("--fail-if", "4xx>0"), 1),
        (servers.answer, ("--fail-if", "lost>0", "--fail-if", "p99>20s"), 0),
    ],
)
async def test_exit_status(behaviour: servers.Behaviour, arguments: tuple[str, ...], status: int) -> None:
    async with serving(behaviour) as server:
        done = await loadtest(server.url(), "-n5", "-c2", *arguments)
    assert done.status == status


async def test_flags_reach_the_wire(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"from a file")
    async with serving(servers.answer) as server:
        flags = [
            "-n",
            "2",
            "-c",
            "1",
            "-m",
            "post",
            "-H",
            "X-A: 1",
            "-H",
            "X.B:",
            "-A",
            "text/x",
            "-T",
            "a/b",
        ]
        flags += ["-D", str(body), "-host", "example.com", "-disable-keepalive", "-U", "me"]
        done = await loadtest(server.url("/p?q=1"), *flags)
    assert done.status == 0
    request = server.received[0]
    assert (request.method, request.target, request.body) == ("POST", "/p?q=1", b"from a file")
    expected = {
        "x-a": "1",
        "accept": "text/x",
        "content-type": "a/b",
        "host": "example.com",
        "user-agent": "me",
    }
    assert expected.items() <= request.headers.items()
    assert server.connections == 2


async def test_rows_as_hey_writes_them() -> None:
    async with serving(servers.answer) as server:
        done = await loadtest(server.url(), "-n", "20", "-c", "4", "-o", "csv")
    header, *rows = done.out.splitlines()
    assert done.status == 0
    assert header == "response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset"
    assert len(rows) == 20
    assert all(heys.CSV_ROW.fullmatch(row) for row in rows)


async def test_files_are_written(tmp_path: Path) -> None:
    requests = tmp_path / "requests"
    requests.write_text('/a\n{"path": "/b", "method": "PUT", "body": "x"}\n')
    async with serving(servers.answer) as server:
        files = ["--html", str(tmp_path / "page.html"), "--hdr", str(tmp_path / "log.hdr")]
        done = await loadtest(server.url(), "-n4", "-c1", "--requests-file", str(requests), *files, "-o", "csv")
    assert done.status == 0
    assert server.delivered == {"/a": 2, "/b": 2}
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "#[Histogram log format version 1.3]" in (tmp_path / "log.hdr").read_text()


async def interrupted(server: Server, *arguments: str) -> Done:
    return await loadtest(
        server.url(), "-z", "60s", "--json", *arguments, interrupt_when=lambda: sum(server.delivered.values()) >= 20
    )


async def test_interrupt_prints_what_was_measured() -> None:
    async with serving(servers.answer) as server:
        done = await interrupted(server, "-c", "2", "--rate", "50")
    requests = done.document["requests"]
    assert done.status == 0
    assert 0 < requests["answered"] == sum(server.delivered.values()) < requests["planned"] == 3000
    assert requests["skipped"] == 3000 - requests["sent"]
