"""The difference of two JSON configurations, line by line, for a person to agree to. Pure.

Every change is shown, with its place; there is no line exactly when the two are the same JSON. Only lists of
slots are shortened, as their entries say nothing one by one:

    apps.http.servers.srv0.routes.0.handle.0.upstreams: 2 entries (10.0.0.1:80, 10.0.0.2:80) -> 100 slots (...)
    - apps.http.servers.srv0.routes.0.handle.0.health_checks: {"active": {"uri": "/healthz"}}
    + apps.http.servers.srv0.routes.0.handle.0.load_balancing.try_duration: "30s"
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from proxy.candidates import Path, path_text

_MANY = 3  # slots that are not worth shortening


def difference(before: Any, after: Any) -> list[str]:
    """What has to be changed in `before` to get `after`: nothing, where there is no line."""
    return list(_changes((), before, after))


def _changes(path: Path, before: Any, after: Any) -> Iterator[str]:
    if _exact(before) == _exact(after):
        return
    match before, after:
        case dict(), dict():
            yield from _object_changes(path, before, after)
        case list(), list() if len(before) != len(after) and (_are_slots(before) or _are_slots(after)):
            yield f"{_place(path)}: {_entries(before)} -> {_entries(after)}"
        case list(), list():
            yield from _array_changes(path, before, after)
        case _:
            yield f"{_place(path)}: {_shown(before)} -> {_shown(after)}"


def _object_changes(path: Path, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for key in [*before, *(key for key in after if key not in before)]:
        inner = (*path, key)
        if key not in after:
            yield f"- {_place(inner)}: {_shown(before[key])}"
        elif key not in before:
            yield f"+ {_place(inner)}: {_shown(after[key])}"
        else:
            yield from _changes(inner, before[key], after[key])


def _array_changes(path: Path, before: list[Any], after: list[Any]) -> Iterator[str]:
    """What is equal at both ends is left out; in between entries are paired only if there are as many."""
    head = _alike(before, after)
    tail = _alike(before[head:][::-1], after[head:][::-1])
    gone, new = before[head : len(before) - tail], after[head : len(after) - tail]
    if len(gone) == len(new):
        for index, (old, value) in enumerate(zip(gone, new, strict=True), head):
            yield from _changes((*path, index), old, value)
        return
    for index, old in enumerate(gone, head):
        yield f"- {_place((*path, index))}: {_shown(old)}"
    for index, value in enumerate(new, head):
        yield f"+ {_place((*path, index))}: {_shown(value)}"


def _alike(before: list[Any], after: list[Any]) -> int:
    """How many entries are the same from the start on."""
    count = 0
    for old, new in zip(before, after, strict=False):
        if _exact(old) != _exact(new):
            break
        count += 1
    return count


def _place(path: Path) -> str:
    return path_text(path) or "(the whole configuration)"


def _exact(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # unlike Python, JSON tells 1 from true


def _shown(value: Any) -> str:
    return json.dumps(_shortened(value), ensure_ascii=False)


def _shortened(value: Any) -> Any:
    match value:
        case dict():
            return {key: _shortened(inner) for key, inner in value.items()}
        case list() if len(value) > _MANY and _are_slots(value):
            return [_entries(value)]
        case list():
            return [_shortened(inner) for inner in value]
        case _:
            return value


def _are_slots(entries: list[Any]) -> bool:
    return bool(entries) and all(
        isinstance(entry, dict) and entry.keys() == {"dial"} and "{file." in str(entry["dial"]) for entry in entries
    )


def _entries(entries: list[Any]) -> str:
    if _are_slots(entries):
        return f"{len(entries)} slots ({entries[0]['dial']} to {entries[-1]['dial']})"
    dials = ", ".join(str(e["dial"]) if isinstance(e, dict) and e.keys() == {"dial"} else _shown(e) for e in entries)
    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {noun} ({dials})" if entries else "0 entries"
