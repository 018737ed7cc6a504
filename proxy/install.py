"""Bring Caddy to serve our services, in one write at most, and see that it is proved to be able to (`proxy.proof`)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxy import logged, maintenance
from proxy.admin import Admin
from proxy.errors import CaddyRefusedError, ProxyError, SlotError
from proxy.handler import (
    PROBE_ID,
    Json,
    Route,
    probe_server,
    put_server,
    remove,
    route_ids,
    strays,
    take_out,
)
from proxy.maintenance import StaticAnswer
from proxy.ports import free_port, ports_of
from proxy.proof import Probing, keep, probe, probing_for, proof_of, shown_by_traffic
from proxy.slots import SlotDirectory
from proxy.ways import ByAdmin, Imported, Way


@dataclass
class Installed:
    """What came of it: whether Caddy's configuration was written, whether slots have to be proved with it, and by
    service what a person should know of the change, why its answers are not logged though they are to be, or why the
    service could not be put there."""

    written: bool = False
    placed: bool = False  # a service stands there that is ours to write
    proving: bool = False
    notes: dict[str, list[str]] = field(default_factory=dict)
    unlogged: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)  # routes of services that are no more, by @id


@dataclass(frozen=True)
class Household:
    """What is ours in Caddy besides the services that are written: those that stay as they are (`kept`), and those
    that were ours once (`former`). A route of a service that is no more would go before the one that took its place."""

    kept: Collection[str] = ()
    former: Collection[str] = ()
    slots_path: str = ""
    answers: Sequence[tuple[Route, StaticAnswer]] = ()  # for maintenance; written together with any service
    port: int = 0  # where these are to be given, unless they are given somewhere already
    taken: frozenset[int] = frozenset()  # ports that are somebody's


def wanted(
    config: Json | None, ways: Sequence[Way], probing: Probing | None, household: Household | None = None
) -> tuple[Json, Installed]:
    """The configuration with all these services in it, and the probe's server; without those that are no more. Pure."""
    edited: Json = copy.deepcopy(config) if config else {}
    told = Installed()
    files = {way.route.access_log for way in ways} - {None}
    if len(files) > 1:
        raise ValueError(f"there is one access log for all services, not {', '.join(sorted(map(str, files)))}")
    if household is not None:
        gone = strays(config, household.kept, household.former, household.slots_path)
        told.removed = sorted(gone)
        take_out(edited, gone)
    for way in ways:
        try:
            notes = way.put(edited)
        except CaddyRefusedError as error:
            told.refused[way.route.service] = str(error)
            continue
        if notes:
            told.notes[way.route.service] = notes
        if (why := way.unlogged(edited)) is not None:
            told.unlogged[way.route.service] = why
        told.placed = told.placed or not isinstance(way, Imported)
        if probing is not None and not isinstance(way, ByAdmin):
            told.proving = True
    if told.proving and probing is not None:
        put_server(edited, PROBE_ID, probe_server(probing.port, probing.path))
    if told.placed and household is not None and household.answers:
        maintenance.put(edited, household.port, household.answers)
    logged.tidy(edited)
    return edited, told


async def install(
    admin: Admin,
    ways: Sequence[Way],
    root: Path,
    root_in_caddy: str | None = None,
    household: Household | None = None,
) -> Installed:
    """Make Caddy serve these services, from the slots under `root` where they have some.

    `root_in_caddy` is the same directory as Caddy sees it, where that differs. What was written is taken out
    again when the probe fails. Raises `ProxyError`.
    """
    before, _ = await admin.config()
    proof = await proof_of(admin, root_in_caddy or str(root))
    probing = probing_for(before, root, root_in_caddy, proof, claimed(ways, household))
    edited, told = wanted(before, ways, probing, household)
    if told.proving and edited != before and wanted(before, ways, None, household)[0] == before:
        routes = [way.route for way in ways if isinstance(way, Imported) and way.present(before)]
        if await shown_by_traffic(admin, [SlotDirectory(root, route.service, route.slots) for route in routes]):
            await keep(root, proof)
            probing = None

    def change(config: Json | None) -> Json:
        nonlocal edited, told
        edited, told = wanted(config, ways, probing, household)
        return edited

    told.written = await admin.edit(change)
    if told.proving and probing is not None:
        try:
            await probe(admin, probing.port, root, probing.path)
        except ProxyError:
            if told.written:
                await _undo(admin, ways, before, edited)
            raise
        await keep(root, proof)
    return told


async def _undo(admin: Admin, ways: Sequence[Way], before: Json | None, written: Json) -> None:
    """Bring back what was there before; where somebody changed it since, only take out what is ours alone."""
    added = {PROBE_ID, *(way.route.id for way in ways)} - route_ids(before)

    def back(config: Json | None) -> Json:
        return before or {} if config == written else remove(config, added)

    with contextlib.suppress(ProxyError):
        await admin.edit(back)


def claimed(ways: Sequence[Way], household: Household | None) -> frozenset[int]:
    """Ports that are not for a new server of our own, whether anybody listens there now or not."""
    listened = frozenset(ports_of(address for way in ways for address in way.route.listen))
    return listened if household is None else listened | household.taken | {household.port}


def maintenance_port(slots_path: str, taken: frozenset[int]) -> int:
    """Where the static answers of whoever has these slots are given; none of the ports that are `taken`."""
    return free_port(f"maintenance {slots_path}", taken)


def prepare_root(root: Path, services: Sequence[SlotDirectory]) -> list[str]:
    """Make the directory of all slots, and mend each service's; what was wrong, in words."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
    except OSError as error:
        raise SlotError(f"{root} cannot be made: {error.strerror}") from error
    closed = [path for path in (root, *root.parents) if not path.stat().st_mode & 0o001]
    notes = [f"{path} is closed to other users: a Caddy that is one cannot read the slots" for path in closed]
    for directory in services:
        notes.extend(directory.mend())
    return notes
