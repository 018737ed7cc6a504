"""The endpoints of sites. `proxy.sites` does the work; its errors become ours here."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from proxy.errors import (
    AddressError,
    CaddyUnreachableError,
    CertificateError,
    ConfigConflictError,
    ProxyError,
    SiteBookError,
)
from proxy.site_config import parse_host
from proxy.site_list import Listed
from proxy.sites import COST, Change, Sites
from trafficd.api.endpoints import Endpoint, answer, read
from trafficd.api.site_schema import AddSite, CertificateView, SiteChange, SiteList, SiteView
from trafficd.errors import ConflictError, InvalidError, NotFoundError, ProxyUnavailableError


@dataclass(frozen=True)
class SiteApi:
    """The handlers. `services`: the names that the configuration has; `sites` None: a daemon without a Caddy."""

    services: Collection[str]
    sites: Sites | None

    def _sites(self) -> Sites:
        if self.sites is None:
            raise ProxyUnavailableError("this daemon has no Caddy whose sites it could show or change")
        return self.sites

    async def listed(self, request: web.Request) -> web.StreamResponse:
        with translated():
            found = await self._sites().listing()
        return answer(SiteList(sites=[_view(one) for one in found]))

    async def add(self, request: web.Request) -> web.StreamResponse:
        wanted = await read(request, AddSite)
        if wanted.service not in self.services:
            raise NotFoundError.service(wanted.service, self.services)
        with translated():
            change = await self._sites().add(wanted.name, wanted.service, wanted.certificate, wanted.key)
        return answer(_change(change))

    async def remove(self, request: web.Request) -> web.StreamResponse:
        try:
            name = parse_host(request.match_info["name"])
        except AddressError as error:
            raise NotFoundError(f"there is no such site: {error}") from error
        with translated():
            change = await self._sites().remove(name)
        return answer(_change(change))

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of sites."""
        refused = (400, 404, 409, 422, 503)
        return [
            Endpoint("GET", "/v1/sites", "Every public name that Caddy answers for", self.listed, SiteList,
                     problems=(503,)),
            Endpoint("POST", "/v1/sites", "Let a service answer for a public name", self.add, SiteChange, AddSite,
                     problems=refused),
            Endpoint("DELETE", "/v1/sites/{name}", "Take out a name that was added here", self.remove, SiteChange,
                     problems=refused),
        ]  # fmt: skip


@contextmanager
def translated() -> Iterator[None]:
    """The proxy's errors as the API's."""
    try:
        yield
    except (AddressError, CertificateError) as error:
        raise InvalidError(str(error)) from error
    except ConfigConflictError as error:
        raise ProxyUnavailableError(f"{error}, again and again; try once more") from error
    except (CaddyUnreachableError, SiteBookError) as error:
        raise ProxyUnavailableError(str(error)) from error
    except ProxyError as error:
        raise ConflictError(str(error)) from error


def _change(change: Change) -> SiteChange:
    return SiteChange(
        name=change.name,
        changed=change.changed,
        changes=int(change.changed),
        cost=COST if change.changed else None,
        warnings=list(change.warnings),
    )


def _view(one: Listed) -> SiteView:
    return SiteView(
        name=one.name,
        server=one.server,
        listen=list(one.listen),
        service=one.service,
        answers=list(one.answers),
        managed_by=one.managed_by,
        tls=one.tls.value,
        certificate=_certificate(one),
        note=one.note,
    )


def _certificate(one: Listed) -> CertificateView | None:
    if one.loaded is None:
        return None
    found = one.loaded.certificate
    if found is None:
        return CertificateView(place=one.loaded.place, subject=None, issuer=None, not_after=None, names=[])
    return CertificateView(
        place=one.loaded.place,
        subject=found.subject,
        issuer=found.issuer,
        not_after=found.not_after.timestamp(),
        names=list(found.names),
    )
