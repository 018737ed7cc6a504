"""Two hundred services of ten upstreams: the start, the idle daemon, and one service's rollout among them."""

from __future__ import annotations

import asyncio
import time

import httpx

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
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=30) as client:
            for name in names:
                while True:
                    try:
                        answer = await client.get("/", headers={"Host": f"{name}.example"})
                        if answer.status_code == 200 and answer.text == "ok":
                            break
                    except httpx.TransportError:
                        pass
                    await asyncio.sleep(0.05)


async def measure() -> list[Figure]:
    alone, _, _, _ = await _measure(1, idle=1.0)
    rollout, start, share, resident = await _measure(SERVICES, idle=SECONDS)
    what = f"{SERVICES} services of {UPSTREAMS} upstreams"
    return [
        Figure(f"{what}: all serving after a start", start, "s", 5.0),
        Figure(f"{what}: idle share of a core", share, "%", 25.0),
        Figure(f"{what}: resident", resident, "MB"),
        Figure(f"{what}: a rollout of one of them, against alone", rollout / alone, "times", 1.1),
    ]


async def _measure(services: int, idle: float) -> tuple[float, float, float, float]:
    stage = Many(instances=1, looked_at="/v1/services/s0")
    stage.services = services
    await stage.listen()
    try:
        stage.start_instances()
        begun = time.monotonic()
        stage.start_daemon()
        await stage.until_serving([f"s{number}" for number in range(services)])
        started = time.monotonic() - begun
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
    return rollout, started, share, resident


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
