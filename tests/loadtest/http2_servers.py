"""An HTTP/2 server that counts what reaches it and misbehaves as told. It is the server's side of the library h2;
what h2 would not send is written past it, as frames."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame


@dataclass
class Received:
    stream: int
    headers: dict[str, str]
    body: bytes = b""
    ended: bool = False

    @property
    def target(self) -> str:
        return self.headers[":path"]


class Peer:
    """The server's end of one connection."""

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.served = 0
        self.resets: list[int] = []  # error codes of the client's RST_STREAM frames
        self.pongs: list[bytes] = []
        self.goodbye = False  # the client sent GOAWAY
        self.most_open = 0
        self.http = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))
        self.moved = asyncio.Event()  # a window, or anything else, may have changed
        self._writer = writer

    def answer(self, stream: int, body: bytes = b"hello", status: int = 200, **headers: str) -> None:
        self.head(stream, status, end=not body, **headers)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.flush()

    def head(self, stream: int, status: int = 200, *, end: bool = False, **headers: str) -> None:
        fields = [(":status", str(status)), ("x-version", "v1")]
        fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.http.send_headers(stream, fields, end_stream=end)
        self.flush()

    def data(self, stream: int, body: bytes, *, end: bool = False) -> None:
        self.http.send_data(stream, body, end_stream=end)
        self.flush()

    async def large(self, stream: int, size: int) -> None:
        """A body of so many bytes, as the client's windows allow."""
        self.head(stream, content_length=str(size))
        while size:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size, size)
            if room <= 0:
                self.moved.clear()
                await self.moved.wait()
                continue
            size -= room
            self.data(stream, b"x" * room, end=not size)
            await self._writer.drain()

    def reset(self, stream: int, code: int) -> None:
        self.http.reset_stream(stream, code)
        self.flush()

    def go_away(self, last: int, code: int = 0) -> None:
        self.frame(GoAwayFrame(0, last_stream_id=last, error_code=code))

    def frame(self, frame: Frame) -> None:
        """Write it past h2."""
        self.flush()
        self._writer.write(frame.serialize())

    def unchecked(self, stream: int, *fields: tuple[str, str], body: bytes | None = None) -> None:
        """A response that h2 would not send."""
        flags = ["END_HEADERS", *(["END_STREAM"] if body is None else [])]
        self.frame(HeadersFrame(stream, self.http.encoder.encode(fields), flags=flags))
        if body is not None:
            self.frame(DataFrame(stream, body, flags=["END_STREAM"]))

    def raw(self, data: bytes) -> None:
        self._writer.write(data)

    def flush(self) -> None:
        self._writer.write(self.http.data_to_send())

    async def drained(self) -> None:
        await self._writer.drain()
        await asyncio.sleep(0)

    def close(self) -> None:
        self.flush()
        self._writer.close()

    def abort(self) -> None:
        self.flush()
        self._writer.transport.abort()


Behaviour = Callable[[Peer, Received], Awaitable[None]]


@dataclass
class Server:
    behaviour: Behaviour
    scheme: str = "http"
    settings: dict[SettingCodes, int] = field(default_factory=dict)
    at_headers: bool = False  # behave when the headers are there, before the body is
    port: int = 0
    peers: list[Peer] = field(default_factory=list)
    delivered: Counter[str] = field(default_factory=Counter)  # how often each target arrived
    received: list[Received] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def connections(self) -> int:
        return len(self.peers)

    @property
    def resets(self) -> list[int]:
        return [code for peer in self.peers for code in peer.resets]

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(len(self.peers), writer)
        self.peers.append(peer)
        requests: dict[int, Received] = {}
        try:
            peer.http.local_settings = Settings(client=False, initial_values=self.settings)
            peer.http.initiate_connection()
            peer.flush()
            while data := await reader.read(65536):
                for event in peer.http.receive_data(data):
                    self._on(peer, requests, event)
                peer.flush()
                peer.moved.set()
        except (OSError, ProtocolError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _on(self, peer: Peer, requests: dict[int, Received], event: Event) -> None:
        match event:
            case RequestReceived(stream_id=stream, headers=headers):
                request = Received(stream, {str(k, "latin-1"): str(v, "latin-1") for k, v in headers})
                requests[stream] = request
                peer.most_open = max(peer.most_open, peer.http.open_inbound_streams)
                self.delivered[request.target] += 1
                self.received.append(request)
                if self.at_headers:
                    self._start(peer, request)
            case DataReceived(stream_id=stream, data=data, flow_controlled_length=length):
                requests[stream].body += data
                peer.http.acknowledge_received_data(length, stream)
            case StreamEnded(stream_id=stream):
                requests[stream].ended = True
                if not self.at_headers:
                    self._start(peer, requests[stream])
            case StreamReset(error_code=code):
                peer.resets.append(int(code or 0))
            case PingAckReceived(ping_data=data):
                peer.pongs.append(data)
            case ConnectionTerminated():
                peer.goodbye = True
            case WindowUpdated() | _:
                pass

    def _start(self, peer: Peer, request: Received) -> None:
        task = asyncio.create_task(self._behave(peer, request))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _behave(self, peer: Peer, request: Received) -> None:
        try:
            await self.behaviour(peer, request)
        except (OSError, ProtocolError):  # the client is gone
            return
        peer.served += 1


@asynccontextmanager
async def serving(
    behaviour: Behaviour,
    tls: ssl.SSLContext | None = None,
    *,
    at_headers: bool = False,
    **settings: int,
) -> AsyncIterator[Server]:
    """`settings` in the words of SettingCodes, small letters."""
    server = Server(behaviour, at_headers=at_headers)
    server.settings = {SettingCodes[name.upper()]: value for name, value in settings.items()}
    if tls is not None:
        server.scheme = "https"
        tls.set_alpn_protocols(["h2"])
    sessions: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        sessions.add(task)
        task.add_done_callback(sessions.discard)
        try:
            await server.serve(reader, writer)
        finally:
            writer.transport.abort()  # whatever came in between: none is left to the collector of garbage

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, backlog=512)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in (*server.tasks, *sessions):
            task.cancel()
        while server.tasks or sessions:
            await asyncio.sleep(0)
        await listener.wait_closed()
        await asyncio.sleep(0.01)  # the transports that were aborted are closed now


async def answer(peer: Peer, request: Received) -> None:
    peer.answer(request.stream)
