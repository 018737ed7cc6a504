"""From the command line to a plan: nothing is sent here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from loadtest import options
from loadtest.arguments import basic
from loadtest.cli import main
from loadtest.model import Plan, PlanError, Proxy, Stage
from loadtest.options import Options

URL = "http://127.0.0.1:1/"


def parsed(*arguments: str) -> Options:
    return Options(**main.make_context("loadtest", list(arguments)).params)


def plan(*arguments: str) -> Plan:
    return options.plan(parsed(*arguments))


def headers(*arguments: str) -> dict[str, str]:
    sent = plan(*arguments, URL).requests[0].headers
    assert len(dict(sent)) == len(sent)
    return dict(sent)


def test_defaults_are_those_of_hey() -> None:
    sent = plan(URL)
    assert (sent.total, sent.connections, sent.duration, sent.timeout, sent.qps) == (200, 50, None, 20, None)
    assert (sent.keepalive, sent.http2, sent.redirects, sent.proxy) == (True, False, 10, None)
    assert (sent.retry_stale, sent.verify_tls) == (False, True)  # unlike hey
    request = sent.requests[0]
    assert (request.method, request.body) == ("GET", b"")
    assert dict(request.headers) == {"User-Agent": "loadtest", "Content-Type": "text/html", "Accept-Encoding": "gzip"}


HEY: dict[str, dict[str, Any]] = {
    "-n 7": {"total": 7},
    "-n=7": {"total": 7},
    "--n 7": {"total": 7},
    "--requests 7": {"total": 7},
    "-n 3 -c 30": {"total": 3, "connections": 30},
    "-c 3": {"connections": 3},
    "--concurrency=3": {"connections": 3},
    "-z 1m30s": {"duration": 90},
    "--duration 2s": {"duration": 2},
    "-z 0": {"duration": None, "total": 200},
    "-q 2.5": {"qps": 2.5},
    "--qps 0": {"qps": None},
    "-t 5": {"timeout": 5},
    "--timeout 0": {"timeout": None},
    "-x a:1": {"proxy": Proxy("a", 1)},
    "--proxy http://u:p@a:1": {"proxy": Proxy("a", 1, basic("u:p"))},
    "-h2": {"http2": True},
    "--http2": {"http2": True},
    "-cpus 2": {"processes": 2},
    "--cpus 2": {"processes": 2},
    "-cpus 2 -o csv": {"processes": 1},
    "-disable-keepalive": {"keepalive": False},
    "--disable-keepalive": {"keepalive": False},
    "-disable-keepalive=false": {"keepalive": True},
    "-disable-redirects": {"redirects": 0},
    "--disable-redirects": {"redirects": 0},
}
OURS: dict[str, dict[str, Any]] = {
    "--rate 50 -n 10": {"rate": 50, "total": 10},
    "--rate 50 --poisson": {"poisson": True},
    "--stages 10s:100,30s:1000": {"stages": (Stage(10, 100), Stage(30, 1000)), "duration": 40, "rate": None},
    "--stages 10s:100 --rate 5 -z 4s": {"stages": (Stage(10, 100),), "duration": 4, "rate": 5},
    "--unix /run/x.sock": {"unix": "/run/x.sock"},
    "--connect [::1]:80": {"dial": ("::1", 80)},
    "-k": {"verify_tls": False},
    "--insecure": {"verify_tls": False},
    "--cacert /dev/null": {"authorities": "/dev/null"},
    "-h2 --streams 100": {"http2": True, "streams": 100},
    "--stages 10s:100 --poisson": {"stages": (Stage(10, 100),), "duration": 10, "poisson": True},
    "--retry-stale": {"retry_stale": True},
    "--sequence-header X-Seq": {"sequence_header": "X-Seq"},
    "--max-connection-age 1m": {"lifetime": 60},
    "--requests-per-connection 9": {"per_connection": 9},
    "--attribute X-Version": {"attribute": "X-Version"},
}


@pytest.mark.parametrize(("flags", "expected"), [*HEY.items(), *OURS.items()], ids=[*HEY, *OURS])
def test_flags(flags: str, expected: dict[str, Any]) -> None:
    before, after = plan(*flags.split(), URL), plan(URL, *flags.split())
    assert before == after
    assert {name: getattr(before, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("-A", "a/b"), {"Accept": "a/b"}),
        (("--accept", "a/b", "-H", "accept: c/d"), {"Accept": "a/b"}),
        (("-T", "a/b"), {"Content-Type": "a/b"}),
        (("--content-type", "a/b", "-H", "Content-Type: c/d"), {"Content-Type": "c/d"}),
        (("-U", "me"), {"User-Agent": "me"}),
        (("-H", "user-agent: me"), {"user-agent": "me"}),
        (("--user-agent", "me", "-H", "User-Agent: you"), {"User-Agent": "me"}),
        (("-host", "a.example"), {"Host": "a.example"}),
        (("--host", "a.example", "-H", "Host: b.example"), {"Host": "a.example"}),
        (("-H", "Host: b.example"), {"Host": "b.example"}),
        (("-a", "aladdin:opensesame"), {"Authorization": "Basic YWxhZGRpbjpvcGVuc2VzYW1l"}),
        (("--auth", "a:b"), {"Authorization": "Basic YTpi"}),
        (("--header", "X.Dotted:", "-H", "X-B: 1"), {"X.Dotted": "", "X-B": "1"}),
        (("-H", "Accept-Encoding: br"), {"Accept-Encoding": "br"}),
        (("-disable-compression",), {"Accept-Encoding": None}),
        (("-m", "HEAD"), {"Accept-Encoding": None}),
        (("-H", "Range: bytes=0-1"), {"Accept-Encoding": None}),
    ],
)
def test_headers(flags: tuple[str, ...], expected: dict[str, str | None]) -> None:
    sent = headers(*flags)
    assert {name: sent.get(name) for name in expected} == expected
    folded = [name.lower() for name in sent]
    assert len(set(folded)) == len(folded)


def test_headers_may_be_repeated() -> None:
    sent = plan(URL, "-H", "X-A: 1", "-H", "X-A: 2").requests[0].headers
    assert [value for name, value in sent if name == "X-A"] == ["1", "2"]


def test_body_and_method(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\x00from a file")
    assert plan(URL, "-m", "post", "-d", "-n=5").requests[0].body == b"-n=5"
    sent = plan(URL, "--method", "Put", "--data-file", str(tmp_path / "body")).requests[0]
    assert (sent.method, sent.body) == ("PUT", b"\x00from a file")


def test_requests_file(tmp_path: Path) -> None:
    file = tmp_path / "requests"
    file.write_text('/a\n{"path": "/b", "method": "PUT", "headers": {"X-A": "2"}}\n')
    flags = ("--requests-file", str(file), "-H", "X-A: 1", "-d", "body")
    a, b = plan("http://h:1/ignored", *flags).requests
    assert (a.url, a.method, dict(a.headers)["X-A"], a.body) == ("http://h:1/a", "GET", "1", b"body")
    assert (b.url, b.method, dict(b.headers)["X-A"], b.body) == ("http://h:1/b", "PUT", "2", b"body")
    with pytest.raises(PlanError, match="--requests-file.*line 1: '/a' is a path"):
        plan(*flags)


def test_websockets() -> None:
    held = options.websocket_plan(parsed("--websocket", "ws://a/b", "-c", "9", "-H", "X-A: 1", "-t", "3", "-k"))
    assert (held.url, held.connections, held.message, held.timeout, held.verify_tls) == ("ws://a/b", 9, None, 3, False)
    assert dict(held.headers) == {"X-A": "1", "User-Agent": "loadtest"}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("", "URL"),
        ("nonsense", "http://"),
        ("-n 0 URL", "'-n'"),
        ("-n x URL", "'-n'"),
        ("-c 0 URL", "'-c'"),
        ("-z 10parsecs URL", "'-z'"),
        ("-t -1 URL", "'-t'"),
        ("-q -1 URL", "'-q'"),
        ("-cpus 0 URL", "'-cpus'"),
        ("-H nocolon URL", "'-H'"),
        ("-m G/T URL", "'-m'"),
        ("-m CONNECT URL", "CONNECT"),
        ("-a user URL", "'-a'"),
        ("-x nonsense URL", "'-x'"),
        ("-o xml URL", "'-o'"),
        ("-D /no/such/file URL", "'-D'"),
        ("-d a -D /dev/null URL", "-d and -D"),
        ("-q 1 --rate 1 URL", "-q is a rate for each worker"),
        ("--rate 0 URL", "'--rate'"),
        ("--poisson URL", "--rate"),
        ("-k --cacert /dev/null URL", "--cacert"),
        ("--cacert /no/such URL", "'--cacert'"),
        ("--streams 0 URL", "'--streams'"),
        ("--stages 5 URL", "'--stages'"),
        ("--requests-file /no/such URL", "'--requests-file'"),
        ("--requests-file /dev/null URL", "no request"),
        ("--connect nonsense URL", "'--connect'"),
        ("--unix /x --connect a:1 URL", "--unix and --connect"),
        ("--max-connection-age 0 URL", "'--max-connection-age'"),
        ("--requests-per-connection 0 URL", "'--requests-per-connection'"),
        ("--sequence-header a:b URL", "'--sequence-header'"),
        ("--attribute a:b URL", "'--attribute'"),
        ("--fail-if lots>0 URL", "'--fail-if'"),
        ("--html /no/such/folder/x.html URL", "'--html'"),
        ("--json -o csv URL", "--json"),
        ("-h2 -disable-keepalive URL", "-h2"),
        ("-h2=maybe URL", "-h2 is a switch"),
        ("--no-such-flag URL", "--no-such-flag"),
        ("URL URL", "argument"),
        ("http://user:pw@127.0.0.1:1/", "credentials"),
        ("--websocket URL", "ws://"),
        ("--websocket --rate 5 ws://127.0.0.1:1/", "--rate has no meaning with --websocket"),
    ],
)
def test_bad_usage(flags: str, complaint: str) -> None:
    done = CliRunner().invoke(main, [URL if word == "URL" else word for word in flags.split()])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert complaint in done.stderr.partition("Error: ")[2]


HEY_SHORT = "-n -c -z -q -t -m -H -A -T -d -D -U -a -x -h2 -host -cpus -o"


def test_help_names_every_flag() -> None:
    done = CliRunner().invoke(main, ["-h"])
    assert done.exit_code == 0
    for flag in HEY_SHORT.split():
        assert f"  {flag}, " in done.stdout
    for name in ["--disable-compression", "--disable-keepalive", "--disable-redirects"]:
        assert f"  {name} " in done.stdout
