"""A simulated fleet for the pure core: instances, a proxy's shares, and an engine without I/O.

The simulation performs what the fold says is running, with outcomes drawn by a `Fate`, and checks the
fleet's own ground truth (what really runs where) against what the planner believes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from trafficd.core import events as ev
from trafficd.core import invariants
from trafficd.core.judge import Verdict
from trafficd.core.machine import advance, fold
from trafficd.core.model import (
    Direction,
    Finding,
    Health,
    Order,
    Phase,
    Policy,
    Rollout,
    Service,
    Setting,
    StepKey,
    StepKind,
    StepRecord,
    World,
)
from trafficd.core.plan import Decision, decide
from trafficd.core.queue import started

Decide = Callable[[Service, World, float], Decision]
Fate = Callable[[StepKey], str]  # "ok", or a reason why the step fails; NOT_BEGUN: before it did anything
NOT_BEGUN = "no such program"


class UnsafeError(AssertionError):
    """The simulated fleet lost traffic: something was stopped that the proxy still sent to, or taken out of traffic
    without need."""


def terms(strategy: str, overrides: Mapping[str, Setting], upstreams: int) -> Policy | str:
    """What a configuration makes of the overrides of a queued rollout; "nonsense" among them is refused."""
    if "nonsense" in overrides:
        return "nonsense is no policy"
    given: dict[str, object] = dict(overrides)
    if "order" in given:
        given["order"] = Order(str(given["order"]))
    return Policy(**given)  # type: ignore[arg-type]


planned = partial(decide, terms=terms)


@dataclass
class Fleet:
    """Ground truth: the version that runs at each address, and the proxy's shares."""

    running: dict[str, str | None] = field(default_factory=dict)
    shares: dict[str, int] = field(default_factory=dict)

    def start(self, dial: str, version: str | None) -> None:
        if self.shares.get(dial):
            raise UnsafeError(f"{dial} was replaced while it had weight")
        self.running[dial] = version

    def stop(self, dial: str) -> None:
        if self.shares.get(dial):
            raise UnsafeError(f"{dial} was stopped while it had weight")
        self.running.pop(dial, None)


