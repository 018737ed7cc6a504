"""One action of the driver on one upstream.

Every action looks first and then does what is missing, so that it may be killed between any two calls of the Engine and
asked again:

    swap   make the new container (it has no port yet) -> stop what runs at the address -> join networks -> start
           -> see that it stays up for a moment -> remove what this rollout itself takes back, and what is too old

The new one is made before the old one is stopped: what the Engine refuses to make costs nothing, and from then on the
labels of the new one name what it takes the place of. A version that was here before is started again, in the
container that it had, where that one is as it would be made now.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trafficd.config.docker import DockerSection
from trafficd.errors import TrafficdError
from trafficd.ports import Outcome, Swap
from trafficd.swap.docker import definition as words
from trafficd.swap.docker import survey
from trafficd.swap.docker.definition import Base, Definition, Json, Place
from trafficd.swap.docker.engine import Engine, EngineError, UnreachableError
from trafficd.swap.docker.engines import Engines
from trafficd.swap.docker.envfile import read_env_files
from trafficd.swap.docker.said import is_up, name_of, said
from trafficd.swap.docker.survey import Found

log = logging.getLogger("trafficd.docker")

SETTLE = 1.0  # s that a new container has to stay up before the gate looks at it
_POLL = 0.1
_UNDOING = 15.0  # s that an Engine may give no answer while a swap is undone
_HERE = ("unix://", "tcp://127.", "tcp://localhost:", "tcp://[::1]:")  # Engines on this machine
_TRIES = 5  # ports of the range that may turn out to be taken


class NotUpError(TrafficdError):
    """A container that was started did not stay up; `output` has the end of its log."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


class MovedError(TrafficdError):
    """The port that was chosen is somebody's: the action begins again with another one."""


@dataclass
class Setting:
    """What the actions of one service have in common. `daemon`: this daemon's id. `digests`: what each rollout has
    pulled, on any host."""

    section: DockerSection
    engines: Engines
    daemon: str
    routed: bool
    reserved: frozenset[int]
    digests: dict[tuple[str, str], str] = field(default_factory=dict)


