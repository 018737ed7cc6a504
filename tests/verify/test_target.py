"""What is sent, and where to, by a service's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from trafficd.config import ServiceSection, VerifyOverrides
from trafficd.errors import InvalidError
from trafficd.verify.target import Held, Target, target


def aim(service: dict[str, Any] | None = None, **verify: Any) -> Target:
    section = ServiceSection.model_validate({**(service or {}), "verify": verify})
    return target("web", section, section.verify)


@pytest.mark.parametrize(
    ("service", "verify", "url", "dial"),
    [
        ({}, {}, "http://127.0.0.1:443/", ("127.0.0.1", 443)),
        ({"hosts": ["shop.test"]}, {}, "https://shop.test/", ("127.0.0.1", 443)),
        ({"hosts": ["*.shop.test", "shop.test"]}, {}, "https://shop.test/", ("127.0.0.1", 443)),
        ({"hosts": ["shop.test"], "listen": [":80"]}, {}, "http://shop.test/", ("127.0.0.1", 80)),
        (
            {"hosts": ["shop.test"], "listen": [":8443"], "tls": "auto"},
            {},
            "https://shop.test:8443/",
            ("127.0.0.1", 8443),
        ),
        (
            {"hosts": ["shop.test"], "listen": [":80", ":443"], "tls": "auto"},
            {},
            "https://shop.test/",
            ("127.0.0.1", 443),
        ),
        ({"listen": ["10.0.0.1:8080"]}, {}, "http://10.0.0.1:8080/", ("10.0.0.1", 8080)),
        ({"listen": ["0.0.0.0:8080"]}, {}, "http://127.0.0.1:8080/", ("127.0.0.1", 8080)),
        ({"listen": ["[::]:8080"]}, {}, "http://127.0.0.1:8080/", ("127.0.0.1", 8080)),
        ({"listen": ["[fd00::1]:8080"]}, {}, "http://[fd00::1]:8080/", ("fd00::1", 8080)),
        ({"hosts": ["*.shop.test"]}, {"host": "a.shop.test"}, "https://a.shop.test/", ("127.0.0.1", 443)),
        ({"hosts": ["shop.test"]}, {"address": "https://10.0.0.5"}, "https://shop.test/", ("10.0.0.5", 443)),
        ({"route": "adopt"}, {"address": "http://10.0.0.5:81/"}, "http://10.0.0.5:81/", ("10.0.0.5", 81)),
        ({"route": "import"}, {"address": "http://[fd00::1]"}, "http://[fd00::1]/", ("fd00::1", 80)),
    ],
)
def test_where_to(service: dict[str, Any], verify: dict[str, Any], url: str, dial: tuple[str, int]) -> None:
    found = aim(service, **verify)
    assert (found.plan.requests[0].url, found.plan.dial) == (url, dial)


@pytest.mark.parametrize(
    ("service", "key"),
    [
        ({"route": "none", "health": {"command": ["check"]}}, 'services.web.route = "none"'),
        ({"route": "adopt"}, "services.web.verify.address"),
        ({"route": "import"}, "services.web.verify.address"),
        ({"hosts": ["*.shop.test"]}, "services.web.verify.host"),
    ],
)
def test_what_cannot_be_verified_is_told_which_key_says_how(service: dict[str, Any], key: str) -> None:
    section = ServiceSection.model_validate(service)
    with pytest.raises(InvalidError, match=key):
        target("web", section, section.verify)


def test_without_requests_the_root_is_asked_for_and_answered_as_in_the_warm_up() -> None:
    found = aim()
    assert [(one.request, one.status, one.compatible) for one in found.wanted] == [("GET /", frozenset(), False)]
    assert (found.plan.rate, found.plan.redirects, found.plan.total) == (50.0, 0, None)


def test_the_requests_of_both_kinds_go_into_one_plan() -> None:
    found = aim(
        requests=[
            {"path": "/a?b=1", "method": "POST", "body": "ü", "headers": {"X-A": "1"}, "weight": 3, "status": [201]}
        ],
        compatible=[{"path": "/old.js"}],
        websockets=[{"path": "/ws", "connections": 4, "interval": "100ms"}],
        attribute="X-Version",
    )
    first, second = found.plan.requests
    assert (first.method, first.body, first.weight) == ("POST", "ü".encode(), 3)
    assert first.headers == (("X-A", "1"), ("X-Trafficd-Stratum", "verify"))
    assert (first.target, second.target) == ("/a?b=1", "/old.js")
    assert [(one.request, one.compatible) for one in found.wanted] == [("POST /a?b=1", False), ("GET /old.js", True)]
    assert found.sockets == (Held("/ws", 4, 0.1),)
    assert found.plan.attribute == "X-Version"


def test_every_request_says_that_it_is_no_users_unless_it_is_to_say_otherwise() -> None:
    own = {"x-trafficd-stratum": ""}
    found = aim(requests=[{"path": "/"}, {"path": "/as-a-user", "headers": own}], compatible=[{"path": "/old"}])
    marked, user, old = found.plan.requests
    assert marked.headers == old.headers == (("X-Trafficd-Stratum", "verify"),)
    assert user.headers == (("x-trafficd-stratum", ""),)


def test_certificates_are_looked_at_as_clients_do() -> None:
    assert (aim().plan.verify_tls, aim().plan.authorities) == (True, None)
    assert aim(tls_ca="/etc/ssl/ca.pem").plan.authorities == "/etc/ssl/ca.pem"
    assert not aim(insecure=True).plan.verify_tls


def test_a_closed_loop_sends_no_more_than_the_rate() -> None:
    plan = aim(loop="closed", rate=100, connections=20).plan
    assert (plan.rate, plan.qps) == (None, 5.0)


def test_a_request_may_change_what_is_configured() -> None:
    section = ServiceSection.model_validate({"verify": {"rate": 10, "connections": 3}})
    changed = section.verify.changed(VerifyOverrides(rate=99.0, on_fail="revert"))
    assert (changed.rate, changed.connections, changed.on_fail) == (99.0, 3, "revert")
