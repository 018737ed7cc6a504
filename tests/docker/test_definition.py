"""The create body: what is declared, what stays, and what is another than before."""

from __future__ import annotations

from typing import Any

import pytest

from trafficd.config.docker import DockerSection
from trafficd.swap.docker import definition as words
from trafficd.swap.docker.definition import Base, Definition, Place, UndefinedError, define, difference, image_of

IMAGE = {
    "Config": {
        "Env": ["PATH=/bin", "LANG=C"],
        "Cmd": ["serve"],
        "Labels": {"maintainer": "us"},
        "ExposedPorts": {"8080/tcp": {}},
        "WorkingDir": "/app",
    }
}


def section(**settings: Any) -> DockerSection:
    return DockerSection.model_validate({"image": "shop/web:{version}", "port": 8080} | settings)


def place(version: str = "v2", dial: str = "10.0.0.5:9000") -> Place:
    return Place("web", "a", version, dial, "r1", "r1 5.0", "d1")


def running(**changes: Any) -> Base:
    """A container as an Engine shows it, its image's defaults mixed in."""
    inspect = {
        "Id": "f" * 64,
        "Config": {
            "Image": "shop/web:v1",
            "Hostname": "f" * 12,
            "Env": ["SECRET=s3", "PATH=/bin", "LANG=C"],
            "Cmd": ["serve"],
            "WorkingDir": "/app",
            "Labels": {"maintainer": "us", "com.docker.compose.project": "shop"},
            "ExposedPorts": {"8080/tcp": {}},
            "StopTimeout": 25,
        },
        "HostConfig": {
            "NetworkMode": "shop_default",
            "PortBindings": {
                "8080/tcp": [{"HostIp": "10.0.0.5", "HostPort": "9000"}],
                "9100/tcp": [{"HostIp": "", "HostPort": "9100"}],
            },
            "Binds": ["/srv/data:/data:rw"],
            "Memory": 1 << 28,
            "MemorySwap": 1 << 29,
            "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0},
            "CapAdd": ["NET_ADMIN"],
            "Privileged": False,
            "Links": ["/db:/web/db"],
        },
        "Mounts": [
            {"Type": "bind", "Source": "/srv/data", "Destination": "/data"},
            {"Type": "volume", "Name": "c" * 64, "Destination": "/cache"},
        ],
        "NetworkSettings": {
            "Networks": {
                "other": {"Aliases": ["f" * 12], "IPAddress": "172.20.0.2"},
                "shop_default": {"Aliases": ["web", "f" * 12], "IPAddress": "172.19.0.2", "MacAddress": "02:42"},
            }
        },
    }
    return Base(inspect | changes, IMAGE, "v1", "10.0.0.5:9000")


def made(settings: DockerSection, base: Base | None = None, at: Place | None = None, **env: str) -> Definition:
    at = at or place()
    return define(settings, at, image_of(settings, at.version, base), env or settings.environment, base)


def test_declared_only() -> None:
    settings = section(
        environment={"PORT": "{port}", "RELEASE": "{version}", "JSON": '{"a": {}}'},
        command=["serve", "--at", "{dial}"],
        volumes=["/srv/{upstream}:/data", "cache:/cache:ro"],
        memory="512m",
        cpus=1.5,
        labels={"team": "{service}"},
        restart="on-failure:5",
        stop_signal="SIGQUIT",
        stop_grace="45s",
        health={"command": ["check"], "interval": "5s"},
    )
    body = made(settings).body
    assert body["Image"] == "shop/web:v2"
    assert body["Env"] == ["PORT=8080", "RELEASE=v2", 'JSON={"a": {}}'], "other braces are nobody's"
    assert body["Cmd"] == ["serve", "--at", "10.0.0.5:9000"]
    assert (body["StopSignal"], body["StopTimeout"]) == ("SIGQUIT", 45)
    assert body["Healthcheck"]["Test"] == ["CMD", "check"]
    assert body["Healthcheck"]["Interval"] == 5_000_000_000
    host = body["HostConfig"]
    assert host["Binds"] == ["/srv/a:/data", "cache:/cache:ro"]
    assert (host["Memory"], host["NanoCpus"]) == (512 << 20, 1_500_000_000)
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 5}
    assert host["PortBindings"] == {"8080/tcp": [{"HostIp": "10.0.0.5", "HostPort": "9000"}]}
    labels = body["Labels"]
    assert labels["team"] == "web"
    assert labels["trafficd.dial"] == "10.0.0.5:9000"
    assert labels["trafficd.intent"] == "r1 5.0"
    assert labels["trafficd.daemon"] == "d1"


