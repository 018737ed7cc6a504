"""`[services.NAME.systemd]`: values, what does not fit together, and the names that come of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trafficd.config import ServiceSection
from trafficd.config.systemd import SystemdSection

WEB = {"unit": "web@{port}", "version_file": "/etc/web/{port}.env"}
A = {"id": "a", "dial": "127.0.0.1:8080"}
B = {"id": "b", "dial": "127.0.0.1:8081"}


def service(systemd: dict[str, Any] | None, **more: Any) -> ServiceSection:
    given: dict[str, Any] = {"upstreams": [A, B], "swap": {"driver": "systemd"}}
    if systemd is not None:
        given["systemd"] = systemd
    return ServiceSection.model_validate(given | more)


def faults(systemd: dict[str, Any] | None, **more: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        service(systemd, **more)
    return {".".join(str(part) for part in one["loc"]): one["msg"] for one in caught.value.errors()}


def test_names() -> None:
    web = service(WEB).systemd
    assert web is not None
    assert web.unit_of("web", "a", "127.0.0.1:8080", "v1/odd") == "web@8080.service"
    assert web.file_of("web", "a", "[::1]:8080") == "/etc/web/8080.env"
    named = SystemdSection(unit="{service}-{version}@{upstream}.service")
    assert named.unit_of("web", "a", "", "1.2.3") == "web-1.2.3@a.service"
    assert named.file_of("web", "a", "") is None
    policy = service(WEB).policy(2)
    assert policy.prepares
    assert policy.retires


@pytest.mark.parametrize("version", ["a/b", "v1@x", "1+2", "%i", "*", "a b", "", None])
def test_a_version_that_no_unit_can_have_in_its_name(version: str | None) -> None:
    named = SystemdSection(unit="web-{version}@{port}")
    with pytest.raises(ValueError, match="version"):
        named.unit_of("web", "a", "127.0.0.1:8080", version)


def test_a_name_that_is_too_long() -> None:
    named = SystemdSection(unit="{upstream}-{upstream}-{upstream}@{port}-{upstream}", version_file="/f")
    with pytest.raises(ValueError, match="too long"):
        named.unit_of("web", "a" * 64, "127.0.0.1:8080", None)


@pytest.mark.parametrize(
    "unit",
    [
        *("", "@{port}", "web@", "web@@{port}", "-web@{port}", "--now", "web@{port}@x", "web {port}", "web@*", "web/x"),
        *("web@{port", "web@{dial}", "web@{}", "web@%i", "web@{port}.socket", "multi-user.target", "web@$(id)", "a;b"),
        *("web@{port}\n", "wéb@{port}"),
    ],
)
def test_no_unit(unit: str) -> None:
    assert "systemd.unit" in faults(WEB | {"unit": unit})


@pytest.mark.parametrize(
    "file", ["web.env", "/", "/etc/web/", "/etc/../x", "/etc/{version}", "/etc/{host}", "/etc/a\nb", "/etc/{port", ""]
)
def test_no_version_file(file: str) -> None:
    assert "systemd.version_file" in faults(WEB | {"version_file": file})


@pytest.mark.parametrize(
    ("systemd", "more", "place", "said"),
    [
        (None, {}, "systemd", "needs this section"),
        (WEB, {"swap": {"driver": "external"}}, "systemd", "means nothing without"),
        ({"unit": "web@{port}"}, {}, "systemd.version_file", "which version to start"),
        (WEB, {"swap": {"driver": "systemd", "command": ["x"]}}, "swap.command", "only where driver"),
        (WEB, {"swap": {"driver": "systemd", "retire": ["x"]}}, "swap.retire", "only where driver"),
        (WEB | {"scope": "global"}, {}, "systemd.scope", "'system' or 'user'"),
        (WEB | {"unit": "web"}, {}, "upstreams.1.dial", "systemd.unit is web here as it is for dial of a"),
        (WEB | {"version_file": "/etc/web.env"}, {}, "upstreams.1.dial", "or give each upstream its host"),
        (
            WEB | {"unit": "web@{upstream}"},
            {"upstreams": [A | {"spare_dial": "127.0.0.1:9080"}]},
            "upstreams.0.spare_dial",
            "have {port} in it",
        ),
        (
            {"unit": "web-{version}"},
            {"upstreams": [A | {"spare_dial": "127.0.0.1:9080"}]},
            "upstreams.0.spare_dial",
            "have {port} in it",
        ),
        (
            WEB,
            {"route": "none", "upstreams": [{"id": "a"}], "health": {"command": ["x"]}},
            "systemd.unit",
            "write {upstream}",
        ),
    ],
)
def test_what_does_not_fit_together(
    systemd: dict[str, Any] | None, more: dict[str, Any], place: str, said: str
) -> None:
    assert said in faults(systemd, **more)[place]


def test_what_fits_together() -> None:
    """One unit on each of two hosts, workers, and a program of the user's that brings the version."""
    hosts = [A | {"host": "ssh://deploy@web1"}, B | {"host": "ssh://deploy@web2"}]
    one_each = service({"unit": "web.service", "version_file": "/etc/web.env"}, upstreams=hosts)
    assert one_each.ssh_hosts == {"ssh://deploy@web1", "ssh://deploy@web2"}
    workers = {"route": "none", "upstreams": [{"id": "a"}, {"id": "b"}], "health": {"command": ["x"]}}
    service({"unit": "jobs-{version}@{upstream}"}, **workers)
    service(WEB, swap={"driver": "systemd", "prepare": ["fetch"], "host": "ssh://deploy@web1"})
