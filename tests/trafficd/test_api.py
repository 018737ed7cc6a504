"""The HTTP API as strangers use it: shapes, problem documents, and what must never be a 500."""

from __future__ import annotations

import asyncio
import gzip
import time
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy.model import InFlight
from tests.trafficd.conftest import Begin
from tests.trafficd.home import A, Home, section
from trafficd.api.guard import Guard, middleware

DRAIN = "/v1/services/web/upstreams/a/drain"
READY = "/v1/services/web/upstreams/a/ready"
ROLLOUTS = "/v1/services/web/rollouts"
UPSTREAMS = "/v1/services/web/upstreams"


# -- shapes ------------------------------------------------------------------------------------------------


async def test_a_service_and_its_upstreams(home: Home) -> None:
    home.pool.open = {A: InFlight(3, 2), "10.0.0.2:80": None}
    view = (await home.get("/v1/services/web")).json
    assert {key: view[key] for key in ("name", "stable", "held", "canary_percent", "rollout", "waits", "trouble")} == {
        "name": "web",
        "stable": "v1",
        "held": False,
        "canary_percent": None,
        "rollout": None,
        "waits": [],
        "trouble": [],
    }
    assert view["upstreams"][0] == {
        "id": "a",
        "version": "v1",
        "dial": A,
        "spare_dial": None,
        "ready": True,
        "weight": 34,
        "share": 34.0,
        "in_flight": 5,
        "health": "up",
        "drained": False,
        "gating": False,
        "ejected_until": None,
        "reason": "",
        "beside": [],
        "group": None,
    }
    assert view["upstreams"][1]["in_flight"] is None
    assert (await home.get("/v1/services")).json["services"][0]["name"] == "web"


async def test_in_flight_that_cannot_be_read_is_null_and_hides_nothing(home: Home) -> None:
    home.pool.uncounted = "no admin API"
    assert [one["in_flight"] for one in (await home.get("/v1/services/web")).json["upstreams"]] == [None] * 3


async def test_the_daemon_is_well_or_says_why_not(home: Home) -> None:
    well = await home.get("/healthz")
    assert (well.status, well.json["ok"], well.json["trouble"]) == (200, True, [])
    home.pool.broken = "no space left on device"
    drained = await home.post(DRAIN)
    assert drained.status == 503
    ill = await home.get("/healthz")
    assert (ill.status, ill.json["ok"]) == (503, False)
    assert "no space left" in ill.json["trouble"][0]


async def test_events_and_rollouts_are_listed(home: Home) -> None:
    first = await home.deploy("v2")
    await home.ended(first)
    second = await home.deploy("v3")
    await home.ended(second)
    listed = (await home.get("/v1/rollouts?service=web&limit=1")).json["rollouts"]
    assert [one["id"] for one in listed] == [second]
    events = (await home.get("/v1/events?limit=2")).json["events"]
    assert [event["type"] for event in events][-1] == "rollout_ended"
    assert (await home.get(f"/v1/rollouts/{first}")).json["state"] == "succeeded"


