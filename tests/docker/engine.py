"""A real Engine of the test's own, images of it made of what this machine has, and a proxy that counts its calls."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

AVAILABLE = os.geteuid() == 0 and shutil.which("dockerd") is not None and Path("/bin/busybox").exists()
needs_docker = pytest.mark.skipif(not AVAILABLE, reason="needs root, dockerd and a static busybox")

Json = dict[str, Any]


class Dockerd:
    """One dockerd with its own data root; `bridge` (a subnet) only where containers publish ports."""

    def __init__(self, bridge: str | None = None, *more: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tdk-"))
        self.socket = self.directory / "d.sock"
        self.url = f"unix://{self.socket}"
        network = ["--bridge=none"] if bridge is None else ["--bip", bridge, "--ip-masq=false"]
        self._argv = [
            "dockerd",
            *("-H", self.url, "--data-root", str(self.directory / "data"), "--exec-root", str(self.directory / "exec")),
            *("-p", str(self.directory / "pid"), "--iptables=false", "--ip6tables=false", *network, *more),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def _begin(self) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(self._argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    async def start(self) -> None:
        self.process = self._begin()
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.call("GET", "/_ping")
                    return
                except (aiohttp.ClientError, OSError):
                    assert self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
                    await asyncio.sleep(0.1)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            await asyncio.to_thread(self.process.wait, 60)
            self.process = None

    async def aclose(self) -> None:
        if self.process is not None:
            for one in await self.containers():
                await self.call("DELETE", f"/containers/{one['Id']}?force=true")
        await self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def call(self, method: str, path: str, body: object = None, data: io.BytesIO | None = None) -> Any:
        """One call of the Engine's API, by hand."""
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://engine{path}", json=body, data=data) as answer,
        ):
            text = await answer.text()
            assert answer.status < 400, (method, path, answer.status, text)
            return await answer.json() if answer.content_type == "application/json" and text else text

    async def containers(self) -> list[Json]:
        found: list[Json] = await self.call("GET", "/containers/json?all=true")
        return found

    async def running(self) -> list[str]:
        """The names of what runs."""
        return sorted(one["Names"][0][1:] for one in await self.containers() if one["State"] == "running")

    async def image(self, name: str, script: str, *, env: str = "") -> None:
        """An image of busybox whose program is a shell script."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add("/bin/busybox", "bin/busybox")
            for link in ("sh", "httpd", "sleep", "echo", "mkdir", "cat"):
                entry = tarfile.TarInfo(f"bin/{link}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
            for directory in ("tmp", "usr", "lib", "lib64", "root", "work", "etc", "data"):
                entry = tarfile.TarInfo(directory)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            entry = tarfile.TarInfo("run.sh")
            entry.size, entry.mode = len(script), 0o755
            tar.addfile(entry, io.BytesIO(script.encode()))
        archive.seek(0)
        repository, _, tag = name.rpartition(":")
        changes = f"&changes={'CMD [%22/bin/sh%22,%22/run.sh%22]'.replace(' ', '%20')}"
        changes += f"&changes=ENV%20{env}" if env else ""
        await self.call("POST", f"/images/create?fromSrc=-&repo={repository}&tag={tag}{changes}", data=archive)


# Serves its version on $PORT, and stops in good order.
SERVES = """#!/bin/sh
mkdir -p /tmp/www; echo {version} > /tmp/www/index.html
trap 'echo stopping; kill $pid; exit 0' TERM
echo {version} listens on $PORT
httpd -f -p 127.0.0.1:$PORT -h /tmp/www & pid=$!
wait $pid
"""
CRASHES = "#!/bin/sh\necho no such table: users >&2\nexit 70\n"


class Counting:
    """A socket before the Engine's, which counts calls that change something. `on_call(n, line)` is asked before the
    n-th is passed on, and `on_answer(n, line)` before its answer is; what they return True for is cut off."""

    def __init__(self, dockerd: Dockerd) -> None:
        self._target = str(dockerd.socket)
        self.socket = dockerd.directory / f"counting-{time.monotonic_ns()}.sock"
        self.url = f"unix://{self.socket}"
        self.calls: list[str] = []
        self.on_call: Callable[[int, str], bool] = lambda number, line: False
        self.on_answer: Callable[[int, str], bool] = lambda number, line: False

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.socket))

    async def aclose(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._target)
        pending: list[tuple[int, str]] = []

        async def there() -> None:
            while data := await reader.read(65536):
                match = re.match(rb"(POST|DELETE) (\S+) HTTP/1.1\r\n", data)
                if match and b"/images/create" not in match[2]:
                    line = re.sub(r"[0-9a-f]{64}", "ID", f"{match[1].decode()} {match[2].decode()}")
                    self.calls.append(line)
                    pending[:] = [(len(self.calls), line)]
                    if self.on_call(*pending[0]):
                        return
                engine_writer.write(data)
                await engine_writer.drain()

        async def back() -> None:
            while data := await engine_reader.read(65536):
                if pending and self.on_answer(*pending.pop()):
                    return
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.create_task(there()), asyncio.create_task(back())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        engine_writer.close()
