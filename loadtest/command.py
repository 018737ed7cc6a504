"""A click command that takes flags as Go programs do, as hey is one, and groups them in its help.

Go's flags begin with one dash or with two, whatever their length, and may have their value behind a `=`:
`-n=200`, `--n 200`, `-host example.com`, `-disable-keepalive=false`. What click knows besides works as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click

from loadtest.arguments import Contents
from loadtest.model import PlanError

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})  # of strconv.ParseBool
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})

T = TypeVar("T")


class Option(click.Option):
    """`group`: the heading it stands under in the help."""

    def __init__(self, *args: Any, group: str = "Options", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class Command(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        flags = {name: not option.is_flag for option in self._options() for name in option.opts}
        try:
            plain = unfold(args, flags)
        except PlanError as error:
            raise click.UsageError(str(error), ctx) from None
        return super().parse_args(ctx, plain)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)

    def _options(self) -> list[click.Option]:
        return [parameter for parameter in self.params if isinstance(parameter, click.Option)]


def unfold(args: Iterable[str], flags: Mapping[str, bool]) -> list[str]:
    """Arguments in Go's notation, in click's. `flags`: whether the flag of that name takes a value.

    Raises PlanError for a switch that is set to something else than true or false.
    """
    plain: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return [*plain, arg, *rest]
        text, equals, value = arg.partition("=")
        name = _known(text, flags)
        if name is None:  # no flag, or one with its value attached (-n5), or unknown, which click says best
            plain.append(arg)
        elif flags[name]:
            plain += [name, value] if equals else [name, *islice(rest, 1)]
        elif not equals or value in _TRUE:
            plain.append(name)
        elif value not in _FALSE:
            raise PlanError(f"{text} is a switch: write {text}, {text}=true or {text}=false, not {arg}")
    return plain


def _known(text: str, flags: Mapping[str, bool]) -> str | None:
    """The flag of this name, however many dashes it was written with."""
    bare = text.removeprefix("-").removeprefix("-")
    spellings = (text, f"-{bare}", f"--{bare}") if bare and text.startswith("-") else ()
    return next((name for name in spellings if name in flags), None)


class Parsed(click.ParamType[T]):
    """A value that a function of `loadtest.arguments` reads."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        if not isinstance(value, str):  # a default
            return value  # type: ignore[no-any-return]
        try:
            return self._parse(value)
        except PlanError as error:
            self.fail(str(error), param, ctx)


class OldFile(click.File):
    """A file that is read whole at once; "-" is stdin."""

    name = "file"

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        with super().convert(value, param, ctx) as file:
            return Contents(str(value), file.read())


class NewFile(click.Path):
    """A file to be written after the run: that it can be is looked at before."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        assert isinstance(path, Path)
        if not path.absolute().parent.is_dir():
            self.fail(f"{str(path)!r}: there is no such folder; make it first", param, ctx)
        return path
