"""From what was found to a configuration that loads and says what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.draft.world import (
    LOCAL,
    A,
    B,
    Json,
    caddy,
    container,
    drafted,
    loaded,
    machine,
    proxy,
    site,
    tutorial,
    two_hosts,
)
from trafficd import config as configuration
from trafficd.draft import summary
from trafficd.draft.services import Service
from trafficd.draft.writing import document

HERE = ("127.0.0.1", "localhost")
P, Q = "127.0.0.1:8081", "127.0.0.1:8082"
WELL = {(A, "/healthz"): 200, (B, "/healthz"): 200}


def site_of(*dials: str, **more: Any) -> Json:
    return caddy(site(proxy(*dials, **more), "example.com"))


def test_the_tutorials_two_servers(tmp_path: Path) -> None:
    found = drafted(tutorial(), *two_hosts(), answers=WELL)
    section = loaded(found, tmp_path).services["example"]
    assert (section.hosts, section.route, section.swap.driver) == (["example.com"], "adopt", "docker")
    assert [(one.id, one.dial, one.version) for one in section.upstreams] == [("a", A, "v1"), ("b", B, "v1")]
    assert (section.health.path, section.health.interval) == ("/healthz", 5.0)
    docker = section.docker
    assert docker is not None
    engines = [one.engine or docker.engine for one in section.upstreams]
    assert engines == ["ssh://deploy@web1", "ssh://deploy@web2"]
    assert (docker.image, docker.port, docker.publish, docker.take_over) == (
        "shop/web:{version}",
        3000,
        "0.0.0.0",
        True,
    )
    assert found.services[0].warnings == ()
    assert [command for command, _ in summary.commands(found, "trafficd.toml")] == [
        "trafficd plan --config trafficd.toml",
        "trafficd run --config trafficd.toml",
        "trafficd deploy example v2",
    ]


def test_containers_of_one_host_give_their_names(tmp_path: Path) -> None:
    here = machine(container("web-1", at="127.0.0.1:8081"), container("web-2", at="127.0.0.1:8082"), hosts=HERE)
    section = loaded(drafted(site_of(P, Q), here), tmp_path).services["example"]
    assert [one.id for one in section.upstreams] == ["web-1", "web-2"]
    assert section.docker is not None
    assert (section.docker.engine, section.docker.take_over, section.docker.publish) == (LOCAL, True, None)


def test_on_the_hosts_network_they_are_taken_over_by_name(tmp_path: Path) -> None:
    here = machine(
        container("web-1", listens=frozenset({8081}), env=("PORT=8081",)),
        container("web-2", listens=frozenset({8082}), env=("PORT=8082",)),
        hosts=HERE,
    )
    docker = loaded(drafted(site_of(P, Q), here), tmp_path).services["example"].docker
    assert docker is not None
    assert (docker.take_over, docker.environment, docker.port) == ("{upstream}", {"PORT": "{port}"}, None)


def test_names_that_do_not_tell_on_the_hosts_network_are_a_reason() -> None:
    listening = frozenset({8080})
    one, other, third = (
        machine(container(name, listens=listening), url=f"ssh://d@{host}", hosts=(host,))
        for name, host in (("web", "10.0.0.11"), ("web", "10.0.0.12"), ("app", "10.0.0.13"))
    )
    same = drafted(site_of(A, B), one, other).services[0]
    assert same.docker is not None
    assert same.docker.take_over == "web"
    mixed = drafted(site_of(A, B, "10.0.0.13:8080"), one, other, third).services[0]
    assert mixed.docker is None
    assert "Rename" in mixed.by_hand[0]


def test_what_is_published_on_loopback_for_a_name_is_not_opened_to_all(tmp_path: Path) -> None:
    here = machine(container("web", at="127.0.0.1:8081"), hosts=HERE)
    docker = loaded(drafted(site_of("localhost:8081"), here), tmp_path).services["example"].docker
    assert docker is not None
    assert (docker.publish, docker.take_over) == ("127.0.0.1", "{upstream}")


def test_a_version_that_differs_is_left_out_so_that_it_keeps_its_traffic(tmp_path: Path) -> None:
    images = ("shop/web:v1", "shop/web:v1", "shop/web:v2")
    dials = [f"127.0.0.1:{8081 + index}" for index in range(3)]
    here = machine(*(container(f"w{i}", image, at=f"0.0.0.0:{8081 + i}") for i, image in enumerate(images)), hosts=HERE)
    found = drafted(site_of(*dials), here)
    section = loaded(found, tmp_path).services["example"]
    assert [one.version for one in section.upstreams] == ["v1", "v1", None]
    assert "it runs v2, unlike most" in document(found)


def test_images_of_two_names_are_left_to_the_containers(tmp_path: Path) -> None:
    here = machine(
        container("x", "shop/x:v1", at="0.0.0.0:8081"), container("y", "shop/y:v1", at="0.0.0.0:8082"), hosts=HERE
    )
    docker = loaded(drafted(site_of(P, Q), here), tmp_path).services["example"].docker
    assert docker is not None
    assert docker.image is None


def test_what_stands_in_the_way_of_a_deploy_is_said() -> None:
    here = machine(container("w", "sha256:abc", at="0.0.0.0:8081", temporary=True), hosts=HERE)
    warnings = "\n".join(drafted(site_of(P), here).services[0].warnings)
    assert "--rm" in warnings
    assert "docker.image" in warnings


def test_latest_and_compose_are_told() -> None:
    labels = {"com.docker.compose.service": "web"}
    here = machine(container("w", "shop/web", at="0.0.0.0:8081", labels=labels), hosts=HERE)
    text = document(drafted(site_of(P), here))
    assert "docker compose up" in text
    assert "`latest`" in text
    assert 'version = "latest"' in text


@pytest.mark.parametrize(("pulled", "pull"), [(True, "always"), (False, "missing")])
def test_an_image_that_no_registry_has_is_not_pulled(pulled: bool, pull: str, tmp_path: Path) -> None:
    here = machine(container("w", at="0.0.0.0:8081", pulled=pulled), hosts=HERE)
    docker = loaded(drafted(site_of(P), here), tmp_path).services["example"].docker
    assert docker is not None
    assert docker.pull == pull


def test_a_caddy_in_a_container_is_told_what_it_needs() -> None:
    found = drafted(tutorial(), machine(container("edge", "docker.io/library/caddy:2.11")))
    for text in (document(found), summary.text(found, "t.toml")):
        assert "a Caddy runs in container edge" in text
    assert "container edge" not in document(drafted(tutorial(), machine(container("edge", "shop/caddyshack:1"))))


def by_hand(config: Json, *machines: Any) -> Service:
    (service,) = drafted(config, *machines).services
    assert service.docker is None
    return service


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ((), "no container is known"),
        ((machine(url=LOCAL, failure="permission denied"),), f"{LOCAL} could not be asked"),
        ((machine(container("w", at="0.0.0.0:8080"), url="ssh://d@w9"),), "--engine ssh://USER@10.0.0.11"),
        ((machine(container("w", at="0.0.0.0:9", address="10.0.0.11")),), "own address"),
    ],
)
def test_without_containers_somebody_else_replaces_them(machines: Any, said: str, tmp_path: Path) -> None:
    service = by_hand(site_of(A), *machines)
    assert said in " ".join(service.by_hand)
    section = loaded(drafted(site_of(A), *machines), tmp_path).services["example"]
    assert section.swap.driver == "external"
    assert said.split()[0] in document(drafted(site_of(A), *machines))


def test_an_instance_without_a_container_makes_all_of_them_external() -> None:
    here = machine(container("w", at="0.0.0.0:8081"), hosts=HERE)
    service = by_hand(site_of(P, Q), here)
    assert service.by_hand == (
        f"{Q}: no container is known that serves it. If one does, on another host, name that host's Engine: "
        "--engine ssh://USER@HOST",
    )


def test_a_single_instance_is_deployed_with_a_hold() -> None:
    here = machine(container("w", at="0.0.0.0:8081"), hosts=HERE)
    found = drafted(site_of(P), here)
    assert ("trafficd deploy example v2 --strategy hold", "in another terminal") in summary.commands(found, "t.toml")
    assert "--strategy hold" in document(found)


def test_every_service_has_a_name_of_its_own() -> None:
    hosts = ["www.shop.example", "shop.test", "*.api.test", "API.test", "q\u00fcx.test", "-.test"]
    routes = [site(proxy(f"10.0.0.{n + 1}:80"), host) for n, host in enumerate(hosts)]
    names = [one.name for one in drafted(caddy(*routes)).services]
    assert len(set(names)) == len(names)
    assert names[:4] == ["www-shop-example", "shop-test", "api-test", "api-test-2"]


def test_a_site_without_a_name_is_called_after_its_image(tmp_path: Path) -> None:
    here = machine(container("w", "registry.example.com/shop/front:v1", at="0.0.0.0:8081"), hosts=HERE)
    found = drafted(caddy(site(proxy(P))), here)
    section = loaded(found, tmp_path).services["front"]
    assert section.hosts == []


def test_a_port_in_the_drivers_range_moves_the_range(tmp_path: Path) -> None:
    here = machine(container("w", at="0.0.0.0:20500"), hosts=HERE)
    docker = loaded(drafted(site_of("127.0.0.1:20500"), here), tmp_path).services["example"].docker
    assert docker is not None
    assert docker.port_range == (21_000, 21_999)


def test_what_cannot_be_adopted_is_imported_and_says_how(tmp_path: Path) -> None:
    routes = site(proxy(A), "example.com"), site(proxy(B), "example.com")
    found = drafted(caddy(*routes))
    assert [one.route for one in loaded(found, tmp_path).services.values()] == ["import", "import"]
    text = document(found)
    assert "#   trafficd caddyfile example-com > /etc/caddy/trafficd-example-com.caddy\n" in text
    assert "TO DO" in summary.text(found, "t.toml")


def test_what_is_left_out_stands_in_the_file_with_the_reason() -> None:
    found = drafted(caddy(site(proxy(A), "example.com"), site(proxy("unix//run/x.sock"), "b.example.com")))
    for text in (document(found), summary.text(found, "t.toml")):
        assert "b.example.com -> unix//run/x.sock" in text
        assert "is a unix socket" in text.replace("\n# ", " ")
    assert summary.view(found, "t.toml")["left_out"][0]["hosts"] == ["b.example.com"]


def test_an_engine_that_was_not_asked_stands_in_the_file() -> None:
    found = drafted(tutorial(), machine(failure="permission denied. Run it as root"))
    assert f"NOT ASKED: the Engine {LOCAL}: permission denied" in document(found).replace("\n# ", " ")
    assert f"Engine  {LOCAL}: NOT ASKED: permission denied" in summary.text(found, "t.toml")


def test_hostile_names_change_nothing_but_themselves(tmp_path: Path) -> None:
    evil = 'x"\n[daemon]\nlisten = "0.0.0.0:1"\n\x1b[2J'
    here = machine(
        container(evil, f"{evil}:{evil}", at="0.0.0.0:8081", labels={"com.docker.compose.service": evil}), hosts=HERE
    )
    uri = {"active": {"uri": evil, "headers": {"X": [evil], evil: ["y"]}}}
    found = drafted(caddy(site(proxy(P, health_checks=uri), evil), site(proxy(evil), evil)), here)
    config = loaded(found, tmp_path)
    assert config.daemon.listen is None
    assert "\x1b" not in document(found) + summary.text(found, "t.toml")
    assert "\n[daemon]" not in document(found) + summary.text(found, "t.toml")


@pytest.mark.parametrize(
    ("version", "following"),
    [
        ("v1", "v2"),
        ("1.4.9", "1.4.10"),
        ("v9", "v10"),
        ("3f2a911", "VERSION"),
        ("latest", "VERSION"),
        (None, "VERSION"),
    ],
)
def test_how_a_deploy_is_typed(version: str | None, following: str) -> None:
    assert summary.successor(version) == following


# These stand behind a # as an example, or as what a person may want instead.
NOT_DEFAULTS = {"version", "order", "driver", "command", "known_hosts", "identity_files", "slots_path", "host"}


def test_what_stands_behind_a_hash_is_the_default(tmp_path: Path) -> None:
    found = drafted(site_of(P, Q), machine(container("a", at=P), container("b", at=Q), hosts=HERE))
    given = loaded(found, tmp_path)
    shown: set[str] = set()

    def bare(line: re.Match[str]) -> str:
        shown.add(line[1])
        return line[0] if line[1] in NOT_DEFAULTS else line[0].removeprefix("# ")

    text = re.sub(r"^# (\[services\.[^\]]+\])$", r"\1", document(found), flags=re.M)
    text = re.sub(r"^# (\w+) = .*$", bare, text, flags=re.M)
    file = tmp_path / "bare.toml"
    file.write_text(text, encoding="utf-8")
    assert configuration.load(file).model_dump() == given.model_dump()
    assert shown - NOT_DEFAULTS == {
        *("status", "interval", "timeout", "tls", "min_healthy_time", "healthy_deadline", "drain_timeout"),
        *("engine", "pull", "keep"),
    }
