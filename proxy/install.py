"""Bring Caddy to serve our services, in one write at most, and prove that it can.

Two facts decide whether slots work with the Caddy at hand: it reads our files when it dials, and it counts
what is open behind them. Neither is told by a version number (a build need not know its own), so both are
tried: a small server on the loopback, written together with the routes and left there, dials what a file of
ours says, and we answer behind it while looking at Caddy's count. That needs no write when the daemon starts
again. Where somebody's reload has taken that server out, what was proved of this very Caddy process still holds,
and the server is not written again for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import secrets
import socket
import zlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from proxy import maintenance
from proxy.admin import TOO_OLD, Admin
from proxy.errors import CaddyRefusedError, CaddyTooOldError, ProxyError, SlotError, SlotsNotResolvedError
from proxy.handler import (
    PROBE_ID,
    Json,
    Route,
    probe_server,
    put_server,
    remove,
    route_ids,
    server_port,
    strays,
    take_out,
)
from proxy.maintenance import StaticAnswer
from proxy.slots import SlotDirectory
from proxy.ways import ByAdmin, Imported, Way

PROBE_FILE = ".probe"
PROOF_FILE = ".proved"
_PORTS = range(20_000, 32_000)  # below what Linux gives to outgoing connections
_TIMEOUT = 5.0  # s for one probe
_LISTENING = 2.0  # s that Caddy may take until a new server of its listens


@dataclass
class Installed:
    """What came of it: whether Caddy's configuration was written, whether slots have to be proved with it, and by
    service what a person should know of the change, or why the service could not be put there."""

    written: bool = False
    placed: bool = False  # a service stands there that is ours to write
    proving: bool = False
    notes: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)  # routes of services that are no more, by @id


@dataclass(frozen=True)
class Probing:
    """The probe's server: its port, and the file it dials by, as Caddy sees it."""

    port: int
    path: str


@dataclass(frozen=True)
class Household:
    """What is ours in Caddy besides the services that are written: those that stay as they are (`kept`), and those
    that were ours once (`former`). A route of a service that is no more would go before the one that took its place."""

    kept: Collection[str] = ()
    former: Collection[str] = ()
    slots_path: str = ""
    answers: Sequence[tuple[Route, StaticAnswer]] = ()  # for maintenance; written together with any service
    port: int = 0  # where these are to be given, unless they are given somewhere already


def wanted(
    config: Json | None, ways: Sequence[Way], probing: Probing | None, household: Household | None = None
) -> tuple[Json, Installed]:
    """The configuration with all these services in it, and the probe's server; without those that are no more. Pure."""
    edited: Json = copy.deepcopy(config) if config else {}
    told = Installed()
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
        told.placed = told.placed or not isinstance(way, Imported)
        if probing is not None and not isinstance(way, ByAdmin):
            told.proving = True
    if told.proving and probing is not None:
        put_server(edited, PROBE_ID, probe_server(probing.port, probing.path))
    if told.placed and household is not None and household.answers:
        maintenance.put(edited, household.port, household.answers)
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
    probing = probing_for(before, root, root_in_caddy, proof)
    edited, told = wanted(before, ways, probing, household)

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
        await asyncio.to_thread(_write, root / PROOF_FILE, proof or "")
    return told


# -- the proof -----------------------------------------------------------------------------------------


async def proof_of(admin: Admin, path: str) -> str | None:
    """What a proof is valid for: this process of Caddy and this path. None where Caddy does not tell."""
    started = await admin.process_start()
    return None if started is None else f"{started} {path}"


def probing_for(config: Json | None, root: Path, root_in_caddy: str | None, proof: str | None) -> Probing | None:
    """The probe's server that is there, or is needed; None where all is proved."""
    port = server_port(config, PROBE_ID)
    if port is None and proof is not None and _proved(root) == proof:
        return None
    path = f"{root_in_caddy or root}/{PROBE_FILE}"
    return Probing(port or free_port(path), path)


