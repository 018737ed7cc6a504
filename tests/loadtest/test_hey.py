"""hey and loadtest side by side on the same flags. Debian: apt-get install hey."""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import PIPE

import pytest

from tests.loadtest import heys, servers
from tests.loadtest.servers import serving
from tests.loadtest.test_cli import loadtest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_factories=["uvloop"]),
    pytest.mark.skipif(shutil.which("hey") is None, reason="hey is not installed"),
]


async def hey(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec("hey", *arguments, stdout=PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


@pytest.mark.parametrize("flags", ["-n 200 -c 50", "-z 2s -c 5", "-m POST -d x", "-n 100 -c 10 -disable-keepalive"])
async def test_same_lines(flags: str) -> None:
    async with serving(servers.answer) as server:
        theirs = await hey(*flags.split(), server.url())
        seen = len(server.received)
        ours = await loadtest(*flags.split(), server.url())
    assert heys.layout(theirs) == heys.layout(ours.out) == heys.LAYOUT
    assert ours.status == 0
    theirs_first, ours_first = server.received[0], server.received[seen]
    assert (theirs_first.method, theirs_first.target, theirs_first.body) == ours_first[:2] + ours_first[3:]
    assert theirs_first.headers | {"user-agent": ""} == ours_first.headers | {"user-agent": ""}


async def test_same_rows() -> None:
    async with serving(servers.answer) as server:
        theirs = (await hey("-n", "20", "-c", "4", "-o", "csv", server.url())).splitlines()
        ours = (await loadtest("-n", "20", "-c", "4", "-o", "csv", server.url())).out.splitlines()
    assert theirs[0] == ours[0]
    assert len(theirs) == len(ours) == 21
    assert all(heys.CSV_ROW.fullmatch(row) for row in theirs[1:] + ours[1:])


async def test_same_headings_where_nothing_listens() -> None:
    url = f"http://127.0.0.1:{servers.free_port()}/"
    theirs = heys.layout(await hey("-n", "3", "-c", "3", url))
    done = await loadtest("-n", "3", "-c", "3", url)
    assert done.status == 1
    headings = [line for line in theirs if line.endswith(":")]
    assert [line for line in heys.layout(done.out) if line.endswith(":")] == headings
