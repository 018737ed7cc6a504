"""What an endpoint is: a route with the models of its request and answer.

The same table builds the router, validates requests, and makes the OpenAPI document, so the three cannot
drift apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel

from proxy.model import parse_name
from trafficd.api import schema
from trafficd.api.problems import BadRequestError
from trafficd.errors import InvalidError, NotFoundError

NEWEST: dict[str, dict[str, Any]] = {
    "service": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50},
}
BODY_LIMIT = 65_536
LIST_LIMIT = 100
TEXT_LIMIT = 1000  # of any text in a request: some are parsed by patterns, which long texts would keep busy

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Endpoint:
    """One route. `body` None means that the request has none; `answer` None that the answer is no JSON."""

    method: str
    path: str
    summary: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    status: int = 200
    problems: tuple[int, ...] = ()
    media: str = "application/json"
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # name -> JSON schema
    ill: int | None = None  # another status that has the same answer
    also: tuple[str, ...] = ()  # other media that the answer may be had in


async def read(request: web.Request, model: type[M], tables: Collection[str] = (), lists: Collection[str] = ()) -> M:
    """The request's body as `model`; an empty body is an empty object. `tables`: fields that may be objects; `lists`:
    of values or of objects.

    Raises `BadRequestError` when it is no JSON object, `pydantic.ValidationError` when it does not fit.
    """
    body = await request.read()
    if not body.strip():
        return model.model_validate({})
    if not _says_json(request):
        raise web.HTTPUnsupportedMediaType(text=f"{request.content_type} is not JSON; send application/json")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    for key, part in value.items():
        if isinstance(part, dict) and key in tables:
            _refuse_nested(part, f"{key}.")
        elif isinstance(part, list) and key in lists and len(part) <= LIST_LIMIT:
            for number, one in enumerate(part):
                _refuse_nested(one if isinstance(one, dict) else {str(number): one}, f"{key}.")
        else:
            _refuse_nested({key: part})
    return model.model_validate(value)


def _refuse_nested(table: Mapping[str, object], place: str = "") -> None:
    for key, part in table.items():
        if isinstance(part, dict | list) or (isinstance(part, str) and len(part) > TEXT_LIMIT):
            raise InvalidError(
                f"{place}{key[:80]}: must be a number, true, false, or text of up to {TEXT_LIMIT} characters"
            )


def _says_json(request: web.Request) -> bool:
    """Whether the label fits. None at all does, and so does what curl writes when it is not told."""
    kind = request.content_type
    unlabelled = ("application/octet-stream", "application/x-www-form-urlencoded", "text/plain")
    return kind == "application/json" or kind.endswith("+json") or kind in unlabelled


def answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    body = orjson.dumps(model.model_dump(mode="json"))
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def part(request: web.Request, name: str) -> str:
    """A name out of the path. One that cannot be a name cannot exist either."""
    try:
        return parse_name(request.match_info[name])
    except ValueError as error:
        raise NotFoundError(f"there is no such {name}: {error}") from error


def actor(request: web.Request) -> str:
    """Who asked, as far as they say: for the journal, not for rights."""
    text = request.headers.get("X-Trafficd-Actor", "")
    return "".join(character for character in text[:100] if character.isprintable())


def limit(request: web.Request) -> int:
    """How many of the newest are asked for."""
    text = request.query.get("limit", "50")
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= 1000):
        raise InvalidError(f"limit {text[:20]!r} is not a number from 1 to 1000")
    return int(text)


def openapi(endpoints: list[Endpoint], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these endpoints."""
    components: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "trafficd", "version": version, "summary": "Zero-downtime deploys behind Caddy"},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _operation(endpoint: Endpoint, components: dict[str, Any]) -> dict[str, Any]:
    names = [part.strip("{}") for part in endpoint.path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    parameters += [{"name": name, "in": "query", "schema": kind} for name, kind in endpoint.query.items()]
    if endpoint.method == "POST":
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}})
    if endpoint.media == "text/event-stream":
        parameters.append({"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}})
    operation: dict[str, Any] = {"summary": endpoint.summary, "operationId": _operation_id(endpoint)}
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        schema_ref = _reference(endpoint.body, components, mode="validation")
        required = any(field.is_required() for field in endpoint.body.model_fields.values())
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema_ref}}}
    content = (
        {endpoint.media: {"schema": _reference(endpoint.answer, components, mode="serialization")}}
        if endpoint.answer is not None
        else {endpoint.media: {}}
    )
    content |= {media: {} for media in endpoint.also}
    operation["responses"] = {str(endpoint.status): {"description": endpoint.summary, "content": content}}
    if endpoint.ill is not None:
        operation["responses"][str(endpoint.ill)] = {"description": "not well: `trouble` says why", "content": content}
    fault = {"application/problem+json": {"schema": _reference(schema.Problem, components, mode="serialization")}}
    for status in sorted({*endpoint.problems, 401} - {endpoint.status}):
        operation["responses"][str(status)] = {"description": _FAULTS.get(status, "problem"), "content": fault}
    operation["responses"]["default"] = {"description": "any other problem", "content": fault}
    return operation


_FAULTS = {
    400: "the body is not JSON, or a header cannot be used",
    401: "over TCP: no token, or a wrong one",
    404: "no such service, upstream, rollout or verification",
    409: "refused, given how things stand",
    422: "a field is missing or not valid",
    503: "the proxy or the journal cannot be used now",
    504: "not healthy in time",
}


def _operation_id(endpoint: Endpoint) -> str:
    words = [part.strip("{}") for part in endpoint.path.strip("/").split("/") if part not in ("", "v1")]
    return "_".join([endpoint.method.lower(), *words]).replace(".", "_").replace("-", "_")


def _reference(model: type[BaseModel], components: dict[str, Any], *, mode: Any) -> dict[str, str]:
    whole = model.model_json_schema(mode=mode, ref_template="#/components/schemas/{model}")
    components.update(whole.pop("$defs", {}))
    components[model.__name__] = whole
    return {"$ref": f"#/components/schemas/{model.__name__}"}
