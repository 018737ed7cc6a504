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
from enum import Enum, StrEnum, auto
from typing import NamedTuple, cast

import orjson
import uvloop

from loadtest.model import ErrorKind

NUMBER = "X-Number"  # the header that carries the number of a request

SURPLUS_STATUS = 299  # of what looks like an answer and is none


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


class Then(Enum):
    """What comes after the bytes."""

    KEEP = auto()  # the next request is welcome
    CLOSE = auto()
    HALF_CLOSE = auto()
    RESET = auto()
    STALL = auto()  # until the client hangs up


class Script(NamedTuple):
    """How a deed is done, and what the client must make of it."""

    means: int | ErrorKind
    then: Then
    pieces: tuple[bytes, ...] = ()  # each in a packet of its own
    cut: range | None = None  # of the one piece so many bytes are sent


_BODY = b"hello"
_LARGE = b"x" * 100_000
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_TWO_CHUNKS = _CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
_SURPLUS = b"HTTP/1.1 %d Surplus\r\nContent-Length: 0\r\n\r\n" % SURPLUS_STATUS


def _answer(body: bytes, length: int | None = None, header: bytes = b"") -> bytes:
    stated = len(body) if length is None else length
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (header, stated, body)


_PLAIN, _VAST = _answer(_BODY), _answer(_LARGE)
_HEAD = _PLAIN.index(_BODY)
_PIECES = (_PLAIN[:10], _PLAIN[10:30], _PLAIN[30:-2], _PLAIN[-2:])
_CHUNK_PIECES = (_TWO_CHUNKS[:-17], _TWO_CHUNKS[-17:-13], _TWO_CHUNKS[-13:-3], _TWO_CHUNKS[-3:])
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

SCRIPTS: dict[Deed, Script] = {
    Deed.ANSWER: Script(200, Then.KEEP, (_PLAIN,)),
    Deed.ANSWER_IN_PIECES: Script(200, Then.KEEP, _PIECES),
    Deed.ANSWER_LARGE: Script(200, Then.KEEP, (_VAST,)),
    Deed.ANSWER_CHUNKED: Script(200, Then.KEEP, _CHUNK_PIECES),
    Deed.ANSWER_UNTIL_CLOSE: Script(200, Then.CLOSE, (b"HTTP/1.1 200 OK\r\n\r\n" + _BODY,)),
    Deed.ANSWER_AND_SAY_CLOSE: Script(200, Then.CLOSE, (_answer(_BODY, header=b"Connection: close\r\n"),)),
    Deed.ANSWER_THEN_IDLE_CLOSE: Script(200, Then.HALF_CLOSE, (_PLAIN,)),
    Deed.UNAVAILABLE: Script(503, Then.KEEP, (_UNAVAILABLE,)),
    Deed.UNDERSTATE_LENGTH: Script(200, Then.STALL, (_PLAIN + _SURPLUS,)),
    Deed.OVERSTATE_LENGTH: Script(ErrorKind.TRUNCATED, Then.CLOSE, (_answer(_BODY, len(_BODY) + 1),)),
    Deed.CLOSE: Script(ErrorKind.DROPPED, Then.CLOSE),
    Deed.RESET: Script(ErrorKind.DROPPED, Then.RESET),
    Deed.RACED: Script(ErrorKind.DROPPED, Then.CLOSE),
    Deed.RESET_IN_BODY: Script(ErrorKind.TRUNCATED, Then.RESET, (_VAST,), range(_HEAD, len(_VAST))),
    Deed.TRUNCATE_HEAD: Script(ErrorKind.TRUNCATED, Then.CLOSE, (_PLAIN,), range(1, _HEAD)),
    Deed.TRUNCATE_BODY: Script(ErrorKind.TRUNCATED, Then.CLOSE, (_VAST,), range(_HEAD, len(_VAST))),
    Deed.TRUNCATE_CHUNK: Script(
        ErrorKind.TRUNCATED, Then.CLOSE, (_TWO_CHUNKS,), range(len(_CHUNKED), len(_TWO_CHUNKS))
    ),
    Deed.STALL: Script(ErrorKind.TIMEOUT, Then.STALL),
    Deed.STALL_IN_BODY: Script(ErrorKind.TIMEOUT, Then.STALL, (_VAST,), range(1, len(_VAST))),
    Deed.STALL_IN_CHUNK: Script(ErrorKind.TIMEOUT, Then.STALL, (_TWO_CHUNKS,), range(len(_CHUNKED), len(_TWO_CHUNKS))),
    Deed.BAD_STATUS_LINE: Script(ErrorKind.PROTOCOL, Then.CLOSE, (b"this is not the protocol\r\n\r\n",)),
}

_SLAMMED = 0.02  # of the connections


