"""What is sent to a shell on another host. Pure.

It goes over the shell's standard input: no login shell takes it apart, `ps` does not show it, and no limit on
arguments applies. All of it stands within braces, so that a shell which got only a part runs none of it. Every value is
quoted exactly once, for that POSIX shell, in which single quotes keep everything as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

SHELL = "exec /bin/sh -s"  # the same words to every login shell
_SUPERVISOR = Path(__file__).with_name("supervise.sh")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def quote(text: str) -> str:
    """One word of a POSIX shell that means this text. Raises ValueError where no shell can have it."""
    if "\0" in text:
        raise ValueError("a NUL character fits into no argument and no variable")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} cannot be encoded") from error
    return shlex.quote(text)


def command_line(argv: Sequence[str]) -> str:
    """The words of a command. Raises ValueError."""
    if not argv or not argv[0] or argv[0].startswith("-"):
        raise ValueError("a program's name cannot be empty or begin with a dash")
    return " ".join(quote(word) for word in argv)


def exports(environment: Mapping[str, str]) -> str:
    """A shell function `environment` that exports these variables. Raises ValueError."""
    for name in environment:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a variable")
    lines = [f"export {name}={quote(value)}" for name, value in environment.items()]
    return "\n".join(["environment() {", ":", *lines, "}"])


def supervised(
    action: str,
    settings: Mapping[str, str | int],
    argv: Sequence[str] = ("true",),
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """The supervisor (`supervise.sh`) with what it is to do: `action` is "run" or "end"; `settings` are the values that
    its head names. Raises ValueError."""
    assigned = [f"{name}={quote(str(value))}" for name, value in {"action": action, **settings}.items()]
    parts = [
        "{",
        *assigned,
        exports(environment or {}),
        f"set -- {command_line(argv)}",
        _SUPERVISOR.read_text(encoding="utf-8"),
        "exit",
        "}",
    ]
    return "\n".join([*parts, ""]).encode()
