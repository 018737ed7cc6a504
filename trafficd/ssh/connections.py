"""One connection per host, shared by all that is done there.

It is made when it is first needed, and again when it was lost. Host keys are always verified, against the known_hosts
file and nothing else; no password or passphrase is ever asked for; no configuration of ssh(1) is read, since that may
name programs to run. What fails is told as `HostUnreachableError`, or `HostRefusedError` where trying again would be in
vain.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trafficd.errors import HostRefusedError, HostUnreachableError
from trafficd.ssh.host import PORT, Host
from trafficd.ssh.settings import Settings

if TYPE_CHECKING:
    import asyncssh

_MISSED = 3  # keep-alives without an answer, after which a connection is lost
# Beside those of the keys that are known, which come first: a host that has none of them any more could otherwise not
# even show its new key, and hangs up without a word.
_ANY_KEY = "+ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256"
_TRIES, _AGAIN = 20, 0.1  # how often a session that sshd refuses is asked for, and s in between
_COMPARE = "compare its fingerprint with the one that `ssh-keygen -lf` prints on the host itself"
_CLOSED_BY = 2.0  # s that the other side is given to see a connection closed


class _Link:
    """What is known of one host: the last attempt to connect, and how many sessions may be open."""

    def __init__(self, sessions: int) -> None:
        self.attempt: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self.sessions = asyncio.Semaphore(sessions)
        self.reserved = asyncio.Semaphore(1)

    @property
    def usable(self) -> bool:
        """Whether the attempt is under way, or has led to a connection that stands."""
        attempt = self.attempt
        if attempt is None or not attempt.done():
            return attempt is not None
        return not attempt.cancelled() and attempt.exception() is None and not attempt.result().is_closed()


class Connections:
    """The connections to all hosts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._links: dict[Host, _Link] = {}

    async def connect(self, host: Host) -> asyncssh.SSHClientConnection:
        """The connection to a host. Raises `HostUnreachableError`."""
        link = self._link(host)
        if not link.usable:
            link.attempt = asyncio.create_task(self._open(host))
            link.attempt.add_done_callback(_looked_at)
        assert link.attempt is not None, "an attempt was just made"
        # Others may wait for it as well: one of them being cancelled is no reason to break it off.
        return await asyncio.shield(link.attempt)

    @contextlib.asynccontextmanager
    async def session(
        self, host: Host, command: str, *, reserved: bool = False
    ) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        """A program of the login shell, its standard error joined to its output; ended sessions make room for others.

        Leaving it closes the session; what runs there is not told. `reserved` is the one that is kept for calling off
        what the others do. Raises `HostUnreachableError`, also out of what is done within.
        """
        link = self._link(host)
        async with link.reserved if reserved else link.sessions:
            connection = await self.connect(host)
            with told_of(host):
                async with asyncio.timeout(self.settings.connect_timeout):
                    process = await _begun(connection, command)
                try:
                    yield process
                finally:
                    process.close()

    async def aclose(self) -> None:
        """Close all connections. What runs on the hosts goes on."""
        links, self._links = self._links, {}
        attempts = [link.attempt for link in links.values() if link.attempt is not None]
        for attempt in attempts:
            attempt.cancel()
        for found in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(found, BaseException):
                continue
            found.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSED_BY):
                    await found.wait_closed()

    def _link(self, host: Host) -> _Link:
        return self._links.setdefault(host, _Link(self.settings.max_sessions))

    async def _open(self, host: Host) -> asyncssh.SSHClientConnection:
        import asyncssh

        known, keys = self.settings.known_hosts.expanduser(), self.settings.identity_files
        await asyncio.to_thread(_look_at_files, host, known, [key.expanduser() for key in keys])
        offered: list[str] = []

        class Client(asyncssh.SSHClient):
            def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
                """Asked about a key that the file does not have: never trusted, but named."""
                offered.append(key.get_fingerprint())
                return False

        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                return await asyncssh.connect(
                    host.name,
                    host.port,
                    username=host.user,
                    config=None,
                    client_factory=Client,
                    known_hosts=str(known),
                    server_host_key_algs=_ANY_KEY,
                    client_keys=[str(key.expanduser()) for key in keys] if keys else (),
                    agent_path=str(self.settings.agent.expanduser()) if self.settings.agent else (),
                    password_auth=False,
                    kbdint_auth=False,
                    host_based_auth=False,
                    gss_kex=False,
                    gss_auth=False,
                    login_timeout=self.settings.connect_timeout,
                    keepalive_interval=self.settings.keepalive,
                    keepalive_count_max=_MISSED,
                )
        except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
            changed = await asyncio.to_thread(_is_known, str(known), host)
            why = offered[0] if offered else error.reason
            raise HostRefusedError(distrusted(host, str(known), why, changed=changed)) from error
        except asyncssh.PermissionDenied as error:
            raise HostRefusedError(_denied(host, self.settings)) from error
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise HostRefusedError(
                f"{host}: a key of ssh.identity_files cannot be used: {error}; nobody is asked for a passphrase here: "
                "name a key without one, or load it into an agent (ssh.agent)"
            ) from error
        except TimeoutError:
            within = f"{self.settings.connect_timeout:g} s (ssh.connect_timeout)"
            raise HostUnreachableError(f"{host} does not answer within {within}") from None
        except (asyncssh.Error, OSError, ValueError) as error:
            raise HostUnreachableError(f"{host} cannot be reached: {_said(error)}") from error


