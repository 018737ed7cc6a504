"""Real programs, a real webhook and a tiny Prometheus: what they are told, and answers that are none."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable

import orjson
import pytest
from aiohttp import web

from tests.canary.counters import GOOD, Prometheus, serving
from tests.canary.test_readings import QUESTION
from trafficd.canary.readings import NoReadingError, Reading
from trafficd.canary.sources import Source, source_of
from trafficd.config.metrics import QUERIES, MetricSection

GOOD_READING = Reading(98, 2, 990, 10)


def source(**keys: object) -> Source:
    return source_of(MetricSection.model_validate({"name": "conversion", **keys}))


async def refusal(asked: Source) -> str:
    try:
        with pytest.raises(NoReadingError) as caught:
            await asked.ask(QUESTION)
    finally:
        await asked.aclose()
    assert str(caught.value).isprintable()
    return str(caught.value)


# -- programs ----------------------------------------------------------------------------------------------


def shell(script: str, **keys: object) -> Source:
    return source(command=["sh", "-c", script], **keys)


async def test_a_program_prints_the_counts_of_what_it_was_told() -> None:
    script = """echo "a warning" >&2
    test "$TRAFFICD_SERVICE $TRAFFICD_METRIC $TRAFFICD_UNTIL" = "web conversion 1700000010.000" || exit 1
    echo '{"canary": {"good": 98, "bad": 2},'; echo '"stable": {"good": 990, "bad": 10}}'"""
    asked = shell(script)
    assert await asked.ask(QUESTION) == GOOD_READING
    assert await asked.ask(QUESTION) == GOOD_READING
    await asked.aclose()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo no database >&2; exit 3", "sh exited with status 3: no database; run it by hand"),
        ("true", "said nothing"),
        ("echo '{}'", "canary.good is missing"),
        ("exec sleep 60", "sh did not end within 0.3 s and was killed"),
        ("yes", "sh wrote more than 1048576 bytes and was killed"),
        ("kill -9 $$", "sh was killed by signal 9"),
    ],
)
async def test_a_program_that_does_not_tell(script: str, says: str) -> None:
    quick = 0.3 if "sleep" in script else 20.0
    assert says in await refusal(shell(script, timeout=quick))


async def test_a_program_that_is_not_there() -> None:
    assert "/no/such could not be started: No such file" in await refusal(source(command=["/no/such"]))


async def test_a_program_gets_its_arguments_as_they_are() -> None:
    asked = source(command=["printf", "%s", orjson.dumps(GOOD).decode() + " ", "$(touch /tmp/x)"])
    assert "said no JSON" in await refusal(asked)


# -- a webhook ---------------------------------------------------------------------------------------------

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def test_a_webhook_answers_the_counts_of_what_it_was_told() -> None:
    told = []

    async def answer(request: web.Request) -> web.Response:
        told.append((request.method, request.path, request.content_type, await request.json()))
        return web.json_response(GOOD)

    async with serving(answer) as url:
        asked = source(webhook=f"{url}/hook/")
        assert await asked.ask(QUESTION) == GOOD_READING
        await asked.aclose()
    body = {
        "service": "web",
        "metric": "conversion",
        "since": 1_700_000_000.0,
        "until": 1_700_000_010.0,
        "canary": ["10.0.0.2:80"],
        "stable": ["10.0.0.1:80", "[fd00::1]:80"],
        "canary_version": "v2",
        "stable_version": "v1",
    }
    assert told == [("POST", "/hook/", "application/json", body)]


async def _refuses(request: web.Request) -> web.Response:
    return web.Response(status=503, text="come back later")


async def _hangs(request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


async def _redirects(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})


async def _packed(request: web.Request) -> web.Response:
    return web.Response(body=gzip.compress(bytes(1 << 20)), headers={"Content-Encoding": "gzip"})


async def _floods(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(100):
        await response.write(b" " * (1 << 20))
    return response


async def _text(request: web.Request) -> web.Response:
    return web.Response(text="42")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (_refuses, "answered 503, not 200: come back later"),
        (_hangs, "did not answer within 0.3 s"),
        (_redirects, "answered 302, not 200"),
        (_packed, "answered packed"),
        (_floods, "answered with more than 1048576 bytes"),
        (_text, "canary.good is missing in 42"),
    ],
)
async def test_a_webhook_that_does_not_tell(answer: Answer, says: str) -> None:
    async with serving(answer) as url:
        quick = 0.3 if answer is _hangs else 20.0
        assert says in await refusal(source(webhook=url, timeout=quick))


async def test_a_webhook_that_is_not_there() -> None:
    assert "is it there" in await refusal(source(webhook="http://127.0.0.1:1"))


# -- both --------------------------------------------------------------------------------------------------


async def test_headers_are_sent_as_they_are_given_and_none_of_ours_is_lost() -> None:
    told = []

    async def answer(request: web.Request) -> web.Response:
        told.append({name: request.headers.getall(name, []) for name in ("Authorization", "Accept-Encoding")})
        return web.Response(status=401, text="who are you?")

    given = {"authorization": "Bearer t0ken", "accept-encoding": "gzip"}
    async with serving(answer) as url:
        for key in ({"webhook": url}, {"prometheus": url, **dict.fromkeys(QUERIES, "up")}):
            said = await refusal(source(headers=given, **key))
            assert "answered 401" in said
            assert "give the metric the headers by which it knows us" in said
            assert "t0ken" not in said
    assert told == [{"Authorization": ["Bearer t0ken"], "Accept-Encoding": ["identity"]}] * 2


# -- Prometheus --------------------------------------------------------------------------------------------


def prometheus(url: str, **queries: str) -> Source:
    asked = {key: key + '{v="$canary_version"}' for key in QUERIES}
    return source(prometheus=url + "/", **(asked | queries))


async def test_prometheus_is_asked_at_the_end_of_the_window() -> None:
    fake = Prometheus(canary_good="97.6", canary_bad="2", stable_good="990", stable_bad="1e1")
    async with serving(fake.answer) as url:
        asked = prometheus(url)
        assert await asked.ask(QUESTION) == Reading(97.6, 2, 990, 10)
        await asked.aclose()
    assert fake.asked == [(f'{key}{{v="v2"}}', "1700000010.000") for key in QUERIES]


@pytest.mark.parametrize(
    ("series", "queries", "says"),
    [
        ({"canary_good": "1"}, {}, "canary_bad: the query gives nothing"),
        ({"canary_good": "NaN"}, {}, "canary_good is not a number (NaN)"),
        ({}, {"canary_good": "sum(x"}, "canary_good: Prometheus refused the query: bad_data: parse error: unclosed"),
        ({"canary_good": "1 2"}, {}, "canary_good: the query gives 2 series"),
    ],
)
async def test_prometheus_does_not_tell(series: dict[str, str], queries: dict[str, str], says: str) -> None:
    async with serving(Prometheus(**series).answer) as url:
        assert says in await refusal(prometheus(url, **queries))


async def test_something_else_than_prometheus() -> None:
    async with serving(_text) as url:
        assert "canary_good: no answer of Prometheus: 42" in await refusal(prometheus(url))
    async with serving(Prometheus().answer) as url:
        assert "answered 404: 404 page not found; is it Prometheus's" in await refusal(prometheus(f"{url}/graph"))
