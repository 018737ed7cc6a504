"""Probes against small real servers, each with its own way to answer or not to."""

from __future__ import annotations

import asyncio
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET

import pytest

from tests.tls import server_context
from trafficd.core.health import Unreachable
from trafficd.health.probe import Check, HttpProbe

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


@dataclass
class Server:
    """Where it listens, and what it was asked."""

    dial: str = ""
    heads: list[bytes] = field(default_factory=list)
    open: int = 0


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def saying(data: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return answer


@asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server that reads one request head, answers in this way, and closes."""
    server = Server()
    handlers: set[asyncio.Task[None] | None] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        server.open += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                server.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await answer(writer)
        finally:
            server.open -= 1
            writer.transport.abort() if tls else writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    host, port = listener.sockets[0].getsockname()
    server.dial = f"{host}:{port}"
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()
        await asyncio.sleep(0.02)  # let those end whose client has gone
        for handler in handlers:
            if handler is not None:
                handler.cancel()
        await asyncio.sleep(0)


async def probed(answer: Answer, check: Check | None = None) -> str | None:
    """What the probe says, without the address in front."""
    async with serving(answer) as server:
        said = await HttpProbe(check or Check(timeout=2.0))(server.dial)
    return None if said is None else type(said)(said.replace(server.dial, ""))


async def test_200_is_healthy() -> None:
    assert await probed(saying(OK)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nok until the connection closes",
        b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
        OK + b"more than it said",
    ],
    ids=["chunked", "until close", "no reason phrase", "hints first", "too long"],
)
async def test_all_shapes_of_an_answer_are_read(data: bytes) -> None:
    assert await probed(saying(data)) is None


@pytest.mark.parametrize("status", [100, 199, 204, 301, 404, 500, 503])
async def test_another_status_is_named(status: int) -> None:
    data = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
    said = await probed(saying(data), Check(timeout=0.5))
    if status < 200:
        assert said == "/healthz: the connection was closed before a complete HTTP answer"
    else:
        assert said == f"/healthz answered {status}, not 200"


async def test_the_statuses_that_count_are_configured() -> None:
    check = Check(status=frozenset({204, 301}))
    for status in (204, 301):
        assert await probed(saying(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status), check) is None
    assert await probed(saying(OK), check) == "/healthz answered 200, not 204, 301"


async def test_a_switch_of_protocols_ends_the_exchange() -> None:
    data = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n\x81\x05"

    async def switch(writer: asyncio.StreamWriter) -> None:
        await saying(data)(writer)
        await asyncio.sleep(5)

    headers = {"Connection": "upgrade", "Upgrade": "x"}
    begun = time.monotonic()
    assert await probed(switch, Check(headers=headers, status=frozenset({101}), timeout=2.0)) is None
    assert await probed(switch, Check(headers=headers, timeout=2.0)) == "/healthz answered 101, not 200"
    assert time.monotonic() - begun < 4


# -- time --------------------------------------------------------------------------------------------------


async def hang(_writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(10)


async def half_a_head(writer: asyncio.StreamWriter) -> None:
    await saying(b"HTTP/1.1 200 OK\r\nX-Slow:")(writer)
    await asyncio.sleep(10)


async def half_a_body(writer: asyncio.StreamWriter) -> None:
    await saying(OK[:-1])(writer)
    await asyncio.sleep(10)


async def byte_by_byte(writer: asyncio.StreamWriter) -> None:
    for byte in OK:
        await saying(bytes([byte]))(writer)
        await asyncio.sleep(0.02)


async def endless_hints(writer: asyncio.StreamWriter) -> None:
    while True:
        await saying(b"HTTP/1.1 102 Processing\r\n\r\n")(writer)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [hang, half_a_head, half_a_body, byte_by_byte, endless_hints])
async def test_the_whole_answer_must_come_in_time(answer: Answer) -> None:
    """However busily the server sends: the time-out is for the exchange, not for one read."""
    begun = time.monotonic()
    said = await probed(answer, Check(timeout=0.2))
    assert said == "no answer from /healthz within 0.2 s"
    assert not isinstance(said, Unreachable), "it could be connected to"
    assert time.monotonic() - begun < 1.5


async def test_a_slow_answer_in_time_is_an_answer() -> None:
    assert await probed(byte_by_byte, Check(timeout=10.0)) is None


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n"],
    ids=["until close", "huge"],
)
async def test_an_endless_body_does_not_hold_the_probe(head: bytes) -> None:
    sent = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await saying(head)(writer)
        while True:
            await saying(b"x" * 10_000)(writer)
            sent += 10_000

    begun = time.monotonic()
    assert await probed(pour, Check(timeout=5.0)) is None
    assert time.monotonic() - begun < 2
    assert sent < 20_000_000


async def test_an_endless_head_is_refused() -> None:
    async def pour(writer: asyncio.StreamWriter) -> None:
        await saying(b"HTTP/1.1 200 OK\r\n")(writer)
        while True:
            await saying(b"X-More: " + b"y" * 1000 + b"\r\n")(writer)

    said = await probed(pour, Check(timeout=5.0))
    assert said is not None
    assert said.startswith("/healthz: not a complete HTTP answer: ")


# -- what is no answer -------------------------------------------------------------------------------------


async def test_nothing_listens() -> None:
    async with serving(saying(OK)) as server:
        dial = server.dial
    said = await HttpProbe(Check())(dial)
    assert said == f"{dial}/healthz: cannot connect: refused, nothing listens there"
    assert isinstance(said, Unreachable)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the connection was closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not a complete HTTP answer: the response begins with"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not a complete HTTP answer"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "not a complete HTTP answer"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "not a complete HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not a complete HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", "not a complete HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "not a complete HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not a complete HTTP answer"),
    ],
)
async def test_what_is_no_complete_answer(data: bytes, why: str) -> None:
    said = await probed(saying(data))
    assert said is not None
    assert said.startswith(f"/healthz: {why}")
    assert "\x00" not in said


async def test_a_reset_connection() -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        await saying(OK[:20])(writer)
        await asyncio.sleep(0.02)
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    assert await probed(reset) == "/healthz: the connection was reset without a complete answer"


@pytest.mark.parametrize("dial", ["no-such-host.invalid:80", "[::1]:2", "a..b:80", "x" * 300 + ":80"])
async def test_an_address_that_leads_nowhere(dial: str) -> None:
    said = await HttpProbe(Check(timeout=5.0))(dial)
    assert said is not None
    assert said.startswith((f"{dial}/healthz: ", f"no answer from {dial}"))


# -- what is asked -----------------------------------------------------------------------------------------


async def asked(check: Check) -> tuple[str, dict[str, str], str]:
    """The request line and headers that the server got, and its address."""
    async with serving(saying(OK)) as server:
        assert await HttpProbe(check)(server.dial) is None
    (head,) = server.heads
    line, *headers = head.decode().rstrip().split("\r\n")
    pairs = [header.split(": ", 1) for header in headers]
    names = [name.lower() for name, _ in pairs]
    assert len(set(names)) == len(names), "a header was sent twice"
    return line, dict(zip(names, (text for _, text in pairs), strict=True)), server.dial


async def test_the_request() -> None:
    line, headers, dial = await asked(Check(path="/up?deep=1"))
    assert line == "GET /up?deep=1 HTTP/1.1"
    assert headers == {"host": dial, "user-agent": "trafficd-probe", "connection": "close"}


async def test_a_host_and_headers_of_our_own() -> None:
    check = Check(host="example.com", headers={"X-Probe": "a, b", "User-Agent": "mine"})
    _, headers, _ = await asked(check)
    assert headers["host"] == "example.com"
    assert headers["x-probe"] == "a, b"
    assert headers["user-agent"] == "mine"
    assert (await asked(replace(check, headers={"host": "other.example"})))[1]["host"] == "other.example"


async def test_headers_that_cannot_be_sent_are_a_failure_not_a_crash() -> None:
    for headers in ({"X": "a\r\nY: b"}, {"X Y": "z"}, {"X": "é"}, {"Content-Length": "5"}):
        async with serving(saying(OK)) as server:
            said = await HttpProbe(Check(headers=headers))(server.dial)
        assert said is not None
        assert server.heads in ([], [b""])


async def test_each_probe_is_a_connection_of_its_own_and_none_is_left() -> None:
    async with serving(saying(OK.replace(b"Connection: close\r\n", b""))) as server:
        probe = HttpProbe(Check())
        assert await asyncio.gather(*(probe(server.dial) for _ in range(20))) == [None] * 20
        await probe.aclose()
        await asyncio.sleep(0.02)
        assert server.open == 0
    assert len(server.heads) == 20


async def test_a_cancelled_probe_lets_go_of_its_connection() -> None:
    gone = asyncio.Event()

    async def send_until_gone(writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await saying(b"HTTP/1.1 102 Processing\r\n\r\n")(writer)
                await asyncio.sleep(0.01)
        except ConnectionError:
            gone.set()

    async with serving(send_until_gone) as server:
        task = asyncio.create_task(HttpProbe(Check(timeout=10.0))(server.dial))
        while not server.heads:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 2)


# -- TLS ---------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return tmp_path / "authority.pem"


@pytest.fixture
def tls(authority: Path) -> ssl.SSLContext:
    return server_context("instance.example", authority)


async def test_tls_without_a_check_of_the_certificate(tls: ssl.SSLContext) -> None:
    async with serving(saying(OK), tls) as server:
        assert await HttpProbe(Check(tls=True), verify=False)(server.dial) is None


async def test_tls_with_an_authority_that_is_not_ours(tls: ssl.SSLContext) -> None:
    async with serving(saying(OK), tls) as server:
        said = await HttpProbe(Check(tls=True))(server.dial)
    assert said is not None
    assert said.startswith(f"{server.dial}/healthz: its certificate is not accepted: unable to get local issuer")
    assert server.heads == []


async def test_tls_checks_the_name_that_is_asked_for(tls: ssl.SSLContext, authority: Path) -> None:
    """By default the host of the address, as Caddy does; the Host header is another matter."""
    ours = ssl.create_default_context(cafile=authority)
    check = Check(tls=True, host="public.example")
    async with serving(saying(OK), tls) as server:
        said = await HttpProbe(check, verify=ours)(server.dial)
        named = await HttpProbe(replace(check, server_name="instance.example"), verify=ours)(server.dial)
        wrong = await HttpProbe(replace(check, server_name="other.example"), verify=ours)(server.dial)
    assert named is None
    assert said is not None
    assert "certificate is not accepted: IP address mismatch" in said
    assert wrong is not None
    assert "Hostname mismatch" in wrong
    assert b"Host: public.example\r\n" in server.heads[-1] or b"host: public.example\r\n" in server.heads[-1]


async def test_tls_spoken_to_a_plain_server_and_the_other_way_round(tls: ssl.SSLContext) -> None:
    async with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        said = await HttpProbe(Check(tls=True, timeout=0.3), verify=False)(server.dial)
    assert said is not None
    async with serving(saying(OK), tls) as server:
        said = await HttpProbe(Check(timeout=2.0))(server.dial)
    assert said is not None
    assert server.heads == []
