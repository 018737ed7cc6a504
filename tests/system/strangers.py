"""A Caddy that is not ours: run from its owner's Caddyfile, reloaded by its owner, killed by the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from proxy.server import find_binary
from tests.system.ask import configuration
from trafficd.demo.stage import Stage

_START = 15.0  # s that it may take to answer


async def listened_at(port: int) -> None:
    """Wait until somebody listens there."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


@dataclass
class StrangersCaddy:
    """Caddy with a Caddyfile, beside the stage whose admin port it has. `through`: a program to run it by; `scheme`:
    how its site is asked."""

    stage: Stage
    through: Sequence[str] = ()
    scheme: str = "https"
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.stage.directory / "strangers"

    @property
    def file(self) -> Path:
        return self.home / "Caddyfile"

    @property
    def url(self) -> str:
        """The site of `tutorial`, which listens at the stage's public port."""
        return f"{self.scheme}://localhost:{self.stage.public}"

    def tutorial(self, inside: str | None = None) -> str:
        """The Caddyfile of the tutorials: TLS, compression, a header, health checks; `inside` in place of its
        reverse_proxy."""
        dials = " ".join(self.stage.dial(index) for index in range(self.stage.instances))
        proxying = (
            inside
            or f"""reverse_proxy {dials} {{
                health_uri /healthz
                health_interval 10s
                lb_policy least_conn
            }}"""
        )
        return f"""
        {{
            admin 127.0.0.1:{self.stage.admin_port}
            skip_install_trust
            log default {{
                exclude admin.api
            }}
        }}
        localhost:{self.stage.public} {{
            tls internal
            encode gzip
            header X-Site tutorial
            {proxying}
        }}
        """

    async def start(self, text: str, *, resume: bool = False) -> None:
        """Run it with this Caddyfile, or with what it had last."""
        await self._instances()
        self.home.mkdir(exist_ok=True)
        self.file.write_text(text)
        self.process = self._run(["--resume"] if resume else [])
        await self._answers()

    async def _instances(self) -> None:
        """Wait until they listen: its own health checks would hold them for down for ten seconds otherwise."""
        async with asyncio.timeout(_START):
            for port in self.stage.ports[: self.stage.instances]:
                await listened_at(port)

    def _run(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        home = str(self.home)
        command = [*self.through, str(find_binary()), "run", "--config", str(self.file), "--adapter", "caddyfile"]
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, *arguments],
                env={**os.environ, "HOME": home, "XDG_DATA_HOME": f"{home}/data", "XDG_CONFIG_HOME": f"{home}/config"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _answers(self) -> None:
        deadline = time.monotonic() + _START
        async with httpx.AsyncClient(verify=False, trust_env=False) as client:
            while True:
                try:
                    if (await client.get(f"{self.url}/")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                assert self.process is not None
                assert self.process.poll() is None, (self.home / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, (self.home / "log").read_text()[-2000:]
                await asyncio.sleep(0.05)

    async def reload(self, text: str) -> None:
        """What its owner does after an edit."""
        self.file.write_text(text)
        process = await asyncio.create_subprocess_exec(
            str(find_binary()),
            *("reload", "--force", "--config", str(self.file), "--adapter", "caddyfile"),
            *("--address", f"127.0.0.1:{self.stage.admin_port}"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0

    async def etag(self) -> str:
        return (await configuration(self.stage.admin_url))[1]

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it and wait."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(15)
            self.process = None
