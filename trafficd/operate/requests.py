"""What all requests about a service need: its engine, its section, and the look-ups and refusals they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trafficd.config import ServiceSection
from trafficd.core import addresses
from trafficd.core.model import Rollout, Service, Task, Upstream
from trafficd.engine import Engine
from trafficd.errors import ConflictError, InvalidError, NotFoundError
from trafficd.ports import Ties


@dataclass
class Requests:
    """Requests about one service.

    `replaced` tells the external driver that an instance was replaced; it answers whether one waited.
    """

    engine: Engine
    section: ServiceSection
    replaced: Callable[[str, str, str | None], bool]
    ties: Ties
    _named: dict[tuple[str, str], str] = field(default_factory=dict)  # (rollout, upstream): the dial a caller named

    @property
    def state(self) -> Service:
        return self.engine.state

    def _upstream(self, name: str) -> Upstream:
        upstream = self.state.upstreams.get(name)
        if upstream is None:
            known = ", ".join(sorted(self.state.upstreams)) or "none"
            raise NotFoundError(f"service {self.state.name} has no upstream {name!r}; it has: {known}")
        return upstream

    def rollout(self, rollout_id: str) -> Rollout:
        """The newest rollout, or the one that waits behind it, if it has this id."""
        rollout = self.state.named(rollout_id)
        if rollout is None:
            raise NotFoundError(f"service {self.state.name} has no live rollout {rollout_id!r}")
        return rollout

    def _task(self, state: Service, name: str) -> Task | None:
        """The task of the newest rollout about an upstream; the revert, where there is one."""
        rollout = state.rollout
        if rollout is None:
            return None
        return rollout.revert.get(name) or rollout.forward.get(name)

    def _refuse_left(self, state: Service) -> None:
        if state.left:
            raise ConflictError(
                f"trafficd has left {state.name}: Caddy goes on with plain upstreams, and nothing here steers them. "
                f"`trafficd join {state.name}` takes it over again"
            )

    def _require_route(self, what: str) -> None:
        """Refuse what is about traffic where there is none."""
        if not self.section.routed:
            raise ConflictError(
                f'{what}: {self.state.name} is a service of workers (route = "none") and has no traffic; '
                "`trafficd deploy`, drain, ready, pause and abort work for it"
            )

    def _refuse_dials(self, **dials: str | None) -> None:
        """Refuse addresses for a worker, which has none."""
        for key, dial in dials.items():
            if dial is not None and not self.section.routed:
                raise InvalidError(
                    f'{key}: {self.state.name} is a service of workers (route = "none"), which have no address; '
                    "leave it out"
                )

    def _refuse_in_work(self, state: Service, name: str) -> None:
        rollout, task = state.live, self._task(state, name)
        if rollout is not None and task is not None and not task.done:
            raise ConflictError(
                f"rollout {rollout.id} is working on {name}; wait for it, or `trafficd abort {state.name}`"
            )

    def taken(self, state: Service, name: str) -> set[str]:
        """The addresses that an upstream has, will have, or was named by a caller for the live rollout."""
        named = self._named.get((state.live.id, name)) if state.live is not None else None
        return addresses.taken(state, name) | ({named} if named is not None else set())

    def _require_free(self, state: Service, address: str, but: str | None = None) -> None:
        for name in state.upstreams:
            if name != but and address in self.taken(state, name):
                raise ConflictError(
                    f"{address} is already an address of upstream {name}; two upstreams at one address "
                    "could not be told apart"
                )
