"""What a verification sends, and where to, from a service's section. Pure.

The connections go to where the service listens, on loopback, or to `verify.address`; the URL's host is the name that
clients use, so that Host, SNI and the certificate are looked at as a client would.

Every request says of itself that it is no user's (`MARK`): a canary is judged by users, and by this load only where
`canary.strata` names it. A request whose own headers say otherwise is sent as they say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import urlsplit

from loadtest.model import Plan, PlanError, RequestSpec
from proxy.logged import STRATUM_HEADER
from trafficd.config import ServiceSection, VerifyRequest, VerifySection
from trafficd.errors import InvalidError
from trafficd.verify.verdict import Wanted

MARK = (STRATUM_HEADER, "verify")
_LONGEST = 86_400.0  # s that a rollout under load may take
_DEFAULT = VerifyRequest(path="/")
_ANYWHERE = ("", "0.0.0.0", "[::]", "localhost")  # listen addresses that loopback reaches


class Place(NamedTuple):
    """Where connections go, and the name that is asked for there."""

    scheme: str
    name: str
    host: str
    port: int

    @property
    def url(self) -> str:
        usual = {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{self.name}" + (f":{self.port}" if self.port != usual else "")


@dataclass(frozen=True)
class Held:
    """WebSockets that are held open. `interval` in seconds between the pings of one."""

    path: str
    connections: int
    interval: float


@dataclass(frozen=True)
class Target:
    """`plan` is that of the load through the rollout; `wanted` says what each of its requests is to be answered."""

    plan: Plan
    wanted: tuple[Wanted, ...]
    sockets: tuple[Held, ...]

    def warm_up(self, seconds: float) -> Plan:
        return replace(self.plan, duration=seconds)

    @property
    def dial(self) -> tuple[str, int]:
        assert self.plan.dial is not None, "a target is always dialled"
        return self.plan.dial


def target(name: str, section: ServiceSection, verify: VerifySection) -> Target:
    """Raises `InvalidError` for a service that cannot be verified as it is configured; it names the key."""
    if not section.routed:
        raise InvalidError(
            f'services.{name}.route = "none": workers get no requests, so there is nothing to verify under load; '
            "`trafficd deploy` it"
        )
    place = _place(name, section, verify)
    asked = [(one, False) for one in verify.requests or [_DEFAULT]] + [(one, True) for one in verify.compatible]
    closed = verify.loop == "closed"
    try:
        plan = Plan(
            tuple(_spec(place.url, one) for one, _ in asked),
            connections=verify.connections,
            total=None,
            duration=_LONGEST,
            timeout=verify.timeout,
            verify_tls=not verify.insecure,
            authorities=str(verify.tls_ca) if verify.tls_ca else None,
            dial=(place.host.strip("[]"), place.port),
            attribute=verify.attribute,
            redirects=0,  # an answer is an answer: what it must be is configured
            rate=None if closed else verify.rate,
            qps=verify.rate / verify.connections if closed else None,
        )
    except PlanError as error:
        raise InvalidError(f"services.{name}.verify: {error}") from error
    wanted = tuple(Wanted(f"{one.method} {one.path}", frozenset(one.status), old) for one, old in asked)
    sockets = tuple(Held(one.path, one.connections, one.interval) for one in verify.websockets)
    return Target(plan, wanted, sockets)


def _spec(url: str, one: VerifyRequest) -> RequestSpec:
    headers = tuple(one.headers.items())
    if not any(name.lower() == STRATUM_HEADER.lower() for name in one.headers):
        headers = (*headers, MARK)
    return RequestSpec(url + one.path, one.method, headers, one.body.encode(), one.weight)


def _place(name: str, section: ServiceSection, verify: VerifySection) -> Place:
    scheme, host, port = _address(name, section, verify)
    named = verify.host or next((one for one in section.hosts if "*" not in one), None)
    if named is None and section.hosts:
        raise InvalidError(
            f"services.{name}.verify.host: hosts has only names with *, so say which one is to be asked for"
        )
    return Place(scheme, named or host, host, port)


def _address(name: str, section: ServiceSection, verify: VerifySection) -> tuple[str, str, int]:
    if verify.address is not None:
        parts = urlsplit(verify.address)
        default = 443 if parts.scheme == "https" else 80
        return parts.scheme, parts.netloc.rpartition("@")[2].removesuffix(f":{parts.port}"), parts.port or default
    if section.route != "own":
        raise InvalidError(
            f'services.{name}.verify.address: with route = "{section.route}" where the service listens is not known; '
            'say where to send, such as "https://127.0.0.1:443"'
        )
    split = [(host, int(port)) for host, _, port in (one.rpartition(":") for one in section.listen)]
    secure = [one for one in split if section.tls_mode == "auto" and one[1] != 80]  # Caddy's port without TLS
    host, port = (secure or split)[0]
    return "https" if secure else "http", "127.0.0.1" if host in _ANYWHERE else host, port
