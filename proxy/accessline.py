"""What one line of the access log says: who answered, how, and how long it took. Pure.

The lines are those of `proxy.logged`. How Caddy (2.11.7) tells what became of a request:

    answered          `answered` and `upstream` are the same address; `duration` is that of the whole answer
    cut short         `duration` is 0 and there is no `upstream`: Caddy's handler panicked. `answered` says whose it
                      was, and the line before it, Caddy's warning, whether the upstream broke off or the client left
    never answered    no `answered`; `upstream` is the last one tried, `status` is Caddy's own: 502 (refused, reset,
                      no header before the end), 504 (time-out), 499 (the client left before the header)

Where a handler of somebody else's makes another answer of it (an error page, say), `answered_status` is the upstream's
own status, and that is what it is judged by.

Streams go by another spelling of the same address (`proxy.model.stream_alias`); it is turned back.

`retries` are failed dials before the last attempt. Whom they were meant for is not known: Caddy keeps only the last.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from proxy.errors import AddressError
from proxy.model import NOBODY, parse_dial, stream_alias

_NOBODIES = (NOBODY, stream_alias(NOBODY))
_WARNINGS_KEPT = 1_000  # the answer's own line follows within the same millisecond


class Cut(Enum):
    """Who cut an answer short."""

    NO = "no"
    UPSTREAM = "upstream"
    CLIENT = "client"
    UNKNOWN = "unknown"  # it was cut, and the warning is not in the log


class Answer(NamedTuple):
    """One request. Times in seconds; `at` is when it ended, by Caddy's clock (Unix time)."""

    at: float
    service: str
    upstream: str | None  # host:port in its canonical spelling; None: nobody was tried
    status: int  # the upstream's own, or Caddy's where it gave none; 0: nothing was answered at all
    duration: float  # of the whole request, waiting for a slot included; 0.0 when it was cut: not known then
    latency: float | None  # from the last attempt to the header of the answer; None: there was none
    cut: Cut
    retries: int | None  # failed dials before; None where the answer was cut: not known then
    client: str  # the address that Caddy takes for the client's
    method: str
    path: str  # at most 200 characters, without the query
    stratum: str  # what the request itself says of where it comes from; "": a user
    answered: bool  # whether the upstream's header came

    @property
    def truncated(self) -> bool:
        """Whether the upstream may be to blame for an answer that was cut short."""
        return self.cut is Cut.UPSTREAM or self.cut is Cut.UNKNOWN


class BadLineError(ValueError):
    """A line that is not one of ours."""


class Decoder:
    """Decodes lines in their order, as a warning belongs to the line that follows it."""

    def __init__(self) -> None:
        self._warnings: OrderedDict[tuple[str, str, str], Cut] = OrderedDict()

    def decode(self, line: bytes) -> Answer | None:
        """The request that a line tells of; None for a line that tells of none: a warning, or another's request.

        Raises `BadLineError`.
        """
        try:
            entry = orjson.loads(line)
            service = entry.get("service")
            if service is not None:
                return self._answer(entry, service)
            self._remember(entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadLineError(f"not a line of our access log: {line[:100]!r}") from error
        return None

    def _answer(self, entry: dict[str, Any], service: str) -> Answer:
        request = entry["request"]
        client, path = request["client_ip"], request["uri"]
        duration, upstream, latency = entry["duration"], entry.get("upstream"), entry.get("latency")
        answered = entry.get("answered")
        cut = Cut.NO
        if "upstream" not in entry:  # added when the handlers are done, and they were not
            cut = self._cut(client, request["remote_port"], path)
        return Answer(
            float(entry["ts"]),
            service,
            _canonical(answered or upstream or NOBODY),
            int(entry.get("answered_status") or entry["status"]),
            float(duration),
            None if latency is None else latency / 1000,
            cut,
            entry.get("retries"),
            client,
            request["method"],
            path,
            entry.get("stratum") or "",
            answered is not None,
        )

    def _cut(self, client: str, port: str, path: str) -> Cut:
        """Who cut the answer short. The warning has the path that the upstream was asked for, and somebody's route may
        have rewritten that (`handle_path`): then it is the last one of the connection."""
        known = (key for key in reversed(self._warnings) if key[:2] == (client, port))
        key = (client, port, path)
        return self._warnings.pop(key if key in self._warnings else next(known, key), Cut.UNKNOWN)

    def _remember(self, entry: dict[str, Any]) -> None:
        """Keep who cut an answer short, by the connection and the path, until the line of that answer comes."""
        error = entry.get("error")
        if error is None or "request" not in entry:
            return
        request = entry["request"]
        by_client = error.startswith("writing:") or "context canceled" in error or "client disconnected" in error
        self._warnings[request["client_ip"], request["remote_port"], request["uri"]] = (
            Cut.CLIENT if by_client else Cut.UPSTREAM
        )
        if len(self._warnings) > _WARNINGS_KEPT:
            self._warnings.popitem(last=False)


@lru_cache(maxsize=4_096)
def _canonical(dial: str) -> str | None:
    """An address as the slots have it; None for the one that they have while nobody is to answer."""
    if dial in _NOBODIES:
        return None
    try:
        return parse_dial(dial)
    except AddressError:
        return dial
