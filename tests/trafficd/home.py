"""A daemon's inside in the test's own process: the real application, engines, operators and journal, over
fakes of the proxy, the instances and the driver.

Every answer is checked against the OpenAPI document, and no answer may be a 500.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from jsonschema import Draft202012Validator
from yarl import URL

from proxy.sites import Sites
from tests.trafficd.fakes import FakeDriver, FakePool, FakeProbe, FakeTies, FlakyJournal, no_hook
from tests.trafficd.load import FakeLoad
from trafficd.api.app import build
from trafficd.api.guard import Guard
from trafficd.config import ServiceSection
from trafficd.core import events as ev
from trafficd.core.addresses import elsewhere
from trafficd.core.place import worker
from trafficd.engine import Engine, Parts
from trafficd.operate import Operator
from trafficd.ports import Driver
from trafficd.report.shelf import Shelf
from trafficd.swap.external import ExternalDriver
from trafficd.unrouted import NoPool
from trafficd.verify.verifier import Verifier

Json = dict[str, Any]

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


def section(*versions: str | None, **changes: Any) -> ServiceSection:
    """A service of upstreams a, b, c, ... at 10.0.0.1:80 and so on, with short times."""
    upstreams = [
        {"id": chr(ord("a") + index), "dial": f"10.0.0.{index + 1}:80", "version": version}
        for index, version in enumerate(versions or ("v1", "v1", "v1"))
    ]
    rollout = {"min_healthy_time": 0.02, "healthy_deadline": 0.5, "drain_timeout": 0.2, "drain_quiet": 0.02}
    settings: Json = {
        "upstreams": upstreams,
        "health": {"interval": 0.05, "fall": 1},
        "rollout": rollout | changes.pop("rollout", {}),
        "swap": {"driver": "command", "command": ["replace"]},
    }
    return ServiceSection.model_validate(settings | changes)


@dataclass(frozen=True)
class Answer:
    """What the daemon answered; `json` is empty where it was no JSON."""

    status: int
    headers: Mapping[str, str]
    json: Json
    kind: str

    @property
    def detail(self) -> str:
        return str(self.json["detail"])


class Contract:
    """The OpenAPI document, and whether an exchange keeps to it."""

    def __init__(self, document: Json) -> None:
        self.document = document

    def operation(self, method: str, path: str) -> Json | None:
        for template, operations in self.document["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
                found: Json | None = operations.get(method.lower())
                return found
        return None

    def fits(self, schema: Json, value: object) -> None:
        """Raises `jsonschema.ValidationError` when it does not."""
        whole = schema | {"components": self.document["components"]}
        Draft202012Validator(whole).validate(value)

    def check(self, method: str, path: str, sent: Json | None, answer: Answer) -> None:
        operation = self.operation(method, path)
        if operation is None:
            assert answer.kind == "application/problem+json"
            self.fits({"$ref": "#/components/schemas/Problem"}, answer.json)
            return
        responses = operation["responses"]
        content = responses.get(str(answer.status), responses["default"])["content"]
        assert answer.kind in content, (method, path, answer)
        schema = content[answer.kind].get("schema")
        if schema is not None:
            self.fits(schema, answer.json)
        if sent and answer.status < 300:
            self.fits(operation["requestBody"]["content"]["application/json"]["schema"], sent)


class Home:
    """Engines, operators and the application. `restart` is the end of one daemon and the start of the next."""

    def __init__(self, directory: Path, services: Mapping[str, ServiceSection], guard: Guard | None = None) -> None:
        self.directory, self.sections, self.guard = directory, services, guard
        self.pools = {name: FakePool(service.slots) for name, service in services.items() if service.routed}
        self.probe, self.driver, self.external = FakeProbe(), FakeDriver(), ExternalDriver()
        self.ties = FakeTies()
        self.socket = directory / "sock"
        self.sites: Sites | None = None
        self.access_log: Path | None = None
        self.load = FakeLoad()
        self.shelf = Shelf(directory / "reports")
        self.engines: dict[str, Engine] = {}
        self.operators: dict[str, Operator] = {}
        self.port = 0

    @property
    def pool(self) -> FakePool:
        return self.pools["web"]

    @property
    def engine(self) -> Engine:
        return self.engines["web"]

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.journal = FlakyJournal(self.directory / "journal.sqlite")
        await self.journal.open()
        for name, service in self.sections.items():
            await self._open(name, service)
        self.verifier = Verifier(self.operators, self.journal, self.load)
        await self.verifier.recover()
        app = build(
            self.operators,
            self.journal,
            self.guard,
            sites=self.sites,
            verifier=self.verifier,
            access_log=self.access_log,
            shelf=self.shelf,
        )
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=False)
        await self.runner.setup()
        await web.UnixSite(self.runner, str(self.socket)).start()
        if self.guard is not None:
            await web.TCPSite(self.runner, "127.0.0.1", 0).start()
            self.port = next(a[1] for a in self.runner.addresses if isinstance(a, tuple))
        self.session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket)))
        async with self.session.get("http://localhost/openapi.json") as answer:
            self.contract = Contract(orjson.loads(await answer.read()))

    async def _open(self, name: str, service: ServiceSection) -> None:
        external: Driver = self.external
        parts = Parts(
            pool=self.pools[name] if service.routed else NoPool(),
            driver=external if service.swap.driver == "external" else self.driver,
            probe=self.probe,
            hook=no_hook,
            journal=self.journal,
            interval=service.health.interval,
            rise=service.health.rise,
            fall=service.health.fall,
            min_healthy_time=service.rollout.min_healthy_time,
            healthy_deadline=service.rollout.healthy_deadline,
            terms=service.terms,
            foreign=lambda dial: elsewhere((one.state for key, one in self.engines.items() if key != name), dial),
        )
        engine = Engine(name, parts)
        engine.take(await self.journal.load(name))
        if not engine.state.upstreams:
            for one in service.upstreams:
                place = one.dial or worker(one.id)
                added = ev.UpstreamAdded(name, one.id, place, one.version, one.spare_dial, True, one.group)
                await engine.record(added)
            await engine.record(ev.StableSet(name, service.upstreams[0].version))
        self.engines[name] = engine
        self.operators[name] = Operator(engine, service, self.external.replaced, self.ties)
        engine.start()

    async def stop(self) -> None:
        await self.session.close()
        await self.runner.cleanup()
        await self.verifier.aclose()
        for engine in self.engines.values():
            await engine.stop()
        await self.journal.close()

    async def restart(self) -> None:
        """The daemon ends and another one begins, over the same journal and the same proxy."""
        await self.stop()
        self.external = ExternalDriver()
        await self.start()

    # -- asking ----------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request. `body` is sent as JSON, bytes as they are; header names are given with underscores."""
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and "Content-Type" not in sent:
            sent["Content-Type"] = "application/json"
        url = URL(f"http://localhost{path}", encoded=True)
        async with self.session.request(method, url, data=data, headers=sent) as response:
            raw = await response.read()
            json = orjson.loads(raw) if response.content_type.endswith("json") else {}
            answer = Answer(response.status, response.headers, json, response.content_type)
        assert answer.status != 500, answer
        self.contract.check(method, url.path, body if isinstance(body, dict) else None, answer)
        return answer

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, **headers)

    async def post(self, path: str, body: object = None, **headers: str) -> Answer:
        return await self.ask("POST", path, body, **headers)

    async def raw(self, *pieces: bytes) -> bytes:
        """Bytes over the unix socket, as they are; all that comes back until the daemon closes."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        try:
            return await asyncio.wait_for(reader.read(), 5.0)
        finally:
            writer.close()

    async def upstream(self, name: str, service: str = "web") -> Json:
        view = (await self.get(f"/v1/services/{service}")).json
        found: Json = next(one for one in view["upstreams"] if one["id"] == name)
        return found

    # -- waiting ---------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], object], seconds: float = 5.0) -> None:
        """Wait until it holds; fails after `seconds`."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Wait until every service has routed what it has, and its workers are up."""
        await self.until(lambda: all(pool.table is not None for pool in self.pools.values()))
        await self.until(
            lambda: (
                all(e.decide().weights and not e.trouble.lines() for e in self.engines.values())
                and all(
                    set(e.parts.pool.shares()) == {u.dial for u in e.state.upstreams.values() if e.state.regular(u)}
                    for name, e in self.engines.items()
                )
            )
        )

    async def deploy(self, version: str = "v2", **body: Any) -> str:
        """Begin a rollout; its id."""
        answer = await self.post("/v1/services/web/rollouts", {"version": version, **body})
        assert answer.status == 201, answer
        return str(answer.json["id"])

    async def ended(self, rollout: str) -> Json:
        """Wait until a rollout has ended; its last view."""
        await self.until(lambda: self.engine.state.live is None)
        return (await self.get(f"/v1/rollouts/{rollout}")).json

    async def journalled(self, kind: str) -> list[Json]:
        """The events of one type, oldest first."""
        found = (await self.get("/v1/events?limit=1000")).json["events"]
        return [event for event in found if event["type"] == kind]
