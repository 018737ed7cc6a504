"""A rollout's events as they happen: complete, in order, resumable, and at an end when the rollout is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from tests.trafficd.home import Home
from trafficd.ports import Entry

Event = dict[str, Any]


@asynccontextmanager
async def stream(home: Home, rollout: str, last: int | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    async with home.session.get(f"http://localhost/v1/rollouts/{rollout}/events", headers=headers) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        yield answer


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """The events of a stream; each must be whole."""
    fields: dict[str, str] = {}
    async for line in answer.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            event: Event = orjson.loads(fields["data"])
            assert fields["id"] == str(event["seq"])
            assert fields["event"] == event["type"]
            yield event
            fields = {}


async def test_all_events_in_order_until_the_end(home: Home) -> None:
    rollout = await home.deploy()
    async with stream(home, rollout) as answer:
        seen = [event async for event in events(answer)]
    assert [event["type"] for event in (seen[0], seen[-1])] == ["rollout_started", "rollout_ended"]
    journalled = [entry.seq for entry in await home.journal.rollout(rollout)]
    assert [event["seq"] for event in seen] == journalled


async def test_a_stream_is_resumed_where_it_was_lost(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    rollout = await home.deploy()
    seen: list[Event] = []
    async with stream(home, rollout) as answer:
        async for event in events(answer):
            seen.append(event)
            if len(seen) == 4:
                break
    home.driver.wait.set()
    async with stream(home, rollout, seen[-1]["seq"]) as answer:
        seen += [event async for event in events(answer)]
    assert [event["seq"] for event in seen] == [entry.seq for entry in await home.journal.rollout(rollout)]


async def test_a_stream_of_what_has_ended_ends(home: Home) -> None:
    first = await home.deploy("v2")
    await home.ended(first)
    await home.ended(await home.deploy("v3"))
    async with stream(home, first) as answer:
        seen = [event async for event in events(answer)]
    assert seen[-1]["type"] == "rollout_ended"
    async with stream(home, first, seen[-1]["seq"]) as answer:
        assert [event async for event in events(answer)] == []


async def test_what_happens_while_the_journal_is_read_is_sent_at_once(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.driver.wait = asyncio.Event()
    rollout = await home.deploy()
    await home.until(lambda: home.driver.swaps)
    read, reading = home.journal.rollout, asyncio.Event()

    async def slowly(name: str, after: int = 0) -> list[Entry]:
        entries = await read(name, after)
        reading.set()
        await asyncio.sleep(0.15)
        return entries

    monkeypatch.setattr(home.journal, "rollout", slowly)
    async with asyncio.timeout(5.0), stream(home, rollout) as answer:
        await reading.wait()
        assert home.driver.wait is not None
        home.driver.wait.set()
        assert [event async for event in events(answer)][-1]["type"] == "rollout_ended"


async def test_a_reader_that_is_gone_is_no_fault(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.driver.wait = asyncio.Event()
    rollout = await home.deploy()
    async with stream(home, rollout) as answer:
        await answer.content.readline()
        answer.close()
    home.driver.wait.set()
    await home.ended(rollout)
    await asyncio.sleep(0.1)
    assert not [record for record in caplog.records if record.name == "trafficd.api"]


async def test_a_stream_that_the_journal_fails_is_cut_and_not_ended(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    rollout = await home.deploy()
    await home.until(lambda: home.driver.swaps)
    async with stream(home, rollout) as answer:
        await answer.content.readline()
        await asyncio.sleep(0.05)
        home.journal.full = "disk full"
        home.engine.ledger.revision += 1
        await home.engine.ledger.notify()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    home.journal.full = ""


async def test_many_readers_see_the_same(home: Home) -> None:
    rollout = await home.deploy()

    async def all_events() -> list[Event]:
        async with stream(home, rollout) as answer:
            return [event async for event in events(answer)]

    seen = await asyncio.gather(*(all_events() for _ in range(20)))
    assert all(found == seen[0] for found in seen)