def test_without_anything_declared_the_engine_restarts_it_but_not_what_was_stopped() -> None:
    assert made(section()).body["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"


@pytest.mark.parametrize(
    ("dial", "settings", "host_ip"),
    [
        ("web1.internal:80", {}, ""),
        ("[2001:db8::1]:80", {}, "2001:db8::1"),
        ("10.0.0.5:80", {"publish": "0.0.0.0"}, "0.0.0.0"),
    ],
)
def test_where_it_is_published(dial: str, settings: dict[str, Any], host_ip: str) -> None:
    body = made(section(**settings), at=place(dial=dial)).body
    assert body["HostConfig"]["PortBindings"]["8080/tcp"] == [{"HostIp": host_ip, "HostPort": "80"}]


def test_on_the_hosts_network_and_as_a_worker_nothing_is_published() -> None:
    on_host = made(section(networks=["host"], environment={"PORT": "{port}"}, port=None)).body
    assert "PortBindings" not in on_host["HostConfig"]
    assert on_host["Env"] == ["PORT=9000"]
    worker = made(section(port=None), at=place(dial="")).body
    assert "PortBindings" not in worker["HostConfig"]


def test_what_is_taken_over_keeps_all_that_is_not_declared() -> None:
    settings = section(take_over=True, image=None, port=None, memory="512m", environment={"NEW": "1"})
    body = made(settings, running()).body
    host = body["HostConfig"]
    assert body["Image"] == "shop/web:v2", "its repository, with the version as tag"
    assert body["Env"] == ["SECRET=s3", "NEW=1"], "without the defaults of the old image"
    assert {"Cmd", "WorkingDir", "Hostname"}.isdisjoint(body), "the new image has its own; a host name was made up"
    assert body["StopTimeout"] == 25
    assert body["Labels"]["com.docker.compose.project"] == "shop"
    assert "maintainer" not in body["Labels"]
    assert host["Memory"] == 512 << 20
    assert "MemorySwap" not in host, "it was for the other limit"
    assert host["CapAdd"] == ["NET_ADMIN"]
    assert host["Links"] == ["db:db"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["Binds"] == ["/srv/data:/data:rw", f"{'c' * 64}:/cache"], "volumes that nobody named hold data too"
    assert host["PortBindings"] == {
        "8080/tcp": [{"HostIp": "10.0.0.5", "HostPort": "9000"}],
        "9100/tcp": [{"HostIp": "", "HostPort": "9100"}],
    }
    assert body["NetworkingConfig"] == {"EndpointsConfig": {"shop_default": {"Aliases": ["web"]}}}
    assert words.more_networks(body["Labels"]) == {"other": {}}
    assert body["Labels"]["trafficd.previous"] == "f" * 64


def test_a_volume_without_a_name_that_compose_asked_for_stays_the_same_one() -> None:
    base = running()
    asked = [{"Type": "volume", "Target": "/cache"}, {"Type": "tmpfs", "Target": "/scratch"}]
    base.inspect["HostConfig"]["Mounts"] = asked
    host = made(section(take_over=True), base).body["HostConfig"]
    assert host["Mounts"] == [{**asked[0], "Source": "c" * 64}, asked[1]]
    assert host["Binds"] == ["/srv/data:/data:rw"], "and only once"


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ({"Entrypoint": ["/wrap"], "Cmd": ["serve"]}, {"Entrypoint": ["/wrap"], "Cmd": ["serve"]}),
        ({"Entrypoint": None, "Cmd": ["serve"]}, {"Entrypoint": [""], "Cmd": ["serve"]}),
        ({"Entrypoint": ["/init"], "Cmd": ["serve"]}, {}),
        ({"Entrypoint": ["/init"], "Cmd": ["work"]}, {"Cmd": ["work"]}),
    ],
)
def test_what_is_run_is_the_same_also_where_half_of_it_is_as_in_the_image(own: dict[str, Any], kept: Any) -> None:
    image: Any = {"Config": IMAGE["Config"] | {"Entrypoint": ["/init"]}}
    base = running()
    base.inspect["Config"] |= own
    body = made(section(take_over=True), base._replace(image=image)).body
    assert {key: body[key] for key in ("Entrypoint", "Cmd") if key in body} == kept


