"""The drafted services -> the file. Pure. Beside every value stands where it comes from; keys that many will want to
change stand there as comments, with their defaults."""

from __future__ import annotations

from collections.abc import Iterator

from trafficd.config.docker import DEFAULT_ENGINE
from trafficd.config.sections import ServiceSection
from trafficd.draft.document import Key, Table, name, render
from trafficd.draft.services import Docker, Draft, Instance, Service, place

_HEAD = (
    "Written by `trafficd init`. Beside each value stands where it comes from. A key behind a # has the default that "
    "is shown. All keys are in the README, and `trafficd plan --config FILE` shows what would be changed in Caddy, "
    "before anything is.",
)

_SLOTS: int = ServiceSection.model_fields["slots"].default


def document(draft: Draft) -> str:
    """The text of the configuration."""
    tables = [_caddy(draft), *(table for service in draft.services for table in _service(service))]
    if any("ssh://" in engine for service in draft.services for engine in _engines(service)):
        tables.insert(1, _ssh())
    return render([*_HEAD, *_troubles(draft)], tables, list(_left_out(draft)))


def _troubles(draft: Draft) -> Iterator[str]:
    for one in draft.silent:
        yield ""
        yield (
            f"NOT ASKED: the Engine {one.url}: {one.failure}. Its containers are not in here; run trafficd init again "
            "when it answers."
        )


def _left_out(draft: Draft) -> Iterator[str]:
    if draft.unfit:
        yield "Left out, and why:"
    for one in draft.unfit:
        hosts, dials = ", ".join(one.candidate.hosts) or "any host", ", ".join(one.candidate.dials)
        yield ""
        yield f"{hosts}{f' -> {dials}' if dials else ''} ({place(one.candidate)}): {one.reason}."


def _caddy(draft: Draft) -> Table:
    seen = draft.seen
    why = "it answered there" if seen.running else f"of {seen.origin}; Caddy must run when trafficd starts"
    keys = [Key("admin", seen.admin, f"{why}; it must be 2.11.2 or newer")]
    above = []
    if draft.contained is not None:
        above.append(f"LOOK: {draft.contained}.")
        keys.append(Key("slots_path", "/slots", "where Caddy's container has them", off=True))
    return Table("caddy", tuple(keys), tuple(above))


def _ssh() -> Table:
    keys = (
        Key("known_hosts", "~/.ssh/known_hosts", "of the user that trafficd runs as", off=True),
        Key("identity_files", [], "private keys without a passphrase; none: ~/.ssh/id_ed25519, ...", off=True),
    )
    return Table("ssh", keys, off=True)


def _engines(service: Service) -> list[str]:
    common = [] if service.docker is None else [service.docker.engine]
    return common + [one.engine for one in service.instances if one.engine is not None]


# -- a service -----------------------------------------------------------------------------------------


def _service(service: Service) -> Iterator[Table]:
    yield _route(service)
    for instance in service.instances:
        yield _upstream(service, instance)
    yield _health(service)
    yield _transport(service)
    yield _rollout(service)
    yield from _swap(service)


def _table(service: Service, *parts: str) -> str:
    return name("services", service.name, *parts)


def _route(service: Service) -> Table:
    handler = service.handler
    where = ", ".join(handler.candidate.hosts) or "any host"
    above = [f"{where}: the reverse_proxy {place(handler.candidate)}.", *service.remarks]
    keys = [Key("hosts", handler.hosts, "of its route in Caddy" if handler.hosts else "any host")]
    if service.adopts:
        keys.append(Key("route", "adopt", "that reverse_proxy is taken over, in one write; the rest of the site stays"))
        if handler.adopt_id is not None:
            keys.append(Key("adopt_id", handler.adopt_id, "its @id: hosts alone do not tell it from others"))
    if len(service.instances) > _SLOTS:
        keys.append(Key("slots", len(service.instances), "at least one for each upstream"))
    if not service.adopts:
        snippet = f"/etc/caddy/trafficd-{service.name}.caddy"
        above += [
            "",
            f"TO DO: {handler.ambiguous}, so it cannot be adopted. Start trafficd, and then, once:",
            f"  trafficd caddyfile {service.name} > {snippet}",
            f"  # in the Caddyfile, in place of this reverse_proxy:   import {snippet}",
            "  caddy reload",
        ]
        keys.append(Key("route", "import", "the Caddyfile imports a snippet of trafficd's"))
    return Table(_table(service), tuple(keys), tuple(above))


def _upstream(service: Service, one: Instance) -> Table:
    keys = [Key("id", one.id), Key("dial", one.dial, one.why)]
    if one.version is not None:
        keys.append(Key("version", one.version, one.version_why))
    else:
        why = one.version_why or "what runs there now, where that is known"
        keys.append(Key("version", "v1", why, off=True))
    if one.engine is not None:
        keys.append(Key("engine", one.engine, "where its container runs"))
    return Table(f"[{_table(service, 'upstreams')}]", tuple(keys))


