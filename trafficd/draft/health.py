"""How an instance is asked whether it is well: as Caddy asks, else as its container asks itself, else at one of the
usual paths, when every instance answers 200 there. Pure; the questions are asked by `look`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from trafficd.draft.containers import Serving
from trafficd.draft.handlers import Handler

USUAL = ("/healthz", "/health", "/up", "/")
_PATH = re.compile(r"/[\x21-\x7e]*")
_URL = re.compile(r"""https?://[^\s"'|;&<>]+(?:&[^\s"'|;&<>]+)*""")
_INTERVALS = (0.05, 86_400.0)  # s: within these an interval is taken as it is
_TIMEOUTS = (0.001, 86_400.0)

Answers = Mapping[tuple[str, str], int | str]
"""By address and path: the status of the answer, or why there was none."""


@dataclass(frozen=True)
class Question:
    """What the instances of a handler are asked, at each of the paths."""

    dials: tuple[str, ...]
    paths: tuple[str, ...]
    host: str | None
    headers: Mapping[str, str]
    tls: bool


@dataclass(frozen=True)
class Health:
    """`[services.NAME.health]`: the keys that are set, and where each comes from. `warnings`: what stands in the way
    of a deploy."""

    path: str
    why: str
    host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    status: tuple[int, ...] = ()
    status_why: str = ""
    interval: float | None = None
    timeout: float | None = None
    rise: int | None = None
    fall: int | None = None
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def question(handler: Handler, servings: Sequence[Serving]) -> Question:
    """What is to be asked before the check of a handler can be decided."""
    known = _of_caddy(handler) or _of_containers(servings)
    paths = (known[0],) if known is not None else USUAL
    asked = handler.asked
    host = (asked.host if asked is not None else None) or next((one for one in handler.hosts if "*" not in one), None)
    headers = asked.headers if asked is not None else {}
    return Question(handler.dials, paths, host, headers, handler.transport.keys.get("tls") is True)


def settled(handler: Handler, servings: Sequence[Serving], answers: Answers) -> Health:
    """The check, given what the instances answered."""
    asked = handler.asked
    known = _of_caddy(handler) or _of_containers(servings)
    path, why = known or _usual(handler.dials, answers)
    seen = {dial: answers.get((dial, path)) for dial in handler.dials}
    status, status_why = _status(handler, seen)
    return Health(
        path=path,
        why=why,
        host=asked.host if asked is not None else None,
        headers=asked.headers if asked is not None else {},
        status=status,
        status_why=status_why,
        interval=_within(_INTERVALS, asked.interval) if asked is not None else None,
        timeout=_within(_TIMEOUTS, asked.timeout) if asked is not None else None,
        rise=asked.rise if asked is not None else None,
        fall=asked.fall if asked is not None else None,
        remarks=(*_unused(handler), *(asked.remarks if asked is not None else ())),
        warnings=tuple(_warnings(path, seen, status or (200,))),
    )


def _within(bounds: tuple[float, float], seconds: float | None) -> float | None:
    return None if seconds is None else min(max(bounds[0], seconds), bounds[1])


def _of_caddy(handler: Handler) -> tuple[str, str] | None:
    if handler.asked is None or not _PATH.fullmatch(handler.asked.path):
        return None
    return handler.asked.path, "health_uri of Caddy's check"


def _unused(handler: Handler) -> tuple[str, ...]:
    asked = handler.asked
    if asked is None or _PATH.fullmatch(asked.path):
        return ()
    return (f"Caddy's health_uri {asked.path} is no plain path, and is left out",)


def _of_containers(servings: Sequence[Serving]) -> tuple[str, str] | None:
    """The path that the container's own check asks at: with curl or wget, and at the port that serves."""
    for one in servings:
        check = one.container.check
        found = _URL.search(check) if re.search(r"\b(curl|wget)\b", check) else None
        parts = urlsplit(found[0]) if found is not None else None
        if parts is None or (one.inside is not None and _port(parts.netloc, parts.scheme) != one.inside):
            continue
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if _PATH.fullmatch(path):
            return path, f"HEALTHCHECK of container {one.container.name}"
    return None


def _port(place: str, scheme: str) -> int:
    port = place.rpartition(":")[2]
    return int(port) if port.isdigit() else 443 if scheme == "https" else 80


def _usual(dials: Sequence[str], answers: Answers) -> tuple[str, str]:
    for path in USUAL:
        if all(answers.get((dial, path)) == 200 for dial in dials):
            return path, "nobody said: every instance answers 200 there now"
    return USUAL[0], "ASSUMED: nobody said, and no usual path is answered 200 by all"


def _status(handler: Handler, seen: Mapping[str, int | str | None]) -> tuple[tuple[int, ...], str]:
    """The statuses that are healthy, where 200 alone would not do."""
    asked = handler.asked
    if asked is not None and asked.status and asked.status != (200,):
        return asked.status, "health_status of Caddy's check"
    others = {status for status in seen.values() if isinstance(status, int) and 200 <= status < 400} - {200}
    if asked is not None and not asked.status and others:
        return tuple(sorted({200} | others)), "answered now; Caddy takes every status from 200 to 399"
    return (), ""


def _warnings(path: str, seen: Mapping[str, int | str | None], wanted: Sequence[int]) -> list[str]:
    """What would keep an instance out of traffic."""
    found = []
    for dial, answer in seen.items():
        if isinstance(answer, int) and answer not in wanted:
            found.append(f"{dial}{path} answered {answer} just now: such an instance is given no traffic")
        elif isinstance(answer, str):
            found.append(f"{dial}{path} could not be asked from here: {answer}")
    return found
