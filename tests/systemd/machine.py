"""A real systemd of the tests' own, with a journal, in namespaces of this host: its network is the host's.

Of the host it can write to one directory, `shared`, and nothing else (`boot.sh` sees to that, and says why). Root and
cgroup v2, alone or beside v1, are needed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ssh.sshd import descendants, program_of

BOOT = Path(__file__).with_name("boot.sh")
SYSTEMD = Path("/lib/systemd/systemd")


def cgroup_root() -> Path | None:
    """Where the hierarchy of cgroup v2 is."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(place)
    return None


AVAILABLE = os.geteuid() == 0 and SYSTEMD.exists() and shutil.which("setpriv") is not None and cgroup_root() is not None
_OF_ROOT = "/run/user/0"
_USER_MANAGER = f"""[Service]
Type=notify
Environment=XDG_RUNTIME_DIR={_OF_ROOT} HOME={_OF_ROOT}
Environment=SYSTEMD_UNIT_PATH={_OF_ROOT}/.config/systemd/user:/etc/systemd/user
ExecStartPre=mkdir -p {_OF_ROOT}
ExecStart={SYSTEMD} --user
Delegate=yes
KillMode=mixed
"""
needs_systemd = pytest.mark.skipif(not AVAILABLE, reason="needs root, systemd and cgroup v2")


@dataclass
class Machine:
    """`directory` must be empty; `shared` in it is found under the same name inside."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0  # of the systemd, as this host has it
    cgroup: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        self.shared = self.directory / "shared"
        self.shared.mkdir()
        self.shared.chmod(0o755)

    def start(self) -> None:
        root, above = self.directory / "root", cgroup_root()
        assert above is not None
        root.mkdir()
        self.cgroup = above / f"trafficd-{secrets.token_hex(4)}"
        self.cgroup.mkdir()
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
        into = f'echo $$ >{self.cgroup}/cgroup.procs; exec unshare "$@"'
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", into, "sh", *spaces, "/bin/sh", str(BOOT), str(root), str(self.shared)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while not self._up():
            said = (self.directory / "log").read_text()
            assert self.process.poll() is None, f"it did not boot ({self.process.returncode}): {said}"
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def _up(self) -> bool:
        assert self.process is not None
        first = next(iter(descendants(self.process.pid)), 0)
        if not first or Path(program_of(first)).name != SYSTEMD.name:
            return False  # not yet in its own root: a systemctl would ask the host's systemd
        self.pid = first
        return self.ctl("is-active", "multi-user.target", check=False) == "active"

    def run(self, *argv: str, check: bool = True) -> str:
        """What a program says inside."""
        assert self.process is not None
        assert self.process.poll() is None, "it runs no more"
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"]
        done = subprocess.run([*enter, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        said = done.stdout.decode(errors="replace").strip()
        assert done.returncode == 0 or not check, (argv, said)
        return said

    def ctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", "--no-pager", *words, check=check)

    def write(self, path: str, text: str) -> None:
        """A file inside, made with its directories; executable where it is a script."""
        target = Path(f"/proc/{self.pid}/root{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        if text.startswith("#!"):
            target.chmod(0o755)

    def user_ctl(self, *words: str, check: bool = True) -> str:
        """Of the manager of root's own units (`start_user_manager`)."""
        return self.run("env", f"XDG_RUNTIME_DIR={_OF_ROOT}", "systemctl", "--user", "--no-pager", *words, check=check)

    def start_user_manager(self) -> None:
        """What a login, or `loginctl enable-linger`, starts: there is no logind here."""
        self.write("/etc/systemd/system/user@.service", _USER_MANAGER)
        for name in ("basic", "default", "sockets", "shutdown", "exit"):
            self.write(f"/etc/systemd/user/{name}.target", "[Unit]\nDefaultDependencies=no\n")
        self.ctl("daemon-reload")
        self.ctl("start", "user@0")

    def journal(self) -> str:
        return self.run("journalctl", "-q", "--no-pager", "-n", "80", "-o", "short-precise", check=False)

    def end(self) -> None:
        """End it and all that runs inside, and leave nothing."""
        if self.process is not None:
            for child in descendants(self.process.pid)[:1]:  # the first of its namespace: all others go with it
                os.kill(child, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self.process = None
        for _ in range(100):  # a process that has just been killed is still in its group
            for group in sorted(self.cgroup.rglob("*"), reverse=True) if self.cgroup.is_dir() else ():
                if group.is_dir():
                    with contextlib.suppress(OSError):
                        group.rmdir()
            with contextlib.suppress(OSError):
                self.cgroup.rmdir()
            if not self.cgroup.exists():
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.cgroup} is still there")
