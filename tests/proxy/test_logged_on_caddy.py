"""What a real Caddy logs of each kind of answer, and that the log never does harm to what is served.

Measured with Caddy 2.11.7 (the fields after cutting down; the first upstream is 127.0.0.1:U):

    kind                                     status  duration  answered  upstream  retries  warning before
    200, 500                                 as is   whole     U         U         0        -
    refused, retried on another slot         200     whole     other     other     1        -
    refused until try_duration is over       502     whole     -         U         n        -
    reset, or closed, before a byte          502     whole     -         U         0        -
    no header in response_header_timeout     504     whole     -         U         0        -
    client leaves before the header          499     until it  -         U         0        -
    cut by the upstream (length or chunks)   200     0         U         -         -        reading: unexpected EOF
    client leaves within the body            200     0         U         -         -        reading: context canceled
    WebSocket, when it has ended             101     whole     -         [::ffff:U] 0       -
    nobody is ready until try_duration       502     whole     -         NOBODY    n        -

- A name in `access_logger_names` takes the place of all names of the host; with two of them errors are logged twice.
- The file has the mode that is asked for, after rolling too; a directory that is not there is made with 0700, which
  shuts out a reader of another user.
- A file that cannot be opened when the configuration is loaded refuses the whole configuration: nothing is changed.
  Once it is open, a full disk, a removed or a truncated file change nothing for requests. Caddy holds the file open,
  so a removed one is written on, unseen, until it is rolled or Caddy is started again; a reload keeps the writer, and
  its settings too, as long as the path is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest import runner
from loadtest.model import Plan, RequestSpec
from proxy import logged
from proxy.accessline import Answer, Cut
from proxy.accesslog import Follower
from proxy.errors import CaddyRefusedError
from proxy.handler import Json, Transport
from proxy.install import install
from proxy.pools import SlotPool
from proxy.ways import ByAdmin, Own
from tests.proxy.caddy import RealCaddy, Stream
from tests.proxy.test_accesslog import is_missing

WAIT = 5.0  # s within which Caddy has written a line


@dataclass
class Logged:
    """A Caddy whose requests are logged, and the follower of its log."""

    caddy: RealCaddy
    path: Path
    follower: Follower

    async def serve(self, weights: dict[str, int], **changes: object) -> SlotPool:
        return await self.caddy.serve(weights, access_log=str(self.path), **changes)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.caddy.port}{path}"

    async def get(self, path: str = "/", headers: Mapping[str, str] | None = None, timeout: float = 10) -> int:
        async with httpx.AsyncClient(trust_env=False, timeout=timeout) as client:
            return (await client.get(self.url(path), headers=headers)).status_code

    async def answers(self, count: int = 1) -> list[Answer]:
        """The next so many answers in the log, and no more than these."""
        found: list[Answer] = []
        async with asyncio.timeout(WAIT):
            while len(found) < count:
                found += self.follower.read()
                await asyncio.sleep(0.01)
        assert len(found) == count
        return found

    async def answer(self) -> Answer:
        return (await self.answers())[0]


@pytest.fixture
async def log(caddy: RealCaddy, tmp_path: Path) -> AsyncIterator[Logged]:
    path = tmp_path / "log" / "access.log"
    path.parent.mkdir()
    follower = Follower(path)
    yield Logged(caddy, path, follower)
    follower.close()


# -- attribution ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ok", "error"])
@pytest.mark.parametrize("affinity", ["none", "cookie"])
async def test_an_answer_is_its_upstreams(log: Logged, mode: str, affinity: str) -> None:
    await log.serve({"a": 1}, affinity=affinity)
    log.caddy.upstreams["a"].mode = mode
    status = await log.get("/a/b?secret=1", {"X-Trafficd-Stratum": "load" * 50, "Cookie": "secret=1"})
    answer = await log.answer()
    assert answer.status == status == (200 if mode == "ok" else 500)
    assert (answer.service, answer.upstream, answer.method, answer.path) == ("web", log.caddy.dial("a"), "GET", "/a/b")
    assert (answer.client, answer.retries, answer.cut, answer.answered) == ("127.0.0.1", 0, Cut.NO, True)
    assert answer.stratum == ("load" * 50)[:40]
    assert answer.latency is not None
    assert 0 < answer.latency < answer.duration < 5
    assert "secret" not in log.path.read_text()


async def test_the_time_to_the_header_is_the_upstreams_own(log: Logged) -> None:
    pool = await log.serve({})
    log.caddy.upstreams["a"].mode = "slow"
    asked = asyncio.create_task(log.get())
    await asyncio.sleep(0.5)
    await pool.shift(log.caddy.weights({"a": 1}))
    assert await asked == 200
    answer = await log.answer()
    assert answer.latency is not None
    assert answer.latency >= 0.3
    assert answer.duration > answer.latency + 0.2, "the wait for somebody is in the whole only"


async def test_a_refused_request_is_the_ones_who_answered_and_the_retries_are_told(log: Logged) -> None:
    await log.serve({"a": 1, "b": 1})
    await log.caddy.upstreams["a"].stop()
    assert [await log.get() for _ in range(6)] == [200] * 6
    answers = await log.answers(6)
    assert {answer.upstream for answer in answers} == {log.caddy.dial("b")}
    assert {answer.retries for answer in answers} >= {1}, "whom they were meant for is not told"


async def test_a_request_that_all_refuse_is_the_last_ones(log: Logged) -> None:
    await log.serve({"a": 1}, try_duration=0.3)
    await log.caddy.upstreams["a"].stop()
    assert await log.get() == 502
    answer = await log.answer()
    assert (answer.status, answer.upstream, answer.answered) == (502, log.caddy.dial("a"), False)
    assert answer.retries is not None
    assert answer.retries > 2


async def test_a_request_that_waited_for_nobody_is_nobodys(log: Logged) -> None:
    await log.serve({}, try_duration=0.3)
    assert await log.get() == 502
    answer = await log.answer()
    assert (answer.status, answer.upstream) == (502, None)


@pytest.mark.parametrize("mode", ["truncate", "chunk"])
async def test_an_answer_that_the_upstream_cut_short_is_the_upstreams(log: Logged, mode: str) -> None:
    await log.serve({"a": 1})
    log.caddy.upstreams["a"].mode = mode
    with pytest.raises(httpx.RemoteProtocolError):
        await log.get()
    answer = await log.answer()
    assert (answer.status, answer.upstream, answer.cut) == (200, log.caddy.dial("a"), Cut.UPSTREAM)
    assert (answer.duration, answer.answered) == (0, True)
    assert answer.latency is not None
    assert answer.latency > 0


async def test_an_answer_that_the_client_left_is_the_clients(log: Logged) -> None:
    await log.serve({"a": 1})
    log.caddy.upstreams["a"].mode = "stall"
    with pytest.raises(httpx.ReadTimeout):
        await log.get(timeout=0.3)
    answer = await log.answer()
    assert (answer.status, answer.upstream, answer.cut) == (200, log.caddy.dial("a"), Cut.CLIENT)
    assert not answer.truncated


async def test_a_reset_before_the_header_is_the_upstreams(log: Logged) -> None:
    await log.serve({"a": 1})
    log.caddy.upstreams["a"].mode = "reset"
    assert await log.get() == 502
    answer = await log.answer()
    assert (answer.status, answer.upstream, answer.answered) == (502, log.caddy.dial("a"), False)
    assert (answer.cut, answer.retries) == (Cut.NO, 0)


async def test_a_time_out_is_the_upstreams(log: Logged) -> None:
    await log.serve({"a": 1}, transport=Transport(response_header_timeout=0.3))
    log.caddy.upstreams["a"].mode = "hang"
    assert await log.get() == 504
    answer = await log.answer()
    assert (answer.status, answer.upstream, answer.answered) == (504, log.caddy.dial("a"), False)
    assert answer.duration >= 0.3


async def test_a_client_that_gave_up_waiting_is_told_with_its_upstream(log: Logged) -> None:
    await log.serve({"a": 1})
    log.caddy.upstreams["a"].mode = "hang"
    with pytest.raises(httpx.ReadTimeout):
        await log.get(timeout=0.3)
    answer = await log.answer()
    assert (answer.status, answer.upstream, answer.answered) == (499, log.caddy.dial("a"), False)
    assert 0.25 < answer.duration < 5


@pytest.mark.parametrize("affinity", ["none", "cookie"])
async def test_a_stream_is_told_when_it_ends(log: Logged, affinity: str) -> None:
    await log.serve({"a": 1}, affinity=affinity)
    stream = await Stream.open(log.caddy.port)
    assert await stream.echoes()
    await asyncio.sleep(0.3)
    assert log.follower.read() == []
    stream.close()
    answer = await log.answer()
    assert (answer.status, answer.upstream, answer.path) == (101, log.caddy.dial("a"), "/ws")
    assert (answer.cut, answer.answered) == (Cut.NO, False)
    assert answer.duration > 0.25


async def test_a_route_over_addresses_is_logged_too(log: Logged) -> None:
    route = log.caddy.route(access_log=str(log.path))
    way = ByAdmin(route, lambda: log.caddy.weights({"a": 1}))
    assert (await install(log.caddy.admin, [way], log.caddy.root)).written
    assert way.present((await log.caddy.admin.config())[0])
    assert await log.get() == 200
    assert (await log.answer()).upstream == log.caddy.dial("a")


# -- beside what others log ----------------------------------------------------------------------------

HOST = "theirs.test"
THEIRS: Json = {"match": [{"host": [HOST]}], "handle": [{"handler": "static_response", "body": "t"}], "terminal": True}


async def with_theirs(log: Logged, logs: Json | None, logging: Json, **server: Any) -> None:
    """Somebody's server at the address of ours, with a route and loggers of its own."""

    def change(config: Json | None) -> Json:
        config = copy.deepcopy(config)
        assert config is not None
        theirs = {"listen": [f"127.0.0.1:{log.caddy.port}"], "routes": [THEIRS], "automatic_https": {"disable": True}}
        config["apps"] = {"http": {"servers": {"theirs": theirs | server}}}
        if logs is not None:
            config["apps"]["http"]["servers"]["theirs"]["logs"] = logs
        config["logging"]["logs"].update(logging)
        return config

    await log.caddy.admin.edit(change)


