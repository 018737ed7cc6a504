"""Lines as Caddy writes them with our logger, and a writer that rolls its file as Caddy does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

UPSTREAM = "10.0.0.5:8080"


def entry(number: int = 0, **changes: Any) -> dict[str, Any]:
    """What Caddy 2.11.7 writes for a request that was answered; a field that is changed to `...` is left out."""
    fields = {
        "ts": 1795613655.99 + number,
        "request": {"remote_port": "51184", "client_ip": "192.0.2.7", "method": "GET", "uri": f"/{number}"},
        "duration": 0.001971051,
        "size": 2,
        "status": 200,
        "service": "web",
        "stratum": "",
        "answered": UPSTREAM,
        "latency": 1.25,
        "retries": 0,
        "upstream": UPSTREAM,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def line(number: int = 0, **changes: Any) -> bytes:
    return orjson.dumps(entry(number, **changes)) + b"\n"


def cut_entry(number: int = 0, **changes: Any) -> dict[str, Any]:
    """The line of an answer that was cut short."""
    return entry(number, **{"duration": 0, "retries": ..., "upstream": ..., **changes})


def warning(number: int = 0, error: str = "reading: unexpected EOF", **changes: Any) -> dict[str, Any]:
    """The line before that."""
    request = {"remote_port": "51184", "client_ip": "192.0.2.7", "method": "GET", "uri": f"/{number}"}
    return {
        "ts": 1795613655.99,
        "upstream": "{file./slots/web/current/000}",
        "duration": 0.00125,
        "request": request | changes,
        "error": error,
    }


class Writer:
    """The file's other end. It goes on in its open file whatever happens to the name, as Caddy's does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rolled = 0
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def roll(self) -> Path:
        """Rename the file and begin anew; the name of the old one."""
        self.rolled += 1
        old = self.path.with_name(f"{self.path.stem}-2026-11-25T13-27-57.{self.rolled:03}-size{self.path.suffix}")
        if self.path.exists():
            self.path.rename(old)
        self.reopen()
        return old

    def reopen(self) -> None:
        self._file.close()
        self._file = self.path.open("wb", buffering=0)

    def close(self) -> None:
        self._file.close()
