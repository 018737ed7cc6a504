"""Errors as RFC 9457 problem documents, whatever went wrong and wherever."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web
from pydantic import ValidationError

from trafficd.api import schema
from trafficd.errors import TrafficdError

log = logging.getLogger("trafficd.api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BadRequestError(TrafficdError):
    status = 400
    title = "Bad request"


def problem(
    request: web.Request, status: int, title: str, detail: str, errors: list[dict[str, str]] | None = None
) -> web.Response:
    """An `application/problem+json` answer."""
    body = schema.Problem(
        title=title,
        status=status,
        detail=detail,
        instance=request.path,
        errors=errors or [],
    )
    return web.Response(
        status=status,
        body=orjson.dumps(body.model_dump(mode="json")),
        content_type="application/problem+json",
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of a handler into a problem document."""
    try:
        return await handler(request)
    except TrafficdError as error:
        return problem(request, error.status, error.title, str(error))
    except ValidationError as error:
        return _invalid(request, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = problem(request, error.status, error.reason, _http_detail(request, error))
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except (web.RequestPayloadError, ConnectionError) as error:
        # Gone in mid-sentence, or not HTTP: nobody reads this answer, and it is no fault of ours.
        return problem(request, 400, "Bad request", f"the body could not be read: {error}")
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        detail = f"{type(error).__name__}: {error}. This is a bug in trafficd; its log has the traceback"
        return problem(request, 500, "Internal error", detail)


def _http_detail(request: web.Request, error: web.HTTPException) -> str:
    match error.status:
        case 404:
            return f"there is nothing at {request.path}; the API is described at /openapi.json"
        case 405:
            return f"{request.method} is not possible at {request.path}; possible: {error.headers.get('Allow', '')}"
        case 413:
            return "the body is larger than any request of this API needs"
        case _:
            return error.text or error.reason


def _invalid(request: web.Request, error: ValidationError) -> web.Response:
    faults = [
        {
            "place": ".".join(str(part) for part in fault["loc"]) or "body",
            "reason": "no such field"
            if fault["type"] == "extra_forbidden"
            else str(fault["msg"]).removeprefix("Value error, "),
        }
        for fault in error.errors(include_url=False)
    ]
    detail = "; ".join(f"{fault['place']}: {fault['reason']}" for fault in faults)
    return problem(request, 422, "Invalid request", detail, faults)
