"""The proxy's words: addresses, names, slot tables, what is open on an address. Pure.

Addresses and names end up in file names, in files that Caddy reads at every request and in its JSON, where
braces are placeholders. So they are parsed here, strictly, before anything is done with them.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from proxy.errors import AddressError

Table = tuple[str, ...]
"""The slot table: one address a slot."""

NOBODY = "127.0.0.1:1"
"""The address that slots hold while nobody is to answer: requests then wait at the proxy. TCP port 1 (tcpmux)
is refused at once on any host that does not run that service, and no upstream may use it here."""

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class InFlight(NamedTuple):
    """What is open on an address: plain requests, and upgraded streams (WebSockets)."""

    requests: int
    streams: int


def parse_name(text: str) -> str:
    """A name of a service, upstream or rollout, as it may stand in a path.

    Raises `AddressError`.
    """
    if not _NAME.fullmatch(text):
        raise AddressError(
            f"{text[:80]!r} is not a name: letters, digits and . _ - only, at most 64, beginning with a letter or digit"
        )
    return text


def parse_dial(text: str) -> str:
    """An address "host:port" in its one canonical spelling, so that equal addresses are equal texts.

    Host names become lower case, IPv6 addresses compressed and in brackets. Raises `AddressError`.
    """
    host, port = _split(text)
    return join(_canonical(host, text), port)


def _split(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise AddressError(f"{text[:80]!r} is not an address: write host:port, such as 10.0.0.5:8080")
    number = int(port)
    if not 1 < number <= 65_535:
        raise AddressError(f"{text[:80]!r}: the port must be from 2 to 65535")
    return host, number


def _canonical(host: str, text: str) -> str:
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    try:
        address = ipaddress.ip_address(inner)
    except ValueError:
        address = None
    if address is None and not bracketed and is_host_name(host.lower()):
        return host.lower()
    if address is None or (address.version == 6) is not bracketed:
        raise AddressError(
            f"{text[:80]!r} is not an address: the host must be a name, an IPv4 address, or an IPv6 address in brackets"
        )
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise AddressError(f"{text[:80]!r}: an address with a zone cannot be used")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    if address.is_unspecified or address.is_multicast:
        raise AddressError(f"{text[:80]!r} is not the address of one instance")
    return str(address)


def is_host_name(host: str) -> bool:
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return False
    # "10.0.0" and "999.1.1.1" are mistyped addresses, and "0x7f000001" is another spelling of one (WHATWG URL, 4.3).
    return not re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1])


def join(host: str, port: int) -> str:
    """The text of an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def stream_alias(dial: str) -> str:
    """Another spelling of a canonical address, which leads to the same place.

    Caddy counts what is open by the text of the address. Upgraded streams are sent by this spelling, so they
    have a count of their own. IPv4 addresses become IPv4-mapped IPv6 (RFC 4291, 2.5.5.2; the socket made for
    one is an IPv4 socket), IPv6 addresses end in dotted form (2.2), host names change case (RFC 4343); a name
    without letters has no other spelling and is returned as it is.
    """
    host, _, port = dial.rpartition(":")
    if host.startswith("["):
        address = ipaddress.IPv6Address(host[1:-1])
        tail = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        return join(f"{address.exploded.rsplit(':', 2)[0]}:{tail}", int(port))
    try:
        return join(f"::ffff:{ipaddress.IPv4Address(host)}", int(port))
    except ValueError:
        return f"{host.upper()}:{port}"


def slot_name(index: int) -> str:
    """The file of a slot: three digits at least."""
    return f"{index:03d}"


def stream_slot_name(index: int) -> str:
    """The file of the same slot for upgraded streams."""
    return f"s{index:03d}"
