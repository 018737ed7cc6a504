"""What is said of WebSockets that were held, and the command that holds them."""

from __future__ import annotations

import orjson
import pytest

from loadtest import sockets
from loadtest.sockets import Held
from loadtest.websocket import Ending, WebSocketReport
from tests.loadtest.servers import free_port
from tests.loadtest.test_cli import loadtest
from tests.loadtest.test_websocket import echo, serving

SECOND = 1_000_000_000
MIXED = Held(
    WebSocketReport(
        opened=5,
        failed=1,
        sent=20,
        echoed=18,
        cuts=[Ending(3, 102 * SECOND + SECOND // 2, "no close frame\x1b[2J")],
        closes=[Ending(1, 101 * SECOND, "going away")],
        examples={"refused": 1},
    ),
    began_ns=100 * SECOND,
    ended_ns=110 * SECOND,
    ended_at=1_700_000_010.0,
)


def test_text() -> None:
    lines = sockets.to_text(MIXED).splitlines()
    for line in (
        "  Total:\t10.0000 secs",
        "  Opened:\t5",
        "  Not opened:\t1",
        "  Cut:\t1",
        "  Pings:\t20 sent, 18 answered",
        "  2.500 secs\t#3: no close frame?[2J",
        "  1.000 secs\t#1: going away",
        "  [1]\trefused",
    ):
        assert line in lines


def test_json() -> None:
    document = orjson.loads(sockets.to_json(MIXED))
    counts = {"opened": 5, "failed": 1, "closed": 1, "cut": 1, "sent": 20, "echoed": 18}
    assert document["websockets"] == counts
    assert document["seconds"] == 10
    assert document["cuts"] == [{"connection": 3, "at": 1_700_000_002.5, "detail": "no close frame\x1b[2J"}]
    assert document["closes"] == [{"connection": 1, "at": 1_700_000_001.0, "detail": "going away"}]
    assert document["failures"] == {"refused": 1}


@pytest.mark.parametrize(
    ("report", "reasons"),
    [
        (WebSocketReport(opened=1), ()),
        (WebSocketReport(opened=1, closes=[Ending(0, 0, "")]), ()),
        (WebSocketReport(opened=2, failed=3, cuts=[Ending(0, 0, "")]), ("1 cut", "3 not opened")),
        (WebSocketReport(), ("nothing was opened",)),
    ],
)
def test_reasons(report: WebSocketReport, reasons: tuple[str, ...]) -> None:
    assert sockets.reasons(Held(report, 0, 1, 0.0)) == reasons


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_command_holds_to_the_end() -> None:
    async with serving(echo) as url:
        done = await loadtest("--websocket", url, "-c", "3", "-z", "0.5s", "--json")
    assert (done.status, done.err) == (0, "")
    counts = done.document["websockets"]
    assert (counts["opened"], counts["failed"], counts["closed"], counts["cut"]) == (3, 0, 0, 0)
    assert counts["sent"] == counts["echoed"] >= 3


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_command_fails_on_a_cut() -> None:
    async def cut(socket: object) -> None:
        socket.transport.abort()  # type: ignore[attr-defined]

    async with serving(cut) as url:
        done = await loadtest("--websocket", url, "-c", "2", "-z", "0.3s")
    assert done.status == 1
    assert "Cut (time since the start, connection):" in done.out
    assert done.err.startswith("failed: ")
    assert " cut" in done.err


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_command_fails_where_nothing_listens() -> None:
    done = await loadtest("--websocket", f"ws://127.0.0.1:{free_port()}/", "-c", "1", "-z", "0.2s")
    assert done.status == 1
    assert "  Opened:\t0" in done.out
    assert " not opened" in done.err