def _proved(root: Path) -> str:
    try:
        return (root / PROOF_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""


async def _undo(admin: Admin, ways: Sequence[Way], before: Json | None, written: Json) -> None:
    """Bring back what was there before; where somebody changed it since, only take out what is ours alone."""
    added = {PROBE_ID, *(way.route.id for way in ways)} - route_ids(before)

    def back(config: Json | None) -> Json:
        return before or {} if config == written else remove(config, added)

    with contextlib.suppress(ProxyError):
        await admin.edit(back)


async def probe(admin: Admin, port: int, root: Path, path: str) -> None:
    """Raises `SlotsNotResolvedError` or `CaddyTooOldError` when this Caddy cannot do what slots need."""
    nonce = secrets.token_hex(16)
    counted: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    async with _listener(admin, nonce, counted) as dial:
        file = root / PROBE_FILE
        await asyncio.to_thread(_write, file, dial)
        try:
            said = await _ask(port, path)
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)
    if said != nonce:
        raise SlotsNotResolvedError(_not_resolved(path, f"another server answered ({said[:80]!r})"))
    if not counted.done() or counted.result() != 1:
        raise CaddyTooOldError(f"this Caddy does not count the requests open behind slots. {TOO_OLD}")


def _not_resolved(path: str, what: str) -> str:
    return (
        f"Caddy does not reach the address that the file {path} holds: {what}. Caddy's user must be able to read "
        "that file under that very path: check the modes of the directories above it, the unit's PrivateTmp= and "
        "ProtectHome=; a missing mount if Caddy runs in a container (caddy.slots_path is where it sees the slots); and "
        "that Caddy is 2.11.2 or newer"
    )


@contextlib.asynccontextmanager
async def _listener(admin: Admin, nonce: str, counted: asyncio.Future[int | None]) -> AsyncIterator[str]:
    """An upstream that answers `nonce`, and looks at Caddy's count of itself while it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ProxyError):
            await reader.readuntil(b"\r\n\r\n")
            rows = [row.num_requests for row in await admin.upstreams() if row.address == dial]
            if not counted.done():
                counted.set_result(rows[0] if rows else None)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(nonce)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + nonce.encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    dial = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield dial


async def _ask(port: int, path: str) -> str:
    """What Caddy's probe server answers."""
    deadline = asyncio.get_running_loop().time() + _LISTENING
    async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client:
        while True:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/")
            except httpx.ConnectError as error:
                if asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(0.05)
                    continue
                raise SlotsNotResolvedError(
                    f"Caddy took our configuration but does not listen on 127.0.0.1:{port} of this host. In a "
                    "container it must share the host's network, or its slots cannot be proved; else set "
                    'control = "admin"'
                ) from error
            except (httpx.HTTPError, OSError) as error:
                raise SlotsNotResolvedError(_not_resolved(path, str(error) or type(error).__name__)) from error
            if answer.status_code != 200:
                raise SlotsNotResolvedError(_not_resolved(path, f"it answers {answer.status_code}"))
            return answer.text


def _write(file: Path, text: str) -> None:
    scratch = file.with_suffix(".new")
    try:
        scratch.unlink(missing_ok=True)
        scratch.write_text(text)
        scratch.chmod(0o644)
        scratch.rename(file)
    except OSError as error:
        raise SlotError(f"{file} cannot be written: {error.strerror}. Is the disk full, or not ours?") from error


def free_port(purpose: str | None = None) -> int:
    """A port that nobody listens on now, and that no outgoing connection will be given: Caddy must be able to listen
    there again whenever it is restarted. For the same purpose the same one, while it is free."""
    while True:
        number = secrets.randbelow(len(_PORTS)) if purpose is None else zlib.crc32(purpose.encode()) % len(_PORTS)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", _PORTS.start + number))
            return _PORTS.start + number
        purpose = None


def maintenance_port(slots_path: str) -> int:
    """Where the static answers of whoever has these slots are given."""
    return free_port(f"maintenance {slots_path}")


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
