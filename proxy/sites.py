"""Public names and their certificates: listed, added, removed, and put back when somebody has forgotten them.

How a site is made is `proxy.site_config`'s to say, and why caddy-api-client gets no further than a part of a copy of
the configuration `proxy.caddy_client`'s. Here that meets Caddy: one read, one write with If-Match, again where
somebody else was faster (`proxy.admin.Admin.edit`).

Invariants: everything is checked before anything is written; a change is one write, and none where nothing changes;
the book is written before Caddy, and is as before where Caddy refuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from proxy import certificates, site_config
from proxy.admin import Admin
from proxy.certificates import Certificate
from proxy.errors import CaddyRefusedError, ConfigConflictError, ProxyError, SiteRefusedError
from proxy.handler import Json
from proxy.site_book import Entry, SiteBook
from proxy.site_config import OwnCertificate, Site, parse_host
from proxy.site_list import Listed, listed, read_loaded

log = logging.getLogger("proxy.sites")

COST = (
    "one change of Caddy's configuration: requests that were just arriving on kept-alive connections may be lost, "
    "those that waited at the proxy fail, and streams of handlers without stream_close_delay are cut"
)
_SOON = timedelta(days=14)


@dataclass(frozen=True)
class Change:
    """What an addition or a removal did. `changed`: whether Caddy's configuration was written, once."""

    name: str
    changed: bool
    warnings: tuple[str, ...] = ()


class Sites:
    """The public names of one Caddy; those of ours are remembered in the file `book`.

    Every method raises `ProxyError`: `AddressError` for a name, `CertificateError` for a file, `SiteRefusedError`
    where the configuration has no place for it.
    """

    def __init__(self, admin: Admin, book: Path) -> None:
        self._admin = admin
        self._book = SiteBook(book)
        self._changing = asyncio.Lock()
        self._refused: dict[Site, tuple[str, str]] = {}  # by Caddy: with which ETag, and why

    async def listing(self) -> list[Listed]:
        """Every public name that Caddy answers for."""
        config, _ = await self._admin.config()
        return listed(config, await asyncio.to_thread(read_loaded, config))

    # -- adding ----------------------------------------------------------------------------------------

    async def add(self, name: str, service: str, certificate: str | None = None, key: str | None = None) -> Change:
        """Let a service answer for a name, with a certificate of its own or without one."""
        entry = Entry(parse_host(name), service, certificate, key)
        site, found = await self._checked(entry)
        covered: list[str] = []

        def change(config: Json | None) -> Json:
            covered[:] = site_config.also_covered(config, site, found.names) if found else []
            return site_config.put(config, site)

        async with self._changing:
            before = await asyncio.to_thread(self._book.read)
            await self._remember(before, [*(other for other in before if other.name != entry.name), entry])
            try:
                changed = await self._admin.edit(change)
            except ProxyError as error:
                await asyncio.to_thread(self._book.write, before)
                raise _explained(error, site) from error
        log.info("site %s of service %s: %s", site.name, service, "added" if changed else "there already")
        return Change(site.name, changed, (*_warnings(site, found), *_shared(covered)))

    async def _checked(self, entry: Entry) -> tuple[Site, Certificate | None]:
        """The site with what its certificate file has now."""
        if entry.certificate is None or entry.key is None:
            return Site(entry.name, entry.service), None
        found = await asyncio.to_thread(
            certificates.check_pair, entry.certificate, entry.key, entry.name, datetime.now(UTC)
        )
        return Site(entry.name, entry.service, OwnCertificate(entry.certificate, entry.key, found.fingerprint)), found

    async def _remember(self, before: Sequence[Entry], wanted: Sequence[Entry]) -> None:
        if sorted(before, key=_by_name) != sorted(wanted, key=_by_name):
            await asyncio.to_thread(self._book.write, sorted(wanted, key=_by_name))

    # -- removing --------------------------------------------------------------------------------------

    async def remove(self, name: str) -> Change:
        """Take a name out, with its certificate. No change where there is no such site."""
        name = parse_host(name)
        async with self._changing:
            before = await asyncio.to_thread(self._book.read)
            left = [entry for entry in before if entry.name != name]
            config, _ = await self._admin.config()
            if site_config.find(config, name) is None and len(left) == len(before):
                _refuse_other(config, name)
                return Change(name, False)
            await self._remember(before, left)
            changed = await self._admin.edit(lambda config: site_config.take_out(config, name))
        log.info("site %s: %s", name, "removed" if changed else "forgotten; Caddy did not have it")
        return Change(name, changed)

    # -- putting back ----------------------------------------------------------------------------------

    async def restore(self, services: Collection[str]) -> dict[str, str]:
        """Put back the sites of these services that Caddy's configuration has no longer; why one cannot be, by service.

        What Caddy refused is not offered to it again before its configuration or the certificate is another.
        """
        async with self._changing:
            book = await asyncio.to_thread(self._book.read)
            wanted = [entry for entry in book if entry.service in services]
            if not wanted:
                return {}
            config, etag = await self._admin.config()
            missing, notes = await self._missing(config, wanted)
            offered = [site for site in missing if self._refused.get(site, ("", ""))[0] != etag]
            try:
                await self._put_all(offered)
            except CaddyRefusedError:  # one of them is at fault, and the others are to be served
                refused = {site: why for site in offered if (why := await self._put_alone(site))}
                _, etag = await self._admin.config()
                self._refused |= {site: (etag, why) for site, why in refused.items()}
            notes += [(site, self._refused[site][1]) for site in missing if site in self._refused]
            faults: dict[str, str] = {}
            for at_fault, why in notes:
                text = f"site {at_fault.name} is not in Caddy's configuration, and cannot be put back: {why}"
                faults[at_fault.service] = "; ".join(filter(None, (faults.get(at_fault.service), text)))
            return faults

    async def _missing(
        self, config: Json | None, wanted: Sequence[Entry]
    ) -> tuple[list[Site], list[tuple[Entry | Site, str]]]:
        """What can be put back, and why the rest cannot."""
        missing: list[Site] = []
        notes: list[tuple[Entry | Site, str]] = []
        for entry in wanted:
            if _present(config, entry):
                continue
            try:
                site, _ = await self._checked(entry)
                site_config.put(config, site)
                missing.append(site)
            except ProxyError as error:
                notes.append((entry, str(error)))
        return missing, notes

    async def _put_alone(self, site: Site) -> str:
        """Put it back; why not, where Caddy refuses."""
        try:
            await self._put_all([site])
        except CaddyRefusedError as error:
            return str(_explained(error, site))
        return ""

    async def _put_all(self, sites: Sequence[Site]) -> None:
        def change(config: Json | None) -> Json:
            for site in sites:
                config = site_config.put(config, site)
            return config or {}

        if sites and await self._admin.edit(change):
            log.warning("put back into Caddy's configuration: the sites %s", ", ".join(site.name for site in sites))
        for site in sites:
            self._refused.pop(site, None)


