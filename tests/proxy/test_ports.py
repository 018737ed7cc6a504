"""A port for a server of our own is nobody else's, whether they listen there now or not."""

from __future__ import annotations

import socket

from proxy import ports
from proxy.handler import Json
from proxy.proof import probing_for
from tests.proxy.caddy import RealCaddy


def test_a_purpose_has_its_port_as_long_as_nobody_else_has_it() -> None:
    first = ports.free_port("this")
    assert ports.free_port("this") == first
    assert ports.free_port("that") != first
    second = ports.free_port("this", {first})
    assert second != first
    assert ports.free_port("this", {first}) == second
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", first))
        assert ports.free_port("this") == second


def test_the_ports_of_addresses() -> None:
    addresses = [":80", "10.0.0.1:8080", "[fd00::1]:81", "tcp/:8000-8002", "unix//run/x.sock", "udp/[::]:443", "x"]
    assert sorted(ports.ports_of(addresses)) == [80, 81, 443, 8000, 8001, 8002, 8080]


def test_ports_that_caddys_servers_have() -> None:
    servers = {"a": {"listen": [":80"]}, "b": {"listen": ["127.0.0.1:81"]}, "c": {}}
    config: Json = {"apps": {"http": {"servers": servers}}}
    assert ports.listened_on(config, but="b") == {80}
    assert ports.listened_on(None, but="b") == frozenset()


async def test_the_probe_is_not_where_the_service_is_to_listen(caddy: RealCaddy) -> None:
    """Its port depends on the path alone, so that one would be chosen at every start."""
    wanted = probing_for(None, caddy.root, None, None, frozenset())
    assert wanted is not None
    await caddy.serve({"a": 1}, listen=(f"127.0.0.1:{wanted.port}",))
    config, _ = await caddy.admin.config()
    # And one that has the port already makes room.
    taken = probing_for(config, caddy.root, None, None, frozenset())
    assert taken is not None
    assert probing_for(config, caddy.root, None, None, frozenset({taken.port})) != taken
