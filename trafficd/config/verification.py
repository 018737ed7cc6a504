"""`[services.NAME.verify]`: what `trafficd verify` sends, where to, and what it makes of the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from trafficd.config import values
from trafficd.config.faults import Clash, Section
from trafficd.config.values import File, Headers, Positive

Path = Annotated[str, Field(pattern=r"^/[\x21-\x7e]*$")]
Status = Annotated[int, Field(ge=200, le=599)]
Rate = Annotated[float, Field(gt=0, le=100_000)]
Connections = Annotated[int, Field(ge=1, le=10_000)]
Factor = Annotated[float, Field(gt=1, le=1000)]
OnFail = Literal["report", "revert"]
Loop = Literal["open", "closed"]

_ADDRESS = re.compile(r"(https?)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?/?", re.ASCII)
_HEADER = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"


def _method(text: str) -> str:
    if not re.fullmatch(r"[A-Z]{1,20}", text) or text == "CONNECT":
        raise ValueError(f'{text[:40]!r} is not a method that can be sent; write "GET", "POST", ...')
    return text


def _address(text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[3] or 80) <= 65535:
        raise ValueError(f'{text[:80]!r} is not like "https://127.0.0.1:443" or "http://10.0.0.1:8080"')
    return text.rstrip("/")


class VerifyRequest(Section):
    """One request. `status` empty: it must be answered with what the warm-up was answered with."""

    path: Path
    method: Annotated[str, AfterValidator(_method)] = "GET"
    body: str = ""
    headers: Headers = Field(default_factory=dict)
    status: list[Status] = Field(default_factory=list)
    weight: Annotated[int, Field(ge=1, le=1000)] = 1


class VerifyWebSocket(Section):
    """Connections that are held open, with a ping at every interval."""

    path: Path
    connections: Connections = 2
    interval: Annotated[Positive, Field(ge=0.01)] = 1.0


class VerifySection(Section):
    address: Annotated[str, AfterValidator(_address)] | None = None  # None: where the service listens, on loopback
    host: Annotated[str, AfterValidator(values.host)] | None = None  # None: the first of the service's hosts
    insecure: bool = False
    tls_ca: File | None = None
    loop: Loop = "open"
    rate: Rate = 50.0
    connections: Connections = 20
    timeout: Positive = 20.0
    warm_up: Positive = 5.0
    cool_down: Positive = 5.0
    requests: list[VerifyRequest] = Field(default_factory=list)  # empty: GET /
    compatible: list[VerifyRequest] = Field(default_factory=list)
    websockets: list[VerifyWebSocket] = Field(default_factory=list)
    attribute: Annotated[str, Field(pattern=_HEADER)] | None = None
    p99_factor: Factor | None = None
    on_fail: OnFail = "report"

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        if given.get("insecure") is True and given.get("tls_ca") is not None:
            yield ("tls_ca",), "means nothing with insecure = true: no certificate is looked at then"

    def changed(self, overrides: VerifyOverrides) -> VerifySection:
        """This section with what one request changes of it."""
        return self.model_copy(update=overrides.model_dump(exclude_none=True))


class VerifyOverrides(BaseModel):
    """What a request may change of `[services.NAME.verify]` for one verification."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    loop: Loop | None = None
    rate: Rate | None = None
    connections: Connections | None = None
    timeout: Positive | None = None
    warm_up: Positive | None = None
    cool_down: Positive | None = None
    p99_factor: Factor | None = None
    on_fail: OnFail | None = None
