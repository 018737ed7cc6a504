"""What a real Caddy answers and logs behind an adopted handler: the same as before, and who gave it.

Compared byte by byte: the handler as its owner wrote it, and as it is when its answers are logged.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.accessline import Answer, Cut, Decoder
from proxy.difference import difference
from proxy.handler import Json
from proxy.install import install, prepare_root, wanted
from proxy.pools import OpenCounts, SlotPool
from proxy.slots import SlotDirectory
from proxy.ways import Adopted
from tests.proxy.caddy import RealCaddy
from tests.proxy.test_adopt import caddy_adapt

BODY = "Content-Length: 5\r\n\r\nhello"
# Whether Go adds a Content-Type to what has no length depends on what comes first, the body or a flush: so it has one.
ANSWERS = {
    "/ok": f"200 OK\r\n{BODY}",
    "/404": f"404 Not Found\r\n{BODY}",
    "/410": f"410 Gone\r\nX-Kept: yes\r\nX-Dropped: yes\r\n{BODY}",
    "/418": f"418 Teapot\r\n{BODY}",
    "/500": f"500 Internal Server Error\r\n{BODY}",
    "/304": "304 Not Modified\r\nEtag: x\r\n\r\n",
    "/accel": f"200 OK\r\nX-Accel-Redirect: /x\r\n{BODY}",
    "/next": f"403 Forbidden\r\n{BODY}",
    "/trailer": "200 OK\r\nContent-Type: text/plain\r\nTrailer: X-End\r\nTransfer-Encoding: chunked\r\n\r\n"
    "5\r\nhello\r\n0\r\nX-End: yes\r\n\r\n",
    "/events": "200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "/cut": "200 OK\r\nContent-Length: 99\r\n\r\nhello",
    "/chunk": "200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "/cut410": "410 Gone\r\nContent-Length: 99\r\n\r\nhello",
    "/cut418": "418 Teapot\r\nContent-Length: 99\r\n\r\nhello",
    "/reset": "",
    "/upgrade": "101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
}
CUT = ("/cut", "/chunk", "/cut410", "/cut418")
RESPONSES = """
    header_down X-Down yes
    @teapot status 418
    replace_status @teapot 404
    @accel header X-Accel-Redirect *
    handle_response @accel {
        respond "accelerated"
    }
    @next status 403
    handle_response @next {
        header X-Next yes
    }
    @error status 5xx 404
    handle_response @error {
        respond "sorry" 200
    }
    @gone status 410
    handle_response @gone {
        header X-Gone {rp.status_code}
        copy_response_headers {
            exclude X-Dropped
        }
        copy_response 203
    }
"""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream that answers by the path, and closes."""
    path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
    if ANSWERS[path]:
        writer.write(f"HTTP/1.1 {ANSWERS[path]}".encode())
    if path == "/upgrade":
        writer.write(await reader.readexactly(5))
    writer.close()


