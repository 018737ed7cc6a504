"""The command line against a daemon's inside: exit statuses, what is printed where, and where the daemon is."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from proxy.model import InFlight
from tests.trafficd.conftest import Begin
from tests.trafficd.home import A, Home, Json, section
from trafficd import show
from trafficd.api.guard import Guard
from trafficd.cli import main

TOKEN = "correct-horse-battery-staple"
NOWHERE = {"TRAFFICD_SOCKET": None, "TRAFFICD_URL": None, "TRAFFICD_TOKEN_FILE": None, "USER": "eve", "SUDO_USER": None}


async def trafficd(home: Home | None, *arguments: str, **environment: str) -> Result:
    """Run a command as a user would, with the daemon's socket in the environment."""
    place = {"TRAFFICD_SOCKET": str(home.socket)} if home else {}
    variables = NOWHERE | place | environment
    result = await asyncio.to_thread(CliRunner(env=variables).invoke, main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def only_json(result: Result) -> Json:
    """The one JSON object on stdout."""
    value = orjson.loads(result.stdout)
    assert isinstance(value, dict)
    return value


async def in_swap(home: Home, service: str = "web") -> str:
    """A rollout that stands still at its first upstream until `home.driver.wait` is set."""
    home.driver.wait = home.driver.wait or asyncio.Event()
    answer = await home.post(f"/v1/services/{service}/rollouts", {"version": "v2"})
    known = len(home.driver.swaps)
    await home.until(lambda: len(home.driver.swaps) > known)
    return str(answer.json["id"])


# -- done, and as JSON -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("status", "web  stable v1"),
        ("status web", "10.0.0.1:80"),
        ("history", "ROLLOUT"),
        ("events", "upstream_added"),
        ("events web --limit 1", "stable_set"),
        ("drain web a", "a is drained: nothing is open on it"),
        ("ready web a", "a (10.0.0.1:80, v1) is ready"),
        ("deploy web v2", "web to v2 succeeded after"),
        ("deploy web v2 --no-wait", "web to v2 is running"),
        ("hold web", "HELD"),
        ("release web", "stable v1"),
    ],
)
async def test_what_is_done_exits_0_in_text_and_in_json(home: Home, command: str, says: str) -> None:
    as_text = await trafficd(home, *command.split())
    assert (as_text.exit_code, as_text.stderr) == (0, "")
    assert says in as_text.stdout
    assert "\x1b" not in as_text.stdout
    if "deploy" in command:
        await home.until(lambda: home.engine.state.live is None)
    as_json = await trafficd(home, *command.split(), "--json")
    assert (as_json.exit_code, as_json.stderr) == (0, "")
    assert only_json(as_json)


async def test_a_deploy_is_told_line_by_line(home: Home) -> None:
    result = await trafficd(home, "deploy", "web", "v2", "--message", "[/red] fix")
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d r-\S+ begins: web to v2, rolling", lines[0])
    assert [line.split(" ", 1)[1] for line in lines[1:5]] == ["drain a", "swap a", "gate a", "admit a"]
    assert re.fullmatch(r"r-\S+: web to v2 succeeded after [\d.]+ s", lines[-1])
    listed = await trafficd(home, "history")
    assert "[/red] fix" in listed.stdout
    assert "eve" in listed.stdout


async def test_an_ipv6_address_is_shown_whole(begin: Begin) -> None:
    upstream = section().upstreams[0].model_copy(update={"dial": "[fd00::1]:80"})
    home = await begin(web=section().model_copy(update={"upstreams": [upstream]}))
    assert "[fd00::1]:80" in (await trafficd(home, "status")).stdout


async def test_who_asks_is_in_the_journal(home: Home) -> None:
    await trafficd(home, "drain", "web", "a")
    await trafficd(home, "ready", "web", "a")
    for kind in ("drain_requested", "ready_requested"):
        assert (await home.journalled(kind))[0]["data"]["actor"] == "eve"


async def test_canary(begin: Begin) -> None:
    home = await begin(web=section("v1", "v2"))
    result = await trafficd(home, "canary", "web", "5", "--json")
    assert only_json(result)["canary_percent"] == 5
    assert (await trafficd(home, "canary", "web", "101")).exit_code == 2
    assert (await trafficd(home, "canary", "web", "nan")).exit_code == 2


