"""A real sshd of our own: on a loopback port, with its own keys, configuration and home."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest

from proxy.ports import free_port
from trafficd.ssh.host import Host
from trafficd.ssh.settings import Settings
from trafficd.swap import supervise

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NEEDS_SSHD = pytest.mark.skipif(SSHD is None, reason="needs sshd (package openssh-server)")


@dataclass
class Sshd:
    """Everything in `directory`; commands find it as their home. `within`: the network namespace that it is in."""

    directory: Path
    port: int = field(default_factory=free_port)
    address: str = "127.0.0.1"
    within: str | None = None
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.home = self.directory / "home"
        self.home.mkdir(parents=True)
        self.known_hosts = self.directory / "known_hosts"
        self.identity = self.directory / "id"
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(self.identity))
        self.identity.chmod(0o600)
        (self.directory / "authorized_keys").write_bytes(key.export_public_key())
        self.known_hosts.write_bytes(self.new_host_key())

    @property
    def host(self) -> Host:
        return Host(getpass.getuser(), self.address, self.port)

    @property
    def settings(self) -> Settings:
        return Settings(known_hosts=self.known_hosts, identity_files=(self.identity,), connect_timeout=5.0)

    @property
    def runs(self) -> Path:
        """What the supervisors keep there."""
        return self.home / ".trafficd" / "runs"

    def new_host_key(self, algorithm: str = "ssh-ed25519") -> bytes:
        """Give it a key; the line by which a known_hosts file has it."""
        key = asyncssh.generate_private_key(algorithm)
        key.write_private_key(str(self.directory / "host_key"))
        (self.directory / "host_key").chmod(0o600)
        return f"{self.host.known_as} ".encode() + key.export_public_key()

    def configure(self, *lines: str) -> Path:
        """Its configuration, with more lines before the others (sshd takes the first that it finds)."""
        config = self.directory / "sshd_config"
        config.write_text(
            "\n".join(
                [
                    *lines,
                    f"ListenAddress {self.address}:{self.port}",
                    f"HostKey {self.directory}/host_key",
                    f"AuthorizedKeysFile {self.directory}/authorized_keys",
                    f"PidFile {self.directory}/sshd.pid",
                    f"SetEnv HOME={self.home}",
                    "StrictModes no",
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "",
                ]
            )
        )
        return config

    def start(self, *lines: str) -> None:
        """Start it, with more lines of configuration."""
        config = self.configure(*lines)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it for those it does not trust yet
        assert SSHD is not None
        said = self.directory / "sshd.log"
        before = said.stat().st_size if said.exists() else 0
        prefix = [] if self.within is None else ["nsenter", f"--net=/run/netns/{self.within}"]
        with said.open("ab") as log:
            self.process = subprocess.Popen([*prefix, SSHD, "-D", "-e", "-f", str(config)], stderr=log)
        deadline = time.monotonic() + 10
        # Not by knocking: what an earlier one has just forked may still answer for it.
        while b"Server listening on" not in said.read_bytes()[before:]:
            assert self.process.poll() is None, said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def signal(self, number: int) -> list[int]:
        """Send a signal to the processes of all connections, and to nothing that runs over them; their pids."""
        assert self.process is not None
        found = [pid for pid in descendants(self.process.pid) if program_of(pid) == SSHD]
        for pid in found:
            supervise.send(pid, number)
        return found

    def cut(self) -> int:
        """Kill the processes of all connections; how many."""
        return len(self.signal(signal.SIGKILL))

    def stop(self) -> None:
        """End the listener and all connections. What runs there goes on."""
        if self.process is not None:
            self.cut()
            self.process.kill()
            self.process.wait()
            self.process = None

    def end(self) -> None:
        """Stop it, and end what was left running there."""
        self.stop()
        for lock in (self.home / ".trafficd" / "locks").glob("*"):
            left = lock.read_text().split(" ")[0]
            if left:
                supervise.end_group(int(left), 0.0)
                supervise.send(int(left), signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [one for child in children for one in (child, *descendants(child))]


def program_of(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""