async def test_every_endpoint_is_described(home: Home) -> None:
    document = home.contract.document
    assert document["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, found in document["paths"].items() for method in found}
    routed = {(route.method, route.resource.canonical) for route in home.runner.app.router.routes() if route.resource}
    assert described == routed
    ids = [operation["operationId"] for found in document["paths"].values() for operation in found.values()]
    assert len(ids) == len(set(ids))
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for part in value for found in _references(part)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [found for part in value.values() for found in _references(part)]


# -- problem documents -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "/v1/services/nope", "the configuration has: web"),
        ("POST", "/v1/services/web/upstreams/zz/drain", "it has: a, b, c"),
        ("POST", "/v1/services/web/upstreams/zz/ready", "it has: a, b, c"),
        ("DELETE", "/v1/services/web/upstreams/zz", "it has: a, b, c"),
        ("GET", "/v1/rollouts/r-1", "no rollout"),
        ("GET", "/v1/rollouts/r-1/events", "no rollout"),
        ("POST", "/v1/rollouts/r-1/abort", "no rollout"),
        ("POST", "/v1/rollouts/r-1/pause", "no rollout"),
        ("GET", "/v1/events?service=nope", "no service"),
        ("GET", "/v1/rollouts?service=nope", "no service"),
        ("GET", "/v1/nothing", "/openapi.json"),
        ("GET", "/v1/services/a%2Fb", "no such"),
        ("GET", "/v1/services/web/../web", ""),
        ("GET", "/v1/services/..%2f..%2fetc", "no such"),
        ("GET", "/v1/services/%7Bhttp.request.host%7D", "nothing at"),
        ("GET", "/v1/services/a%00b", "no such"),
        ("GET", "/v1/services/%ff%fe", "no such"),
        ("GET", "/v1/services/%C3%A4", "no such"),
        ("GET", "/v1/services/" + "a" * 65, "no such"),
        ("POST", "/v1/services/web/upstreams/$(reboot)/drain", "no such"),
    ],
)
async def test_what_does_not_exist_is_a_404(home: Home, method: str, path: str, says: str) -> None:
    answer = await home.ask(method, path)
    assert (answer.status, answer.kind) == (404, "application/problem+json")
    assert answer.json["status"] == 404
    assert says in answer.detail


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'"text"', b"1", b"null", b"\xff\xfe", b'{"wait": NaN}', b'{"timeout": 1e999}', b'{"a":' * 2000,
     b"[" * 60_000, b'{"version": "\\ud800"}'],
)  # fmt: skip
async def test_a_body_that_is_no_json_object_is_a_400(home: Home, body: bytes) -> None:
    for path in (DRAIN, READY, ROLLOUTS):
        answer = await home.post(path, body)
        assert (answer.status, answer.kind, answer.json["title"]) == (400, "application/problem+json", "Bad request")
    assert not home.engine.state.upstreams["a"].drained


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (DRAIN, {"timeout": "soon"}, "timeout"),
        (DRAIN, {"timeout": -1}, "timeout"),
        (DRAIN, {"timeout": 2**63}, "timeout"),
        (DRAIN, {"timeout": "9" * 400 + "s"}, "timeout"),
        (DRAIN, {"timeout": True}, "timeout"),
        (DRAIN, {"timeout": ["10s"]}, "timeout"),
        (DRAIN, {"wait": "yes"}, "wait"),
        (DRAIN, {"force": 1}, "force"),
        (DRAIN, {"forse": True}, "forse"),
        (READY, {"version": 2}, "version"),
        (READY, {"dial": "http://10.0.0.9:80"}, "dial"),
        (READY, {"dial": "10.0.0.9"}, "dial"),
        (READY, {"dial": "{env.HOST}:80"}, "dial"),
        (READY, {"dial": "user@10.0.0.9:80"}, "dial"),
        (READY, {"dial": "10.0.0.9 :80"}, "dial"),
        (READY, {"dial": "10.0.0.9:80\n10.0.0.8:80"}, "dial"),
        (READY, {"dial": "10.0.0.9:99999"}, "dial"),
        (READY, {"dial": "unix//run/x.sock"}, "dial"),
        (READY, {"dial": "0.0.0.0:80"}, "dial"),
        (ROLLOUTS, {}, "version"),
        (ROLLOUTS, {"version": ""}, "version"),
        (ROLLOUTS, {"version": "v2\nv3"}, "version"),
        (ROLLOUTS, {"version": "--force"}, "version"),
        (ROLLOUTS, {"version": "$(reboot)"}, "version"),
        (ROLLOUTS, {"version": "v2;reboot"}, "version"),
        (ROLLOUTS, {"version": "a/../../etc"}, "version"),
        (ROLLOUTS, {"version": "v" * 129}, "version"),
        (ROLLOUTS, {"version": "v2", "max_parallel": 0}, "max_parallel"),
        (ROLLOUTS, {"version": "v2", "max_parallel": "9" * 30}, "max_parallel"),
        (ROLLOUTS, {"version": "v2", "max_parallel": "9" * 999}, "max_parallel"),
        (ROLLOUTS, {"version": "v2", "min_ready": 2**64 - 1}, "min_ready"),
        (ROLLOUTS, {"version": "v2", "max_parallel": "101%"}, "max_parallel"),
        (ROLLOUTS, {"version": "v2", "order": "random"}, "order"),
        (ROLLOUTS, {"version": "v2", "strategy": "yolo"}, "strategy"),
        (ROLLOUTS, {"version": "v2", "strategy": "blue-green"}, "blue_green"),
        (ROLLOUTS, {"version": "v2", "verify": "yes"}, "verify"),
        (ROLLOUTS, {"version": "v2", "message": "\x1b[2J"}, "message"),
        (ROLLOUTS, {"version": "v2", "message": "\x9b2J"}, "message"),
        (ROLLOUTS, {"version": "v2", "message": "x" * 501}, "message"),
        (ROLLOUTS, {"version": "v2", "auto_revert": "false"}, "auto_revert"),
        (UPSTREAMS, {"id": "../x", "dial": "10.0.0.9:80"}, "id"),
        (UPSTREAMS, {"id": "d"}, "dial"),
        (UPSTREAMS, {"id": "d", "dial": "10.0.0.9:80", "spare_dial": "10.0.0.9:80"}, "spare_dial"),
    ],
)
async def test_a_body_that_does_not_fit_is_a_422_that_names_the_place(
    home: Home, path: str, body: dict[str, Any], place: str
) -> None:
    before = len((await home.get("/v1/events?limit=1000")).json["events"])
    answer = await home.post(path, body)
    assert (answer.status, answer.json["title"]) == (422, "Invalid request")
    assert place in answer.detail
    assert len((await home.get("/v1/events?limit=1000")).json["events"]) == before


