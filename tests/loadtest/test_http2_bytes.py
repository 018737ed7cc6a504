"""Whatever bytes a server of HTTP/2 sends, and however they are split: each request ends once, nothing is raised."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.exchange import Carrier, Dialled, Failure, Head
from loadtest.http2 import Connection
from loadtest.model import Origin
from loadtest.wire import Encoder, Message

WIRE = Encoder().wire(Message("POST", Origin(False, "a", 80), "a", "/", (), b"body"))
REQUESTS = 4


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closing = False

    def write(self, data: Any) -> None:
        assert not self.closing
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close


class Told(NamedTuple):
    status: int | None
    kind: str | None
    size: int


class Lane:
    """Sends one request and keeps what it is told of it."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def answered(self, head: Head, size: int, first_byte_ns: int) -> None:
        self.told.append(Told(head.status, None, size))

    def failed(self, failure: Failure, size: int, first_byte_ns: int) -> None:
        self.told.append(Told(None, failure.kind, size))

    def opened(self, carrier: Carrier, dialled: Dialled) -> None:
        raise AssertionError("nothing is opened for it here")

    def not_opened(self, failure: Failure) -> None:
        raise AssertionError("nothing is opened for it here")


def preface() -> tuple[H2Connection, bytes]:
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    return server, server.data_to_send()


def conversation(kinds: Sequence[str]) -> bytes:
    """What a server says to requests on the streams 1, 3 and so on."""
    encoder = preface()[0].encoder
    said = bytearray()

    def head(number: int, status: str) -> bytes:
        return HeadersFrame(
            number, encoder.encode([(":status", status), ("x-a", "v1")]), flags=["END_HEADERS"]
        ).serialize()

    for stream, kind in enumerate(kinds):
        number = 2 * stream + 1
        body = DataFrame(number, b"hello", flags=["END_STREAM"]).serialize()
        match kind:
            case "whole":
                said += head(number, "200") + body
            case "hints":
                said += head(number, "103") + head(number, "200") + body
            case "reset":
                said += head(number, "200") + b"\0\0\x04\x03\0" + number.to_bytes(4, "big") + b"\0\0\0\x07"
            case "goaway":
                said += head(number, "200") + GoAwayFrame(0, last_stream_id=number).serialize() + body
            case _:  # silent
                pass
    return bytes(said)


def play(*pieces: bytes) -> list[list[Told]]:
    """Requests on one connection, which hears these pieces and then the end; what each lane was told."""

    async def talk() -> list[list[Told]]:
        connection = Connection("x-a", lambda _: None)
        transport = Transport()
        connection.connection_made(transport)
        connection.data_received(preface()[1])
        lanes = [Lane() for _ in range(REQUESTS)]
        for lane in lanes:
            connection.take_seat().send(WIRE, lane)
        for piece in pieces:
            connection.data_received(piece)
        connection.eof_received()
        connection.connection_lost(None)
        return [lane.told for lane in lanes]

    return asyncio.run(talk())


KINDS = st.lists(st.sampled_from(["whole", "hints", "reset", "goaway", "silent"]), min_size=1, max_size=REQUESTS)


@given(KINDS, st.lists(st.integers(1, 40), max_size=30))
@settings(max_examples=60)
def test_any_split_gives_the_same_outcomes(kinds: list[str], sizes: list[int]) -> None:
    said = conversation(kinds)
    pieces, at = [], 0
    for size in sizes:
        pieces.append(said[at : at + size])
        at += size
    expected = play(said)
    assert play(*pieces, said[at:]) == expected
    assert all(len(told) == 1 for told in expected)
    gone = kinds.index("goaway") if "goaway" in kinds else REQUESTS
    for number, kind in enumerate(kinds[: gone + 1]):
        answered = kind in ("whole", "hints", "goaway")
        assert expected[number][0].status == (200 if answered else None)


@given(KINDS, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), st.integers(0, 200))
@settings(max_examples=150)
def test_broken_words_end_each_request_once(kinds: list[str], changes: list[tuple[int, int]], cut: int) -> None:
    said = bytearray(conversation(kinds))
    for at, value in changes:
        if said:
            said[at % len(said)] = value
    assert [len(told) for told in play(bytes(said[: len(said) - cut % 50]))] == [1] * REQUESTS


@given(st.binary(max_size=80))
@settings(max_examples=60)
def test_noise_ends_each_request_once(noise: bytes) -> None:
    assert [len(told) for told in play(noise)] == [1] * REQUESTS


@pytest.mark.parametrize(
    ("cut", "kind"), [(0, "dropped"), (8, "dropped"), (9, "truncated"), (-1, "truncated")], ids=str
)
def test_first_byte_of_a_response_tells_dropped_from_truncated(cut: int, kind: str) -> None:
    """The head of its first frame says which response it is."""
    first, *others = play(conversation(["whole"])[:cut])
    assert [told.kind for told in first] == [kind]
    assert {told.kind for (told,) in others} == {"dropped"}


@pytest.mark.parametrize("busy", [False, True])
async def test_end_of_an_idle_connection_is_counted_by_one_lane(busy: bool) -> None:
    connection = Connection(None, lambda _: None)
    connection.connection_made(Transport())
    connection.data_received(preface()[1])
    seats = [connection.take_seat() for _ in range(3)]
    if busy:
        seats[0].send(WIRE, Lane())
    connection.data_received(GoAwayFrame(0, last_stream_id=2**31 - 1).serialize())
    assert not any(seat.usable for seat in seats)
    assert sum(not seat.retired for seat in seats) == (0 if busy else 1)
