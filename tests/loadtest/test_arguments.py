"""What flags' values mean, and flags written as in Go. Pure."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loadtest import arguments
from loadtest.command import unfold
from loadtest.model import PlanError, Proxy, Stage

KNOWN = {"-n": True, "--requests": True, "-d": True, "-host": True, "-k": False, "-h2": False, "--rate": True}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("5m", 300), ("1m30s", 90), ("1.5h", 5400), ("500ms", 0.5), ("250µs", 0.00025), ("7", 7), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert arguments.duration(text) == pytest.approx(seconds)


def test_stages() -> None:
    assert arguments.stages("10s:100, 1m:0,500ms:2.5") == (Stage(10, 100), Stage(60, 0), Stage(0.5, 2.5))


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("A: b", ("A", "b")),
        ("A:b:c", ("A", "b:c")),
        ("X.Y-z: ", ("X.Y-z", "")),
        ("Empty:", ("Empty", "")),
        ("Host: example.com:80", ("Host", "example.com:80")),
    ],
)
def test_headers(text: str, header: tuple[str, str]) -> None:
    assert arguments.header(text) == header


def test_credentials() -> None:
    assert arguments.basic("aladdin:opensesame") == "Basic YWxhZGRpbjpvcGVuc2VzYW1l"  # RFC 7617, 2
    assert arguments.basic("a:") == "Basic YTo="
    assert arguments.basic("a:b:c") == "Basic YTpiOmM="


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("127.0.0.1:3128", Proxy("127.0.0.1", 3128)),
        ("[::1]:3128", Proxy("::1", 3128)),
        ("http://proxy.example:8080", Proxy("proxy.example", 8080)),
        ("http://proxy.example", Proxy("proxy.example", 80)),
        ("http://a%40b:c@proxy.example:1/", Proxy("proxy.example", 1, arguments.basic("a@b:c"))),
    ],
)
def test_proxies(text: str, proxy: Proxy) -> None:
    assert arguments.proxy(text) == proxy


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (arguments.duration, ("", "10 parsecs", "s", "1s2", "-1s")),
        (arguments.positive_duration, ("0", "0s")),
        (arguments.rate, ("0", "-1", "x", "inf", "nan")),
        (arguments.count, ("0", "-1", "x", "1.5")),
        (arguments.stages, ("", "10s", "10s:", ":5", "0s:5", "1s:-5", "1s:5,", "1s:inf")),
        (arguments.header, ("no colon", ":", ": x", "a b: c", "a: b\r\nc: d")),
        (arguments.basic, ("user",)),
        (arguments.address, ("host", "host:", ":80", "host:x", "host:99999", "u@host:80", "host:80/x", "[::1")),
        (arguments.proxy, ("host", "https://a:1", "http://", "http://a:1/x", "socks5://a:1", "http://a:x")),
        (arguments.method, ("", "GE T", "GET\n")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_values_that_mean_nothing(read: Callable[[str], object], texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(PlanError):
            print(text, read(text))


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("-n=5 URL", "-n 5 URL"),
        ("--n 5", "-n 5"),
        ("--n=5", "-n 5"),
        ("-requests 5", "--requests 5"),
        ("-rate=5 -host a", "--rate 5 -host a"),
        ("--host=a=b", "-host a=b"),
        ("-n5 -x", "-n5 -x"),
        ("-h2 -k=true --k=1 -h2=false", "-h2 -k -k"),
        ("-d -n=5 -n 6", "-d -n=5 -n 6"),
        ("-d=-n -k", "-d -n -k"),
        ("-n", "-n"),
        ("URL - -- -n=5", "URL - -- -n=5"),
        ("http://a/?b=c", "http://a/?b=c"),
    ],
)
def test_flags_as_in_go(given: str, plain: str) -> None:
    assert unfold(given.split(" "), KNOWN) == plain.split(" ")


def test_a_switch_has_no_other_value() -> None:
    with pytest.raises(PlanError, match="-h2 is a switch"):
        unfold(["-h2=maybe"], KNOWN)
