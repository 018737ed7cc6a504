"""What runs here: Caddy's configuration, the Engines' containers, and what the instances answer. Only looks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from trafficd.draft import caddy
from trafficd.draft.health import Question
from trafficd.draft.machines import machines
from trafficd.draft.services import Seen, hosts_of, questions
from trafficd.ssh.settings import Settings
from trafficd.swap.docker.engines import Certificates

USUAL_FILES = (Path("Caddyfile"), Path("/etc/caddy/Caddyfile"))
_ASK = 2.0  # s for one question to an instance


@dataclass(frozen=True)
class Sources:
    """Where to look; see `caddy.found` for the first two. `certificates` are for Engines at tcp://."""

    admin: str | None = None
    caddyfile: Path | None = None
    engines: tuple[str, ...] = ()
    certificates: Certificates | None = None
    usual_files: tuple[Path, ...] = USUAL_FILES
    ssh: Settings = field(default_factory=Settings)


async def look(sources: Sources) -> Seen:
    """Everything that a draft is made of. Raises `ConfigError` or `ProxyError` where Caddy's side cannot be read."""
    seen = await caddy.found(sources.admin, sources.caddyfile, sources.usual_files)
    found = await machines(sources.engines, hosts_of(seen.config), sources.certificates, sources.ssh)
    seen = replace(seen, machines=found)
    return replace(seen, answers=await _answers(questions(seen)))


async def _answers(asked: Sequence[Question]) -> Mapping[tuple[str, str], int | str]:
    """Each instance is asked at each path, as a probe would ask, one after the other."""
    found: dict[tuple[str, str], int | str] = {}

    async def ask(one: Question, dial: str) -> None:
        scheme = "https" if one.tls else "http"
        headers = {**one.headers, "Host": one.host or dial, "User-Agent": "trafficd-init"}
        for path in one.paths:
            found[dial, path] = await _status(client, f"{scheme}://{dial}{path}", headers)
            if isinstance(found[dial, path], str):
                break  # it does not answer here, and need not be waited for again

    # Certificates are not looked at: nothing is sent that is a secret, and nothing is believed but a status.
    async with httpx.AsyncClient(verify=False, trust_env=False, timeout=_ASK) as client:
        await asyncio.gather(*(ask(one, dial) for one in asked for dial in one.dials))
    return found


async def _status(client: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> int | str:
    try:
        async with asyncio.timeout(_ASK), client.stream("GET", url, headers=headers) as answer:
            return answer.status_code
    except TimeoutError:
        return f"no answer within {_ASK:g} s"
    except httpx.ConnectError:
        return "nothing answers there"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return str(error) or type(error).__name__
