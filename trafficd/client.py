"""The API's Python client: over the unix socket, or over TCP with a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import orjson

from trafficd.errors import DaemonUnreachableError, TrafficdError

Json = dict[str, Any]


class RefusedError(TrafficdError):
    """The daemon answered with a problem document."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Client:
    """Calls to one daemon. Every call raises `DaemonUnreachableError` when there is none, `RefusedError`
    when it says no."""

    def __init__(self, socket: str | None = None, url: str | None = None, token: str | None = None) -> None:
        self.place = url or f"unix://{socket}"
        transport = None if url else httpx.HTTPTransport(uds=socket)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(
            base_url=url or "http://localhost",
            transport=transport,
            headers=headers,
            timeout=httpx.Timeout(10.0, read=None),  # a drain or a gate may take its time
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, path: str, body: Json | None = None, headers: dict[str, str] | None = None) -> Json:
        """One call; its JSON answer."""
        content = None if body is None else orjson.dumps(body)
        try:
            answer = self._client.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._read(answer)

    def events(self, rollout: str) -> Iterator[Json]:
        """A rollout's events as they happen, until it has ended; the stream is resumed when it is lost."""
        last = "0"
        while True:
            try:
                with self._client.stream(
                    "GET", f"/v1/rollouts/{rollout}/events", headers={"Last-Event-ID": last}
                ) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        self._read(answer)
                    for line in answer.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            last = value
                        elif name == "data":
                            yield orjson.loads(value)
                return
            except httpx.RemoteProtocolError:
                continue
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error

    def _read(self, answer: httpx.Response) -> Json:
        try:
            value = orjson.loads(answer.content)
        except orjson.JSONDecodeError as error:
            raise DaemonUnreachableError(f"what answers at {self.place} is not trafficd") from error
        if answer.is_success or answer.request.url.path == "/healthz":
            return cast(Json, value)
        detail = value.get("detail") if isinstance(value, dict) else None
        raise RefusedError(answer.status_code, str(detail or f"status {answer.status_code}"))

    def _unreachable(self, error: Exception) -> DaemonUnreachableError:
        return DaemonUnreachableError(
            f"no daemon answers at {self.place} ({error or type(error).__name__}). Is it running "
            "(`trafficd run`), and may you use its socket (its group)? Another place: --socket PATH or --url URL"
        )


def read_token(path: str) -> str:
    """The token in a file."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TrafficdError(f"--token-file {path}: cannot be read: {error}") from error
