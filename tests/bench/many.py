"""Two hundred services of ten upstreams: the start, the idle daemon, and one service's rollout among them."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.bench.figure import Figure
from tests.bench.idle import Idle, cpu_seconds, resident_mb

SERVICES, UPSTREAMS, SECONDS = 200, 10, 20.0


class Many(Idle):
    """The services s0, s1, ... share nothing but their Caddy; every address is served by this process."""

    def toml(self) -> str:
        lines = [super().toml().partition("[services.web]")[0]]
        for number in range(self.services):
            lines.append(
                f'[services.s{number}]\nhosts = ["s{number}.example"]\nlisten = ["127.0.0.1:{self.public}"]\n'
                f'slots = 20\ntls = "off"\n[services.s{number}.health]\ninterval = "10s"\n'
                f'[services.s{number}.rollout]\nmin_healthy_time = "1s"\n'
                f'[services.s{number}.swap]\ndriver = "command"\ncommand = ["/bin/true"]'
            )
            for index in range(UPSTREAMS):
                dial = f"127.0.{number + 1}.{index + 1}:{self.ports[0]}"
                lines.append(f'[[services.s{number}.upstreams]]\nid = "u{index}"\ndial = "{dial}"\nversion = "v1"')
        return "\n".join(lines)

    services: int = SERVICES

    async def listen(self) -> None:
        self.servers = [await asyncio.start_server(self.answer, "0.0.0.0", self.ports[0], backlog=2048)]

    async def until_serving(self, names: list[str]) -> None:
        """Ask one after the other until it serves; over bare sockets, as two hundred requests of a comfortable client
        would be half a second of the figure."""
        for name in names:
            while not await self.serves(name):
                await asyncio.sleep(0.02)

    async def serves(self, name: str) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.public)
        except OSError:
            return False
        writer.write(f"GET / HTTP/1.1\r\nHost: {name}.example\r\nConnection: close\r\n\r\n".encode())
        try:
            async with asyncio.timeout(30):
                answer = await reader.read()
        except OSError:
            return False
        finally:
            writer.close()
        return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok")


async def measure() -> list[Figure]:
    alone, _, _, _ = await _measure(1, idle=1.0)
    rollout, (first, again), share, resident = await _measure(SERVICES, idle=SECONDS)
    what = f"{SERVICES} services of {UPSTREAMS} upstreams"
    return [
        Figure(f"{what}: all serving after the very first start", first, "s", 5.0),
        Figure(f"{what}: all serving after another start, of Caddy too", again, "s", 5.0),
        Figure(f"{what}: idle share of a core", share, "%", 25.0),
        Figure(f"{what}: resident", resident, "MB"),
        Figure(f"{what}: a rollout of one of them, against alone", rollout / alone, "times", 1.1),
    ]


async def _measure(services: int, idle: float) -> tuple[float, tuple[float, float], float, float]:
    stage = Many(instances=1, looked_at="/v1/services/s0")
    stage.services = services
    await stage.listen()
    try:
        stage.start_instances()
        first = await _started(stage)
        await stage.wait_socket()
        stage.stop_daemon(signal.SIGINT)  # our Caddy as well
        again = await _started(stage)
        assert stage.daemon is not None
        await stage.wait_socket()
        await asyncio.sleep(12 if services > 1 else 1)
        before = cpu_seconds(stage.daemon.pid)
        await asyncio.sleep(idle)
        share = 100 * (cpu_seconds(stage.daemon.pid) - before) / idle
        resident = resident_mb(stage.daemon.pid)
        rollout = await _rollout(stage)
    finally:
        await stage.aclose()
        stage.hang_up()
    return rollout, (first, again), share, resident


async def _started(stage: Many) -> float:
    """Seconds from the start of the daemon, and so of Caddy, until every service answers."""
    begun = time.monotonic()
    stage.start_daemon()
    await stage.until_serving([f"s{number}" for number in range(stage.services)])
    return time.monotonic() - begun


async def _rollout(stage: Many) -> float:
    """Seconds that a rollout over the ten upstreams of one service takes."""
    client = stage.client()

    def run() -> float:
        begun = client.call("POST", "/v1/services/s0/rollouts", {"version": "v2", "max_parallel": 2})
        for _ in client.events(begun["id"]):
            pass
        ended = client.call("GET", f"/v1/rollouts/{begun['id']}")
        assert ended["state"] == "succeeded", ended
        return float(ended["seconds"])

    try:
        return await asyncio.to_thread(run)
    finally:
        client.close()