def _health(service: Service) -> Table:
    health = service.health
    keys = [Key("path", health.path, health.why)]
    if health.host is not None:
        keys.append(Key("host", health.host, "the Host header of Caddy's check"))
    elif plain := [host for host in service.handler.hosts if "*" not in host]:
        keys.append(Key("host", plain[0], "the first of hosts", off=True))
    if health.headers:
        keys.append(Key("headers", health.headers, "health_headers of Caddy's check"))
    keys.append(Key("status", health.status, health.status_why) if health.status else Key("status", [200], off=True))
    keys.append(_time("interval", health.interval, "2s"))
    keys.append(_time("timeout", health.timeout, "2s"))
    if health.rise is not None:
        keys.append(Key("rise", health.rise, "health_passes of Caddy's check"))
    if health.fall is not None:
        keys.append(Key("fall", health.fall, "health_fails of Caddy's check"))
    above = [*health.remarks, *(f"LOOK: {warning}." for warning in health.warnings)]
    return Table(_table(service, "health"), tuple(keys), tuple(above))


def _time(key: str, seconds: float | None, default: str) -> Key:
    if seconds is None:
        return Key(key, default, off=True)
    slow = "; a shorter one makes deploys quicker" if key == "interval" and seconds > 5 else ""
    return Key(key, _duration(seconds), f"health_{key} of Caddy's check{slow}")


def _duration(seconds: float) -> str:
    """As the configuration has it, to the millisecond."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def _transport(service: Service) -> Table:
    given = service.handler.transport.keys
    keys = [Key(key, value, "as Caddy speaks to them") for key, value in given.items()]
    return Table(_table(service, "transport"), tuple(keys or [Key("tls", value=False, off=True)]), off=not keys)


def _rollout(service: Service) -> Table:
    keys = [
        Key("min_healthy_time", "10s", "a new instance must have been well for so long", off=True),
        Key("healthy_deadline", "5m", "or the old version is brought back", off=True),
        Key("drain_timeout", "30s", "for requests that are open on the old one", off=True),
    ]
    above: tuple[str, ...] = ()
    if service.single:
        above = (
            "A single instance: let requests wait in Caddy while it is replaced,",
            f"  trafficd deploy {service.name} VERSION --strategy hold",
        )
        if service.docker is not None:
            above += ("or start the new one beside it, if two may run at once:",)
            keys.insert(0, Key("order", "start_first", "the default is stop_first", off=True))
    return Table(_table(service, "rollout"), tuple(keys), above, off=True)


# -- who replaces the instances ------------------------------------------------------------------------


def _swap(service: Service) -> Iterator[Table]:
    if service.docker is not None:
        yield Table(_table(service, "swap"), (Key("driver", "docker", "the containers named above are taken over"),))
        yield _docker(service, service.docker)
        return
    first = service.instances[0]
    above = (
        f"trafficd cannot replace these instances by itself. {'. '.join(service.by_hand)}.",
        "",
        'With "external" your own script does it, and trafficd the rest:',
        f"  trafficd drain {service.name} {first.id} && ./replace.sh {first.dial} v2 "
        f"&& trafficd ready {service.name} {first.id} --version v2",
        'With "command" trafficd runs your program for one instance after the other; it is told TRAFFICD_DIAL and '
        "TRAFFICD_VERSION, and then `trafficd deploy` does all of it.",
    )
    keys = (
        Key("driver", "external"),
        Key("driver", "command", off=True),
        Key("command", ["/usr/local/bin/replace"], off=True),
    )
    yield Table(_table(service, "swap"), keys, above)


def _docker(service: Service, docker: Docker) -> Table:
    keys = [Key("engine", docker.engine, _engine_why(docker), off=docker.engine == DEFAULT_ENGINE)]
    if docker.certificates is not None:
        for key, file in zip(("tls_ca", "tls_cert", "tls_key"), docker.certificates, strict=True):
            keys.append(Key(key, file, "of DOCKER_CERT_PATH"))
    if docker.image is not None:
        keys.append(Key("image", docker.image, "the image that runs, with the version to be deployed"))
    if docker.made_here is not None:
        why = f"the image of {docker.made_here} was made on its host: have the next one there before a deploy"
        keys.append(Key("pull", "missing", why))
    else:
        keys.append(Key("pull", "always", "from the registry, at every deploy", off=True))
    if docker.port is not None:
        keys.append(Key("port", docker.port, "in the container, published at the port of dial"))
    if docker.publish is not None:
        keys.append(Key("publish", docker.publish, "as now; without it only the address of dial is published"))
    if docker.port_range is not None:
        keys.append(Key("port_range", docker.port_range, "for new instances beside old ones; the default has a dial"))
    if docker.environment:
        keys.append(Key("environment", docker.environment, "on the host's network it says where to listen"))
    why = "what runs is replaced; variables, volumes, networks, labels are kept"
    keys.append(Key("take_over", docker.take_over, why))
    keys.append(Key("keep", 3, "old versions kept, stopped, for a rollback", off=True))
    above = [*docker.remarks, *(f"LOOK: {warning}." for warning in docker.warnings)]
    return Table(_table(service, "docker"), tuple(keys), tuple(above))


def _engine_why(docker: Docker) -> str:
    if docker.engine.startswith("unix://"):
        return "trafficd's user must be able to use it"
    return "where the containers run"
