"""`trafficd site`: public names and their certificates, as a client of the API."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import quote

import click

from proxy.sites import COST
from trafficd import show
from trafficd.client import Json
from trafficd.commands.common import Options, connected

_EACH = f"Each takes {COST}. Where nothing changes, nothing is written."


@click.group(help="Public names that Caddy answers for, and their certificates.")
def site() -> None:
    pass


@site.command("list")
@connected
def list_sites(options: Options) -> None:
    """Every public name: what answers, by which certificate, and whose it is."""
    options.say(options.client().call("GET", "/v1/sites"), _listing)


@site.command(
    "add",
    help=f"""Let a service answer for NAME as well.

With --certificate and --key those are served; Caddy reads the files itself, so give paths that it sees, and add the
site again when they were renewed. Without them Caddy gets a certificate itself, where the service's server has TLS.

{_EACH}""",
)
@click.argument("name")
@click.option("--service", required=True, help="The service that is to answer.")
@click.option("--certificate", help="Absolute path of a PEM file: the certificate, then its chain.")
@click.option("--key", help="Absolute path of its private key, PEM, without a password.")
@connected
def add_site(options: Options, name: str, service: str, certificate: str | None, key: str | None) -> None:
    body: Json = {"name": name, "service": service, "certificate": certificate, "key": key}
    options.say(options.client().call("POST", "/v1/sites", {k: v for k, v in body.items() if v is not None}), _added)


@site.command(
    "remove",
    help=f"""Take out a NAME that was added here, with its certificate.

{_EACH}""",
)
@click.argument("name")
@connected
def remove_site(options: Options, name: str) -> None:
    options.say(options.client().call("DELETE", f"/v1/sites/{quote(name, safe='')}"), _removed)


# -- as text -----------------------------------------------------------------------------------------------


def _added(change: Json) -> str:
    return _told(change, "is added", "is there already, just so")


def _removed(change: Json) -> str:
    return _told(change, "is removed", "is no site that Caddy has: `trafficd site list`")


def _told(change: Json, done: str, already: str) -> str:
    lines = [f"{change['name']} {done if change['changed'] else already}"]
    lines += [f"  warning: {text}" for text in change["warnings"]]
    lines.append(f"  cost: {change['cost']}" if change["cost"] else "  nothing was written")
    return "\n".join(lines)


def _listing(answer: Json) -> str:
    rows = [_row(one) for one in answer["sites"]]
    return show.listing(("NAME", "LISTEN", "ANSWERED BY", "TLS", "BELONGS TO", ""), rows) if rows else "no names"


def _row(one: Json) -> tuple[str, ...]:
    owner = {"site": "trafficd site", "service": f"services.{one['service']}", "other": "others"}[one["managed_by"]]
    name = one["name"] or "(any other)"
    return name, " ".join(one["listen"]), "; ".join(one["answers"]), _tls(one), owner, one["note"]


def _tls(one: Json) -> str:
    found = one["certificate"]
    if found is None:
        return str(one["tls"])
    if found["subject"] is None:
        return f"own: {found['place']}"
    until = time.strftime("%Y-%m-%d", time.localtime(found["not_after"]))
    return f"own: {found['subject'] or found['names'][0]} by {found['issuer']}, until {until}, {Path(found['place'])}"
