"""`[services.NAME.systemd]`: which unit an instance is, and how the version reaches it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from trafficd.config.faults import Clash, Section, get, items

_HOLE = re.compile(r"\{([^{}]*)\}")
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.\\-]*(@[A-Za-z0-9:_.\\-]+)?")
_LONGEST = 255  # bytes of a unit's name
_OTHER_KINDS = ("socket", "device", "mount", "automount", "swap", "target", "path", "timer", "slice", "scope")


def parse_unit(text: str) -> str:
    """A template of a unit's name, with its ".service"."""
    _refuse_holes(text, ("service", "upstream", "port", "version"))
    kind = text.rpartition(".")[2]
    if kind in _OTHER_KINDS:
        raise ValueError(f"{text[:80]!r} is a .{kind}; instances are services")
    plain = _HOLE.sub("x", text.removesuffix(".service"))
    if not _UNIT.fullmatch(plain):
        raise ValueError(
            f'{text[:80]!r} is not the name of a unit like "web@{{port}}": letters, digits and : _ . - \\ only, '
            "beginning with a letter or digit, and after one @ the instance"
        )
    return text.removesuffix(".service") + ".service"


def parse_version_file(text: str) -> str:
    _refuse_holes(text, ("service", "upstream", "port"))
    if not re.fullmatch(r"/[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f]", text) or {".", ".."} & set(text.split("/")):
        raise ValueError(f'{text[:80]!r} is not an absolute path of a file like "/etc/web/{{port}}.env"')
    return text


def _refuse_holes(text: str, known: tuple[str, ...]) -> None:
    for name in _HOLE.findall(text):
        if name not in known:
            raise ValueError(f"{{{name}}} is not filled in here; {', '.join(f'{{{one}}}' for one in known)} are")
    if set("{}") & set(_HOLE.sub("", text)):
        raise ValueError(f"{text[:80]!r} has a brace that belongs to nothing")


class SystemdSection(Section):
    """The units of a service. `version_file`: an EnvironmentFile that is written before the unit starts."""

    unit: Annotated[str, AfterValidator(parse_unit)]
    version_file: Annotated[str, AfterValidator(parse_version_file)] | None = None
    scope: Literal["system", "user"] = "system"

    def unit_of(self, service: str, upstream: str, dial: str, version: str | None) -> str:
        """The name of the unit that is this version of an upstream at an address ("" for a worker). Raises
        `ValueError`, in words, where no unit can have that name."""
        if "{version}" in self.unit:
            if not version:
                raise ValueError(
                    f"which version of {upstream} runs is not known, and the unit's name has it: set `version` of the "
                    "upstream in the configuration"
                )
            if not re.fullmatch(r"[A-Za-z0-9:_.-]+", version):
                raise ValueError(
                    f"{version!r} cannot be in the name of a unit ({self.unit}): letters, digits and : _ . - only; "
                    "name it otherwise, or use version_file"
                )
        name = _filled(self.unit, service, upstream, dial, version or "")
        if len(name) > _LONGEST:
            raise ValueError(f"{name[:80]!r}... is too long for the name of a unit: at most {_LONGEST} characters")
        return name

    def file_of(self, service: str, upstream: str, dial: str) -> str | None:
        """The file that has the version of the instance at an address."""
        return None if self.version_file is None else _filled(self.version_file, service, upstream, dial, "")

    def tells_apart(self) -> bool:
        """Whether every upstream has a unit of its own wherever it runs."""
        return "{upstream}" in self.unit or "{port}" in self.unit

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        unit = given.get("unit")
        if given.get("version_file") is None and isinstance(unit, str) and "{version}" not in unit:
            yield (
                ("version_file",),
                "nothing tells the unit which version to start: name a file for its EnvironmentFile=, like "
                '"/etc/web/{port}.env", or have {version} in unit',
            )


def _filled(template: str, service: str, upstream: str, dial: str, version: str) -> str:
    values = {"service": service, "upstream": upstream, "port": dial.rpartition(":")[2], "version": version}
    return _HOLE.sub(lambda hole: values[hole[1]], template)


def systemd_clashes(given: Mapping[str, Any]) -> Iterator[Clash]:
    """What a service must and must not have for its driver."""
    systemd, wanted = given.get("systemd"), get(given.get("swap"), "driver") == "systemd"
    if not wanted:
        if systemd is not None:
            yield ("systemd",), 'means nothing without swap.driver = "systemd"'
        return
    if systemd is None:
        yield ("systemd",), 'swap.driver = "systemd" needs this section: unit = "web@{port}", and a version_file'
        return
    for key in ("unit", "version_file"):
        template = get(systemd, key)
        if not isinstance(template, str):
            continue
        if given.get("route") == "none" and "{port}" in template:
            yield ("systemd", key), "nobody calls a worker, so it has no port; write {upstream}"
        else:
            yield from _shared(given, key, template)


def _shared(given: Mapping[str, Any], key: str, template: str) -> Iterator[Clash]:
    """Instances on one host that would be the same unit, or have the same file."""
    seen: dict[tuple[str, str], str] = {}
    for number, upstream in items(given.get("upstreams")):
        host = str(get(upstream, "host") or get(given.get("swap"), "host") or "this host")
        for place in ("dial", "spare_dial"):
            dial, name = get(upstream, place), str(get(upstream, "id"))
            if dial is None and (place == "spare_dial" or given.get("route") != "none"):
                continue
            filled = template
            for hole, value in (("{port}", str(dial).rpartition(":")[2]), ("{upstream}", name)):
                filled = filled.replace(hole, value)
            who = f"{place} of {name}"
            other = seen.setdefault((host, filled), who)
            if other != who:
                yield (
                    ("upstreams", number, place),
                    f"systemd.{key} is {filled} here as it is for {other}: have {{port}} in it"
                    + ("" if other.endswith(f" of {name}") else ", or give each upstream its host"),
                )
