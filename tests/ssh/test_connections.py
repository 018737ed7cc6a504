"""Connections to a real sshd: keys, sharing, what is said when they fail."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import asyncssh
import pytest

from tests.ssh.sshd import NEEDS_SSHD, Sshd
from trafficd.errors import HostRefusedError, HostUnreachableError
from trafficd.ssh.connections import Connections
from trafficd.ssh.forward import Forwards
from trafficd.ssh.host import Host
from trafficd.ssh.settings import Settings

pytestmark = NEEDS_SSHD


async def said(connections: Connections, host: Host, command: str) -> str:
    async with connections.session(host, command) as process:
        found = await process.stdout.read()
        await process.wait_closed()
        return found.decode()


async def refusal(settings: Settings, host: Host) -> str:
    connections = Connections(settings)
    try:
        with pytest.raises(HostUnreachableError) as caught:
            await connections.connect(host)
    finally:
        await connections.aclose()
    return f"{type(caught.value).__name__}: {caught.value}"


async def test_one_connection_is_shared(sshd: Sshd, connections: Connections) -> None:
    first, second = await asyncio.gather(connections.connect(sshd.host), connections.connect(sshd.host))
    assert first is second
    assert await asyncio.gather(*(said(connections, sshd.host, f"echo {n}") for n in range(12))) == [
        f"{n}\n" for n in range(12)
    ]
    assert await connections.connect(sshd.host) is first


@pytest.mark.slow
async def test_no_more_sessions_at_once_than_allowed(sshd: Sshd, connections: Connections) -> None:
    """sshd would refuse the third, and `reserved` has a place of its own."""
    connections.settings = dataclasses.replace(sshd.settings, max_sessions=2)
    sshd.stop()
    sshd.start("MaxSessions 3")
    found = await asyncio.gather(*(said(connections, sshd.host, "sleep 0.2; echo x") for _ in range(5)))
    assert found == ["x\n"] * 5
    async with connections.session(sshd.host, "sleep 5"), connections.session(sshd.host, "sleep 5"):  # noqa: SIM117
        async with connections.session(sshd.host, "echo off", reserved=True) as process:
            assert await process.stdout.read() == b"off\n"


async def test_a_lost_connection_is_told_and_made_anew(sshd: Sshd, connections: Connections) -> None:
    first = await connections.connect(sshd.host)
    waiting = asyncio.create_task(said(connections, sshd.host, "echo a; sleep 20"))
    await asyncio.sleep(0.3)
    sshd.cut()
    try:
        assert await waiting == "a\n"  # an end without an exit status
    except HostUnreachableError as error:
        assert "was lost" in str(error)  # noqa: PT017 - either is seen
    assert await said(connections, sshd.host, "echo b") == "b\n"
    assert await connections.connect(sshd.host) is not first


@pytest.mark.slow
async def test_one_caller_that_gives_up_does_not_disturb_the_others(sshd: Sshd, connections: Connections) -> None:
    first = asyncio.create_task(connections.connect(sshd.host))
    second = asyncio.create_task(connections.connect(sshd.host))
    await asyncio.sleep(0)
    first.cancel()
    assert not (await second).is_closed()


async def test_an_unknown_host_key_is_refused_with_the_remedy(sshd: Sshd) -> None:
    offered = asyncssh.read_public_key(str(sshd.directory / "host_key")).get_fingerprint()
    sshd.known_hosts.write_text(
        "other ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9E6nRgVw7DXIVTc8p5tPWzXTLWNLUhsdbIYNjTkWPv\n"
    )
    why = await refusal(sshd.settings, sshd.host)
    assert why.startswith("HostRefusedError: ")
    assert f"({offered}) is not in {sshd.known_hosts}" in why
    assert f"`ssh-keyscan -p {sshd.port} 127.0.0.1 >> {sshd.known_hosts}`" in why


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
async def test_a_changed_host_key_is_refused_with_the_remedy(sshd: Sshd, algorithm: str) -> None:
    before = sshd.known_hosts.read_bytes()
    sshd.stop()
    sshd.new_host_key(algorithm)
    sshd.start()
    assert sshd.known_hosts.read_bytes() == before
    why = await refusal(sshd.settings, sshd.host)
    assert why.startswith("HostRefusedError: ")
    assert "somebody stands between" in why
    assert f"`ssh-keygen -R '[127.0.0.1]:{sshd.port}' -f {sshd.known_hosts}`" in why
    assert f"ssh-keygen -F '[127.0.0.1]:{sshd.port}'" in why


async def test_of_several_host_keys_the_known_one_is_asked_for(sshd: Sshd) -> None:
    """sshd itself, and our own list, would rather take another."""
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(sshd.directory / "other_key"))
    (sshd.directory / "other_key").chmod(0o600)
    sshd.stop()
    sshd.known_hosts.write_bytes(sshd.new_host_key("ecdsa-sha2-nistp256"))
    sshd.start(f"HostKey {sshd.directory}/other_key")
    connections = Connections(sshd.settings)
    assert await said(connections, sshd.host, "echo in") == "in\n"
    await connections.aclose()


async def test_a_host_that_takes_none_of_our_keys(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (sshd.directory / "authorized_keys").write_text("")
    why = await refusal(sshd.settings, sshd.host)
    assert why.startswith("HostRefusedError: ")
    assert f"takes none of our keys ({sshd.identity}" in why


async def test_a_key_with_a_passphrase_is_not_asked_about(sshd: Sshd) -> None:
    argv = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(sshd.identity)]
    await (await asyncio.create_subprocess_exec(*argv, stdout=-3)).wait()
    why = await refusal(sshd.settings, sshd.host)
    assert why.startswith("HostRefusedError: ")
    assert "nobody is asked for a passphrase" in why


@pytest.mark.slow
async def test_files_of_ours_that_are_not_there_are_named_at_once(sshd: Sshd, tmp_path: Path) -> None:
    none = tmp_path / "none"
    why = await refusal(dataclasses.replace(sshd.settings, known_hosts=none), sshd.host)
    assert why.startswith("HostRefusedError: ")
    assert f"`ssh-keyscan -p {sshd.port} 127.0.0.1 >> {none}`" in why
    why = await refusal(dataclasses.replace(sshd.settings, known_hosts=tmp_path), sshd.host)
    assert f"{tmp_path} (ssh.known_hosts): Is a directory" in why
    why = await refusal(dataclasses.replace(sshd.settings, identity_files=(none,)), sshd.host)
    assert why.startswith("HostRefusedError: ")
    assert f"a key of ssh.identity_files cannot be read: {none}" in why


async def test_a_key_of_an_agent(sshd: Sshd, tmp_path: Path) -> None:
    """Of asyncssh's own agent protocol: a real ssh-agent, if there is one."""
    agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", str(tmp_path / "agent"), stdout=-3)
    try:
        async with asyncio.timeout(10):
            while not (tmp_path / "agent").exists():
                await asyncio.sleep(0.02)
        async with asyncssh.connect_agent(str(tmp_path / "agent")) as client:
            await client.add_keys([str(sshd.identity)])
        sshd.identity.unlink()
        other = tmp_path / "other"
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(other))
        settings = dataclasses.replace(sshd.settings, identity_files=(other,), agent=tmp_path / "agent")
        connections = Connections(settings)
        assert await said(connections, sshd.host, "echo in") == "in\n"
        await connections.aclose()
    finally:
        agent.kill()
        await agent.wait()