def _by_name(entry: Entry) -> str:
    return entry.name


def _present(config: Json | None, entry: Entry) -> bool:
    """Whether the configuration has the site, beside its service's route, with these files."""
    found = site_config.find(config, entry.name)
    if found is None or found[1].service != entry.service:
        return False
    own = found[1].own
    files = (own.certificate, own.key) if own else (None, None)
    home = site_config.server_of_service(config, entry.service)
    return files == (entry.certificate, entry.key) and home in (None, found[0])


def _refuse_other(config: Json | None, name: str) -> None:
    owner = site_config.other_owner(config, name)
    if owner is not None:
        raise SiteRefusedError(
            f"{name} is not a site that trafficd added: it is answered by {owner}. Take it out where it was put in: "
            "the configuration file and `trafficd reload`, or whatever wrote that route into Caddy"
        )


def _explained(error: ProxyError, site: Site) -> ProxyError:
    if site.own is None or not isinstance(error, CaddyRefusedError) or isinstance(error, ConfigConflictError):
        return error
    return CaddyRefusedError(
        f"{error}. Caddy reads {site.own.certificate} and {site.own.key} itself: its user must be able to, under these "
        "very paths"
    )


def _warnings(site: Site, found: Certificate | None) -> list[str]:
    if site.own is None or found is None:
        return []
    warnings = []
    if found.not_after - datetime.now(UTC) < _SOON:
        warnings.append(
            f"the certificate expires at {found.not_after:%Y-%m-%d %H:%M} UTC; renew it and add the site again"
        )
    if certificates.open_to_others(site.own.key):
        warnings.append(f"every user of this host may read the key: chmod o-r {site.own.key}")
    return warnings


def _shared(covered: Sequence[str]) -> list[str]:
    if not covered:
        return []
    return [
        f"the certificate covers {', '.join(covered)} too: while it is loaded, Caddy serves it for them as well, and "
        "gets and renews none of their own"
    ]