class Adopting:
    """Somebody's site at a Caddy, and our service over its handler."""

    def __init__(self, caddy: RealCaddy, directory: Path) -> None:
        self.caddy, self.directory = caddy, directory
        self.ours, self.theirs = directory / "ours.log", directory / "theirs.log"
        self.way = Adopted(caddy.route(hosts=("127.0.0.1",), access_log=str(self.ours), try_duration=0.3))
        self.plain = Adopted(caddy.route(hosts=("127.0.0.1",), try_duration=0.3))
        self.dial, self._decoder, self._read = "", Decoder(), 0

    async def start(self, responses: str, log: str = "log {\noutput file FILE\n}") -> None:
        self.server = await asyncio.start_server(answer, "127.0.0.1", 0)
        self.dial = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        adapted = await caddy_adapt(
            f"""
            http://127.0.0.1:{self.caddy.port} {{
                {log.replace("FILE", str(self.theirs))}
                handle_path /app/* {{
                    route {{
                        reverse_proxy {self.dial} {{
                            {responses}
                        }}
                        respond "after it"
                    }}
                }}
            }}
            http://other.test:{self.caddy.port} {{
                respond "other"
            }}
            """,
            self.directory,
        )
        config, etag = await self.caddy.admin.config()
        assert config is not None
        logging = {"logs": config["logging"]["logs"] | adapted.get("logging", {}).get("logs", {})}
        await self.caddy.admin.write({**config, **adapted, "logging": logging}, etag)

    async def adopt(self) -> None:
        slots = SlotDirectory(self.caddy.root, "web", self.way.route.slots)
        prepare_root(self.caddy.root, [slots])
        self.pool = SlotPool(slots, OpenCounts(self.caddy.admin), self.way)
        await self.pool.open()
        await self.pool.shift({self.dial: 1})
        assert (await install(self.caddy.admin, [self.way], self.caddy.root)).written

    async def ask(self, path: str, *more: str) -> bytes:
        """All that comes back, but for what the clock makes of it."""
        upgrade = ("Connection: Upgrade", "Upgrade: echo") if path == "/upgrade" else ("Connection: close",)
        head = "\r\n".join([f"GET /app{path} HTTP/1.1", "Host: 127.0.0.1", *upgrade, *more])
        reader, writer = await asyncio.open_connection("127.0.0.1", self.caddy.port)
        try:
            writer.write(f"{head}\r\n\r\n".encode())
            async with asyncio.timeout(5):
                text = await (reader.readuntil(b"\r\n\r\n") if path == "/upgrade" else reader.read())
                if text.startswith(b"HTTP/1.1 101"):
                    writer.write(b"hello")
                    text += await reader.readexactly(5)
        finally:
            writer.close()
        return re.sub(rb"Date: [^\r]*\r\n", b"", text)

    async def all(self) -> dict[str, bytes]:
        return {path: await self.ask(path) for path in ANSWERS}

    async def logged(self, count: int) -> dict[str, Answer]:
        """The next so many answers in our log, by path."""
        found: list[Answer] = []
        async with asyncio.timeout(5):
            while len(found) < count:
                lines = self.ours.read_bytes().splitlines()
                found += [one for line in lines[self._read :] if (one := self._decoder.decode(line)) is not None]
                self._read = len(lines)
                await asyncio.sleep(0.01)
        return {one.path.removeprefix("/app"): one for one in found}

    async def config(self) -> Json:
        config, _ = await self.caddy.admin.config()
        assert config is not None
        return config

    def lines(self) -> list[tuple[str, str, int]]:
        """What the site's owner has in the log: who logged, which request, which status."""
        entries = map(json.loads, self.theirs.read_text().splitlines())
        return [(one["logger"], one["request"]["uri"], one["status"]) for one in entries]

    async def aclose(self) -> None:
        self.server.close()
        await self.pool.aclose()


@pytest.fixture
async def site(caddy: RealCaddy, tmp_path: Path) -> AsyncIterator[Adopting]:
    adopting = Adopting(caddy, tmp_path)
    yield adopting
    await adopting.aclose()


@pytest.mark.parametrize("responses", ["", RESPONSES, "handle_response {\ncopy_response\n}"])
async def test_answers_and_logs_are_as_before_and_it_is_known_who_gave_them(site: Adopting, responses: str) -> None:
    await site.start(responses)
    before, answers = await site.config(), await site.all()
    assert len(set(answers.values())) > 8
    theirs = site.lines()
    await site.adopt()
    assert await site.all() == answers
    async with asyncio.timeout(5):
        while len(site.lines()) < 2 * len(theirs):
            await asyncio.sleep(0.01)
    assert site.lines() == 2 * theirs
    logged = await site.logged(len(ANSWERS))
    assert {one.upstream for path, one in logged.items() if path != "/cut418"} <= {site.dial}
    for path, one in logged.items():
        status = int(ANSWERS[path].partition(" ")[0] or 502)
        if responses == RESPONSES and path.endswith("418"):  # the status is changed, and nothing else is noted
            assert (one.status, one.answered) == (404 if path == "/418" else one.status, False)
            continue
        assert one.status == status
        assert one.cut is (Cut.UPSTREAM if path in CUT else Cut.NO), path
    assert logged["/ok"].latency is not None
    # And out again.
    assert not (await install(site.caddy.admin, [site.way], site.caddy.root)).written
    await site.caddy.admin.edit(lambda config: site.way.leave(config, {site.dial: 1}))
    left, today = await site.config(), site.plain.leave(wanted(before, [site.plain], None)[0], {site.dial: 1})
    del left["apps"]["http"]["servers"]["trafficd_probe"]
    assert difference(today, left) == []
    assert (await site.ask("/500"), await site.ask("/410")) == (answers["/500"], answers["/410"])


async def test_where_the_site_chooses_its_logger_by_request_it_goes_on_so(site: Adopting) -> None:
    await site.start("", "log mine {\noutput file FILE\n}\nlog_name mine")
    await site.ask("/ok")
    await site.adopt()
    assert site.way.unlogged(await site.config()) is not None
    await site.ask("/ok")
    assert [name for name, _, _ in site.lines()] == 2 * ["http.log.access.mine"]
    assert not site.ours.exists()
