"""From a service's section to its way of standing in Caddy's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from proxy.handler import Route, Transport
from proxy.maintenance import StaticAnswer
from proxy.ports import ports_of
from proxy.ways import Adopted, ByAdmin, Imported, Own, Way
from trafficd.config import Config, ServiceSection


def slots_root(config: Config) -> Path:
    """The directory of all slots."""
    return config.daemon.state_dir.absolute() / "slots"


def way_of(name: str, config: Config, weights: Callable[[], Mapping[str, int]] = dict) -> Way:
    """A service's way. `weights`: those that a route over addresses begins with, where there is none yet."""
    section = config.services[name]
    assert section.routed, f"{name} has no route"
    route = _route_of(name, section, config.caddy.slots_path or str(slots_root(config)))
    if section.logged:
        route = replace(route, access_log=config.caddy.access_log)
    if section.control == "admin":
        return ByAdmin(route, weights)
    match section.route:
        case "adopt":
            return Adopted(route, section.adopt_id)
        case "import":
            return Imported(route)
        case _:
            return Own(route)


def ports_in(config: Config) -> frozenset[int]:
    """The ports that the services listen on and the upstreams run at, by the configuration."""
    sections = config.services.values()
    dials = [dial for section in sections for one in section.upstreams for dial in (one.dial, one.spare_dial)]
    listened = [address for section in sections for address in section.listen]
    return frozenset(ports_of([*filter(None, dials), *listened]))


def _route_of(name: str, section: ServiceSection, slots_path: str) -> Route:
    transport = section.transport
    return Route(
        service=name,
        slots_path=f"{slots_path}/{name}/current",
        slots=section.slots,
        hosts=tuple(section.hosts),
        listen=tuple(section.listen),
        tls=section.tls_mode,
        affinity=section.affinity,
        try_duration=section.try_duration,
        try_interval=section.try_interval,
        stream_close_delay=section.stream_close_delay,
        pins=tuple(pin.pin(name) for name, pin in section.all_pins.items()),
        transport=Transport(
            tls=transport.tls,
            server_name=transport.tls_server_name,
            insecure=transport.tls_insecure,
            ca=str(transport.tls_ca) if transport.tls_ca else None,
            h2c=transport.h2c,
            dial_timeout=transport.dial_timeout,
            response_header_timeout=transport.response_header_timeout,
            read_timeout=transport.read_timeout,
            write_timeout=transport.write_timeout,
            keepalive=transport.keepalive,
        ),
    )


def static_answer(section: ServiceSection) -> StaticAnswer:
    """What a service answers in maintenance."""
    wanted = section.maintenance
    return StaticAnswer(wanted.status, wanted.body, wanted.content_type, wanted.retry_after)
