"""Where another host is: `ssh://user@host:port`. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from proxy.errors import AddressError
from proxy.model import parse_dial

PORT = 22
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


class Host(NamedTuple):
    """An account on a host. `name` is a host name or an IP address, without brackets."""

    user: str
    name: str
    port: int = PORT

    def __str__(self) -> str:
        """The one spelling, by which equal hosts are equal texts."""
        inner = f"[{self.name}]" if ":" in self.name else self.name
        return f"ssh://{self.user}@{inner}" + ("" if self.port == PORT else f":{self.port}")

    @property
    def known_as(self) -> str:
        """What a known_hosts file calls it."""
        return self.name if self.port == PORT else f"[{self.name}]:{self.port}"


def parse_host(text: str) -> Host:
    """A host as it stands in the configuration. Raises ValueError, in words."""
    match = re.fullmatch(r"ssh://([^@]*)@([^@/?#\s]+?)(:[^:\]]*)?", text)
    if match is None or not _USER.fullmatch(match[1]):
        raise ValueError(
            f'{text[:80]!r} is not like "ssh://deploy@web1" or "ssh://deploy@web1:2222": the user is needed, and a '
            "password, a path or options do not fit in"
        )
    port = PORT if match[3] is None else _port(match[3][1:], text)
    try:
        name = parse_dial(f"{match[2]}:{port}").rpartition(":")[0]
    except AddressError as error:
        raise ValueError(
            f"{text[:80]!r}: the host must be a name, an IPv4 address, or an IPv6 address in brackets"
        ) from error
    return Host(match[1], name.strip("[]"), port)


def _port(digits: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", digits, re.ASCII) or not 1 < int(digits) <= 65_535:
        raise ValueError(f"{text[:80]!r}: the port must be from 2 to 65535")
    return int(digits)
