"""The API's Python client: over the unix socket, or over TCP with a token."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import orjson

from trafficd.errors import ConfigError, DaemonUnreachableError, TrafficdError

_ANSWER = 60.0  # s that an answer to a mere question may take
_COMES_BACK = 15.0  # s that a daemon that was there may be away while a rollout is followed
_RETRY = 0.3  # s between attempts to find it again

_BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)  # connected, and then no answer

Json = dict[str, Any]


class RefusedError(TrafficdError):
    """The daemon answered with a problem document."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.title = status, title


class Client:
    """Calls to one daemon. Every call raises `DaemonUnreachableError` when there is none, `RefusedError`
    when it says no."""

    def __init__(self, socket: str | None = None, url: str | None = None, token: str | None = None) -> None:
        self.place = url or f"unix://{socket}"
        # There is no TLS on a socket, and to read the system's authorities takes longer than most calls.
        transport = None if url else httpx.HTTPTransport(uds=socket, verify=False)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._client = httpx.Client(
                base_url=url or "http://localhost",
                transport=transport,
                headers=headers,
                timeout=httpx.Timeout(10.0, read=None),  # a drain or a gate may take its time
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise ConfigError(f"--url {url}: not a URL: {error}") from error
        if url and (self._client.base_url.scheme not in ("http", "https") or not self._client.base_url.host):
            raise ConfigError(f"--url {url}: not a URL; write http://host:port")

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, path: str, body: Json | None = None, headers: dict[str, str] | None = None) -> Json:
        """One call; its JSON answer."""
        content = None if body is None else orjson.dumps(body)
        labelled = {"Content-Type": "application/json"} if body is not None else {}
        # What only asks is answered at once; a daemon that stands still must not hold the terminal.
        limits = httpx.Timeout(10.0, read=_ANSWER if method == "GET" else None)
        try:
            answer = self._send(
                self._client.build_request(
                    method, path, content=content, headers=labelled | (headers or {}), timeout=limits
                )
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._read(answer)

    def fetch(self, path: str) -> bytes:
        """What is there, as it is: for an answer that is no JSON."""
        try:
            answer = self._send(self._client.build_request("GET", path))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if not answer.is_success:
            self._read(answer)
        return answer.content

    def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return self._client.send(request)
        except _BROKEN:
            # A daemon at the end of its life closes what it has accepted. What only asks may be asked again, of the
            # next life; anything else may have been done.
            if request.method != "GET":
                raise
            return self._client.send(request)

    def events(self, rollout: str, patience: float = _COMES_BACK) -> Iterator[Json]:
        """A rollout's events as they happen, until it has ended.

        A lost stream is resumed; a daemon may be away for `patience` seconds.
        """
        last, lost_at = "0", None
        while True:
            try:
                with self._client.stream(
                    "GET",
                    f"/v1/rollouts/{rollout}/events",
                    headers={"Last-Event-ID": last},
                    timeout=httpx.Timeout(10.0, read=_ANSWER),
                ) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        self._read(answer)
                    lost_at = None
                    for line in answer.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            last = value
                        elif name == "data":
                            yield orjson.loads(value)
                return
            except httpx.HTTPError as error:
                # Once it was there, it may be back soon: the rollout outlives a restart of the daemon.
                lost_at = time.monotonic() if lost_at is None else lost_at
                if last == "0" or time.monotonic() - lost_at >= patience:
                    raise self._unreachable(error) from error
                time.sleep(_RETRY)

    def _read(self, answer: httpx.Response) -> Json:
        try:
            value = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise DaemonUnreachableError(f"what answers at {self.place} is not trafficd: check --socket and --url")
        if answer.is_success or answer.request.url.path == "/healthz":
            return cast(Json, value)
        code = answer.status_code
        raise RefusedError(code, str(value.get("title") or "Refused"), str(value.get("detail") or f"status {code}"))

    def _unreachable(self, error: Exception) -> DaemonUnreachableError:
        return DaemonUnreachableError(
            f"no daemon answers at {self.place} ({error or type(error).__name__}). Is it running "
            "(`trafficd run`), and may you use its socket (its group)? Another place: --socket PATH or --url URL"
        )


def read_token(path: str) -> str:
    """The token in a file. Raises `ConfigError` when there is none that a header can carry."""
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: cannot be read: {error}") from error
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ConfigError(f"--token-file {path}: must hold one token, of visible ASCII characters, and nothing else")
    return token
