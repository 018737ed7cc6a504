"""An sshd, connections to it, and a runner of commands there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.ssh.sshd import Sshd
from trafficd.ssh.connections import Connections
from trafficd.swap.remote import RemoteRunner

GRACE = 0.3


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    one = Sshd(tmp_path / "sshd")
    one.start()
    yield one
    one.end()


@pytest.fixture
async def connections(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connections]:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    found = Connections(sshd.settings)
    yield found
    await found.aclose()


@pytest.fixture
def runner(sshd: Sshd, connections: Connections, tmp_path: Path) -> RemoteRunner:
    return RemoteRunner(tmp_path / "commands", sshd.host, connections, grace=GRACE)
