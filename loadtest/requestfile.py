"""A file of requests: one a line, a URL or a path, or a JSON object. Pure.

    # URLs and paths; empty lines and comments count for nothing
    http://127.0.0.1:8080/
    /items/{{random:1:100}}
    {"path": "/items", "method": "POST", "body": "{\"n\": {{seq}}}", "template": true, "weight": 3}

What a line does not say is as the flags say. Paths are paths of the URL of the command line. A URL with {{...}} in it,
which no URL may have, is a template; a line of JSON is one when it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import orjson

from loadtest import arguments, template
from loadtest.model import PlanError, RequestSpec

Headers = tuple[tuple[str, str], ...]


def parse(text: str, *, name: str, base: RequestSpec, url: str | None) -> tuple[RequestSpec, ...]:
    """The requests of a file. `name` is the file's, for messages; `base`: what a line does not say; `url`: what paths
    are paths of. Raises PlanError that names line and field."""
    specs: list[RequestSpec] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        try:
            specs.append(_spec(bare, base, url))
        except PlanError as error:
            raise PlanError(f"{name}, line {number}: {error}") from None
    if not specs:
        raise PlanError(f"{name}: there is no request in it")
    if len(places := {spec.origin for spec in specs}) > 1:
        found = " and ".join(sorted(f"{place.host}:{place.port}" for place in places)[:2])
        raise PlanError(f"{name}: all requests must go to one scheme, host and port, not to {found}")
    return tuple(specs)


def _spec(line: str, base: RequestSpec, url: str | None) -> RequestSpec:
    if not line.startswith("{"):
        return _of_url(line, base, url)
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise PlanError(f"is no JSON object: {error}") from None
    assert isinstance(fields, dict)  # it begins with a brace
    if unknown := sorted(fields.keys() - _FIELDS.keys() - {"url", "path"}):
        raise PlanError(f"field {unknown[0]!r} is unknown; known are url, path, {', '.join(_FIELDS)}")
    if ("url" in fields) == ("path" in fields):
        raise PlanError("field 'url' or 'path': give one of them")
    values = {field: _read(field, fields[field], read) for field, read in _FIELDS.items() if field in fields}
    if "headers" in values:
        values["headers"] = merged(values["headers"], base.headers)
    where = "url" if "url" in fields else "path"
    place = _read(where, fields[where], _text)
    spec = _named(where, lambda: replace(base, url=_url(place, url) if where == "path" else place, **values))
    return _checked(spec) if spec.template else spec


def _of_url(line: str, base: RequestSpec, url: str | None) -> RequestSpec:
    if any(char.isspace() for char in line):
        raise PlanError(f"{line!r} is neither one URL or path nor a JSON object")
    spec = replace(base, url=_url(line, url) if line.startswith("/") else line, template="{{" in line)
    return _checked(spec) if spec.template else spec


def _url(path: str, url: str | None) -> str:
    if not path.startswith("/"):
        raise PlanError(f"{path!r} must begin with a /")
    if url is None:
        raise PlanError(f"{path!r} is a path: give the URL whose path it is on the command line, or write a whole URL")
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{path}"


def merged(first: Headers, then: Headers) -> Headers:
    """`first`, and what of `then` it does not name."""
    taken = {name.lower() for name, _ in first}
    return (*first, *(header for header in then if header[0].lower() not in taken))


def _checked(spec: RequestSpec) -> RequestSpec:
    """Raises PlanError for a placeholder that cannot be filled in."""
    if "{{" in spec.authority:
        raise PlanError("field 'url': only path and query can be filled in, as all requests go to one place")
    _named("url", lambda: template.check(spec.url))
    for name, value in spec.headers:
        _named("headers", partial(template.check, value), name)
    _named("body", lambda: template.check(spec.body.decode("utf-8", "replace")))
    return spec


# fields


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise PlanError("must be text")
    return value


def _method(value: Any) -> str:
    return arguments.method(_text(value))


def _headers(value: Any) -> Headers:
    if not isinstance(value, Mapping):
        raise PlanError('must be an object like {"Accept": "text/html"}')
    return tuple((arguments.header_name(name), arguments.header_value(_text(text))) for name, text in value.items())


def _body(value: Any) -> bytes:
    return _text(value).encode()


def _weight(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError("must be a whole number over 0")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise PlanError("must be true or false")
    return value


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "method": _method,
    "headers": _headers,
    "body": _body,
    "weight": _weight,
    "template": _flag,
}


def _read(field: str, value: Any, read: Callable[[Any], Any]) -> Any:
    return _named(field, lambda: read(value))


def _named(field: str, act: Callable[[], Any], part: str = "") -> Any:
    """Do something, with the field's name in what it raises."""
    try:
        return act()
    except PlanError as error:
        raise PlanError(f"field {field!r}{f', {part}' if part else ''}: {error}") from None
