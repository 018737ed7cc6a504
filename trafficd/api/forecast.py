"""The endpoint of forecasts: how soon a canary would be judged. `trafficd.canary.forecast` does the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from pydantic import Field

from trafficd.api.endpoints import TEXT_LIMIT, Endpoint, answer, part
from trafficd.api.schema import Answer
from trafficd.canary.forecast import WITHIN, Forecast, forecast
from trafficd.config import parse_duration
from trafficd.errors import InvalidError, NotFoundError
from trafficd.operate import Operator


class TrafficView(Answer):
    seconds: float = Field(description="the last seconds of the access log that were looked at")
    requests: int
    rate: float = Field(description="requests a second")
    stable_requests: int
    stable_bad: int = Field(description="5xx and answers that were cut short")
    clients: int


class ShareForecastView(Answer):
    percent: float
    fail_worse: float | None = Field(description="seconds until FAIL with `worse_bad`; null: not within a year")
    fail_broken: float | None = Field(description="seconds until FAIL of a canary whose every answer is bad")
    pass_good: float | None = Field(description="seconds until PASS of a canary that is as the stable version")


class ForecastView(Answer):
    service: str
    within: float = Field(description="seconds in which a verdict is wanted")
    why: str | None = Field(description="why there is no forecast; null: there is one")
    traffic: TrafficView | None = Field(description="null: not known, which is not none")
    worse_bad: float | None = Field(
        description="the part of bad requests of the canary that is worse: three times the stable version's, and at "
        "least 0.01 more"
    )
    shares: list[ShareForecastView]
    suggested: float | None = Field(
        description="the smallest share in percent with which the worse one fails, and a good one passes, within the "
        "wanted time; null: none up to 50, or no forecast"
    )
    notes: list[str]


@dataclass(frozen=True)
class ForecastApi:
    """`log`: the access log, None where nothing is logged."""

    operators: Mapping[str, Operator]
    log: Path | None

    async def one(self, request: web.Request) -> web.StreamResponse:
        name = part(request, "service")
        operator = self.operators.get(name)
        if operator is None:
            raise NotFoundError.service(name, self.operators)
        within = wanted(request.query.get("within"))
        state = operator.state
        canary = frozenset(
            one.serving for one in state.upstreams.values() if one.serving is not None and not state.regular(one)
        )
        # In a thread: it reads some MB, and nobody else is to wait meanwhile.
        found = await asyncio.to_thread(
            forecast,
            name,
            operator.section,
            self.log,
            time.time(),
            within=within,
            canary=canary,
            unlogged=operator.engine.trouble.unlogged,
        )
        return answer(forecast_view(found))

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of forecasts."""
        path = "/v1/services/{service}/forecast"
        duration = {"type": "string", "default": "5m", "examples": ["90s", "5m"]}
        return [
            Endpoint("GET", path, "How soon a canary would be judged with the present traffic", self.one, ForecastView,
                     problems=(404, 422), query={"within": duration}),
        ]  # fmt: skip


def wanted(text: str | None) -> float:
    """The time that a verdict is wanted in, in seconds. Raises `InvalidError`."""
    if text is None:
        return WITHIN
    try:
        found = parse_duration(text[:TEXT_LIMIT])
    except ValueError as error:
        raise InvalidError(f"within: {error}") from error
    if found <= 0:
        raise InvalidError("within: give a time above 0, such as 5m")
    return found


def forecast_view(found: Forecast) -> ForecastView:
    recent, outlook = found.recent, found.outlook
    traffic = recent and TrafficView(
        seconds=round(recent.seconds, 1),
        requests=recent.requests,
        rate=round(recent.rate, 4),
        stable_requests=recent.stable,
        stable_bad=recent.stable_bad,
        clients=recent.clients,
    )
    return ForecastView(
        service=found.service,
        within=found.within,
        why=found.why,
        traffic=traffic,
        worse_bad=outlook and outlook.worse_bad,
        shares=[
            ShareForecastView(percent=one.percent, fail_worse=one.worse, fail_broken=one.broken, pass_good=one.good)
            for one in (outlook.shares if outlook else ())
        ],
        suggested=outlook and outlook.suggested,
        notes=list(found.notes),
    )