class Mood(StrEnum):
    """What the server is capable of."""

    VICIOUS = "vicious"  # of everything
    HASTY = "hasty"  # of all but stalls, so that no time-out has to be waited for
    FAITHFUL = "faithful"  # of nothing but answers

    @property
    def weights(self) -> dict[Deed, int]:
        """How often each deed is done, in about 200 requests. Stalls are rare, as each costs a time-out."""
        if self is Mood.FAITHFUL:
            return {Deed.ANSWER: 200}
        given = {deed: 4 for deed, script in SCRIPTS.items() if script.means is not ErrorKind.TIMEOUT}
        given |= {Deed.ANSWER: 90, Deed.ANSWER_THEN_IDLE_CLOSE: 20}
        del given[Deed.RACED]  # nobody's choice
        stalls = dict.fromkeys((Deed.STALL, Deed.STALL_IN_BODY, Deed.STALL_IN_CHUNK), 1)
        return given | stalls if self is Mood.VICIOUS else given


@dataclass
class Record:
    """What was done, kind by kind and request by request."""

    deeds: dict[int, Deed] = field(default_factory=dict)  # by the number of the request
    again: list[int] = field(default_factory=list)  # numbers that came a second time
    strays: int = 0  # bytes that came while a request was being answered
    connections: int = 0
    slammed: int = 0  # connections that were closed on accept
    idle_closed: int = 0  # closed while idle, and the client sent nothing more
    broken: list[str] = field(default_factory=list)  # faults of this server that nobody asked for

    def expected(self) -> Counter[int | ErrorKind]:
        """How many of each outcome the client must have counted."""
        expected = Counter(SCRIPTS[deed].means for deed in self.deeds.values())
        if self.slammed:
            expected[ErrorKind.DROPPED] += self.slammed
        return expected


class _Server:
    def __init__(self, seed: int, mood: Mood) -> None:
        self.record = Record()
        self.open = 0
        self._seed = seed
        self._accepting = random.Random(seed)
        self._slammed = 0.0 if mood is Mood.FAITHFUL else _SLAMMED
        self._deeds, self._weights = list(mood.weights), list(mood.weights.values())

    def slams(self) -> bool:
        return self._accepting.random() < self._slammed

    def choose(self, number: int) -> Deed:
        return random.Random(f"{self._seed}/{number}").choices(self._deeds, self._weights)[0]


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
        if self._server.slams():
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
        deed = Deed.RACED if self._half_closed else self._server.choose(number)
        if number in self._record.deeds:
            self._record.again.append(number)
        self._record.deeds[number] = deed
        self._answering = True
        self._perform(SCRIPTS[deed], number)

    def eof_received(self) -> None:
        if self._half_closed and not self._answering:
            self._record.idle_closed += 1
            self._answering = True

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.eof_received()  # it hung up with a reset
        self._server.open -= 1

    def _perform(self, script: Script, number: int) -> None:
        pieces = script.pieces
        if script.cut is not None:
            pieces = (pieces[0][: script.cut[number % len(script.cut)]],)
        self._write(pieces, script.then)

    def _write(self, pieces: tuple[bytes, ...], then: Then) -> None:
        if self._transport.is_closing():
            return
        if pieces:
            self._transport.write(pieces[0])
        if pieces[1:]:
            self._loop.call_later(0.001, self._write, pieces[1:], then)
            return
        self._answering = then not in (Then.KEEP, Then.HALF_CLOSE)
        match then:
            case Then.CLOSE:
                self._transport.close()
            case Then.HALF_CLOSE:
                self._half_closed = True
                self._transport.write_eof()
            case Then.RESET:
                self._reset_once_delivered()
            case Then.KEEP | Then.STALL:
                pass

    def _reset_once_delivered(self) -> None:
        if self._transport.is_closing():
            return
        end = self._transport.get_extra_info("socket")
        unsent = self._transport.get_write_buffer_size()
        (unacknowledged,) = struct.unpack("i", fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, b"\0" * 4))
        if unsent or unacknowledged:
            self._loop.call_later(0.001, self._reset_once_delivered)
        else:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


async def _serve(seed: int, mood: Mood) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = _Server(seed, mood)
    loop.set_exception_handler(lambda _, context: server.record.broken.append(repr(context)))
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
    pid: int
    record: Record = field(default_factory=Record)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@asynccontextmanager
async def faulty(mood: Mood, seed: int = 1) -> AsyncIterator[Faulty]:
    argv = [sys.executable, "-m", __name__, str(seed), mood]
    process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE)
    assert process.stdout is not None
    try:
        server = Faulty(int(await process.stdout.readline()), process.pid)
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
        runner.run(_serve(int(sys.argv[1]), Mood(sys.argv[2])))
