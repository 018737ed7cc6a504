"""A whole installation in one temporary directory: instances, daemon, and a Caddy of its own.

Everything that it starts is ended again, by pid, and the directory removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import orjson

from proxy.ports import free_port
from proxy.server import CaddyServer
from trafficd.client import Client, Json
from trafficd.demo import replace
from trafficd.errors import TrafficdError

_READY = 30.0  # s until all instances must have traffic


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return sorted(found)


@dataclass
class Stage:
    """`instances` instances of the sample application behind one service, "web".

    `settings` are lines of TOML for [services.web.*] sections. `swap_options` are arguments for the swap command
    (`trafficd.demo.replace`), `start_options` for the first instances.
    """

    instances: int = 3
    version: str = "v1"
    settings: str = ""
    swap: str | None = None  # TOML of [services.web.swap]; None: the command of the demo
    swap_options: Sequence[str] = ()
    start_options: Sequence[str] = ()
    spares: bool = False  # a second address for every upstream, and old instances beside new ones are stopped
    slots: int = 100
    looked_at: str = "/v1/services/web"
    caddy: str = ""  # more lines for [caddy]
    service: str = ""  # more lines for [services.web]
    stands: str | None = None  # TOML: how the service stands in Caddy; None: a route of our own at `public`
    managed: bool = True  # whether the daemon runs the Caddy
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="trafficd-")))
    daemon: subprocess.Popen[bytes] | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.chmod(0o755)
        ports = free_ports(2 * self.instances + 2)
        self.public, self.admin_port, self.ports = ports[0], ports[1], ports[2:]
        self.socket = self.directory / "trafficd.sock"
        self.config = self.directory / "trafficd.toml"
        self.app_directory = self.directory / "instances"

    @property
    def url(self) -> str:
        """The service's public address."""
        return f"http://127.0.0.1:{self.public}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def upstream_id(self, index: int) -> str:
        return chr(ord("a") + index) if index < 26 else f"u{index}"

    def dial(self, index: int) -> str:
        return f"127.0.0.1:{self.ports[index]}"

    def spare_dial(self, index: int) -> str:
        return f"127.0.0.1:{self.ports[self.instances + index]}"

    def toml(self) -> str:
        """The daemon's configuration."""
        upstreams = "\n".join(
            f'[[services.web.upstreams]]\nid = "{self.upstream_id(i)}"\ndial = "{self.dial(i)}"\n'
            f'version = "{self.version}"' + (f'\nspare_dial = "{self.spare_dial(i)}"' if self.spares else "")
            for i in range(self.instances)
        )
        argv = [sys.executable, "-m", "trafficd.demo.replace", str(self.app_directory), *self.swap_options]
        stands = f'listen = ["127.0.0.1:{self.public}"]' if self.stands is None else self.stands
        retire = f"\nretire = {argv!r}" if self.spares else ""
        swap = self.swap or f'driver = "command"\ncommand = {argv!r}{retire}'
        return f"""
[daemon]
state_dir = "{self.directory}/state"
socket = "{self.socket}"
[caddy]
admin = "{self.admin_url}"
managed = {str(self.managed).lower()}
{self.caddy}
[services.web]
{stands}
slots = {self.slots}
{self.service}
{upstreams}
[services.web.swap]
{swap}
{self.settings}
"""

    # -- instances -------------------------------------------------------------------------------------

    def start_instances(self) -> None:
        self.app_directory.mkdir(exist_ok=True)
        for index in range(self.instances):
            self.processes.append(replace.start(self.app_directory, self.dial(index), self.version, self.start_options))

    # -- daemon ----------------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """Start the daemon; `wait_ready` tells when it serves."""
        self.config.write_text(self.toml())
        with (self.directory / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "trafficd", "run", "--config", str(self.config)],
                env={name: value for name, value in os.environ.items() if not name.startswith("TRAFFICD_")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop_daemon(self, number: int = signal.SIGTERM, timeout: float = 15.0) -> int | None:
        """Send the daemon a signal and wait for its end; its exit status."""
        if self.daemon is None:
            return None
        self.daemon.send_signal(number)
        try:
            status = self.daemon.wait(timeout)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            status = self.daemon.wait()
        self.daemon = None
        return status

    def client(self) -> Client:
        return Client(str(self.socket))

    async def wait_ready(self) -> Json:
        """Wait until every instance has traffic; the service's state then."""
        deadline = time.monotonic() + _READY
        view: Json | None = None
        while time.monotonic() < deadline:
            if self.daemon is not None and self.daemon.poll() is not None:
                raise TrafficdError(f"the daemon ended at once:\n{self.daemon_log()}")
            view = await asyncio.to_thread(self._look)
            if view is not None and all(one["ready"] and one["weight"] for one in view["upstreams"]):
                return view
            await asyncio.sleep(0.05)
        raise TrafficdError(f"not all instances became ready within {_READY:g} s: {view}\n{self.daemon_log()}")

    async def wait_socket(self) -> None:
        """Wait until the daemon answers."""
        deadline = time.monotonic() + _READY
        while await asyncio.to_thread(self._look) is None:
            if time.monotonic() > deadline or (self.daemon is not None and self.daemon.poll() is not None):
                raise TrafficdError(f"the daemon does not answer:\n{self.daemon_log()}")
            await asyncio.sleep(0.02)

    def _look(self) -> Json | None:
        # Asked over a socket of our own: httpx leaves its socket open where a connection is refused, and a daemon may
        # end at any moment.
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(_READY)
        try:
            connection.sock.connect(str(self.socket))
            connection.request("GET", self.looked_at)
            answer = connection.getresponse()
            return cast(Json, orjson.loads(answer.read())) if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def daemon_log(self) -> str:
        """The end of what the daemon wrote."""
        try:
            return (self.directory / "daemon.log").read_text()[-3000:]
        except OSError:
            return ""

    def shifts(self) -> int:
        """How often traffic was moved, by the daemon's log."""
        return (self.directory / "daemon.log").read_text().count(": traffic goes to ")

    # -- the end ---------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End everything that was started here."""
        await asyncio.to_thread(self.stop_daemon, signal.SIGINT)
        caddy = CaddyServer(self.directory / "state" / "caddy", self.admin_url)
        with contextlib.suppress(OSError):
            await caddy.stop()
        await asyncio.to_thread(self._stop_all)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _stop_all(self) -> None:
        for pid_file in self.app_directory.glob("*.pid"):
            replace.stop(pid_file, grace=1.0)
        for process in self.processes:
            process.wait(10)
