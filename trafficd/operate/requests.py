"""What all requests about a service need: its engine, its section, and the look-ups and refusals they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trafficd.config import ServiceSection
from trafficd.core.model import Rollout, Service, Task, Upstream
from trafficd.engine import Engine
from trafficd.errors import ConflictError, NotFoundError


@dataclass
class Requests:
    """Requests about one service.

    `replaced` tells the external driver that an instance was replaced; it answers whether one waited.
    """

    engine: Engine
    section: ServiceSection
    replaced: Callable[[str, str, str | None], bool]
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

    def _refuse_in_work(self, state: Service, name: str) -> None:
        rollout, task = state.live, self._task(state, name)
        if rollout is not None and task is not None and not task.done:
            raise ConflictError(
                f"rollout {rollout.id} is working on {name}; wait for it, or `trafficd abort {state.name}`"
            )

    def taken(self, state: Service, name: str) -> set[str]:
        """The addresses that an upstream has, will have, or is just being moved to or from."""
        upstream, rollout = state.upstreams[name], state.live
        found = {upstream.dial, upstream.spare_dial, upstream.gating.dial if upstream.gating else None}
        if rollout is not None:
            found.add(self._named.get((rollout.id, name)))
            for task in (rollout.forward.get(name), rollout.revert.get(name)):
                found |= {task.old_dial, task.new_dial} if task is not None and not task.done else set()
        return {address for address in found if address is not None}

    def _require_free(self, state: Service, address: str, but: str | None = None) -> None:
        for name in state.upstreams:
            if name != but and address in self.taken(state, name):
                raise ConflictError(
                    f"{address} is already an address of upstream {name}; two upstreams at one address "
                    "could not be told apart"
                )