async def test_the_same_idempotency_key_joins_the_rollout(home: Home) -> None:
    first = only_json(await trafficd(home, "deploy", "web", "v2", "--idempotency-key", "k", "--json"))
    again = only_json(await trafficd(home, "deploy", "web", "v2", "--idempotency-key", "k", "--json"))
    assert (again["id"], again["state"]) == (first["id"], "succeeded")


# -- not achieved ------------------------------------------------------------------------------------------


async def test_a_rollout_that_was_reverted_exits_1(home: Home) -> None:
    home.driver.fails["v2"] = "no such image"
    result = await trafficd(home, "deploy", "web", "v2", "--json")
    assert (result.exit_code, only_json(result)["state"]) == (1, "reverted")


def test_what_a_program_wrote_cannot_steer_the_terminal() -> None:
    """A container's log repeats what strangers send it."""
    step = {"step": "gate", "upstream": "a", "ok": False, "output": "\x1b[2Jé\x9b31m\u202e\nlast", "cut": None}
    told = {"id": "r-1", "service": "web", "version": "v2", "state": "failed", "ended_at": 1.0, "seconds": 1.0}
    text = show.rollout({**told, "reason": "", "warnings": [], "steps": [step], "waits": []})
    assert text.splitlines()[1:] == ["  output of gate a:", "     [2Jé 31m ", "    last"]


async def test_a_drain_that_cut_requests_exits_1(home: Home) -> None:
    home.pool.open[A] = InFlight(3, 1)
    result = await trafficd(home, "drain", "web", "a", "--timeout", "20ms")
    assert (result.exit_code, "3 requests, 1 streams" in result.stdout) == (1, True)


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("status nope", 2, "no service 'nope'"),
        ("status ../etc", 2, "is not a name"),
        ("drain web zz", 2, "no upstream 'zz'"),
        ("drain web a --timeout soon", 2, "not a duration"),
        ("deploy web --message", 2, "requires an argument"),
        ("deploy web v2;reboot", 2, "not a version"),
        ("deploy web v2 --strategy yolo", 2, "strategy"),
        ("abort web", 1, "service web has no live rollout"),
        ("abort", 1, "no live rollout"),
        ("abort r-20260101-000000-abcdef", 2, "no rollout"),
        ("abort r-../../x", 2, "is not a name"),
        ("canary web 5", 1, "no canary"),
        ("rollback web", 1, "trafficd deploy web VERSION"),
        ("nonsense", 2, "No such command"),
        ("events --limit 0", 2, "not in the range"),
    ],
)
async def test_what_is_refused(home: Home, command: str, status: int, says: str) -> None:
    result = await trafficd(home, *command.split())
    assert (result.exit_code, result.stdout) == (status, "")
    assert says in result.stderr


async def test_with_json_a_refusal_is_one_object_too(home: Home) -> None:
    result = await trafficd(home, "status", "nope", "--json")
    assert only_json(result)["status"] == 404
    assert only_json(result)["title"] == "Not found"
    assert "no service 'nope'" in result.stderr
    gone = await trafficd(None, "status", "--json", "--url", "http://127.0.0.1:9")
    assert only_json(gone)["title"] == "Daemon not reachable"


# -- rollouts by id, by service, or the live one -----------------------------------------------------------


@pytest.mark.parametrize("by", ["id", "service", "nothing"])
async def test_a_rollout_is_named_by_id_by_service_or_not_at_all(home: Home, by: str) -> None:
    rollout = await in_swap(home)
    name = {"id": [rollout], "service": ["web"], "nothing": []}[by]
    assert only_json(await trafficd(home, "pause", *name, "--json"))["paused"]
    assert not only_json(await trafficd(home, "resume", *name, "--json"))["paused"]
    promoted = await trafficd(home, "promote", *name)
    assert (promoted.exit_code, "goes on by itself" in promoted.stderr) == (1, True)
    aborted = await trafficd(home, "abort", *name, "--json")
    assert (aborted.exit_code, only_json(aborted)["id"]) == (0, rollout)
    assert (await home.journalled("abort_requested"))[0]["data"] == {"actor": "eve", "revert": True, "reason": ""}


async def test_of_several_live_rollouts_one_must_be_named(begin: Begin) -> None:
    other = section("v1", "v1")
    moved = [one.model_copy(update={"dial": str(one.dial).replace("10.0.", "10.1.")}) for one in other.upstreams]
    home = await begin(web=section(), api=other.model_copy(update={"upstreams": moved}))
    home.driver.wait = asyncio.Event()
    ids = [
        (await home.post(f"/v1/services/{service}/rollouts", {"version": "v2"})).json["id"]
        for service in ("web", "api")
    ]
    result = await trafficd(home, "abort")
    assert result.exit_code == 2
    assert all(rollout in result.stderr for rollout in ids)
    assert (await trafficd(home, "abort", "api", "--no-revert")).exit_code == 0