class Job:
    """One action. `begun`: something may have been changed; `answered`: the Engine has been reached."""

    def __init__(self, setting: Setting, swap: Swap, engine: Engine) -> None:
        self.swap, self.engine = swap, engine
        self.begun = self.answered = False
        self._setting, self._section = setting, setting.section
        self._intent = f"{swap.rollout} {swap.since:.6f}"
        self._stopping: str | None = None  # what was told to stop and may not have
        self._revived: Found | None = None  # what was there, stopped, and is started again
        self._refused: set[int] = set()
        self._notes: list[str] = []

    @property
    def _wanted(self) -> str | None:
        """The address of the new one; None where it is ours to choose, empty where there is none."""
        return self.swap.dial if self._setting.routed else ""

    def output(self) -> str:
        """For the journal: what was done."""
        return "\n".join(self._notes)

    def _note(self, text: str) -> None:
        if text not in self._notes:  # what is done again, after a lost answer, is noted once
            self._notes.append(text)

    # -- prepare ---------------------------------------------------------------------------------------

    async def prepare(self) -> Outcome:
        """Have the image on this host, and say what will be another than now."""
        swap = self.swap
        found = await self._survey()
        base = await self._base(found)
        await self._look_at_the_place(found, base)
        name = words.image_of(self._section, swap.version, base)
        place = Place(swap.service, swap.upstream, swap.version, swap.previous_dial, "", "", self._setting.daemon)
        made = await self._define(place, base)
        await self._look_for_networks(made)
        image = await self._image(found, name)
        self._note(f"{name} on {self.engine.url}: {(image.get('RepoDigests') or [image['Id']])[0]}")
        if base is not None and self._section.take_over is not False:
            for line in words.difference(base, made):
                self._note(f"  {line}")
        return Outcome(ok=True, output=self.output())

    async def _look_at_the_place(self, found: list[Found], base: Base | None) -> None:
        """What a swap would find out too late, with the old instance drained."""
        if base is not None and base.inspect["HostConfig"].get("AutoRemove"):
            raise TrafficdError(
                f"container {name_of(base.inspect)} was started with --rm: stopped, it would be gone, with no "
                "way back. Start it without"
            )
        if not self._setting.routed:
            return
        if base is not None and words.is_published_by_chance(base):
            raise TrafficdError(
                f"container {name_of(base.inspect)} was not told at which port to be published: started again it "
                f"would have another than {base.dial}, so there would be no way back. Start it with that port (-p)"
            )
        if not any(one.running for one in found):
            await self._look_for_a_stranger(found)

    async def _look_for_a_stranger(self, found: list[Found]) -> None:
        """Somebody else's container at the address, where none of the upstream's runs."""
        place = self.swap.previous_dial
        holder = survey.holder(await self.engine.listing(), place)
        if holder is None or any(one.id == holder["Id"] for one in found):
            return
        name, other = survey.listed(holder).name, self._another_daemon(holder.get("Labels"))
        whose = "is not ours" if other is None else f"belongs to another trafficd (its id {other})"
        remedy = "set docker.take_over = true to replace it, keeping what it has"
        if ours := survey.newest_at(found, place):
            remedy = (
                f"{ours.name} was there before, and is {ours.state}. Stop {name} and start that one again "
                f"(docker stop {name} && docker start {ours.name}), then deploy"
            )
        elif isinstance(self._section.take_over, str):
            remedy = (
                f"docker.take_over names another, {self._taken_over_by_name()}. Mend the name, or rename the container"
            )
        raise TrafficdError(f"container {name} on {self.engine.url} has {place}, and {whose}: {remedy}")

    async def _look_for_networks(self, made: Definition) -> None:
        for name in words.networks_of(made):
            if not await self.engine.has_network(name):
                raise TrafficdError(
                    f"{self.engine.url} has no network {name}, and the new container is to be in it: make it "
                    f"(docker network create {name}), or mend docker.networks"
                )

    async def _image(self, found: list[Found], name: str) -> Json:
        """The image of the version, here on the host. What ran here before is not pulled again: a way back must not
        need a registry, nor lead elsewhere because a tag has moved."""
        before = self._ran_before(found)
        if before is not None and (kept := await self.engine.image(before.image)) is not None:
            self._note(f"{name} ran here before and is not pulled")
            return kept
        if self._section.pull != "always" and (present := await self.engine.image(name)) is not None:
            return present
        if self._section.pull == "never":
            raise TrafficdError(f'{self.engine.url} has no image {name}, and docker.pull = "never"')
        await self.engine.pull(name)
        image = await self.engine.image(name)
        if image is None:
            raise TrafficdError(f"{name} was pulled, and {self.engine.url} does not have it")
        self._same_everywhere(name, image)
        return image

    def _ran_before(self, found: list[Found]) -> Found | None:
        """What is left of the version; nothing where it is asked for anew while it runs."""
        return survey.ran(found, self.swap.version) if self.swap.version != self.swap.previous_version else None

    def _same_everywhere(self, name: str, image: Json) -> None:
        """A tag may be moved between two pulls: then hosts would run different programs as one version."""
        for digest in (image.get("RepoDigests") or [])[:1]:
            known = self._setting.digests.setdefault((self.swap.rollout, name), digest)
            if known != digest:
                raise TrafficdError(
                    f"{name} is {digest} on {self.engine.url} and {known} on another host: it was pushed anew in "
                    "between. Deploy again, or deploy it by its digest"
                )

    # -- swap ------------------------------------------------------------------------------------------

    async def swap_in(self) -> Outcome:
        """Have the version run at the address. Raises `MovedError` where another port has to be chosen."""
        found = await self._survey()
        new = survey.of_intent(found, self._intent)
        if new is None:
            new = await self._again(found) or await self._make(found)
        self.begun = True
        for old in survey.running_at(found, new.dial, new.id):
            await self._stop(old)
        try:
            await self._start(new)
        except EngineError as error:
            if self._is_taken(new, error):
                await self.engine.remove(new.id)
                raise MovedError(f"{new.dial} is taken, and another port is tried: {error}") from error
            raise
        self._note(f"container {new.name} runs on {self.engine.url}")
        with self._no_reason_to_fail():
            found = await self._survey()
            await self._remove(survey.failed(found, self.swap.rollout, new.dial, new.id))
            await self._prune()
        return Outcome(True, output=self.output(), dial=new.dial if self._wanted is None else None)

    def _is_taken(self, new: Found, error: EngineError) -> bool:
        """Whether a start failed for a port that we chose ourselves, and may choose again."""
        taken = any(text in str(error) for text in ("already allocated", "already in use"))
        if self._wanted is not None or not taken or len(self._refused) >= _TRIES:
            return False
        self._refused.add(int(new.dial.rpartition(":")[2]))
        return True

    async def _again(self, found: list[Found]) -> Found | None:
        """The container that the version had here, if it is as it would be made now."""
        swap = self.swap
        if swap.version == swap.previous_version:
            return None  # a new one is asked for
        one = survey.again(found, swap.version, self._wanted, None)
        if one is None or (self._wanted is None and one.dial == swap.previous_dial):
            return None
        if one.ours:
            made = await self._define(self._place(one.dial), await self._base(found))
            one = survey.again(found, swap.version, one.dial, made.digest)
        if one is None:
            return None
        if survey.may_be_stopping(found, one, swap.rollout):
            await self._stop(one)
        self._revived = None if one.running else one
        self._note(f"container {one.name} of before is used again")
        return one

    async def _make(self, found: list[Found]) -> Found:
        """Make the container, not started yet."""
        async with self._setting.engines.lock(self.engine.url):  # two upstreams must not choose the same port
            dial = await self._free_dial() if self._wanted is None else self._wanted
            made = await self._define(self._place(dial), await self._base(found))
            name = made.body["Image"]
            made.body["Image"] = await self._image_to_run(found, name)
            begun, self.begun = self.begun, True
            try:
                id = await self.engine.create(made)
            except EngineError:  # refused: nothing was changed
                self.begun = begun
                raise
        return Found(id, made.name, "created", time.time(), "", name, self.swap.version, dial, made.body["Labels"])

    async def _image_to_run(self, found: list[Found], name: str) -> str:
        """By its name, as people want to read it; by its id where the name means another one now, or nothing."""
        before = self._ran_before(found)
        if before is None or not before.ours:
            return name
        present = await self.engine.image(name)
        return name if present is not None and present["Id"] == before.image else before.image

    def _place(self, dial: str) -> Place:
        swap = self.swap
        daemon = self._setting.daemon
        return Place(swap.service, swap.upstream, swap.version, dial, swap.rollout, self._intent, daemon)

    async def _define(self, place: Place, base: Base | None) -> Definition:
        section = self._section
        files = await asyncio.to_thread(read_env_files, [Path(file) for file in section.env_files])
        name = words.image_of(section, place.version, base)
        return words.define(section, place, name, {**files, **section.environment}, base)

    async def _free_dial(self) -> str:
        """An address of the range that no container of the Engine has, nor had."""
        host = self.swap.previous_dial.rpartition(":")[0]
        taken = survey.taken_ports(await self.engine.listing()) | self._setting.reserved | self._refused
        first, last = self._section.port_range
        here = self.engine.url.startswith(_HERE)
        for port in range(first, last + 1):
            if port not in taken and not (here and _is_listened_at(host, port)):
                return f"{host}:{port}"
        raise TrafficdError(f"no port of docker.port_range ({first}-{last}) is free on {self.engine.url}")

    async def _stop(self, one: Found) -> None:
        inspect = await self.engine.inspect(one.id)
        if inspect is None:
            return
        self.begun = True
        self._stopping = one.id
        await self.engine.stop(one.id, inspect)
        self._stopping = None
        self._note(f"container {one.name} was stopped")

    async def _start(self, new: Found) -> None:
        """Start it in all its networks, and see that it stays up. Raises `NotUpError`."""
        inspect = await self.engine.inspect(new.id)
        if inspect is None:  # somebody removed it: look again, and make another
            raise UnreachableError(f"container {new.name} went away")
        if not inspect["State"].get("Running"):
            there = (inspect.get("NetworkSettings") or {}).get("Networks") or {}
            for network, endpoint in words.more_networks(new.labels).items():
                if network not in there:
                    await self.engine.join(new.id, network, endpoint)
            await self.engine.start(new.id)
        until, restarts = time.monotonic() + SETTLE, inspect.get("RestartCount", 0)
        while True:
            now = await self.engine.inspect(new.id)
            if now is None:
                raise NotUpError(f"container {new.name} was removed by somebody else", "")
            if not is_up(now, restarts):
                why = await said(self.engine, now)
                raise NotUpError(why.reason, why.output)
            if time.monotonic() >= until:
                return
            await asyncio.sleep(_POLL)

    # -- retire, and what is too old -------------------------------------------------------------------

    async def retire(self) -> Outcome:
        """Stop what runs at an address. It is kept, unless this rollout had brought it and takes it back."""
        dial = self._wanted or ""
        found = await self._survey()
        for one in survey.running_at(found, dial, None):
            await self._stop(one)
        await self._remove(survey.failed(found, self.swap.rollout, dial, ""))
        with self._no_reason_to_fail():
            await self._prune()
        return Outcome(ok=True, output=self.output())

    async def _prune(self) -> None:
        """Remove what is too old, and its image where no container of anybody's was made of it. The Engine itself keeps
        the last name of an image that a container has, stopped or not."""
        old = survey.surplus(await self._survey(), self._section.keep)
        await self._remove(old)
        if old:
            for name in survey.unused_images(old, await self.engine.listing()):
                await self.engine.remove_image(name)

    async def _remove(self, those: list[Found]) -> None:
        for one in those:
            await self.engine.remove(one.id)
            self._note(f"container {one.name} was removed")

    @contextmanager
    def _no_reason_to_fail(self) -> Iterator[None]:
        try:
            yield
        except UnreachableError:
            raise  # it is asked again
        except TrafficdError as error:
            self._note(f"what is too old could not be removed: {error}")

    # -- undoing ---------------------------------------------------------------------------------------

    async def undo(self) -> None:
        """Leave nothing running of a swap that did not come to its end. What it had stopped stays stopped, for the
        revert to start again. The Engine goes on with a stop that nobody waits for: that is waited for first."""
        if self.swap.action != "swap" or not (self.begun or self.swap.resumed):
            return
        deadline = time.monotonic() + _UNDOING
        while True:
            try:
                await self._undo()
                return
            except TrafficdError as error:
                if isinstance(error, UnreachableError) and time.monotonic() < deadline:
                    await asyncio.sleep(_POLL)
                    continue
                log.error(
                    "%s/%s: what a swap began cannot be undone now, and is left to the next one: %s",
                    self.swap.service,
                    self.swap.upstream,
                    error,
                )
                return

    async def _undo(self) -> None:
        found = await self._ours()
        new = survey.of_intent(found, self._intent)
        await self._stopped(self._stopping or (_in_place_of(new) if new is not None else None))
        if new is not None:
            await self._take_away(new, found)
        elif self._revived is not None:
            await self._stopped(self._revived.id)

    async def _take_away(self, new: Found, found: list[Found]) -> None:
        """Remove what was made; but only stop it where its labels alone tell of a container that was taken over."""
        previous = _in_place_of(new)
        if previous is None or any(one.id == previous for one in found):
            await self.engine.remove(new.id)
        else:
            await self._stopped(new.id)

    async def _stopped(self, container: str | None) -> None:
        inspect = await self.engine.inspect(container) if container else None
        if inspect is not None and container:
            await self.engine.stop(container, inspect)

    # -- looking ---------------------------------------------------------------------------------------

    async def _ours(self) -> list[Found]:
        listing = await self.engine.listing(service=self.swap.service, upstream=self.swap.upstream)
        self.answered = True
        return survey.of_daemon(listing, self._setting.daemon)

    def _another_daemon(self, labels: Mapping[str, str] | None) -> str | None:
        return survey.another_daemon(labels or {}, self._setting.daemon)

    async def _survey(self) -> list[Found]:
        """The containers of the upstream: ours, those that ours remember, and the one to be taken over."""
        found = await self._ours()
        for known in survey.remembered(found):
            inspect = await self.engine.inspect(known.id)
            found += [survey.foreign(inspect, known.version, known.dial)] if inspect is not None else []
        if self._section.take_over is not False and self.swap.action != "retire":
            found += await self._stranger(found)
        return found

    async def _stranger(self, found: list[Found]) -> list[Found]:
        """The container to be taken over, where none of ours has been in its place yet."""
        swap = self.swap
        if any(one.dial == swap.previous_dial for one in found):
            return []
        inspect = await self.engine.inspect(name) if (name := await self._named()) is not None else None
        if inspect is None:
            return []
        labels = inspect["Config"].get("Labels") or {}
        if words.SERVICE in labels and self._another_daemon(labels) is None:
            return []
        return [survey.foreign(inspect, swap.previous_version, swap.previous_dial)]

    async def _named(self) -> str | None:
        """The name or id of the container to be taken over."""
        if isinstance(self._section.take_over, str):
            return self._taken_over_by_name()
        entry = survey.holder(await self.engine.listing(), self.swap.previous_dial)
        return None if entry is None else str(entry["Id"])

    def _taken_over_by_name(self) -> str:
        name = str(self._section.take_over)
        return name.replace("{upstream}", self.swap.upstream).replace("{service}", self.swap.service)

    async def _base(self, found: list[Found]) -> Base | None:
        """What runs now, or ran last, where the new one gets its turn."""
        one = survey.newest_at(found, self.swap.previous_dial)
        inspect = None if one is None else await self.engine.inspect(one.id)
        if one is None or inspect is None:
            return None
        return Base(inspect, await self.engine.image(inspect["Image"]), one.version, one.dial, one.ours)


def _in_place_of(new: Found) -> str | None:
    """The container that has to stop before this one can run, if it made way at the same address."""
    in_place = new.labels.get(words.PREVIOUS_DIAL) == new.dial
    return new.labels.get(words.PREVIOUS) if in_place else None


def _is_listened_at(host: str, port: int) -> bool:
    """Whether somebody on this machine has the port. An address that is not this machine's says nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as knock:
        knock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            knock.bind((host.strip("[]"), port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False
