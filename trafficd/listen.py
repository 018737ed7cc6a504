"""Where the API listens: a unix socket for owner and group, and TCP where asked for.

The sockets outlive a reload: the daemon starts itself anew in place and finds them by their descriptors, so that who
connects meanwhile waits for a moment and is answered, and nobody is refused.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from trafficd.errors import StateError, TrafficdError

INHERITED = "TRAFFICD_INHERITED"  # "PLACE=DESCRIPTOR", one a line: what an earlier life of this process listened on
_BACKLOG = 128


def inherited(environment: Mapping[str, str]) -> dict[str, socket.socket]:
    """The sockets that an earlier life of this very process left, by the place they listen on."""
    found = {}
    for line in environment.get(INHERITED, "").splitlines():
        place, _, number = line.rpartition("=")
        if place and number.isdigit():
            try:
                found[place] = socket.socket(fileno=int(number))
                found[place].set_inheritable(False)  # from here on: no program that we run is to have it
            except OSError:
                continue  # a descriptor that is none any more: the place is opened anew
    return found


def hand_over(sockets: Mapping[str, socket.socket]) -> dict[str, str]:
    """Let the sockets outlive an exec; the environment that the next life needs."""
    for one in sockets.values():
        one.set_inheritable(True)
    return {INHERITED: "\n".join(f"{place}={one.fileno()}" for place, one in sockets.items())}


def tcp_socket(listen: str) -> socket.socket:
    """A listening TCP socket at "host:port". Raises `StateError`."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StateError(f"daemon.listen {listen}: cannot listen there: {error.strerror or error}") from error
    return listener


def unix_socket(path: Path) -> socket.socket:
    """A listening unix socket, readable and writable by owner and group only.

    Raises `StateError` when somebody already listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        mask = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StateError(f"daemon.socket {path}: cannot listen there: {error.strerror or error}") from error
    except TrafficdError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StateError(f"daemon.socket {path} is a file of another kind; remove it or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise StateError(f"daemon.socket {path}: another daemon listens there; name another path")
