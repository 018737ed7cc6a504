"""What would be written into Caddy's configuration for a configuration of ours, before anything is touched.

The same functions make the difference as make the write; only the write is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from proxy.admin import Admin
from proxy.admin_pool import COST
from proxy.difference import difference
from proxy.install import Household, claimed, maintenance_port, wanted
from proxy.proof import probing_for, proof_of
from proxy.snippet import snippet
from proxy.ways import ByAdmin, Imported, Way
from trafficd.config import Config
from trafficd.errors import ConflictError, NotFoundError
from trafficd.ways import ports_in, slots_root, static_answer, way_of

ONE_WRITE = (
    "One change of Caddy's configuration. It loses the requests that are just arriving on kept-alive connections, of "
    "every site of that Caddy (at most about one a connection; measured: 8 and 16 with 18 busy ones), and cuts the "
    "WebSockets of handlers without stream_close_delay"
)


_NOTHING = "nothing is written"


@dataclass(frozen=True)
class ServicePreview:
    """One service: whether it stands in Caddy's configuration as it is to, what a person should know of the change,
    why it cannot be made, and what each later shift costs."""

    service: str
    route: str
    control: str
    present: bool
    notes: tuple[str, ...]
    refused: str | None
    cost: str


@dataclass(frozen=True)
class Preview:
    """All services, and the one write that would bring them there: `difference` is empty where there is none."""

    admin: str
    services: tuple[ServicePreview, ...]
    difference: tuple[str, ...]
    cost: str

    @property
    def refused(self) -> bool:
        return any(service.refused for service in self.services)


async def preview(
    config: Config, admin: Admin, left: frozenset[str] = frozenset(), former: frozenset[str] = frozenset()
) -> Preview:
    """The write that this configuration would make now. Services that were `left` are left alone; routes of `former`
    ones go.

    Raises `ProxyError` when Caddy cannot be asked.
    """
    ways = {
        name: way_of(name, config, partial(_at_first, config, name))
        for name, section in config.services.items()
        if section.routed and name not in left
    }
    gone = former - config.services.keys()
    if not ways and not gone:
        return Preview(admin.url, (), (), _NOTHING)  # only workers: there need not be a Caddy
    present, _ = await admin.config()
    root, elsewhere = slots_root(config), config.caddy.slots_path
    path = elsewhere or str(root)
    proof = await proof_of(admin, path)
    answers = [(way.route, static_answer(config.services[name])) for name, way in ways.items()]
    taken = ports_in(config)
    household = Household(_routed(config), gone, path, answers, maintenance_port(path, taken), taken)
    probing = probing_for(present, root, elsewhere, proof, claimed(list(ways.values()), household))
    edited, told = wanted(present, list(ways.values()), probing, household)
    lines = tuple(difference(present or {}, edited))
    services = tuple(
        ServicePreview(
            service=name,
            route=config.services[name].route,
            control=config.services[name].control,
            present=way.present(present),
            notes=(*told.notes.get(name, ()), *([told.unlogged[name]] if name in told.unlogged else [])),
            refused=told.refused.get(name),
            cost=_cost(way),
        )
        for name, way in ways.items()
    )
    return Preview(admin.url, services, lines, ONE_WRITE if lines else _NOTHING)


def _routed(config: Config) -> set[str]:
    return {name for name, section in config.services.items() if section.routed}


def _at_first(config: Config, name: str) -> dict[str, int]:
    """The weights of a service that nothing is known of yet."""
    return {upstream.dial: 1 for upstream in config.services[name].upstreams if upstream.dial}


def _cost(way: Way) -> str:
    if isinstance(way, ByAdmin):
        return COST
    if isinstance(way, Imported):
        return "later shifts cost nothing, and every `caddy reload` keeps them: they are slots"
    return "later shifts cost nothing: they are slots"


def caddyfile(config: Config, name: str) -> str:
    """The snippet for a Caddyfile. Raises `ProxyError` where it cannot be written as one."""
    section = config.services.get(name)
    if section is None:
        raise NotFoundError.service(name, config.services)
    if not section.routed:
        raise ConflictError(f'services.{name}: route = "none" has no slots: Caddy never sees this service')
    if section.control == "admin":
        raise ConflictError(
            f'services.{name}: control = "admin" has no slots that a Caddyfile could hold; set control = "slots"'
        )
    return snippet(way_of(name, config).route)
