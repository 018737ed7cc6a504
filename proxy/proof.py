"""The proof that slots work with the Caddy at hand.

Two facts decide it: Caddy reads our files when it dials, and it counts what is open behind them. Neither is told by a
version number (a build need not know its own), so both are tried: a small server on the loopback, written together
with the routes and left there, dials what a file of ours says, and we answer behind it while looking at Caddy's count.
That needs no write when the daemon starts again. Where somebody's reload has taken that server out, what was proved of
this very Caddy process still holds, and the server is not written again for it.

Where that server would be the only thing to write (a Caddyfile imports the slots), the service's own traffic is looked
at first: a count that rises behind an address to which only slots lead shows both facts, and costs nobody a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable, Set
from dataclasses import dataclass
from pathlib import Path

import httpx

from proxy.admin import TOO_OLD, Admin
from proxy.errors import CaddyTooOldError, ProxyError, SlotError, SlotsNotResolvedError
from proxy.handler import PROBE_ID, Json, server_port, static_dials
from proxy.model import NOBODY
from proxy.ports import free_port, listened_on
from proxy.slots import SlotDirectory

PROBE_FILE = ".probe"
PROOF_FILE = ".proved"
_TIMEOUT = 5.0  # s for one probe
_LISTENING = 2.0  # s that Caddy may take until a new server of its listens
_LOOKING = 4.0  # s that traffic is looked at for
_OLD_TRAFFIC = 2.0  # s of it in which what a reload replaced may still be given new requests (over HTTP/2)
_LOOK = 0.02  # s between two looks


@dataclass(frozen=True)
class Probing:
    """The probe's server: its port, and the file it dials by, as Caddy sees it."""

    port: int
    path: str


async def proof_of(admin: Admin, path: str) -> str | None:
    """What a proof is valid for: this process of Caddy and this path. None where Caddy does not tell."""
    started = await admin.process_start()
    return None if started is None else f"{started} {path}"


def probing_for(
    config: Json | None, root: Path, root_in_caddy: str | None, proof: str | None, taken: Set[int]
) -> Probing | None:
    """The probe's server that is there, or is needed; None where all is proved. `taken`: ports that are somebody's."""
    taken = taken | listened_on(config, but=PROBE_ID)
    port = server_port(config, PROBE_ID)
    if port in taken:
        port = None  # somebody wants it by now
    if port is None and proof is not None and _proved(root) == proof:
        return None
    path = f"{root_in_caddy or root}/{PROBE_FILE}"
    return Probing(port or free_port(path, taken), path)


async def keep(root: Path, proof: str | None) -> None:
    """Remember what was proved, and of which Caddy."""
    await asyncio.to_thread(_write, root / PROOF_FILE, proof or "")


def _proved(root: Path) -> str:
    try:
        return (root / PROOF_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""


async def shown_by_traffic(admin: Admin, directories: Iterable[SlotDirectory]) -> bool:
    """Whether requests that come meanwhile show that Caddy goes by these slots, and counts what it sends there.

    False where nobody came: that says nothing. A count that only falls is what was there before the slots were.
    """
    tables = await asyncio.to_thread(lambda: [directory.read() or () for directory in directories])
    dials = {dial for table in tables for dial in table} - {NOBODY}
    loop = asyncio.get_running_loop()
    begin = loop.time()
    least: dict[str, int] = {}
    while dials and (looked := loop.time() - begin) < _LOOKING:
        open_on = {row.address: row.num_requests for row in await admin.upstreams()}
        for dial in dials:
            now = open_on.get(dial, 0)
            if looked > _OLD_TRAFFIC and now > least.get(dial, now):
                config, _ = await admin.config()
                return dial not in static_dials(config)
            least[dial] = min(now, least.get(dial, now))
        await asyncio.sleep(_LOOK)
    return False


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
