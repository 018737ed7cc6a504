"""The ports that a process of this machine listens at, from /proc (proc_pid_net(5), proc_pid_fd(5))."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

_LISTENING = "0A"  # the state of a socket (TCP_LISTEN of net/tcp_states.h)


def listens(pid: int) -> frozenset[int] | None:
    """The ports that a process of this machine and its children listen at; None where that must not be seen."""
    if not pid:
        return None
    try:
        sockets = {number for one in _family(pid) for number in _sockets(one)}
        tables = [Path(f"/proc/{pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return None
    return frozenset(port for table in tables for port in _ports(table, sockets))


def _family(pid: int) -> Iterable[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _sockets(pid: int) -> Iterable[str]:
    """The inodes of its sockets."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                yield target[len("socket:[") : -1]


def _ports(table: str, sockets: set[str]) -> Iterable[int]:
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENING and fields[9] in sockets:
            yield int(fields[1].rpartition(":")[2], 16)
