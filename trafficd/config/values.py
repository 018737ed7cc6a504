"""The values of the configuration, parsed strictly: many of them end up in file names, argument vectors or
Caddy's JSON, where braces are placeholders.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from proxy.model import parse_dial, parse_name
from trafficd.ssh.host import parse_host

_LONGEST = 366 * 86_400.0  # s; longer than this is a slip of the pen, and some clocks cannot count it
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:@/-]{0,127}")


def parse_duration(value: object) -> float:
    """Seconds of "10s", "250ms", "1m30s"; a bare number is seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = str(value).strip()
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f'{text!r} is not a duration; write "250ms", "10s", "5m", "1m30s" or "90d"')
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 <= seconds <= _LONGEST:
        raise ValueError("a duration must be from 0 to 366 days")
    return seconds


def parse_version(text: str) -> str:
    """A version as it may reach an argument vector or an environment variable."""
    if not _VERSION.fullmatch(text) or ".." in text.split("/"):
        raise ValueError(
            f"{text[:80]!r} is not a version: letters, digits and . _ + : @ / - only, at most 128, "
            'beginning with a letter or digit, and no ".." between slashes'
        )
    return text


class Amount(BaseModel):
    """A number of upstreams, or a percentage of them."""

    model_config = ConfigDict(frozen=True)
    number: int | None = None
    percent: float | None = None

    def __str__(self) -> str:
        """As it is written in a configuration."""
        if self.percent is None:
            return str(self.number or 0)
        return f"{Decimal(repr(self.percent)):f}%"

    def of(self, total: int, *, up: bool) -> int:
        """The number it means among `total` upstreams; percentages are rounded up or down."""
        if self.number is not None:
            return self.number
        exact = total * (self.percent or 0) / 100
        return math.ceil(exact) if up else math.floor(exact)


def parse_amount(value: object) -> object:
    if isinstance(value, Amount) or value is None:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Amount(number=value)
    text = str(value).strip()
    if re.fullmatch(r"\d+", text, re.ASCII):
        return Amount(number=int(text))
    if re.fullmatch(r"\d+(\.\d+)?%", text, re.ASCII) and float(text[:-1]) <= 100:
        return Amount(percent=float(text[:-1]))
    raise ValueError(f'{value!r} is neither a number of upstreams nor a percentage such as "25%"')


def _at_least_one(amount: Amount) -> Amount:
    if amount.number == 0 or amount.percent == 0:
        raise ValueError("with none at a time a rollout would never end; give at least 1")
    return amount


def file_path(value: object) -> object:
    if value == "":
        raise ValueError("give a path; an empty one would mean the directory that trafficd is started in")
    return value


Seconds = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type=float | str),
    Field(json_schema_extra={"examples": ["10s", "250ms"]}),
]
Positive = Annotated[Seconds, Field(gt=0)]
Count = Annotated[Amount, BeforeValidator(parse_amount, json_schema_input_type=int | str)]
Parallel = Annotated[Count, AfterValidator(_at_least_one)]
Dial = Annotated[str, AfterValidator(parse_dial)]
Name = Annotated[str, AfterValidator(parse_name)]
Version = Annotated[str, AfterValidator(parse_version)]
File = Annotated[Path, BeforeValidator(file_path)]


def host(text: str) -> str:
    """A host name, or all names under one ("*.example.com"): it stands in Caddy's matchers."""
    labels = text.removeprefix("*.").split(".")
    if len(text) > 253 or not all(re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", label) for label in labels):
        raise ValueError(f"{text[:80]!r} is not a host name")
    return text.lower()


def ssh_host(text: str) -> str:
    """Another host, in its one spelling."""
    return str(parse_host(text))


def listen(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]*):(\d{1,5})", text, re.ASCII)
    if not match or int(match[2]) > 65535:
        raise ValueError(f'{text!r} is not a listen address such as ":443" or "127.0.0.1:8080"')
    return text


def public(text: str) -> str:
    if int(text.rpartition(":")[2]) == 0:
        raise ValueError(f"{text!r}: clients need a port that they know; 0 is a different one every time")
    return text


def admin(text: str) -> str:
    """Where Caddy's admin API is. Braces and spaces are nobody's address."""
    network = re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?/?", text, re.ASCII)
    if not network and not re.fullmatch(r"unix://(/[^\s{}|?#]+)", text):
        raise ValueError(f'{text!r} is neither like "http://127.0.0.1:2019" nor like "unix:///run/caddy/admin.sock"')
    if network and int((network[2] or ":0")[1:]) > 65535:
        raise ValueError(f"{text!r}: a port is at most 65535")
    return text.rstrip("/") if network else text


def url(text: str) -> str:
    """Where something is asked over HTTP. No user or password in it: it is shown where it cannot be reached."""
    match = re.fullmatch(
        r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?([/?][\x21\x23-\x7e]*)?", text, re.ASCII
    )
    if not match or not 0 < int((match[2] or ":80")[1:]) <= 65535:
        raise ValueError(f'{text[:80]!r} is not like "http://127.0.0.1:9090/path"; a user and password do not fit in')
    return text


def plain_path(text: str) -> str:
    """A path that goes into Caddy's configuration, where braces are placeholders."""
    if not re.fullmatch(r"/[^{}*\x00-\x1f]*", text) or ".." in text.split("/"):
        raise ValueError(f'{text!r} must be an absolute path without braces, "*" and ".."')
    return text.rstrip("/") or "/"


def state_dir(path: Path) -> Path:
    """A directory whose slots Caddy can read: their path stands inside a placeholder."""
    if any(character in '{}\\"' or ord(character) < 32 for character in str(path)):
        raise ValueError(
            f"{str(path)!r} must be without braces, quotes, backslashes and control characters: Caddy reads the slots "
            "in it inside a placeholder"
        )
    return path


def _argv(value: list[str]) -> list[str]:
    if not value or not value[0]:
        raise ValueError('give the program and its arguments as a list: ["/usr/local/bin/restart-web"]')
    if any("\0" in part for part in value):
        raise ValueError("an argument must not contain a NUL character")
    return value


def _header(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\x20-\x7e\t]*", text):
            raise ValueError(f"header {name!r} has characters that a header must not have")
        if name.lower() in ("content-length", "transfer-encoding"):
            raise ValueError(f"header {name!r} announces a body, and a probe has none")
    return value


Argv = Annotated[list[str], AfterValidator(_argv)]
Headers = Annotated[dict[str, str], AfterValidator(_header)]
SshHost = Annotated[str, AfterValidator(ssh_host)]
