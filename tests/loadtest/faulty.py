"""A server that misbehaves at random, in a process of its own, and writes down what it did to which request.

What it does to a request depends on the seed and on the number that the request carries, on nothing else. It keeps
out of situations in which nobody could tell what the client must see:

- A reset discards what the kernel has not delivered. So before a reset in the midst of an answer the server waits
  until the client's kernel has acknowledged every byte (TIOCOUTQ is 0). Linux lets a reader have what had arrived
  before the reset, so the client sees an answer that had begun.
- A close that crosses the next request on the wire is an idle close for the one side and a lost request for the other.
  So the server only half-closes, and reads on: when a request still comes, it was written in ignorance of the close,
  and is `RACED`; when the client just hangs up, it knew.
- Bytes beyond the stated length go out in the same write as the answer, which is one segment on the loopback. Were
  they late, no client could tell them from an answer to its next request.
- A close on accept has read no request, so it cannot say which one it met. They are counted, and the requests that
  never arrived must be as many.
- The client's time-out must be far longer than a busy machine delays an answer; that is up to the test.
"""

from __future__ import annotations

import asyncio
import fcntl
import random
import signal
import socket
import struct
import sys
import termios
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import cast

import orjson
import uvloop

from loadtest.model import ErrorKind

NUMBER = "X-Number"  # the header that carries the number of a request

SURPLUS_STATUS = 299  # of what looks like an answer and is none
_BODY = b"hello"
_LARGE = b"x" * 100_000
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_SURPLUS = b"HTTP/1.1 299 Surplus\r\nContent-Length: 0\r\n\r\n"
_BAD_STATUS_LINES = (
    b"this is not the protocol\r\n\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x16\r\n\r\n",
)


class Deed(StrEnum):
    """What was done to a request."""

    ANSWER = "answer"
    ANSWER_IN_PIECES = "answer_in_pieces"
    ANSWER_LARGE = "answer_large"
    ANSWER_CHUNKED = "answer_chunked"
    ANSWER_UNTIL_CLOSE = "answer_until_close"
    ANSWER_AND_SAY_CLOSE = "answer_and_say_close"
    ANSWER_THEN_IDLE_CLOSE = "answer_then_idle_close"
    UNAVAILABLE = "unavailable"
    UNDERSTATE_LENGTH = "understate_length"
    OVERSTATE_LENGTH = "overstate_length"
    CLOSE = "close"
    RESET = "reset"
    RACED = "raced"
    RESET_IN_BODY = "reset_in_body"
    TRUNCATE_HEAD = "truncate_head"
    TRUNCATE_BODY = "truncate_body"
    TRUNCATE_CHUNK = "truncate_chunk"
    STALL = "stall"
    STALL_IN_BODY = "stall_in_body"
    STALL_IN_CHUNK = "stall_in_chunk"
    BAD_STATUS_LINE = "bad_status_line"


# What the client must make of it.
MEANS: dict[Deed, int | ErrorKind] = {
    Deed.ANSWER: 200,
    Deed.ANSWER_IN_PIECES: 200,
    Deed.ANSWER_LARGE: 200,
    Deed.ANSWER_CHUNKED: 200,
    Deed.ANSWER_UNTIL_CLOSE: 200,
    Deed.ANSWER_AND_SAY_CLOSE: 200,
    Deed.ANSWER_THEN_IDLE_CLOSE: 200,
    Deed.UNAVAILABLE: 503,
    Deed.UNDERSTATE_LENGTH: 200,
    Deed.OVERSTATE_LENGTH: ErrorKind.TRUNCATED,
    Deed.CLOSE: ErrorKind.DROPPED,
    Deed.RESET: ErrorKind.DROPPED,
    Deed.RACED: ErrorKind.DROPPED,
    Deed.RESET_IN_BODY: ErrorKind.TRUNCATED,
    Deed.TRUNCATE_HEAD: ErrorKind.TRUNCATED,
    Deed.TRUNCATE_BODY: ErrorKind.TRUNCATED,
    Deed.TRUNCATE_CHUNK: ErrorKind.TRUNCATED,
    Deed.STALL: ErrorKind.TIMEOUT,
    Deed.STALL_IN_BODY: ErrorKind.TIMEOUT,
    Deed.STALL_IN_CHUNK: ErrorKind.TIMEOUT,
    Deed.BAD_STATUS_LINE: ErrorKind.PROTOCOL,
}

# How often in 200 requests. Stalls are rare, as each costs the client its time-out.
_WEIGHTS = dict.fromkeys(MEANS, 4) | {
    Deed.ANSWER: 90,
    Deed.ANSWER_THEN_IDLE_CLOSE: 20,
    Deed.RACED: 0,  # nobody's choice
    Deed.STALL: 1,
    Deed.STALL_IN_BODY: 1,
    Deed.STALL_IN_CHUNK: 1,
}
_SLAMMED = 0.02  # of the connections


def deed_for(seed: int, number: int) -> Deed:
    return random.Random(f"{seed}/{number}").choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]


@dataclass
class Record:
    """What was done, kind by kind and request by request."""

    deeds: dict[int, Deed] = field(default_factory=dict)  # by the number of the request
    again: list[int] = field(default_factory=list)  # numbers that came a second time
    strays: int = 0  # bytes that came while a request was being answered
    connections: int = 0
    slammed: int = 0  # connections that were closed on accept
    idle_closed: int = 0  # closed while idle, and the client sent nothing more

    def expected(self) -> Counter[int | ErrorKind]:
        """How many of each outcome the client must have counted."""
        expected = Counter(MEANS[deed] for deed in self.deeds.values())
        if self.slammed:
            expected[ErrorKind.DROPPED] += self.slammed
        return expected