def file_logger(path: Path, **changes: Any) -> Json:
    return {"writer": {"output": "file", "filename": str(path)}, "encoder": {"format": "json"}, **changes}


async def test_a_server_that_logged_nothing_logs_only_ours_and_only_in_our_file(log: Logged, tmp_path: Path) -> None:
    all_of_it = tmp_path / "all.log"
    await with_theirs(log, None, {"all": file_logger(all_of_it)})
    await log.serve({"a": 1})
    log.caddy.upstreams["a"].mode = "reset"
    assert (await log.get("/theirs", {"Host": HOST}), await log.get("/ours")) == (200, 502)
    assert (await log.answer()).path == "/ours"
    text = all_of_it.read_text() + log.caddy.server.log.read_text()
    assert "handled request" not in text
    assert all_of_it.read_text().count('"/ours"') == 1, "the error is still told where it was"


@pytest.mark.parametrize(
    "logs",
    [
        {},
        {"default_logger_name": "log0"},
        {"logger_names": {"127.0.0.1": ["log0"], "*.test": ["log0"]}},
        {"logger_names": {"127.0.0.1": "log0", HOST: ["log0"], "other.test": ["log1"]}, "skip_hosts": ["none.test"]},
        {"logger_names": {"127.0.0.1": ["log0"], HOST: "log0"}, "skip_unmapped_hosts": True},
    ],
)
@pytest.mark.parametrize("hosts", [(), ("127.0.0.1",)])
async def test_what_a_server_logged_it_goes_on_logging_once(
    log: Logged, tmp_path: Path, logs: Json, hosts: tuple[str, ...]
) -> None:
    theirs = tmp_path / "theirs.log"
    await with_theirs(log, logs, {"theirs": file_logger(theirs, include=["http.log", "admin"])})
    await log.serve({"a": 1}, hosts=hosts)
    log.caddy.upstreams["a"].mode = "reset"
    assert (await log.get("/theirs", {"Host": HOST}), await log.get("/ours")) == (200, 502)
    assert (await log.answer()).path == "/ours"
    text = theirs.read_text()
    assert (text.count('"/theirs"'), text.count('"/ours"')) == (1, 2), "an access line each, and one error"
    name = '"logger":"http.log.access.log0"' if logs else '"logger":"http.log.access"'
    assert text.count(name) == 2


