"""The load generator beside hey, wrk and h2load, against nginx; turn by turn, the median of each."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from dataclasses import dataclass

import orjson

from tests.bench import nginx
from tests.bench.figure import Figure
from tests.bench.tools import H2LOAD, HEY, LOADTEST, WRK, Load, Run, Tool

ROUNDS = 5


@dataclass(frozen=True)
class Scenario:
    what: str
    path: str = "/12"
    connections: int = 50
    tls: bool = False
    http2: bool = False
    seconds: int = 4
    least: float | None = 1.0  # times hey's requests a second
    most_cpu: float | None = None  # times hey's CPU time per request

    def load(self, server: nginx.Nginx) -> Load:
        return Load(
            f"{server.tls if self.tls else server.plain}{self.path}", self.connections, self.seconds, self.http2
        )


SCENARIOS = (
    Scenario("12 bytes, -c 50", seconds=8, least=2.5, most_cpu=0.4),
    Scenario("1 KB, -c 50", "/1k"),
    Scenario("100 KB, -c 50", "/100k"),
    Scenario("12 bytes over TLS, -c 50", tls=True),
    Scenario("12 bytes, -c 1", connections=1),
    Scenario("12 bytes, -c 500", connections=500),
    Scenario("12 bytes over HTTP/2, -c 50", tls=True, http2=True, least=None),
)


async def measure() -> list[Figure]:
    return await asyncio.to_thread(_measure)


def _measure() -> list[Figure]:
    if not nginx.installed():
        _skipped("everything", "nginx", "nginx")
        return []
    tools = []
    for tool in (HEY, WRK, H2LOAD, LOADTEST):
        if tool.installed:
            tools.append(tool)
        else:
            _skipped(tool.name, tool.program, tool.package)
    figures: list[Figure] = []
    with nginx.nginx() as server:
        for scenario in SCENARIOS:
            figures += _compare(scenario, server, [tool for tool in tools if tool.http2 or not scenario.http2])
        figures += _open_loop(server)
    return figures


def _skipped(what: str, program: str, package: str | None) -> None:
    print(f"skipped: {what}, as {program} is not installed (apt-get install {package})", file=sys.stderr, flush=True)


def _compare(scenario: Scenario, server: nginx.Nginx, tools: list[Tool]) -> list[Figure]:
    load = scenario.load(server)
    runs: dict[str, list[Run]] = {tool.name: [] for tool in tools}
    for _ in range(ROUNDS):
        for tool in tools:
            runs[tool.name].append(tool.run(load, server.authority))
    figures = []
    for name, ran in runs.items():
        figures += [
            Figure(f"{scenario.what}: {name}", statistics.median(run.rps for run in ran), "requests/s"),
            Figure(f"{scenario.what}: {name}, CPU", statistics.median(run.cpu_us for run in ran), "us/request"),
        ]
    if HEY.name in runs:
        pairs = list(zip(runs[LOADTEST.name], runs[HEY.name], strict=True))
        rps = statistics.median(ours.rps / heys.rps for ours, heys in pairs)
        cpu = statistics.median(ours.cpu_us / heys.cpu_us for ours, heys in pairs)
        figures += [
            Figure(f"{scenario.what}: loadtest against hey", rps, "times", least=scenario.least),
            Figure(f"{scenario.what}: loadtest against hey, CPU", cpu, "times", scenario.most_cpu),
        ]
    return figures


def _open_loop(server: nginx.Nginx) -> list[Figure]:
    argv = [sys.executable, "-m", "loadtest", "-z", "10s", "--rate", "1000", "--json", f"{server.plain}/12"]
    document = orjson.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    what = "open loop, 1,000 a second for 10 s"
    return [
        Figure(f"{what}: answered", document["status"].get("200", 0), "requests", 10_000, 10_000),
        Figure(f"{what}: lag, 99th percentile", document["latency"]["lag"]["p99"], "ms", 2.0),
    ]