def _look_at_files(host: Host, known_hosts: Path, keys: Sequence[Path]) -> None:
    """Raises `HostRefusedError`: trying again would not bring a file of ours that is not there."""
    for file in (known_hosts, *keys):
        try:
            file.read_bytes()
        except OSError as error:
            if file != known_hosts:
                why = (
                    f"a key of ssh.identity_files cannot be read: {file}: {error.strerror}; mend its path, or its owner"
                )
                raise HostRefusedError(f"{host}: {why}") from error
            remedy = "mend its path, or its owner"
            if isinstance(error, FileNotFoundError):
                remedy = f"make it with `{_scan(host, str(file))}`, and {_COMPARE}"
            raise HostRefusedError(
                f"{host}: no host key is known: {file} (ssh.known_hosts): {error.strerror}: {remedy}"
            ) from error


def _looked_at(attempt: asyncio.Task[asyncssh.SSHClientConnection]) -> None:
    """A failure is told to those who wait; where nobody does any more, it is no news either."""
    if not attempt.cancelled():
        attempt.exception()


async def _begun(connection: asyncssh.SSHClientConnection, command: str) -> asyncssh.SSHClientProcess[bytes]:
    """A session. sshd counts one that has ended until it has reaped its shell, so a refusal may be over in a moment."""
    import asyncssh

    for _ in range(_TRIES - 1):
        with contextlib.suppress(asyncssh.ChannelOpenError):
            return await connection.create_process(command, encoding=None, stderr=asyncssh.STDOUT)
        await asyncio.sleep(_AGAIN)
    return await connection.create_process(command, encoding=None, stderr=asyncssh.STDOUT)


@contextlib.contextmanager
def told_of(host: Host) -> Iterator[None]:
    """What goes wrong on a connection, as `HostUnreachableError`."""
    import asyncssh

    try:
        yield
    except asyncssh.ChannelOpenError as error:
        raise HostUnreachableError(
            f"{host} opens no further channel: {error.reason}; see MaxSessions in its sshd_config, and ssh.max_sessions"
        ) from error
    except (asyncssh.Error, OSError) as error:  # a time-out, too
        raise HostUnreachableError(f"the connection to {host} was lost: {_said(error)}") from error


def _scan(host: Host, known_hosts: str) -> str:
    port = "" if host.port == PORT else f"-p {host.port} "
    return f"ssh-keyscan {port}{host.name} >> {known_hosts}"


def distrusted(host: Host, known_hosts: str, why: str, *, changed: bool) -> str:
    """Why a host key is refused, and the remedy."""
    scan = _scan(host, known_hosts)
    if not changed:
        return (
            f"{host}: its host key ({why}) is not in {known_hosts} (ssh.known_hosts): {_COMPARE}, and then add it: "
            f"`{scan}`"
        )
    return (
        f"{host}: its host key ({why}) is not the one in {known_hosts} (ssh.known_hosts; `ssh-keygen -F "
        f"'{host.known_as}' -f {known_hosts}` shows it): either the host was set up anew, or somebody stands between. "
        f"Where it is the first, {_COMPARE}, and then `ssh-keygen -R '{host.known_as}' -f {known_hosts}` and `{scan}`"
    )


def _is_known(known_hosts: str, host: Host) -> bool:
    """Whether the file has keys of this host."""
    import asyncssh

    try:
        found = asyncssh.match_known_hosts(known_hosts, host.name, "", None if host.port == PORT else host.port)
    except (OSError, ValueError):
        return False
    return any(found)


def _denied(host: Host, settings: Settings) -> str:
    keys = ", ".join(str(key) for key in settings.identity_files) or "the keys in ~/.ssh"
    agent = f"the agent at {settings.agent}" if settings.agent else "the agent at SSH_AUTH_SOCK, if any"
    return (
        f"{host} takes none of our keys ({keys}, and {agent}): add the public key to ~{host.user}/.ssh/authorized_keys "
        "there, or name another one (ssh.identity_files)"
    )


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
