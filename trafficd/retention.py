"""The journal forgets old rollouts and verifications, and nothing that still matters; reports go with their rollouts.

A snapshot of the service is journalled first; then the events of rollouts that ended long ago are not needed to know
where the service stands. The newest rollout always stays, with one that is pending behind it, and so do the events
that belong to no rollout.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Protocol

from trafficd.core import events as ev
from trafficd.core.model import Service
from trafficd.engine import Engine
from trafficd.errors import ConflictError, TrafficdError

log = logging.getLogger("trafficd.retention")

_EVERY = 6 * 3600.0  # s between looks at the journal

Forget = Callable[[float, Collection[str]], Awaitable[int]]
"""Removes reports that were last written before (s since the epoch), but of these rollouts; how many went."""


class Prunable(Protocol):
    """A journal that can forget."""

    async def prune(self, service: str, before: float, keep: Collection[str], *, dry: bool = False) -> int:
        """Remove the rollouts of a service whose last event was before, but those in `keep`; how many events went."""
        ...

    async def prune_verifications(self, service: str, before: float) -> int:
        """Remove the verifications of a service that began before; how many went."""
        ...


def snapshot(service: Service) -> ev.Snapshotted:
    """Where a service stands."""
    return ev.Snapshotted(
        service=service.name,
        upstreams=tuple(service.upstreams.values()),
        stable=service.stable,
        mixing=service.mixing,
        canary_percent=service.canary_percent,
        canary_at=service.canary_at,
        shares=dict(service.shares),
        pins=dict(service.pins),
        held=service.held,
        freeze=service.freeze,
        history=service.history,
        maintenance=service.maintenance,
        left=service.left,
        carried=service.carried,
    )


async def forget(engine: Engine, journal: Prunable, older_than: float) -> int:
    """Forget the rollouts of one service that ended longer ago than `older_than` seconds; how many events went."""
    state = engine.state
    before = time.time() - older_than
    newest = _newest(state)
    if state.live is not None or not await journal.prune(engine.name, before, newest, dry=True):
        return 0

    def unchanged(now: Service) -> None:
        if now != state:
            raise ConflictError("the service changed meanwhile")

    await engine.record(snapshot(state), unchanged)
    return await journal.prune(engine.name, before, newest)


def _newest(state: Service) -> list[str]:
    """The rollouts that still matter."""
    return [one.id for one in (state.rollout, state.queued, *state.displaced) if one is not None]


async def keep_short(
    engines: Iterable[Engine], journal: Prunable, older_than: float, reports: Forget | None = None
) -> None:
    """Forget again and again, for ever."""
    watched = list(engines)
    while True:
        for engine in watched:
            try:
                await journal.prune_verifications(engine.name, time.time() - older_than)
                count = await forget(engine, journal, older_than)
                if count:
                    log.info("%s: %s events of old rollouts forgotten", engine.name, count)
            except TrafficdError as error:
                log.info("%s: nothing forgotten this time: %s", engine.name, error)
        if reports is not None:
            await reports(time.time() - older_than, [name for engine in watched for name in _newest(engine.state)])
        await asyncio.sleep(_EVERY)