@dataclass
class Simulation:
    """A daemon without I/O. `journal` is all that survives a `crash`."""

    service: Service
    fleet: Fleet
    journal: list[tuple[float, ev.Event]] = field(default_factory=list)
    health: dict[str, Health] = field(default_factory=dict)
    verdict: Verdict | None = None  # what the judge says of whatever stage there is
    now: float = 1000.0
    decide: Decide = planned
    fate: Fate = lambda key: "ok"
    floor: int = 0  # the fewest upstreams that ever carried traffic since `watch`
    watching: bool = False
    initial: Service = field(init=False)

    def __post_init__(self) -> None:
        self.initial = self.service

    # -- the daemon's part -----------------------------------------------------------------------------

    def record(self, event: ev.Event) -> None:
        self.journal.append((self.now, event))
        self.service = advance(self.service, self.now, event)

    def world(self) -> World:
        live = self.service.live
        finding = None
        if live is not None and live.stage is not None and self.verdict is not None:
            finding = Finding(live.id, live.stage, self.verdict, "said so")
        return World(health=dict(self.health), shares=dict(self.fleet.shares), finding=finding, judged=True)

    def settle(self, limit: int = 500) -> Decision:
        """Decide, check, journal and route until there is nothing left to decide."""
        for _ in range(limit):
            decision = self.decide(self.service, self.world(), self.now)
            self._require_steady(decision.weights)
            self.fleet.shares = dict(decision.weights)
            self._require_known()
            invariants.check(self.service, self.world(), decision.event)
            self._watch()
            if decision.event is None:
                return decision
            self.record(decision.event)
        raise AssertionError("the planner does not come to rest")

    def _require_steady(self, weights: Mapping[str, int]) -> None:
        """While rollouts go forward, an upstream that is up and takes part loses its traffic by its own turn only."""
        live, pending = self.service.live, self.service.pending
        forward = live is not None and live.phase is Phase.RUNNING and (pending is None or pending.abort is None)
        for upstream in self.service.upstreams.values() if forward else ():
            dial, up = upstream.serving or "", self.health.get(upstream.id) is Health.UP
            promoted = live is not None and live.policy.beside and self.service.parts().get(live.version) == 100
            if promoted:
                continue
            if up and self.service.regular(upstream) and self.fleet.shares.get(dial) and not weights.get(dial):
                raise UnsafeError(f"{upstream.id} ({upstream.version}) lost its traffic and it is not its turn")

    def _require_known(self) -> None:
        """What serves is of the version that it is taken for, and no half of one."""
        for upstream in self.service.upstreams.values():
            places = [(upstream.serving or "", upstream.version)]
            places += [(one.dial, one.version) for one in upstream.beside]
            for dial, version in places:
                runs = self.fleet.running.get(dial)
                if self.fleet.shares.get(dial) and runs not in (None, version):
                    raise UnsafeError(f"{upstream.id} serves {runs} at {dial} and is taken for {version}")

    def _watch(self) -> None:
        if self.watching:
            carrying = sum(1 for dial in self.fleet.shares if dial in self.fleet.running)
            self.floor = min(self.floor, carrying)

    def running(self) -> tuple[StepRecord, ...]:
        rollout = self.service.live
        return rollout.running_steps() if rollout else ()

    def crash(self) -> None:
        """Lose everything but the journal and the fleet."""
        self.service = fold(self.initial, self.journal)
        self.health = {
            name: Health.UP if self.fleet.shares.get(dial) and self.health.get(name) is Health.UP else Health.UNKNOWN
            for name, dial in self._places()
        }

    def _places(self) -> list[tuple[str, str]]:
        """What is probed: names and addresses."""
        serving = [(u.id, u.serving or u.dial) for u in self.service.upstreams.values()]
        return serving + [(one.key(u.id), one.dial) for u, one in self.service.besides()]

    def probe(self) -> None:
        """Every upstream outside of work is probed: up where something runs."""
        for name, dial in self._places():
            self.health[name] = Health.UP if dial in self.fleet.running else Health.DOWN

    def retire(self, *, ok: bool = True) -> None:
        """Stop what the fold says is being retired."""
        for upstream, one in list(self.service.besides()):
            if one.retiring:
                self.fleet.stop(one.dial)
                self.record(ev.RetireEnded(self.service.name, upstream.id, one.dial, ok, "" if ok else "broken"))

    # -- performing ------------------------------------------------------------------------------------

    def perform(self, key: StepKey) -> None:
        """End a running step as fate will have it."""
        rollout = self.service.live
        assert rollout is not None
        fate = self.fate(key)
        dial = self._act(rollout, key, fate)
        self.record(
            ev.StepEnded(
                service=self.service.name,
                rollout=rollout.id,
                upstream=key.upstream,
                direction=key.direction,
                step=key.kind,
                ok=fate == "ok",
                reason="" if fate == "ok" else fate,
                dial=dial,
                begun=fate != NOT_BEGUN,
            )
        )

    def _act(self, rollout: Rollout, key: StepKey, fate: str) -> str | None:
        tasks = rollout.forward if key.direction is Direction.FORWARD else rollout.revert
        task = tasks.get(key.upstream or "")
        if task is None or fate == NOT_BEGUN:
            return None
        match key.kind:
            case StepKind.SWAP:
                dial = task.new_dial or f"allocated-{task.upstream}:{len(self.journal)}"
                self.fleet.start(dial, task.new_version)
                if fate != "ok":
                    self.fleet.running.pop(dial, None)
                return dial
            case StepKind.RETIRE:
                self.fleet.stop(task.old_dial)
            case StepKind.ADMIT:
                beside = rollout.policy.beside
                self.health[f"{task.upstream}/{task.new_dial}" if beside else task.upstream] = Health.UP
            case _:
                pass
        return None

    def cancel(self, keys: Iterable[StepKey]) -> None:
        rollout = self.service.live
        assert rollout is not None
        for key in sorted(keys, key=str):
            tasks = rollout.forward if key.direction is Direction.FORWARD else rollout.revert
            task = tasks.get(key.upstream or "")
            if key.kind is StepKind.SWAP and task is not None and task.new_dial is not None:
                self.fleet.start(task.new_dial, "half of one")
            self.record(
                ev.StepEnded(
                    self.service.name,
                    rollout.id,
                    key.upstream,
                    key.direction,
                    key.kind,
                    ok=False,
                    reason="cancelled",
                )
            )

    def run(self, limit: int = 2000) -> Rollout:
        """Run the live rollout to its end, performing steps in the order they were started."""
        for _ in range(limit):
            decision = self.settle()
            if self.service.live is None:
                assert self.service.rollout is not None
                return self.service.rollout
            if decision.cancel:
                self.cancel(decision.cancel)
                continue
            steps = self.running()
            if any(one.retiring for _, one in self.service.besides()):
                self.retire()
            elif steps:
                self.perform(steps[0].key)
            else:
                self.now += 60.0
                self.probe()
        raise AssertionError("the rollout does not end")


def fleet_of(count: int, *, spare: bool = False, version: str | None = "v1") -> Simulation:
    """`count` upstreams a, b, c, ... that run `version` and carry traffic."""
    service = Service("web", stable=version)
    names = [chr(ord("a") + i) for i in range(count)]
    fleet = Fleet()
    for index, name in enumerate(names):
        dial = f"10.0.0.{index + 1}:80"
        added = ev.UpstreamAdded("web", name, dial, version, f"10.0.0.{index + 1}:81" if spare else None)
        service = advance(service, 0.0, added)
        fleet.running[dial] = version
    simulation = Simulation(service, fleet)
    simulation.health = {name: Health.UP for name in names}
    simulation.settle()
    return simulation


def start(
    simulation: Simulation, policy: Policy, version: str = "v2", rollout: str = "r1", strategy: str = "rolling"
) -> None:
    """Journal the start of a rollout, as the daemon does on request."""
    simulation.record(started(simulation.service, policy, rollout=rollout, version=version, strategy=strategy))
    simulation.floor = len(simulation.fleet.shares)
    simulation.watching = True


def queue(
    simulation: Simulation, version: str = "v3", rollout: str = "r2", *, supersede: bool = False, **overrides: Setting
) -> None:
    """Journal the wish for another rollout, as the daemon does on request."""
    live = simulation.service.live
    simulation.record(
        ev.RolloutQueued(
            service="web",
            rollout=rollout,
            version=version,
            strategy="rolling",
            overrides=overrides,
            supersedes=live.id if supersede and live is not None else None,
        )
    )