# -- where the daemon is -----------------------------------------------------------------------------------


# httpcore leaves a unix socket open that it could not connect, hence processes of their own.
@pytest.mark.parametrize(
    "place", ["--socket=/nonexistent/sock", "--socket=/" + "x" * 200, "--url=http://127.0.0.1:9", ""]
)
def test_no_daemon_exits_3_and_says_what_to_do(place: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRAFFICD_")}
    ended = program("status", *place.split(), env=clean)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert (place.partition("=")[2] or "/run/trafficd/trafficd.sock") in ended.stderr
    assert "trafficd run" in ended.stderr


async def test_over_tcp_with_a_token(begin: Begin, tmp_path: Path) -> None:
    home = await begin(Guard(TOKEN, [], []), web=section())
    url, file = f"http://127.0.0.1:{home.port}", tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert (await trafficd(None, "status", "--url", url, "--token-file", str(file))).exit_code == 0
    assert (await trafficd(None, "status", TRAFFICD_URL=url, TRAFFICD_TOKEN_FILE=str(file))).exit_code == 0
    without = await trafficd(None, "status", "--url", url)
    assert (without.exit_code, "--token-file" in without.stderr) == (2, True)


@pytest.mark.parametrize("text", [None, "", "two words", "fünf", "a\nb"])
async def test_a_token_file_that_holds_none(home: Home, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    result = await trafficd(home, "status", "--token-file", str(file))
    assert (result.exit_code, str(file) in result.stderr) == (2, True)


@pytest.mark.parametrize("url", ["127.0.0.1:2029", "http://[::1", "ftp://localhost", "http://"])
async def test_a_url_that_is_none(url: str) -> None:
    result = await trafficd(None, "status", "--url", url)
    assert (result.exit_code, "not a URL" in result.stderr) == (2, True)


async def test_what_is_said_on_the_command_line_goes_before_the_environment(home: Home) -> None:
    said = await trafficd(None, "status", "--socket", str(home.socket), TRAFFICD_URL="http://127.0.0.1:9")
    assert said.exit_code == 0
    both = await trafficd(None, "status", "--socket", str(home.socket), "--url", "http://127.0.0.1:9")
    assert both.exit_code == 2
    url_alone = await trafficd(home, "status", "--url", "http://127.0.0.1:9")
    assert url_alone.exit_code == 3


@contextmanager
def stranger(answer: bytes) -> Iterator[str]:
    """A server that is no trafficd, for one request."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(5.0)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"text"', b""])
async def test_a_server_that_is_no_trafficd(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with stranger(head + body) as url:
        result = await trafficd(None, "status", "--url", url)
    assert (result.exit_code, "is not trafficd" in result.stderr) == (3, True)


async def test_a_deploy_outlives_a_restart_of_the_daemon(home: Home) -> None:
    home.driver.wait = asyncio.Event()
    place = f"--socket={home.socket}"
    asking = asyncio.create_task(asyncio.to_thread(program, "deploy", "web", "v2", "--json", place))
    await home.until(lambda: home.driver.swaps)
    await asyncio.sleep(0.2)
    await home.restart()
    home.driver.wait.set()
    ended = await asking
    assert (ended.returncode, orjson.loads(ended.stdout)["state"]) == (0, "succeeded")


# -- the program -------------------------------------------------------------------------------------------


def program(*arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trafficd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **environment)


def test_a_configuration_that_cannot_be_used_exits_2_with_every_fault(tmp_path: Path) -> None:
    file = tmp_path / "trafficd.toml"
    file.write_text('[daemon]\nsokcet = "x"\n[services.web]\nslots = 0\n')
    ended = program("run", "--config", str(file))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "daemon.sokcet" in ended.stderr
    assert "services.web.slots" in ended.stderr
    assert program("run", "--config", str(tmp_path / "none.toml")).returncode == 2


def test_help_names_every_command() -> None:
    ended = program("--help")
    for command in ("run", "status", "drain", "ready", "deploy", "canary", "promote", "abort", "pause", "resume",
                    "rollback", "hold", "release", "history", "events", "demo"):  # fmt: skip
        assert re.search(rf"^  {command} ", ended.stdout, re.MULTILINE), command
    assert ended.returncode == 0
