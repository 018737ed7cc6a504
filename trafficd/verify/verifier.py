"""All verifications of a daemon: begun here, one at a time of a service, and found again after a restart.

Each is kept as one document. One that is kept as running, without anybody here who conducts it, was interrupted by the
end of an earlier daemon; its rollout goes on as ever, and an upstream that was drained for it is made ready again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from trafficd.config import RolloutOverrides, VerifyOverrides
from trafficd.core.model import Rollout
from trafficd.errors import ConflictError, NotFoundError, TrafficdError
from trafficd.operate import Operator
from trafficd.verify.conduct import Begin, Conductor, serving
from trafficd.verify.load import Generators, Load
from trafficd.verify.record import Verification, decode, encode
from trafficd.verify.target import target
from trafficd.verify.verdict import State

log = logging.getLogger("trafficd.verify")


class Store(Protocol):
    """Where the documents are kept. Each method raises `JournalError`."""

    async def keep_verification(
        self, name: str, service: str, at: float, *, live: bool, body: bytes, page: bytes | None
    ) -> None: ...
    async def live_verifications(self) -> list[bytes]: ...
    async def verification(self, name: str) -> bytes | None: ...
    async def verification_page(self, name: str) -> bytes | None: ...
    async def verification_of(self, service: str, rollout: str) -> bytes | None: ...
    async def verifications(self, service: str | None, limit: int) -> list[bytes]: ...


@dataclass(frozen=True)
class Wish:
    """What is to be rolled out under load, as for `Operator.start`; without a version, a cycle of all upstreams."""

    version: str | None
    strategy: str = "rolling"
    rollout: RolloutOverrides | None = None
    message: str = ""
    key: str | None = None


@dataclass
class Verifier:
    """`operators` is looked into as it is at the time: the composer fills it."""

    operators: Mapping[str, Operator]
    store: Store
    load: Load = field(default_factory=Generators)
    _live: dict[str, Conductor] = field(default_factory=dict)  # by service
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    # -- begin and end ---------------------------------------------------------------------------------

    async def begin(self, service: str, wish: Wish, overrides: VerifyOverrides, actor: str = "") -> Conductor:
        """Begin a verification; what can be refused at once is. Raises `TrafficdError`."""
        operator = self.operators[service]
        settings = operator.section.verify.changed(overrides)
        aim = target(service, operator.section, settings)
        self._refuse(service, operator, wish)
        record = Verification(
            id=f"v-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}",
            service=service,
            version=wish.version,
            address=aim.plan.requests[0].url.removesuffix(aim.plan.requests[0].target),
            on_fail=settings.on_fail,
            actor=actor,
            started_at=time.time(),
        )
        conductor = Conductor(record, operator, aim, settings, self.load, self._keep, _begin(operator, wish, actor))
        self._live[service] = conductor
        try:
            await self._keep(record)
        except BaseException:
            del self._live[service]
            raise
        task = asyncio.create_task(self._conduct(conductor), name=f"verification {record.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return conductor

    def _refuse(self, service: str, operator: Operator, wish: Wish) -> None:
        live = self._live.get(service)
        if live is not None:
            raise ConflictError(f"verification {live.record.id} of {service} is live; one at a time: wait for its end")
        state = operator.state
        if state.maintenance is not None or state.held:
            how = "in maintenance" if state.maintenance is not None else "held"
            raise ConflictError(f"{service} is {how}, so its upstreams get no requests that could be verified")
        if wish.version is not None:
            operator.refuse_start(wish.version, wish.strategy, wish.rollout)
            return
        operator.refuse_busy()
        if len(serving(state)) < 2:
            raise ConflictError(
                f"{service} has fewer than two upstreams that serve, so none can be drained without losing requests; "
                "give a version to verify a rollout"
            )

    async def _conduct(self, conductor: Conductor) -> None:
        try:
            await conductor.run()
        except TrafficdError as error:
            log.error("%s: its end was not kept: %s", conductor.record.id, error)
        finally:
            if not conductor.begun.done():
                conductor.begun.set_exception(ConflictError("the daemon stops, and the rollout was not begun"))
            del self._live[conductor.record.service]

    async def _keep(self, record: Verification, page: str | None = None) -> None:
        await self.store.keep_verification(
            record.id,
            record.service,
            record.started_at,
            live=not record.state.ended,
            body=encode(record),
            page=None if page is None else page.encode(),
        )

    async def recover(self) -> None:
        """Finish up what an earlier daemon was ended in the midst of."""
        for body in await self.store.live_verifications():
            record = decode(body)
            log.warning("%s was interrupted", record.id)
            try:
                await self._ready_again(record)
            except TrafficdError as error:
                log.error("%s: %s stays drained: %s", record.id, record.cycling, error)
            ended = replace(_interrupted(record), ended_at=time.time(), cycling=None)
            await self._keep(ended)

    async def _ready_again(self, record: Verification) -> None:
        operator = self.operators.get(record.service)
        upstream = operator.state.upstreams.get(record.cycling) if operator and record.cycling else None
        if operator is None or upstream is None or not upstream.drained:
            return
        await operator.ready(upstream.id, version=None, dial=None, wait=False, actor=f"verification {record.id}")

    async def aclose(self) -> None:
        """The daemon stops: end the load. What is under way is interrupted, and the next daemon says so."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def give_up(self, name: str, actor: str) -> Verification:
        """End one that is under way; how it stands. Raises `NotFoundError`, `ConflictError`."""
        live = self._conducted(name)
        if live is None:
            raise ConflictError(f"verification {name} is {(await self.get(name)).state}: there is nothing to give up")
        live.give_up(actor)
        return live.view()

    def _conducted(self, name: str) -> Conductor | None:
        """Who conducts this one, if it is under way."""
        return next((one for one in self._live.values() if one.record.id == name), None)

    # -- look ------------------------------------------------------------------------------------------

    @property
    def live(self) -> Mapping[str, str]:
        """The ids of those that are under way, by service."""
        return {service: one.record.id for service, one in self._live.items()}

    async def get(self, name: str) -> Verification:
        """One of them, as it stands. Raises `NotFoundError`."""
        live = self._conducted(name)
        if live is not None:
            return live.view()
        body = await self.store.verification(name)
        if body is None:
            raise NotFoundError(f"there is no verification {name!r}")
        return _interrupted(decode(body))

    async def newest(self, service: str | None, limit: int) -> list[Verification]:
        """The newest ones, newest first."""
        kept = [decode(body) for body in await self.store.verifications(service, limit)]
        live = {one.record.id: one for one in self._live.values()}
        return [live[one.id].view() if one.id in live else _interrupted(one) for one in kept]

    async def of(self, service: str, rollout: str) -> Verification | None:
        """The one that a rollout ran under, as it stands."""
        live = self._live.get(service)
        if live is not None and live.record.rollout == rollout:
            return live.view()
        body = await self.store.verification_of(service, rollout)
        return None if body is None else _interrupted(decode(body))

    async def page(self, name: str) -> bytes:
        """The page of one that has ended. Raises `NotFoundError`, `ConflictError`."""
        if not (await self.get(name)).state.ended:
            raise ConflictError(f"verification {name} is still running; its page is made at its end")
        found = await self.store.verification_page(name)
        if found is None:
            raise NotFoundError(f"verification {name} has no page: it was interrupted, or ended before any load flowed")
        return found


def _begin(operator: Operator, wish: Wish, actor: str) -> Begin | None:
    version = wish.version
    if version is None:
        return None

    async def begin() -> Rollout:
        return await operator.start(
            version, wish.strategy, wish.rollout, actor=actor, message=wish.message, key=wish.key
        )

    return begin


def _interrupted(record: Verification) -> Verification:
    """What nobody conducts any more."""
    if record.state.ended:
        return record
    rollout = "" if record.rollout is None else f"; rollout {record.rollout} goes on without it"
    return replace(
        record, state=State.INTERRUPTED, reasons=(f"the daemon ended in the midst of it{rollout}: verify again",)
    )