async def test_hosts_that_were_not_to_be_logged_are_not_but_for_ours(log: Logged, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.log"
    await with_theirs(
        log, {"skip_hosts": ["127.0.0.1", HOST]}, {"theirs": file_logger(theirs, include=["http.log.access"])}
    )
    await log.serve({"a": 1}, hosts=("127.0.0.1",))
    assert (await log.get("/theirs", {"Host": HOST}), await log.get("/ours")) == (200, 200)
    assert (await log.answer()).path == "/ours"
    assert theirs.read_text() == ""


async def test_a_second_install_writes_nothing_and_without_the_log_all_is_as_before(log: Logged) -> None:
    before, _ = await log.caddy.admin.config()
    await log.serve({"a": 1})
    ways = [Own(log.caddy.route(access_log=str(log.path)))]
    assert not (await install(log.caddy.admin, ways, log.caddy.root)).written
    plain = Own(log.caddy.route())
    assert (await install(log.caddy.admin, [plain], log.caddy.root)).written
    after, _ = await log.caddy.admin.config()
    assert before is not None
    assert after is not None
    assert after["logging"] == before["logging"]
    assert plain.present(after)
    assert "trafficd.other" not in str(after)
    assert await log.get() == 200
    assert log.follower.read() == []


# -- the file ------------------------------------------------------------------------------------------


async def load(log: Logged, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> int:
    """Requests for so long, all of them answered by 200; how many there were."""
    stop = asyncio.Event()
    plan = Plan((RequestSpec(log.url("/" + "x" * 190)),), connections=8, total=None, duration=60)
    running = asyncio.create_task(runner.run(plan, stop=stop))
    await asyncio.sleep(seconds / 2)
    meanwhile()
    await asyncio.sleep(seconds / 2)
    stop.set()
    report = await running
    assert report.sent > 100
    assert (report.lost, set(report.status)) == (0, {200})
    return report.status[200]


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logged, "ROLL_MB", 1)


@pytest.mark.usefixtures("small_files")
async def test_caddy_rolls_the_file_and_no_line_is_lost_or_seen_twice(log: Logged) -> None:
    await log.serve({"a": 1})
    count = 0
    while log.follower.counts.rolled < 2:
        count += await load(log, 1.0)
        await log.answers(count - log.follower.counts.lines)
        assert count < 100_000
    assert log.follower.counts.bad == log.follower.counts.gaps == log.follower.counts.skipped == 0
    modes = {stat.S_IMODE(path.stat().st_mode) for path in log.path.parent.iterdir()}
    assert modes == {0o644}
    assert log.follower.behind == 0


@pytest.mark.usefixtures("small_files")
@pytest.mark.slow
async def test_nobody_reads_and_caddy_serves_on_and_keeps_few_files(log: Logged) -> None:
    log.follower.close()
    await log.serve({"a": 1})
    reached, count = 0, 0
    while reached < (logged.ROLL_KEEP + 2) << 20:
        count += await load(log, 1.0)
        reached = count * 450
    files = list(log.path.parent.iterdir())
    assert 2 <= len(files) <= logged.ROLL_KEEP + 2  # the oldest goes a moment after it was rolled
    late = Follower(log.path)
    await log.get("/late")
    await asyncio.sleep(0.1)
    assert [answer.path for answer in late.read()] == ["/late"]
    late.close()


async def test_a_file_that_is_truncated_under_it_is_written_on_and_read_on(log: Logged) -> None:
    await log.serve({"a": 1})
    await load(log, 0.4)
    await asyncio.sleep(0.2)
    while log.follower.read():
        pass
    os.truncate(log.path, 0)
    assert log.follower.read() == []
    assert log.follower.counts.truncated == 1
    assert await log.get("/after") == 200
    assert (await log.answer()).path == "/after"
    assert log.follower.counts.bad == 0


async def test_a_file_that_is_removed_under_it_is_read_on_by_whoever_has_it_open(log: Logged) -> None:
    await log.serve({"a": 1})
    assert await log.get() == 200
    await log.answer()
    count = await load(log, 0.4, log.path.unlink)
    await log.answers(count)
    assert is_missing(log.follower)
    await log.caddy.server.stop()
    await log.caddy.server.start()
    assert await log.get("/again") == 200
    assert (await log.answer()).path == "/again"
    assert not is_missing(log.follower)
    assert log.follower.counts.bad == 0


async def test_a_full_disk_does_not_stop_requests(log: Logged) -> None:
    full = log.path.with_name("full.log")
    try:
        os.mknod(full, 0o644 | stat.S_IFCHR, os.makedev(1, 7))  # /dev/full, under a name that may be renamed
    except OSError:
        pytest.skip("making a device file needs root")
    full.chmod(0o644)  # as is asked for, whatever the umask is
    log.path = full
    await log.serve({"a": 1})
    assert await load(log, 0.5) > 100
    assert "no space left on device" in log.caddy.server.log.read_text()


async def test_a_file_that_cannot_be_written_is_refused_and_nothing_is_changed(log: Logged) -> None:
    await log.caddy.serve({"a": 1})
    before, _ = await log.caddy.admin.config()
    blocked = log.path.parent / "file"
    blocked.touch()
    log.path = blocked / "access.log"
    with pytest.raises(CaddyRefusedError, match="not a directory"):
        await log.serve({"a": 1})
    assert (await log.caddy.admin.config())[0] == before
    assert await log.get() == 200


async def test_caddy_makes_a_missing_directory_that_only_its_user_can_enter(log: Logged) -> None:
    log.path.parent.rmdir()
    await log.serve({"a": 1})
    with contextlib.closing(Follower(log.path)) as follower:
        log.follower = follower
        assert await log.get() == 200
        assert (await log.answer()).upstream == log.caddy.dial("a")
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700
