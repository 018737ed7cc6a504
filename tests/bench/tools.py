"""Load generators as programs: how each is told what to do, and what it says it did."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson


@dataclass(frozen=True)
class Load:
    """What is asked of a generator: as many requests as it can, closed loop."""

    url: str
    connections: int
    seconds: int
    http2: bool = False


@dataclass(frozen=True)
class Run:
    """What came of it. The program's start counts as part of its CPU time."""

    requests: int  # complete answers
    rps: float
    cpu: float  # s, user and system, of the program and its children

    @property
    def cpu_us(self) -> float:
        """CPU time per request in microseconds."""
        return 1e6 * self.cpu / self.requests


@dataclass(frozen=True)
class Tool:
    name: str
    program: str
    package: str | None  # of Debian; None: ours
    arguments: Callable[[Load], list[str]]
    read: Callable[[str], tuple[int, float]]  # its output -> complete answers, and those a second
    http2: bool = True

    @property
    def installed(self) -> bool:
        return shutil.which(self.program) is not None

    def run(self, load: Load, authority: Path) -> Run:
        """Raises RuntimeError when it fails, or says nothing that can be understood."""
        argv = [self.program, *self.arguments(load)]
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen(
                argv, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"SSL_CERT_FILE": str(authority)}
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            said = out.read().decode()
        if process.returncode:
            raise RuntimeError(f"{' '.join(argv)} failed with status {process.returncode}:\n{said}")
        requests, rps = self.read(said)
        return Run(requests, rps, usage.ru_utime + usage.ru_stime)


def _hey(load: Load) -> list[str]:
    return ["-z", f"{load.seconds}s", "-c", str(load.connections), *(["-h2"] if load.http2 else []), load.url]


def _loadtest(load: Load) -> list[str]:
    return ["-m", "loadtest", *_hey(load), "--json"]


def _wrk(load: Load) -> list[str]:
    return ["-t1", f"-c{load.connections}", f"-d{load.seconds}s", load.url]


def _h2load(load: Load) -> list[str]:
    return [f"-c{load.connections}", "-D", str(load.seconds), *([] if load.http2 else ["--h1"]), load.url]


def _read_hey(said: str) -> tuple[int, float]:
    if "Error distribution" in said:
        raise RuntimeError(f"hey met errors:\n{said}")
    return int(_found(r"\[200\]\t(\d+) responses", said)), float(_found(r"Requests/sec:\s+([\d.]+)", said))


def _read_loadtest(said: str) -> tuple[int, float]:
    document = orjson.loads(said)
    if document["errors"] or set(document["status"]) != {"200"}:
        raise RuntimeError(f"loadtest met errors:\n{said}")
    return document["requests"]["answered"], document["rps"]


def _read_wrk(said: str) -> tuple[int, float]:
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"wrk met errors:\n{said}")
    return int(_found(r"(\d+) requests in", said)), float(_found(r"Requests/sec:\s+([\d.]+)", said))


def _read_h2load(said: str) -> tuple[int, float]:
    if not re.search(r" 0 failed, 0 errored, 0 timeout", said):
        raise RuntimeError(f"h2load met errors:\n{said}")
    return int(_found(r"(\d+) succeeded", said)), float(_found(r"finished in .*?, ([\d.]+) req/s", said))


def _found(pattern: str, said: str) -> str:
    found = re.search(pattern, said)
    if found is None:
        raise RuntimeError(f"no {pattern!r} in:\n{said}")
    return found[1]


HEY = Tool("hey", "hey", "hey", _hey, _read_hey)
WRK = Tool("wrk -t1", "wrk", "wrk", _wrk, _read_wrk, http2=False)
H2LOAD = Tool("h2load", "h2load", "nghttp2-client", _h2load, _read_h2load)
LOADTEST = Tool("loadtest", sys.executable, None, _loadtest, _read_loadtest)