@pytest.mark.parametrize("percent", [-1, 100.1, "5", True, None, 1e300, 0.5])
async def test_a_share_that_is_none(begin: Begin, percent: object) -> None:
    home = await begin(web=section("v1", "v2"))
    answer = await home.ask("PUT", "/v1/services/web/canary", {"percent": percent})
    assert answer.status == 422
    assert "percent" in answer.detail


async def test_a_body_over_the_limit_is_a_413(home: Home) -> None:
    body = orjson.dumps({"message": "x" * 70_000})
    assert (await home.post(ROLLOUTS, body)).status == 413
    packed = gzip.compress(b" " * 30_000_000)
    assert (await home.post(ROLLOUTS, packed, Content_Encoding="gzip")).status == 413
    assert (await home.post(ROLLOUTS, b"not packed", Content_Encoding="gzip")).status == 400


async def test_a_long_text_does_not_keep_the_daemon_busy(home: Home) -> None:
    begun = time.monotonic()
    for path, key in ((DRAIN, "timeout"), (ROLLOUTS, "drain_timeout"), (ROLLOUTS, "max_parallel")):
        assert (await home.post(path, {"version": "v2", key: "1" * 65_000})).status == 422
        assert (await home.post(path, {"version": "v2", key: ["1" * 65_000]})).status == 422
    assert time.monotonic() - begun < 1.0


async def test_a_method_that_is_not_possible_is_a_405_that_says_which_are(home: Home) -> None:
    answer = await home.ask("PATCH", DRAIN)
    assert (answer.status, answer.headers["Allow"], answer.kind) == (405, "POST", "application/problem+json")
    assert (await home.ask("DELETE", "/healthz")).headers["Allow"] == "GET"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("application/merge-patch+json", 200),
        ("application/x-www-form-urlencoded", 200),  # what curl -d says
        ("multipart/form-data", 415),
        ("application/xml", 415),
        ("nonsense", 200),
    ],
)
async def test_content_types(home: Home, kind: str, status: int) -> None:
    answer = await home.post(DRAIN, {"wait": False}, Content_Type=kind)
    assert answer.status == status
    assert status == 200 or "application/json" in answer.detail


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "ten", "", "1e3", "00000100000", "9" * 5000, "%D9%A3"])
async def test_a_limit_that_is_none(home: Home, limit: str) -> None:
    for path in ("/v1/events", "/v1/rollouts"):
        assert (await home.get(f"{path}?limit={limit}")).status == 422


@pytest.mark.parametrize("last", ["-1", "abc", "1e3", "9" * 30, "1 2"])
async def test_a_last_event_id_that_is_none(home: Home, last: str) -> None:
    rollout = await home.deploy()
    answer = await home.get(f"/v1/rollouts/{rollout}/events", Last_Event_ID=last)
    assert (answer.status, answer.json["title"]) == (400, "Bad request")