async def test_nobody_there(sshd: Sshd) -> None:
    sshd.stop()
    why = await refusal(sshd.settings, sshd.host)
    assert why.startswith("HostUnreachableError: ")
    assert f"ssh://{sshd.host.user}@127.0.0.1:{sshd.port} cannot be reached" in why


async def test_a_host_that_says_nothing(sshd: Sshd) -> None:
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    settings = dataclasses.replace(sshd.settings, connect_timeout=0.3)
    why = await refusal(settings, sshd.host._replace(port=silent.sockets[0].getsockname()[1]))
    assert why.endswith("does not answer within 0.3 s (ssh.connect_timeout)")
    silent.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


# -- sockets ---------------------------------------------------------------------------------------------


async def test_a_socket_there_answers_here(sshd: Sshd, connections: Connections, tmp_path: Path) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())  # until the other side has ended: half-closed streams pass
        writer.close()
        await writer.wait_closed()

    async def ask(text: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(text)
        writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    remote = str(tmp_path / "engine.sock")
    server = await asyncio.start_unix_server(upper, remote)
    forwards = Forwards(connections)
    path, again = await asyncio.gather(*(forwards.forward_unix(sshd.host, remote) for _ in range(2)))
    assert path == again
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    large = b"x" * 1_000_000
    assert tuple(await asyncio.gather(ask(b"hello"), ask(large))) == (b"HELLO", large.upper())
    sshd.cut()
    await asyncio.sleep(0.1)
    assert await ask(b"anew") == b"ANEW"  # the same path, over another connection
    server.close()
    await forwards.aclose()
    assert not path.parent.exists()


async def test_a_socket_that_is_not_there(sshd: Sshd, connections: Connections, tmp_path: Path) -> None:
    forwards = Forwards(connections)
    with pytest.raises(HostUnreachableError, match="none.sock on ssh://.* cannot be reached"):
        await forwards.forward_unix(sshd.host, str(tmp_path / "none.sock"))
    await forwards.aclose()


def test_refused_is_unreachable() -> None:
    assert issubclass(HostRefusedError, HostUnreachableError)
