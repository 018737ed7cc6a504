"""The endpoints of versions beside the stable one: their shares, their pins, and their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from aiohttp import web
from pydantic import Field

from trafficd.api.endpoints import Endpoint, actor, answer, part, read
from trafficd.api.schema import Percent, Request, ServiceView
from trafficd.config.values import Version
from trafficd.operate import Operator

View = Callable[[Operator], Awaitable[ServiceView]]


class SetShare(Request):
    version: Version
    percent: Percent


class Retire(Request):
    version: Version


class SetPin(Request):
    version: Annotated[Version | None, Field(description="null: where all others go")] = None


@dataclass(frozen=True)
class VersionApi:
    """`named` finds the service that a request is about; `view` shows it afterwards."""

    named: Callable[[web.Request], Operator]
    view: View

    async def share(self, request: web.Request) -> web.StreamResponse:
        operator = self.named(request)
        wanted = await read(request, SetShare)
        await operator.share(wanted.version, wanted.percent, actor=actor(request))
        return answer(await self.view(operator))

    async def retire(self, request: web.Request) -> web.StreamResponse:
        operator = self.named(request)
        wanted = await read(request, Retire)
        await operator.retire(wanted.version, actor=actor(request))
        return answer(await self.view(operator))

    async def pin(self, request: web.Request) -> web.StreamResponse:
        operator = self.named(request)
        wanted = await read(request, SetPin)
        await operator.pin(part(request, "pin"), wanted.version, actor=actor(request))
        return answer(await self.view(operator))

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of versions."""
        service, changed = "/v1/services/{service}", (400, 404, 409, 422, 503)
        return [
            Endpoint("PUT", service + "/shares", "Give a version beside the stable one a share", self.share,
                     ServiceView, SetShare, problems=changed),
            Endpoint("POST", service + "/retire", "Stop a version beside the stable one", self.retire, ServiceView,
                     Retire, problems=changed),
            Endpoint("PUT", service + "/pins/{pin}", "Lead requests with a pin to a version", self.pin, ServiceView,
                     SetPin, problems=changed),
        ]  # fmt: skip
