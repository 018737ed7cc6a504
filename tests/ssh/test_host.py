"""Where another host is."""

from __future__ import annotations

import pytest

from trafficd.ssh.host import Host, parse_host


@pytest.mark.parametrize(
    ("text", "host", "spelled"),
    [
        ("ssh://deploy@web1", Host("deploy", "web1"), "ssh://deploy@web1"),
        ("ssh://deploy@WEB1.example.com:22", Host("deploy", "web1.example.com"), "ssh://deploy@web1.example.com"),
        ("ssh://a.b_c-d@10.0.0.5:2222", Host("a.b_c-d", "10.0.0.5", 2222), "ssh://a.b_c-d@10.0.0.5:2222"),
        ("ssh://root@[2001:db8::0:1]", Host("root", "2001:db8::1"), "ssh://root@[2001:db8::1]"),
        ("ssh://root@[::1]:2222", Host("root", "::1", 2222), "ssh://root@[::1]:2222"),
    ],
)
def test_a_host_has_one_spelling(text: str, host: Host, spelled: str) -> None:
    assert parse_host(text) == host
    assert str(host) == spelled
    assert parse_host(spelled) == host


@pytest.mark.parametrize(
    "text",
    [
        "web1",
        "ssh://web1",
        "ssh://@web1",
        "ssh://deploy:secret@web1",
        "ssh://deploy@web1/path",
        "ssh://deploy@web1?x=y",
        "ssh://deploy@web1#x",
        "ssh://deploy@",
        "ssh://deploy@web1:",
        "ssh://deploy@web1:0",
        "ssh://deploy@web1:65536",
        "ssh://deploy@web1:\N{FULLWIDTH DIGIT TWO}",
        "ssh://deploy@web 1",
        "ssh://deploy@web1 ",
        "ssh://deploy@web1\n",
        "ssh://-oProxyCommand=x@web1",
        "ssh://deploy@-oProxyCommand=x",
        "ssh://deploy@a@b",
        "ssh://deploy@::1",
        "ssh://deploy@0.0.0.0",
        "ssh://deploy@10.0.0",
        "SSH://deploy@web1",
        "tcp://deploy@web1",
    ],
)
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"ssh://deploy@web1|the host must be|the port must be"):
        parse_host(text)