def test_what_was_switched_off_on_purpose_stays_off() -> None:
    base = running()
    base.inspect["HostConfig"] |= {"Init": False, "MaskedPaths": [], "ReadonlyPaths": []}
    host = made(section(take_over=True), base).body["HostConfig"]
    assert (host["Init"], host["MaskedPaths"], host["ReadonlyPaths"]) == (False, [], [])


def test_the_port_moves_with_the_address_and_no_other_does() -> None:
    body = made(section(take_over=True, port=None), running(), place(dial="10.0.0.5:9001")).body
    assert body["HostConfig"]["PortBindings"]["8080/tcp"] == [{"HostIp": "10.0.0.5", "HostPort": "9001"}]


def test_what_else_is_published_stays_and_what_does_not_is_told() -> None:
    base = running()
    base.inspect["HostConfig"]["PortBindings"] = {
        "8080/udp": [{"HostIp": "", "HostPort": "9000"}],
        "8080/tcp": [{"HostIp": "", "HostPort": "9000"}, {"HostIp": "127.0.0.1", "HostPort": "9001"}],
    }
    now = made(section(take_over=True, port=None), base)
    assert now.body["HostConfig"]["PortBindings"] == {
        "8080/udp": [{"HostIp": "", "HostPort": "9000"}],
        "8080/tcp": [{"HostIp": "10.0.0.5", "HostPort": "9000"}, {"HostIp": "127.0.0.1", "HostPort": "9001"}],
    }
    (line,) = [line for line in difference(base, now) if line.startswith("published: ")]
    assert line == (
        "published: *:9000->8080/tcp, *:9000->8080/udp, 127.0.0.1:9001->8080/tcp -> "
        "*:9000->8080/udp, 10.0.0.5:9000->8080/tcp, 127.0.0.1:9001->8080/tcp"
    )


def test_what_is_declared_no_more_is_not_inherited() -> None:
    before = made(section(take_over=True, environment={"A": "1"}, memory="512m", labels={"team": "x"}), running())
    shown = running().inspect | {
        "Config": {**running().inspect["Config"], "Env": before.body["Env"], "Labels": before.body["Labels"]},
        "HostConfig": before.body["HostConfig"],
    }
    after = made(section(take_over=True), Base(shown, IMAGE, "v2", "10.0.0.5:9000"), place("v3")).body
    assert after["Env"] == ["SECRET=s3"]
    assert "Memory" not in after["HostConfig"]
    assert "team" not in after["Labels"]
    assert after["Labels"]["com.docker.compose.project"] == "shop"


def test_what_another_daemon_declared_is_kept_as_any_strangers() -> None:
    declared = made(section(environment={"A": "1"}, labels={"team": "x"}), at=place()._replace(daemon="d2")).body
    told = {"Env": declared["Env"], "Labels": declared["Labels"]}
    shown = running().inspect | {"Config": {**running().inspect["Config"], **told}}
    theirs = Base(shown, IMAGE, "v2", "10.0.0.5:9000", ours=False)
    after = made(section(take_over=True), theirs, place("v3")).body
    assert after["Env"] == ["A=1"]
    assert (after["Labels"]["team"], after["Labels"]["trafficd.daemon"]) == ("x", "d1")


