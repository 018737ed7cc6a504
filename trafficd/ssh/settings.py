"""How other hosts are connected to: the `[ssh]` section as a value. Pure but for what `missing` looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KNOWN_HOSTS = "~/.ssh/known_hosts"


@dataclass(frozen=True)
class Settings:
    """Times in seconds. `identity_files`: private keys without a passphrase; empty: those that ssh(1) uses, too.

    `agent`: the socket of an agent, None for what SSH_AUTH_SOCK names. `max_sessions`: at once on one connection; sshd
    allows 10 (MaxSessions), and one is kept for calling off.
    """

    known_hosts: Path = Path(KNOWN_HOSTS)
    identity_files: tuple[Path, ...] = ()
    agent: Path | None = None
    connect_timeout: float = 10.0
    keepalive: float = 15.0
    max_sessions: int = 8

    def missing(self) -> Iterator[str]:
        """What the section names and cannot be read, and what to do about it."""
        known = self.known_hosts.expanduser()
        if fault := _unreadable(known):
            yield (
                f"ssh.known_hosts: {known}: {fault}: host keys are always verified; `ssh-keyscan HOST >> {known}`, and "
                "compare the fingerprints (`ssh-keygen -l`) with those on the host"
            )
        for file in self.identity_files:
            if fault := _unreadable(file.expanduser()):
                yield f"ssh.identity_files: {file.expanduser()}: {fault}"


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror or str(error)