async def test_who_asked_is_journalled_without_what_could_harm_a_terminal(home: Home) -> None:
    head = b"POST " + DRAIN.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Trafficd-Actor: "
    answer = await home.raw(head + b"eve\xff\xc2\x9b[31m" + b"y" * 200 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    actor = (await home.journalled("drain_requested"))[0]["data"]["actor"]
    assert actor.startswith("eve[31my")
    assert len(actor) <= 100


@pytest.mark.parametrize(
    "message",
    [
        b"GET /v1/services/\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/services?\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"PUT /v1/\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"POST /v1/\xff HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nConnection: close\r\n\r\n",
        b"POST " + DRAIN.encode() + b" HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \xff\r\nConnection: close\r\n\r\n",
        b"POST " + DRAIN.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"zz\r\n",
        b"POST " + DRAIN.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\nConnection: close\r\n\r\n",
        b"POST " + DRAIN.encode() + b" HTTP/1.1\r\nX-Trafficd-Actor: a\0b\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\0\x01\x02\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_proper_http(home: Home, message: bytes, caplog: pytest.LogCaptureFixture) -> None:
    status = (await home.raw(message)).split(b" ")[1]
    assert status in (b"200", b"400", b"404")
    assert not [record for record in caplog.records if record.name.startswith("trafficd")]
    assert not home.engine.state.upstreams["a"].drained


async def test_a_caller_that_is_gone_in_mid_sentence_leaves_no_trace(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_unix_connection(str(home.socket))
    writer.write(b"POST " + DRAIN.encode() + b' HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"wait"')
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await asyncio.sleep(0.05)
    assert not home.engine.state.upstreams["a"].drained
    assert not [record for record in caplog.records if record.name.startswith("trafficd")]


# -- who may ask -------------------------------------------------------------------------------------------

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
async def guarded(begin: Begin) -> Home:
    guard = Guard(TOKEN, ["Deploy.example.com"], ["https://ci.example.com"])
    return await begin(guard, web=section())


@pytest.mark.parametrize(
    ("path", "head", "status"),
    [
        ("/v1/services", "Host: localhost", 401),
        ("/v1/services", "Host: localhost\r\nAuthorization: Bearer wrong", 401),
        ("/v1/services", "Host: localhost\r\nAuthorization: Bearer \xff", 401),
        ("/v1/services", f"Host: localhost\r\nAuthorization: Basic {TOKEN}", 401),
        ("/v1/services", f"Host: localhost\r\nAuthorization: Bearer {TOKEN}x", 401),
        ("/v1/nothing", "Host: localhost", 401),
        ("/openapi.json", "Host: localhost", 401),
        ("/v1/services", f"Host: localhost\r\nAuthorization: bearer  {TOKEN}", 200),
        ("/v1/services", f"Host: [::1]:2029\r\nAuthorization: Bearer {TOKEN}", 200),
        ("/v1/services", f"Host: deploy.EXAMPLE.com:2029\r\nAuthorization: Bearer {TOKEN}", 200),
        ("/v1/services", f"Host: evil.example\r\nAuthorization: Bearer {TOKEN}", 421),
        ("/v1/services", f"Host: \xff\r\nAuthorization: Bearer {TOKEN}", 421),
        ("/v1/services", f"Host: localhost.evil.example\r\nAuthorization: Bearer {TOKEN}", 421),
        ("/v1/services", f"Host: localhost\r\nOrigin: https://evil.example\r\nAuthorization: Bearer {TOKEN}", 403),
        ("/v1/services", f"Host: localhost\r\nOrigin: null\r\nAuthorization: Bearer {TOKEN}", 403),
        ("/v1/services", f"Host: localhost\r\nOrigin: https://ci.example.com\r\nAuthorization: Bearer {TOKEN}", 200),
        ("/healthz", "Host: localhost", 200),
        ("/healthz", "Host: rebound.evil.example", 421),
    ],
)
async def test_over_tcp_only_with_token_host_and_origin(guarded: Home, path: str, head: str, status: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
    writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n".encode("latin-1"))
    answer = await reader.read()
    writer.close()
    assert int(answer.split(b" ")[1]) == status, answer
    assert status == 200 or b"application/problem+json" in answer
    assert status != 401 or b"WWW-Authenticate: Bearer" in answer
    assert TOKEN.encode() not in answer


async def test_the_unix_socket_needs_no_token(guarded: Home) -> None:
    assert (await guarded.get("/v1/services")).status == 200


async def test_of_a_connection_that_is_gone_a_token_is_wanted_too() -> None:
    request = make_mocked_request("POST", DRAIN, headers={"Host": "localhost"})
    request.protocol.transport = None

    async def served(request: web.Request) -> web.StreamResponse:
        raise AssertionError("served without a token")

    answer = await middleware(Guard(TOKEN, [], []))(request, served)
    assert answer.status == 401