def test_the_way_back_leads_to_the_same_definition() -> None:
    """From v1, through v2, to v1 again: or the container of before could not be started again."""
    settings = section(take_over=True, environment={"A": "{version}"})
    first = made(settings, running(), place("v1"))
    shown = running().inspect | {
        "Config": {**running().inspect["Config"], "Env": made(settings, running()).body["Env"]},
    }
    assert made(settings, Base(shown, IMAGE, "v2", "10.0.0.5:9000"), place("v1")).digest == first.digest
    assert made(settings, running(), place("v2")).digest != first.digest
    assert made(section(take_over=True), running(), place("v1")).digest != first.digest


def test_after_one_that_was_taken_over_and_after_one_of_ours_it_is_the_same_definition() -> None:
    """Or the first revert would not find the container that took over, and make another."""
    settings = section(take_over=True, environment={"PORT": "{port}"}, networks=["shop_default"])
    base = running()
    base.inspect["Config"] |= {"Env": ["PORT=9000", *base.inspect["Config"]["Env"]], "Hostname": "shop"}
    first = made(settings, base)
    told = {key: first.body[key] for key in ("Env", "Labels")}
    shown = base.inspect | {
        "Config": {**base.inspect["Config"], **told},
        "HostConfig": first.body["HostConfig"],
        "NetworkSettings": {"Networks": {"shop_default": {"Aliases": ["web", "shop"]}}},  # its host name as well
    }
    ours = Base(shown, IMAGE, "v2", "10.0.0.5:9000")
    second = made(settings, ours)
    assert second.digest == first.digest
    assert "web" in second.body["NetworkingConfig"]["EndpointsConfig"]["shop_default"]["Aliases"]
    assert "NetworkingConfig" not in made(section(take_over=True), ours).body, "declared no more"


def test_nothing_is_inherited_without_take_over_but_what_it_replaces_is_known() -> None:
    body = made(section(), running()).body
    assert body["Env"] == []
    assert body["Labels"]["trafficd.previous"] == "f" * 64
    assert made(section(), running()).digest == made(section(), None).digest


def test_the_difference_is_told_and_no_secret_in_it() -> None:
    settings = section(take_over=True, memory="512m", environment={"SECRET": "other", "NEW": "1"})
    lines = difference(running(), made(settings, running()))
    assert "image: shop/web:v1 -> shop/web:v2" in lines
    assert f"Memory: {1 << 28} -> {512 << 20}" in lines
    assert "env SECRET: changed" in lines
    assert "env NEW: added" in lines
    assert not any("other" in line or "s3" in line for line in lines)
    unchanged = difference(running(), made(section(take_over=True), running()))
    assert {line.split(":")[0] for line in unchanged} == {"image", "RestartPolicy"}


def test_what_cannot_be_defined_says_what_to_set() -> None:
    with pytest.raises(UndefinedError, match=r"docker\.image"):
        image_of(section(take_over=True, image=None), "v2", None)
    bare = running()
    bare.inspect["Config"]["Image"] = "sha256:" + "a" * 64
    with pytest.raises(UndefinedError, match=r"docker\.image"):
        image_of(section(take_over=True, image=None), "v2", bare)
    with pytest.raises(UndefinedError, match=r"docker\.port"):
        made(section(take_over=True, port=None), running()._replace(dial="10.0.0.5:1"))


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("shop/web:v1", "shop/web"),
        ("localhost:5000/web", "localhost:5000/web"),
        ("localhost:5000/web:v1@sha256:abc", "localhost:5000/web"),
        ("sha256:" + "a" * 64, ""),
    ],
)
def test_repository(reference: str, name: str) -> None:
    assert words.repository(reference) == name


def test_names_can_be_read_and_are_an_engines() -> None:
    name = words.name_of(place("feature/x@sha256:1"))
    assert name.startswith("web-a-feature-x-sha256-1-")
    assert name != words.name_of(place("feature/x@sha256:1")._replace(intent="r2 1.0"))
    assert name != words.name_of(place("feature/x@sha256:1")._replace(daemon="d2")), "two daemons on one Engine"
