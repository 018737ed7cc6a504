"""`route = "none"`: what such a service must have, and what is refused because it would mean nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trafficd.config import Config, ServiceSection, load
from trafficd.config.workers import _SERVICE
from trafficd.core.model import Order
from trafficd.errors import ConfigError
from trafficd.reload import refusals

Load = Callable[[str], Config]

JOBS = """
[services.jobs]
route = "none"
upstreams = [{id = "a", version = "v1"}, {id = "b"}]
[services.jobs.health]
command = ["/usr/local/bin/check-jobs"]
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    def load_text(text: str) -> Config:
        path = tmp_path / "trafficd.toml"
        path.write_text(text)
        return load(path)

    return load_text


def faults(loaded: Load, text: str) -> dict[str, str]:
    """What is wrong, by place."""
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    first, *lines = str(caught.value).splitlines()
    assert re.search(rf": {len(lines)} faults?$", first)
    pairs = [line.strip().split(": ", 1) for line in lines]
    found = {place: why for place, why in pairs}
    assert len(found) == len(lines), "no place twice"
    return found


def test_a_service_of_workers(loaded: Load) -> None:
    jobs = loaded(JOBS).services["jobs"]
    assert not jobs.routed
    assert [(one.id, one.dial, one.version) for one in jobs.upstreams] == [("a", None, "v1"), ("b", None, None)]
    assert jobs.health.command == ["/usr/local/bin/check-jobs"]
    assert ServiceSection().routed


def test_it_clashes_with_no_other_service(loaded: Load) -> None:
    """No hosts means any host on :443, but not for what Caddy never sees; and its ids are its own."""
    other = JOBS.replace("services.jobs", "services.mails")
    config = loaded(JOBS + other + '[services.web]\nupstreams = [{id = "a", dial = "h:80"}]')
    assert set(config.services) == {"jobs", "mails", "web"}


def test_what_means_nothing_is_refused_all_at_once(loaded: Load) -> None:
    found = faults(
        loaded,
        """
        [services.jobs]
        route = "none"
        hosts = ["example.com"]
        listen = [":80"]
        tls = "off"
        control = "slots"
        slots = 1
        restore = false
        affinity = "cookie"
        try_duration = "1s"
        try_interval = "1s"
        stream_close_delay = "1s"
        sloth = 1
        upstreams = [{id = "a", dial = "h:80"}, {id = "b", spare_dial = "h:81"}, {id = "c"}]
        [services.jobs.transport]
        tls = true
        [services.jobs.health]
        path = "/healthz"
        [services.jobs.rollout]
        order = "start_first"
        drain_timeout = "1h"
        drain_quiet = "1s"
        min_healthy_time = "forever"
        [services.jobs.swap]
        driver = "command"
        command = ["restart-jobs"]
        retire = ["stop-jobs"]
        """,
    )
    assert "is not a duration" in found.pop("services.jobs.rollout.min_healthy_time")
    never = 'Caddy never sees a service with route = "none"'
    for key in (
        *("hosts", "listen", "tls", "control", "slots", "restore", "affinity", "try_duration"),
        *("try_interval", "stream_close_delay", "transport", "upstreams.0.dial", "upstreams.1.spare_dial"),
    ):
        assert found.pop(f"services.jobs.{key}").startswith(never), key
    assert {place.removeprefix("services.jobs."): why[:38] for place, why in found.items()} == {
        "sloth": "no such key; see the README for the ke",
        "health.command": "nobody can ask a worker over HTTP: giv",
        "rollout.order": "a worker has no second address by whic",
        "rollout.drain_timeout": "no requests are open on a worker, so a",
        "rollout.drain_quiet": "no requests are open on a worker, so a",
        "swap.retire": 'is for order = "start_first", which a ',
    }


def test_every_key_of_a_service_is_either_known_to_make_sense_or_refused() -> None:
    refused = set(ServiceSection.model_fields) - set(_SERVICE)
    assert set(_SERVICE) < set(ServiceSection.model_fields)
    assert {"hosts", "listen", "tls", "control", "slots", "affinity", "transport"} <= refused


def test_only_a_worker_has_no_address(loaded: Load) -> None:
    found = faults(loaded, '[services.web]\nupstreams = [{id = "a"}, {id = "b", dial = "h:80"}]')
    assert found == {
        "services.web.upstreams.0.dial": 'Field required (only a service with route = "none" has upstreams without)'
    }


def test_a_probe_is_a_command_or_a_request(loaded: Load) -> None:
    web = '[services.web]\nupstreams = [{id = "a", dial = "h:80"}]\n[services.web.health]\ncommand = ["check"]\n'
    assert loaded(web).services["web"].health.command == ["check"]
    found = faults(loaded, web + 'path = "/up"\nhost = "h"\nheaders = {a = "b"}\nstatus = [204]')
    assert found == dict.fromkeys(
        [f"services.web.health.{key}" for key in ("path", "host", "headers", "status")],
        "is for a probe over HTTP; leave out either it or command",
    )
    assert "give the program" in faults(loaded, web.replace('["check"]', "[]"))["services.web.health.command"]


def test_more_workers_than_a_service_has_slots(loaded: Load) -> None:
    many = ", ".join(f'{{id = "w{number}"}}' for number in range(150))
    text = JOBS.replace('{id = "a", version = "v1"}, {id = "b"}', many)
    assert len(loaded(text).services["jobs"].upstreams) == 150


@pytest.mark.parametrize(
    ("count", "settings", "parallel", "ready"),
    [(1, "", 1, 0), (3, "", 1, 2), (2, "max_parallel = 2", 2, 0), (3, "min_ready = 3", 1, 3)],
)
def test_the_last_worker_may_be_replaced_by_default(
    loaded: Load, count: int, settings: str, parallel: int, ready: int
) -> None:
    jobs = loaded(f"{JOBS}[services.jobs.rollout]\n{settings}").services["jobs"]
    policy = jobs.policy(count)
    assert (policy.max_parallel, policy.min_ready, policy.order) == (parallel, ready, Order.STOP_FIRST)


def test_a_route_does_not_come_or_go_under_a_live_rollout(loaded: Load) -> None:
    web = '[services.jobs]\nupstreams = [{id = "a", dial = "h:80"}, {id = "b", dial = "h:81"}]'
    for old, new in ((JOBS, web), (web, JOBS)):
        (refusal,) = refusals(loaded(old), loaded(new), {"jobs": "r-1"})
        assert "services.jobs.upstreams, services.jobs.route changed" in refusal
        assert refusals(loaded(old), loaded(new), {}) == []
