"""One Engine: its calls, each bounded, and its errors in our words.

Only what Docker 20.10 and Podman's compatible API both have is used. A call that came to no answer may have been
carried out: whoever calls looks again before it goes on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from trafficd.errors import HostRefusedError, HostUnreachableError, TrafficdError
from trafficd.swap.docker import definition as words
from trafficd.swap.docker.credentials import credentials, full_name
from trafficd.swap.docker.definition import Definition, Json
from trafficd.swap.docker.engines import Engines

if TYPE_CHECKING:
    import aiodocker

log = logging.getLogger("trafficd.docker")

_PATIENCE = 60.0  # s for one call that only works on the Engine's own books
_BEYOND = 30.0  # s beyond the grace that a stop may take
GRACE = 10  # s that an Engine gives where nobody said more


class EngineError(TrafficdError):
    """The Engine refused a call; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(TrafficdError):
    """The Engine gave no answer: whether it did what it was asked for is not known."""


class Engine:
    """The Engine at `url`."""

    def __init__(self, engines: Engines, url: str) -> None:
        self._engines = engines
        self.url = url

    @asynccontextmanager
    async def _call(self, what: str, patience: float | None = _PATIENCE) -> AsyncIterator[aiodocker.Docker]:
        """A client, for one call. Raises `EngineError` or `UnreachableError`."""
        import aiodocker
        import aiohttp

        try:
            async with asyncio.timeout(patience):
                yield await self._engines.client(self.url)
        except aiodocker.DockerError as error:
            if error.status in (502, 503, 900):  # a proxy's words, and the library's for a connection that broke
                self._engines.lost(self.url)
                raise UnreachableError(f"{self.url}: {what}: {error.message}") from error
            raise EngineError(f"{what}: {error.message} ({self.url})", error.status) from error
        except HostRefusedError:
            raise  # whoever asks again is refused again
        except (aiohttp.ClientError, HostUnreachableError, OSError, TimeoutError) as error:
            self._engines.lost(self.url)
            raise UnreachableError(f"{self.url}: {what}: {error or type(error).__name__}") from error

    # -- containers ------------------------------------------------------------------------------------

    async def listing(self, **labels: str) -> list[Json]:
        """All containers, running or not, with these of our labels."""
        filters = {"label": [f"{words.PREFIX}{name}={value}" for name, value in labels.items()]}
        given = {"filters": json.dumps(filters)} if labels else {}
        async with self._call("list containers") as client:
            return [container._container for container in await client.containers.list(all="true", **given)]

    async def inspect(self, container: str) -> Json | None:
        """What the Engine knows of a container; None when there is none."""
        try:
            async with self._call(f"look at container {container[:40]}") as client:
                return await client.containers.container(container).show()
        except EngineError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, made: Definition) -> str:
        """Make a container; its id."""
        async with self._call(f"create container {made.name}") as client:
            return (await client.containers.create(made.body, name=made.name)).id

    async def has_network(self, name: str) -> bool:
        try:
            async with self._call(f"look at network {name}") as client:
                await client.networks.get(name)
        except EngineError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def join(self, container: str, network: str, endpoint: Mapping[str, Any]) -> None:
        async with self._call(f"join network {network}") as client:
            found = await client.networks.get(network)
            await found.connect({"Container": container, "EndpointConfig": dict(endpoint)})

    async def start(self, container: str) -> None:
        """Start it; nothing happens where it runs."""
        async with self._call("start the container") as client:
            await client.containers.container(container).start()

    async def stop(self, container: str, inspect: Json) -> None:
        """Stop it in good order: its signal, its grace, and then the end. Nothing happens where it does not run."""
        grace = inspect["Config"].get("StopTimeout") or GRACE
        if (inspect["HostConfig"].get("RestartPolicy") or {}).get("Name") == "always":
            await self._stays_stopped(container)
        try:
            async with self._call("stop the container", grace + _BEYOND) as client:
                await client.containers.container(container).stop(t=int(grace))
        except EngineError as error:
            if error.status not in (304, 404):
                raise

    async def _stays_stopped(self, container: str) -> None:
        """Whoever restarts the Engine must not start an old version. The library has no call for it."""
        policy = {"RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0}}
        try:
            async with self._call("change the restart policy") as client:
                await client._query_json(f"containers/{container}/update", "POST", data=policy)
        except EngineError as error:  # an Engine that cannot: it is said, and no reason to fail
            log.warning("%s keeps its restart policy, and may start again with its Engine: %s", container[:12], error)

    async def remove(self, container: str) -> None:
        """Remove it, running or not. Its volumes stay."""
        try:
            async with self._call("remove the container") as client:
                await client.containers.container(container).delete(force=True)
        except EngineError as error:
            if error.status != 404:
                raise

    async def logs(self, container: str, lines: int) -> list[str]:
        """The last lines that it wrote."""
        async with self._call("read the container's log") as client:
            pieces = await client.containers.container(container).log(stdout=True, stderr=True, tail=lines)
        return "".join(pieces).splitlines()[-lines:]

    # -- images ----------------------------------------------------------------------------------------

    async def image(self, name: str) -> Json | None:
        """What the Engine knows of an image; None when it does not have it."""
        try:
            async with self._call(f"look at image {name}") as client:
                return await client.images.inspect(name)
        except EngineError as error:
            if error.status == 404:
                return None
            raise

    async def pull(self, name: str) -> None:
        """Pull an image, with the credentials that Docker's own configuration has for its registry."""
        auth = await credentials(name)
        async with self._call(f"pull {name}", None) as client:
            await client.images.pull(full_name(name) if auth else name, auth=auth)

    async def remove_image(self, name: str) -> None:
        """Remove an image's name, and the image where that was its last; not where anything uses it."""
        try:
            async with self._call(f"remove image {name}") as client:
                await client.images.delete(name)
        except EngineError as error:
            if error.status not in (404, 409):
                raise
