"""Hosts of the test's own: network namespaces, each with an address, an sshd and an Engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from tests.docker.engine import Dockerd
from tests.ssh.sshd import Sshd


def ip(*words: str) -> str:
    """Run ip(8); what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def free_network() -> str:
    """The first three numbers of a network that nobody here has; others test beside us."""
    known = ip("-4", "-o", "address")
    numbers = (number % 256 for number in range(os.getpid(), os.getpid() + 256))
    return next(f"10.213.{number}" for number in numbers if f" 10.213.{number}." not in known)


class RemoteHost:
    """`address` is its own, and `near` this side of the wire to it. Files are in `directory`."""

    def __init__(self, directory: Path, network: str, number: int) -> None:
        self.name = f"td{os.getpid()}-{number}"
        self.near, self.address = f"{network}.{4 * number + 1}", f"{network}.{4 * number + 2}"
        self.sshd = Sshd(directory, 22, self.address, self.name)
        self.dockerd = Dockerd(within=self.name)

    async def start(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("address", "add", f"{self.near}/30", "dev", self.name)
        ip("link", "set", self.name, "up")
        for words in (
            ("address", "add", f"{self.address}/30", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", self.near),
        ):
            ip("-netns", self.name, *words)
        await asyncio.to_thread(self.sshd.start)
        await self.dockerd.start()

    async def aclose(self) -> None:
        try:
            await self.dockerd.aclose()
            self.sshd.end()
        finally:
            await asyncio.to_thread(self._unmake)

    def _unmake(self) -> None:
        for words in (("link", "del", self.name), ("netns", "del", self.name)):
            subprocess.run(["ip", *words], check=False, capture_output=True)
