"""The client against a daemon that goes away in the middle of a call."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trafficd.client import Client
from trafficd.errors import DaemonUnreachableError

BODY = b'{"well": true}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY)


class Ending:
    """A daemon that closes its first connections after it has read the request, and answers the others."""

    def __init__(self, path: Path, closes: int) -> None:
        self.path, self.closes, self.asked = path, closes, 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                if not connection.recv(65_536):
                    continue
                self.asked += 1
                if self.asked > self.closes:
                    connection.sendall(ANSWER)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def ending(tmp_path: Path) -> Iterator[Ending]:
    daemon = Ending(tmp_path / "socket", closes=1)
    yield daemon
    daemon.close()


def test_a_question_cut_off_by_the_end_of_a_daemon_is_asked_again(ending: Ending) -> None:
    client = Client(str(ending.path))
    assert client.call("GET", "/healthz") == {"well": True}
    assert ending.asked == 2
    client.close()


def test_an_order_cut_off_is_not_given_twice(ending: Ending) -> None:
    client = Client(str(ending.path))
    with pytest.raises(DaemonUnreachableError):
        client.call("POST", "/v1/reload", {})
    assert ending.asked == 1
    client.close()


def test_a_daemon_that_answers_nothing_is_asked_twice_and_no_more(tmp_path: Path) -> None:
    daemon = Ending(tmp_path / "socket", closes=100)
    client = Client(str(daemon.path))
    with pytest.raises(DaemonUnreachableError):
        client.call("GET", "/healthz")
    assert daemon.asked == 2
    client.close()
    daemon.close()
