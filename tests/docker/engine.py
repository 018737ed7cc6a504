"""A real Engine of the test's own, images of it made of what this machine has, and a proxy that counts its calls."""

from __future__ import annotations

import asyncio
import contextlib
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

_PROGRAMS = ("dockerd", "containerd", "nsenter", "ip")
AVAILABLE = os.geteuid() == 0 and all(map(shutil.which, _PROGRAMS)) and Path("/bin/busybox").exists()
needs_docker = pytest.mark.skipif(not AVAILABLE, reason="needs root, dockerd with containerd, and a static busybox")

Json = dict[str, Any]


class Dockerd:
    """One dockerd with its own data root, and a containerd of its own, as the units of distributions have it: so one
    that is killed or restarted leaves its containers alone.

    `bridge` (an address with its subnet) only where containers publish ports; it is a bridge of its own. `within`: the
    network namespace that it is in, with all its containers.
    """

    def __init__(self, bridge: str | None = None, *more: str, within: str | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tdk-"))
        self.socket = self.directory / "d.sock"
        self.url = f"unix://{self.socket}"
        self._tasks = self.directory / "c.sock"  # where containerd listens, and which its shims name
        self._prefix = [] if within is None else ["nsenter", f"--net=/run/netns/{within}"]
        self._bridge = (f"td{self.directory.name[-8:]}", bridge) if bridge is not None else None
        network = ["--bridge=none"] if self._bridge is None else ["--bridge", self._bridge[0], "--ip-masq=false"]
        self._argv = [
            *("dockerd", "-H", self.url, "--containerd", str(self._tasks)),
            *("--data-root", str(self.directory / "data"), "--exec-root", str(self.directory / "exec")),
            *("-p", str(self.directory / "pid"), "--iptables=false", "--ip6tables=false", *network, *more),
        ]
        self._containerd: subprocess.Popen[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def _begin(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen([*self._prefix, *argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _begin_containerd(self) -> None:
        config = self.directory / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{self.directory}/c-root"\nstate = "{self.directory}/c-state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self._tasks}"\n'
        )
        self._containerd = self._begin(["containerd", "--config", str(config)])

    async def start(self) -> None:
        if self._containerd is None:
            self._begin_containerd()
            await asyncio.to_thread(self._make_bridge)
        self.process = self._begin(self._argv)
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.call("GET", "/_ping")
                    return
                except (aiohttp.ClientError, OSError):
                    assert self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
                    await asyncio.sleep(0.1)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End dockerd. What else becomes of its containers is for its options (live-restore) to say."""
        if self.process is not None:
            self.process.send_signal(number)
            await asyncio.to_thread(self.process.wait, 60)
            self.process = None

    async def aclose(self) -> None:
        """End everything, containers too, and leave nothing behind."""
        try:
            if self.process is None and self._containerd is not None:
                await self.start()  # it was killed by a test: only it can remove its containers in good order
            if self.process is not None:
                await self.clear()
        finally:
            await self.stop()
            await asyncio.to_thread(self._end)

    def _make_bridge(self) -> None:
        if self._bridge is not None:
            name, address = self._bridge
            for words in (("link", "add", name, "type", "bridge"), ("address", "add", address, "dev", name)):
                subprocess.run([*self._prefix, "ip", *words], check=True)
            subprocess.run([*self._prefix, "ip", "link", "set", name, "up"], check=True)

    def _end(self) -> None:
        if self._containerd is not None:
            self._containerd.terminate()
            self._containerd.wait(60)
            self._containerd = None
        for pid in self._shims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for place in self._mounts():
            subprocess.run(["umount", "--lazy", place], check=True)
        if self._bridge is not None:
            subprocess.run([*self._prefix, "ip", "link", "del", self._bridge[0]], check=False, capture_output=True)
        shutil.rmtree(self.directory)

    def _shims(self) -> list[int]:
        """Our containerd's helpers that are still there: none, when all went well."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if str(self._tasks).encode() in words and b"shim" in words[0]:
                    found.append(int(path.parent.name))
        return found

    def _mounts(self) -> list[str]:
        """What is mounted in our directory: dockerd leaves its own network namespace there. The innermost first."""
        places = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return sorted((place for place in places if place.startswith(f"{self.directory}/")), reverse=True)

    async def clear(self) -> None:
        """Remove all containers."""
        for one in await self.containers():
            await self.call("DELETE", f"/containers/{one['Id']}?force=true&v=true")

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


class Podman(Dockerd):
    """Podman's service, whose socket speaks Docker's language too. It has no containerd, and outlives nothing."""

    def __init__(self) -> None:
        super().__init__()
        places = ["--root", str(self.directory / "root"), "--runroot", str(self.directory / "run")]
        # Its default limits are higher than a CI's machine may allow.
        settings = self.directory / "containers.conf"
        settings.write_text('[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n')
        self._argv = [
            "env",
            f"CONTAINERS_CONF={settings}",
            "podman",
            *places,
            "--runtime=runc",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
        ]
        self._argv += ["system", "service", "--time", "0", self.url]

    def _begin_containerd(self) -> None:
        """There is none."""

    async def image(self, name: str, script: str, *, env: str = "") -> None:
        await super().image(name, script, env=env)
        repository, _, tag = name.rpartition(":")  # which it does not take with an import
        await self.call("POST", f"/images/{repository}:latest/tag?repo={repository}&tag={tag}")


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
        self._clients: set[asyncio.Task[None]] = set()
        self.on_call: Callable[[int, str], bool] = lambda number, line: False
        self.on_answer: Callable[[int, str], bool] = lambda number, line: False

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.socket))

    async def aclose(self) -> None:
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def __aenter__(self) -> Counting:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            # An Engine that is being restarted; or the end, which asyncio's own caller of this cannot take.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._pass_on(reader, writer)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            engine_writer.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
