"""A connection: the short way for an answer like the one before takes nothing for an answer that is none."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from loadtest.connection import Connection, Limits
from loadtest.exchange import Carrier, Dialled, Failure, Head
from loadtest.model import ErrorKind, RequestSpec
from loadtest.wire import Encoder, Message, Wire

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
OTHER = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closing = True

    abort = close


class Lane:
    """Keeps what it is told: (status, size), or the kind of an error."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def answered(self, head: Head, size: int, first_byte_ns: int) -> None:
        self.told.append((head.status, size))

    def failed(self, failure: Failure, size: int, first_byte_ns: int) -> None:
        self.told.append(failure.kind)

    def opened(self, carrier: Carrier, dialled: Dialled) -> None: ...

    def not_opened(self, failure: Failure) -> None: ...


def wire(method: str = "GET") -> Wire:
    spec = RequestSpec("http://a.test/", method)
    return Encoder().wire(Message(spec.method, spec.origin, spec.authority, spec.target, (), b""))


def connected(limits: Limits | None = None) -> tuple[Connection, Transport, Lane]:
    connection, transport = Connection(None, lambda _: None, limits), Transport()
    connection.connection_made(cast(asyncio.BaseTransport, transport))
    return connection, transport, Lane()


def test_answers_alike_and_answers_in_between() -> None:
    connection, transport, lane = connected()
    get = wire()
    for pieces in (
        [ANSWER],
        [ANSWER],
        [ANSWER],
        [OTHER],
        [ANSWER],
        [ANSWER[:20], ANSWER[20:]],
        [ANSWER],
        [OTHER],
        [OTHER],
    ):
        connection.send(get, lane)
        for piece in pieces:
            connection.data_received(piece)
    assert lane.told == [(200, 5)] * 3 + [(404, 2)] + [(200, 5)] * 3 + [(404, 2)] * 2
    assert transport.written == [get.data] * 9


def test_the_answer_to_another_method_is_read_by_its_own_rules() -> None:
    connection, transport, lane = connected()
    get, head = wire(), wire("HEAD")
    for _ in range(2):
        connection.send(get, lane)
        connection.data_received(ANSWER)
    connection.send(head, lane)
    connection.data_received(ANSWER)  # whose body is none of a HEAD's
    assert lane.told == [(200, 5), (200, 5), (200, 0)]
    assert transport.closing, "what came too much would be the next answer"


@pytest.mark.parametrize(("came", "told"), [(b"", ErrorKind.DROPPED), (ANSWER[:-1], ErrorKind.TRUNCATED)])
def test_what_breaks_off_after_answers_alike(came: bytes, told: ErrorKind) -> None:
    connection, _, lane = connected()
    get = wire()
    for _ in range(2):
        connection.send(get, lane)
        connection.data_received(ANSWER)
    connection.send(get, lane)
    if came:
        connection.data_received(came)
    connection.eof_received()
    assert lane.told == [(200, 5), (200, 5), told]


def test_an_answer_like_the_one_before_that_nobody_asked_for() -> None:
    connection, transport, lane = connected()
    get = wire()
    for _ in range(2):
        connection.send(get, lane)
        connection.data_received(ANSWER)
    connection.data_received(ANSWER)
    assert lane.told == [(200, 5)] * 2
    assert connection.spoke_unasked
    assert transport.closing


def test_limits_are_looked_at_after_answers_alike() -> None:
    connection, transport, lane = connected(Limits(None, 3))
    get = wire()
    for number in range(3):
        assert connection.usable, number
        connection.send(get, lane)
        connection.data_received(ANSWER)
    assert not connection.usable
    assert connection.retired
    assert transport.closing
