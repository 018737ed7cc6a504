"""From a service's section to what runs it: pool, probe, driver, hooks, engine and operator.

The daemon's adapters that all services share (Caddy's admin API, the journal, the runner of commands) are made here
as well; everything else gets them handed.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from proxy.admin import Admin
from proxy.admin_pool import AdminPool
from proxy.errors import ProxyError
from proxy.install import prepare_root
from proxy.pools import OpenCounts, SlotPool, pin_directories
from proxy.slots import SlotDirectory
from proxy.ways import ByAdmin, Way
from trafficd.config import Config, ServiceSection
from trafficd.config.docker import DockerSection
from trafficd.core.addresses import elsewhere
from trafficd.core.events import Event
from trafficd.core.place import Expected, address, expected, worker
from trafficd.core.reconcile import Configured, reconcile, strangers
from trafficd.engine import Engine, Parts
from trafficd.errors import ConfigError
from trafficd.health.checks import PreviewChecks
from trafficd.health.command import CommandProbe
from trafficd.health.probe import Check, HttpProbe
from trafficd.link import Link, Linked
from trafficd.operate import Operator
from trafficd.ports import Driver, Entry, Pool
from trafficd.ssh.connections import Connections
from trafficd.ssh.forward import Forwards
from trafficd.ssh.host import parse_host
from trafficd.store.identity import daemon_id
from trafficd.store.sqlite import SqliteJournal
from trafficd.swap.command import CommandDriver
from trafficd.swap.docker.driver import DockerDriver
from trafficd.swap.docker.engines import Certificates, Engines
from trafficd.swap.docker.envfile import read_env_files
from trafficd.swap.external import ExternalDriver
from trafficd.swap.hooks import Hooks
from trafficd.swap.placed import PlacedDriver
from trafficd.swap.process import CommandRunner, Runner
from trafficd.swap.remote import RemoteRunner
from trafficd.swap.systemd.driver import SystemdDriver
from trafficd.unrouted import NoPool
from trafficd.ways import ports_in, slots_root, static_answer, way_of

log = logging.getLogger("trafficd.compose")


@dataclass
class Composer:
    """Makes and closes what runs the services of one configuration."""

    config: Config
    admin: Admin
    journal: SqliteJournal
    link: Link
    engines: dict[str, Engine] = field(default_factory=dict)
    operators: dict[str, Operator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counts = OpenCounts(self.admin)
        self._runner = CommandRunner(self.config.daemon.state_dir / "commands")
        self._connections = Connections(self.config.ssh.settings)
        self._forwards = Forwards(self._connections)
        self._remote: dict[str, RemoteRunner] = {}
        self._external = ExternalDriver()
        self._docker: list[tuple[DockerDriver, Engines]] = []
        self._pools: list[SlotPool | AdminPool | NoPool] = []
        self._probes: list[HttpProbe | CommandProbe] = []
        self._past: Mapping[str, Sequence[Entry]] = {}
        self._directories: Mapping[str, SlotDirectory] = {}

    async def prepare(self) -> None:
        """Read the journal and mend the slots: what needs no Caddy. Raises `TrafficdError` or `ProxyError`."""
        self._past = await self.journal.load_all()
        self._directories = await asyncio.to_thread(self._mended)

    async def open(self) -> None:
        """Fold the journal, and begin to probe and route, after `prepare`. Raises `TrafficdError` or `ProxyError`.

        Nothing is probed before everything is open: with two hundred services the first probes would only delay the
        rest.
        """
        past, self._past = self._past, {}
        self.link.former = frozenset(past.keys() - self.config.services.keys())
        for name, section in self.config.services.items():
            await self._open(name, section, self._directories.get(name), past.get(name, []))
        await self._reconcile(past)
        for engine in self.engines.values():
            engine.start()

    async def close(self) -> None:
        """Stop acting. Commands go on by themselves, and so do Engines; the next daemon finds them."""
        self._runner.leave()
        for runner in self._remote.values():
            runner.leave()
        for driver, _ in self._docker:
            driver.leave()
        for engine in self.engines.values():
            await engine.stop()
        for pool in self._pools:
            await pool.aclose()
        for probe in self._probes:
            await probe.aclose()
        for _, engines in self._docker:
            await engines.aclose()
        await self._forwards.aclose()
        await self._connections.aclose()

    def _mended(self) -> dict[str, SlotDirectory]:
        root = slots_root(self.config)
        routed = {name: section for name, section in self.config.services.items() if section.routed}
        found = {
            n: SlotDirectory(root, n, section.slots) for n, section in routed.items() if section.control == "slots"
        }
        if routed:
            pins = [one for n, d in found.items() for one in pin_directories(d, way_of(n, self.config).route)]
            for note in prepare_root(root, [*found.values(), *pins]):
                log.warning("slots: %s", note)
        return found

    async def _open(
        self, name: str, section: ServiceSection, directory: SlotDirectory | None, past: Iterable[Entry]
    ) -> None:
        way = way_of(name, self.config, partial(self._weights, name)) if section.routed else None
        pool = NoPool() if way is None else await self._pool(way, directory)
        self._pools.append(pool)
        engine = self.engines[name] = Engine(name, self._parts(name, section, pool))
        engine.take(past)
        if way is not None and not isinstance(pool, NoPool):
            self.link.services[name] = Linked(way, section.restore, engine, pool, static_answer(section))
        self.operators[name] = Operator(engine, section, self._external.replaced, self.link)

    def _weights(self, name: str) -> Mapping[str, int]:
        return self.engines[name].decide().weights

    async def _pool(self, way: Way, directory: SlotDirectory | None) -> SlotPool | AdminPool:
        if directory is not None:
            slots = SlotPool(directory, self._counts, way)
            await slots.open()
            return slots
        assert isinstance(way, ByAdmin), "without slots there is the admin API"
        pool = AdminPool(self.admin, way, self._counts)
        log.warning("%s: %s", way.route.service, pool.cost)
        try:
            await pool.open()
        except ProxyError as error:
            log.error("%s: what has traffic now is not known: %s", way.route.service, error)
        return pool

    async def _reconcile(self, past: Mapping[str, Sequence[Entry]]) -> None:
        """Journal what the configuration changes in the services, all of it in one write."""
        events: list[Event] = []
        for name, section in self.config.services.items():
            engine = self.engines[name]
            _refuse_other_kind(engine, section)
            wanted = [
                Configured(u.id, u.dial or worker(u.id), u.version, u.spare_dial, u.group) for u in section.upstreams
            ]
            before = [entry.event for entry in past.get(name, ())]
            changes = reconcile(engine.state, before, wanted, routed=section.routed)
            for note in changes.notes:
                log.warning("%s: %s", name, note)
            events += changes.events
        if events:
            for entry in await self.journal.append_all(events):
                self.engines[entry.event.service].take([entry])

    def _parts(self, name: str, section: ServiceSection, pool: Pool) -> Parts:
        probe = self._probe(name, section)
        self._probes.append(probe)
        return Parts(
            pool=pool,
            driver=self._driver(name, section),
            probe=probe,
            hook=Hooks(self._runner, name, section.hooks.argv, section.hooks.timeout),
            journal=self.journal,
            interval=section.health.interval,
            rise=section.health.rise,
            fall=section.health.fall,
            min_healthy_time=section.rollout.min_healthy_time,
            healthy_deadline=section.rollout.healthy_deadline,
            terms=section.terms,
            slots=section.slots,
            slow_start=section.slow_start,
            judged=self._logged(section),
            check=_preview_checks(name, section),
            foreign=partial(self._foreign, name),
        )

    def _logged(self, section: ServiceSection) -> bool:
        """Whether the answers of a service stand in the access log, with who gave them."""
        return self.config.caddy.access_log is not None and section.logged

    def _foreign(self, service: str, dial: str) -> str | None:
        """Whose of another service an address is, in words."""
        return elsewhere((one.state for name, one in self.engines.items() if name != service), dial)

    def _probe(self, name: str, section: ServiceSection) -> HttpProbe | CommandProbe:
        health = section.health
        if health.command is None:
            return HttpProbe(_check(section), verify=tls_context(name, section))

        def runs(place: str) -> Expected | None:
            return expected(self.engines[name].state, place)

        return CommandProbe(name, health.command, health.timeout, runs)

    def _driver(self, name: str, section: ServiceSection) -> Driver:
        if section.swap.driver == "external":
            return self._external
        if section.swap.driver == "docker":
            return self._containers(name, section)
        if section.swap.driver == "systemd":
            return self._units(name, section)
        return self._commands(section)

    def _commands(self, section: ServiceSection) -> Driver:
        argv = {"swap": section.swap.command, "prepare": section.swap.prepare, "retire": section.swap.retire}
        own = {u.id: CommandDriver(self._runner_on(u.host), argv.get) for u in section.upstreams if u.host is not None}
        others = CommandDriver(self._runner_on(section.swap.host), argv.get)
        return PlacedDriver(own, others) if own else others

    def _units(self, name: str, section: ServiceSection) -> SystemdDriver:
        assert section.systemd is not None, "the configuration has looked at it"
        hosts = {one.id: one.host for one in section.upstreams}

        def runner_of(upstream: str) -> Runner:
            return self._runner_on(hosts.get(upstream) or section.swap.host)

        def places_of(upstream: str) -> list[str]:
            known = self.engines[name].state.upstreams.get(upstream)
            places = (known.dial, known.spare_dial) if known is not None else ()
            return [address(place) or "" for place in places if place is not None]

        def version_at(upstream: str, dial: str) -> str | None:
            found = expected(self.engines[name].state, dial or worker(upstream))
            return found.version if found is not None else None

        return SystemdDriver(
            name,
            section.systemd,
            runner_of,
            places_of,
            version_at,
            prepare=self._commands(section),
            routed=section.routed,
            listed=hosts.keys(),
        )

    def _runner_on(self, host: str | None) -> CommandRunner | RemoteRunner:
        """What runs commands on a host, None for this one."""
        if host is None:
            return self._runner
        if host not in self._remote:
            directory = self.config.daemon.state_dir / "commands"
            self._remote[host] = RemoteRunner(directory, parse_host(host), self._connections)
        return self._remote[host]

    async def _forward(self, host: str, remote_socket: str) -> Path:
        return await self._forwards.forward_unix(parse_host(f"ssh://{host}"), remote_socket)

    def _containers(self, name: str, section: ServiceSection) -> DockerDriver:
        docker = section.docker
        assert docker is not None, "the configuration has looked at it"
        engines = Engines(_certificates(docker), self._forward)
        own = {one.id: one.engine for one in section.upstreams}

        def engine_of(upstream: str) -> str:
            return own.get(upstream) or docker.engine

        def dial_of(upstream: str) -> str:
            known = self.engines[name].state.upstreams.get(upstream)
            return known.dial if known is not None else ""

        driver = DockerDriver(
            docker,
            engines,
            daemon_id(self.config.daemon.state_dir),
            engine_of,
            dial_of,
            routed=section.routed,
            reserved=ports_in(self.config),
        )
        self._docker.append((driver, engines))
        return driver


def _certificates(docker: DockerSection) -> Certificates | None:
    files = (docker.tls_ca, docker.tls_cert, docker.tls_key)
    return Certificates(*(file for file in files if file is not None)) if all(files) else None


def _refuse_other_kind(engine: Engine, section: ServiceSection) -> None:
    """A rollout under way names places of one kind, addresses or workers, and must end with that kind."""
    live, names = engine.state.live, strangers(engine.state, routed=section.routed)
    if live is not None and names:
        raise ConfigError(
            f"services.{engine.name}.route: rollout {live.id} began {'without' if section.routed else 'with'} "
            f"addresses for {', '.join(names)}: put route back as it was until it has ended"
        )


def _preview_checks(name: str, section: ServiceSection) -> PreviewChecks:
    checks = section.preview.checks if section.preview is not None else []
    base, verify = _check(section), tls_context(name, section)
    return PreviewChecks(
        [HttpProbe(replace(base, path=one.path, status=frozenset(one.status)), verify=verify) for one in checks]
    )


def _check(section: ServiceSection) -> Check:
    health = section.health
    return Check(
        path=health.path,
        host=health.host or (section.hosts[0] if section.hosts and "*" not in section.hosts[0] else None),
        headers=health.headers,
        status=frozenset(health.status),
        timeout=health.timeout,
        tls=section.transport.tls,
        server_name=section.transport.tls_server_name,
    )


def tls_context(name: str, section: ServiceSection) -> ssl.SSLContext | bool:
    """How certificates of upstreams are verified. Raises `ConfigError`."""
    if not section.transport.tls or section.transport.tls_insecure:
        return False
    return _trusting(section.transport.tls_ca, f"services.{name}.transport.tls_ca")


def _trusting(authorities: Path | None, key: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{key}: {authorities}: {error}") from error


def _check_docker(docker: DockerSection) -> None:
    read_env_files(docker.env_files)
    if (certificates := _certificates(docker)) is not None:
        certificates.context()


def check_files(config: Config, others: Iterable[str] = ()) -> None:
    """Read what the configuration only names: certificates, say. Raises `ConfigError` with all the faults, and with
    `others` that were found elsewhere."""
    faults = list(others)
    for name, section in config.services.items():
        try:
            tls_context(name, section)
            if section.verify.tls_ca is not None:
                _trusting(section.verify.tls_ca, f"services.{name}.verify.tls_ca")
            if section.docker is not None:
                _check_docker(section.docker)
        except ConfigError as error:
            faults.append(str(error))
    if any(section.ssh_hosts for section in config.services.values()):
        faults += config.ssh.settings.missing()
    if faults:
        raise ConfigError("\n".join(faults))
