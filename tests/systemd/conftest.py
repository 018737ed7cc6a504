"""One machine for a whole module: it takes a second to boot."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import Machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    one = Machine(tmp_path_factory.mktemp("machine"))
    with tempfile.NamedTemporaryFile(dir="/tmp", prefix="trafficd-") as canary:
        try:
            one.start()
            assert Path(canary.name).exists(), "a systemd that boots clears its own /tmp, not that of the host"
            yield one
        finally:
            one.end()
        assert Path(canary.name).exists()
    assert str(one.directory) not in Path("/proc/self/mounts").read_text()
