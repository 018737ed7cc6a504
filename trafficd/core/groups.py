"""Groups of upstreams (zones, hosts) of which no two are out of traffic at once by what we do. Pure.

A rollout goes group by group. A turn that takes away what has traffic begins only when no turn of another group is in
work, and where it drains first, only when everything of the other groups has traffic. So what is out of it by itself,
by hand, or by a rollout before is waited for as well.

What has no traffic anyway may have its turn at any time: nothing is taken, and the turn may be what brings it back. An
upstream without a group is held to nothing, and holds up nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trafficd.core.model import Direction, Order, Policy, Rollout, Service, StepKind, Task, World
from trafficd.core.routing import carrying


@dataclass(frozen=True)
class Apart:
    """Who of each group is out of traffic, or in work, now. Empty where the service has no two groups."""

    carrying: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)  # by upstream
    out: Mapping[str, str] = field(default_factory=dict)  # by group: one of it without traffic
    busy: Mapping[str, str] = field(default_factory=dict)  # by group: one of it whose turn is in work
    newest: str | None = None  # the group that had the newest turn

    def holds(self, task: Task) -> str | None:
        """The upstream of another group that a turn has to wait for."""
        if StepKind.DRAIN not in task.steps:
            return None
        return self.keeps(task.upstream, takes_out=task.steps[0] is StepKind.DRAIN)

    def keeps(self, upstream: str, *, takes_out: bool = True) -> str | None:
        """The upstream of another group for which this one has to be left alone."""
        group = self.groups.get(upstream)
        if group is None or upstream not in self.carrying:
            return None
        found = (*self.busy.items(), *(self.out.items() if takes_out else ()))
        return next((name for other, name in found if other != group), None)

    def in_order(self, tasks: list[Task]) -> list[Task]:
        """The turns, those of the group that had the newest turn first: one group is done before the next begins."""
        group = self.newest
        return tasks if group is None else sorted(tasks, key=lambda task: self.groups.get(task.upstream) != group)


def apart(service: Service, world: World, turns: Iterable[Task]) -> Apart:
    """How the groups of a service stand, given the turns that have begun, oldest first."""
    groups = {name: upstream.group for name, upstream in service.upstreams.items() if upstream.group is not None}
    if len(set(groups.values())) < 2:
        return Apart()
    carry = carrying(service, world)
    out = {group: name for name, group in groups.items() if name not in carry}
    begun = list(turns)
    busy = {groups[task.upstream]: task.upstream for task in begun if not task.over and task.upstream in groups}
    return Apart(carry, groups, out, busy, groups.get(begun[-1].upstream) if begun else None)


def of_rollout(service: Service, rollout: Rollout, direction: Direction, world: World) -> Apart:
    """How they stand for its next turn. What comes up beside the serving instances takes nothing away from anybody."""
    if rollout.policy.beside:
        return Apart()
    return apart(service, world, (rollout.forward if direction is Direction.FORWARD else rollout.revert).values())


def parted(service: Service, policy: Policy) -> str | None:
    """Why a rollout could only end in a time-out: the next group waits for what an operator has drained. Or None."""
    if policy.beside or policy.order is not Order.STOP_FIRST:
        return None
    grouped = [upstream for upstream in service.upstreams.values() if upstream.group is not None]
    for drained in (upstream for upstream in grouped if upstream.drained):
        other = next((u.group for u in grouped if u.group != drained.group and not u.drained), None)
        if other is not None:
            return (
                f"{drained.id} of group {drained.group} is drained, and nothing of {other} is taken out of traffic "
                f"before it is back: say `trafficd ready {service.name} {drained.id}`, or remove it, first"
            )
    return None


def together(apart: Apart, upstream: str, other: str) -> str:
    """That two upstreams must not be out of traffic at once, in words."""
    return (
        f"{other} of group {apart.groups[other]} has no traffic or is being replaced, and nothing of group "
        f"{apart.groups[upstream]} is taken out of traffic beside it"
    )