class _Server:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.record = Record()
        self.open = 0
        self.accepting = random.Random(seed)


class _Peer(asyncio.Protocol):
    def __init__(self, server: _Server) -> None:
        self._server = server
        self._record = server.record
        self._received = b""
        self._answering = False
        self._half_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._server.open += 1
        self._record.connections += 1
        if self._server.accepting.random() < _SLAMMED:
            self._record.slammed += 1
            self._answering = True  # what comes now is lost already
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._answering:
            self._record.strays += 1
            return
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        self._received = b""
        self._record.strays += bool(rest)
        number = int(head.lower().partition(NUMBER.lower().encode() + b":")[2].split(b"\r\n")[0])
        deed = Deed.RACED if self._half_closed else deed_for(self._server.seed, number)
        if number in self._record.deeds:
            self._record.again.append(number)
        self._record.deeds[number] = deed
        self._answering = True
        self._perform(deed, number)

    def eof_received(self) -> None:
        if self._half_closed and not self._answering:
            self._record.idle_closed += 1
            self._answering = True

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.eof_received()  # it hung up with a reset
        self._server.open -= 1

    def _perform(self, deed: Deed, number: int) -> None:
        write = self._transport.write
        match deed:
            case Deed.ANSWER:
                write(_ANSWER)
                self._answering = False
            case Deed.ANSWER_IN_PIECES:
                self._write_in_pieces([_ANSWER[:10], _ANSWER[10:30], _ANSWER[30:-2], _ANSWER[-2:]])
            case Deed.ANSWER_LARGE:
                write(_headed(len(_LARGE)) + _LARGE)
                self._answering = False
            case Deed.ANSWER_CHUNKED:
                self._write_in_pieces([_CHUNKED + b"2\r\nhe\r\n", b"3\r", b"\nllo\r\n0\r\n", b"\r\n"])
            case Deed.ANSWER_UNTIL_CLOSE:
                write(b"HTTP/1.1 200 OK\r\n\r\n" + _BODY)
                self._transport.close()
            case Deed.ANSWER_AND_SAY_CLOSE:
                write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n" + _BODY)
                self._transport.close()
            case Deed.ANSWER_THEN_IDLE_CLOSE:
                write(_ANSWER)
                self._answering = False
                self._half_closed = True
                self._transport.write_eof()
            case Deed.UNAVAILABLE:
                write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                self._answering = False
            case Deed.UNDERSTATE_LENGTH:
                write(_ANSWER + _SURPLUS)
            case Deed.OVERSTATE_LENGTH:
                write(_headed(len(_BODY) + 1) + _BODY)
                self._transport.close()
            case Deed.CLOSE | Deed.RACED:
                self._transport.close()
            case Deed.RESET:
                self._reset()
            case Deed.RESET_IN_BODY:
                write(_headed(len(_LARGE)) + _LARGE[: number % 50_000])
                self._reset_once_delivered()
            case Deed.TRUNCATE_HEAD:
                write(_ANSWER[: 6 + number % 30])
                self._transport.close()
            case Deed.TRUNCATE_BODY:
                write(_headed(len(_LARGE)) + _LARGE[: number % len(_LARGE)])
                self._transport.close()
            case Deed.TRUNCATE_CHUNK:
                write(_CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"[: number % 14])
                self._transport.close()
            case Deed.STALL:
                pass
            case Deed.STALL_IN_BODY:
                write(_headed(len(_BODY) + 1) + _BODY)
            case Deed.STALL_IN_CHUNK:
                write(_CHUNKED + b"5\r\nhel")
            case Deed.BAD_STATUS_LINE:
                write(_BAD_STATUS_LINES[number % len(_BAD_STATUS_LINES)])
                self._transport.close()

    def _write_in_pieces(self, pieces: list[bytes]) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(pieces[0])
        if pieces[1:]:
            self._loop.call_later(0.001, self._write_in_pieces, pieces[1:])
        else:
            self._answering = False

    def _reset_once_delivered(self) -> None:
        if self._transport.is_closing():
            return
        end = self._transport.get_extra_info("socket")
        unsent = self._transport.get_write_buffer_size()
        (unacknowledged,) = struct.unpack("i", fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, b"\0" * 4))
        if unsent or unacknowledged:
            self._loop.call_later(0.001, self._reset_once_delivered)
        else:
            self._reset()

    def _reset(self) -> None:
        end = self._transport.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _headed(length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length


async def _serve(seed: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = _Server(seed)
    listener = await loop.create_server(lambda: _Peer(server), "127.0.0.1", 0, backlog=4096)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await stopped.wait()
    while server.open:  # the client has ended, so that its connections end
        await asyncio.sleep(0.01)
    sys.stdout.buffer.write(orjson.dumps(server.record, option=orjson.OPT_NON_STR_KEYS))


@dataclass
class Faulty:
    """The server's process. Its record is there once the block it was started for is left."""

    port: int
    record: Record = field(default_factory=Record)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@asynccontextmanager
async def faulty(seed: int) -> AsyncIterator[Faulty]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, str(seed), stdout=PIPE)
    assert process.stdout is not None
    try:
        server = Faulty(int(await process.stdout.readline()))
        yield server
        process.terminate()
        kept = orjson.loads((await asyncio.wait_for(process.communicate(), 30))[0])
        kept["deeds"] = {int(number): Deed(deed) for number, deed in kept["deeds"].items()}
        server.record = Record(**kept)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
