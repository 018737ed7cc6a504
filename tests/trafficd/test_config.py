"""The configuration: what is refused, where that is said to be, and what the defaults come to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from trafficd.config import (
    DEFAULT_PATH,
    Amount,
    Config,
    RolloutOverrides,
    ServiceSection,
    VerifySection,
    Version,
    default_path,
    load,
    parse_amount,
    parse_duration,
    parse_version,
)
from trafficd.core.model import Order, Policy, StepKind
from trafficd.errors import ConfigError

Load = Callable[[str], Config]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a text as a configuration, in an environment without variables of ours."""
    for name in list(os.environ):
        if name.startswith("TRAFFICD_"):
            monkeypatch.delenv(name)

    def load_text(text: str) -> Config:
        path = tmp_path / "trafficd.toml"
        path.write_text(text)
        return load(path)

    return load_text


def faults(loaded: Load, text: str) -> list[str]:
    """The lines of the error, without the first, which counts them."""
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    first, *lines = str(caught.value).splitlines()
    assert re.search(rf"trafficd\.toml: {len(lines)} faults?$", first)
    return [line.strip() for line in lines]


WEB = """
[services.web]
[[services.web.upstreams]]
id = "a"
dial = "10.0.0.1:8080"
"""


def test_the_example_of_the_design(loaded: Load) -> None:
    config = loaded(
        """
        [daemon]
        state_dir = "/var/lib/trafficd"
        socket = "/run/trafficd/trafficd.sock"
        [caddy]
        admin = "http://127.0.0.1:2019"
        managed = false
        [services.web]
        hosts = ["Example.com"]
        route = "own"
        listen = [":443"]
        tls = "auto"
        control = "slots"
        slots = 100
        affinity = "none"
        [[services.web.upstreams]]
        id = "a"
        dial = "203.0.113.10:8080"
        version = "v1"
        spare_dial = "203.0.113.10:8081"
        [services.web.health]
        path = "/healthz"
        status = [200]
        interval = "2s"
        [services.web.rollout]
        max_parallel = 1
        order = "stop_first"
        min_healthy_time = "10s"
        healthy_deadline = "5m"
        drain_quiet = "250ms"
        auto_revert = true
        [services.web.swap]
        driver = "command"
        command = ["/usr/local/bin/restart-web"]
        """
    )
    web = config.services["web"]
    assert web.hosts == ["example.com"]
    assert web.tls_mode == "auto"
    assert (web.rollout.healthy_deadline, web.rollout.drain_quiet) == (300.0, 0.25)
    assert web.upstreams[0].spare_dial == "203.0.113.10:8081"


def test_an_empty_file_is_the_defaults(loaded: Load) -> None:
    config = loaded("")
    assert config.daemon.state_dir == Path("/var/lib/trafficd")
    assert config.daemon.socket == Path("/run/trafficd/trafficd.sock")
    assert config.services == {}
    assert ServiceSection().health.timeout == 2.0


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("[daemon]\nstate_dir = ''", "daemon.state_dir", "give a path"),
        ("[daemon]\nlisten = ':80'", "daemon.listen", "needs a token"),
        ("[daemon]\nlisten = ':80'\ntoken_file = ''", "daemon.token_file", "give a path"),
        ("[daemon]\nlisten = ':99999'\ntoken_file = '/t'", "daemon.listen", "is not a listen address"),
        ("[daemon]\nsocket = ''", "daemon.socket", "nobody can reach the daemon"),
        ("[daemon]\nstat_dir = '/x'", "daemon.stat_dir", "no such key"),
        ("[deamon]", "deamon", "no such key"),
        ("daemon = 3", "daemon", "valid dictionary"),
        ("[caddy]\nadmin = 'ftp://x'", "caddy.admin", "neither like"),
        ("[caddy]\nadmin = 'http://x:2019/config'", "caddy.admin", "neither like"),
        ("[caddy]\nadmin = 'unix://{env.X}'", "caddy.admin", "neither like"),
        ("[caddy]\nmanaged = 'perhaps'", "caddy.managed", "valid boolean"),
        ("[caddy]\ntimeout = 0", "caddy.timeout", "greater than 0"),
        ("services = 3", "services", "valid dictionary"),
        ("[services.'a/b']", "services.a/b", "is not a name"),
        ("[services.'..']", "services...", "is not a name"),
        ("[services.'{a}']", "services.{a}", "is not a name"),
        ("[services.web]\nslots = 0", "services.web.slots", "greater than or equal to 1"),
        ("[services.web]\nslots = 10001", "services.web.slots", "less than or equal to 10000"),
        ("[services.web]\nroute = 'adopt'\nlisten = [':80']", "services.web.listen", "the site that is there"),
        ("[services.web]\nroute = 'adopt'\naffinity = 'cookie'", "services.web.affinity", "its own lb_policy"),
        ("[services.web]\nroute = 'import'\ntls = 'off'", "services.web.tls", "means nothing"),
        ("[services.web]\nroute = 'import'\ncontrol = 'admin'", "services.web.control", 'route = "own"'),
        ("[services.web]\nadopt_id = 'x'", "services.web.adopt_id", 'route = "adopt"'),
        ("[services.web]\nroute = 'magic'", "services.web.route", "Input should be"),
        ("[services.web]\nhosts = ['a..b']", "services.web.hosts.0", "is not a host name"),
        ("[services.web]\nhosts = ['a', '{env.X}']", "services.web.hosts.1", "is not a host name"),
        ("[services.web]\nhosts = ['a\\n']".replace("'", '"'), "services.web.hosts.0", "is not a host name"),
        ("[services.web]\nhosts = ['a.b', 'A.b']", "services.web.hosts", "a.b stands there twice"),
        ("[services.web]\nlisten = []", "services.web.listen", "at least 1 item"),
        ("[services.web]\nlisten = [':0']", "services.web.listen.0", "a port that they know"),
        ("[services.web]\nlisten = [':{p}']", "services.web.listen.0", "is not a listen address"),
        ("[services.web]\nlisten = [':443', ':443']", "services.web.listen", "twice"),
        ("[caddy]\nslots_path = 'slots'", "caddy.slots_path", "absolute path"),
        ("[caddy]\nslots_path = '/x/{y}'", "caddy.slots_path", "without braces"),
        ("[caddy]\nslots_path = '/x/../y'", "caddy.slots_path", '".."'),
        ("[services.web]\nupstreams = 'a'", "services.web.upstreams", "valid list"),
        ("[services.web]\nupstreams = [{id = 'a'}]", "services.web.upstreams.0.dial", "Field required"),
        ("[services.web]\nupstreams = [{dial = 'h:80'}]", "services.web.upstreams.0.id", "Field required"),
        ("[services.web]\nupstreams = [3]", "services.web.upstreams.0", "valid dictionary"),
        ("[services.web.health]\npath = 'healthz'", "services.web.health.path", "match pattern"),
        ("[services.web.health]\npath = '/a b'", "services.web.health.path", "match pattern"),
        ("[services.web.health]\nhost = 'a/b'", "services.web.health.host", "is not a host name"),
        ("[services.web.health]\nstatus = []", "services.web.health.status", "at least 1 item"),
        ("[services.web.health]\nstatus = [20]", "services.web.health.status.0", "greater than"),
        ("[services.web.health]\nrise = 0", "services.web.health.rise", "greater than"),
        ("[services.web.health]\ninterval = '1ms'", "services.web.health.interval", "0.05"),
        ("[services.web.health]\ninterval = 1e300", "services.web.health.interval", "366 days"),
        ("[services.web.health]\ninterval = nan", "services.web.health.interval", "366 days"),
        ("[services.web.health]\ntimeout = true", "services.web.health.timeout", "is not a duration"),
        ("[services.web.health.headers]\n'X Y' = 'z'", "services.web.health.headers", "must not have"),
        ('[services.web.health.headers]\nX = "a\\r\\nY: b"', "services.web.health.headers", "must not have"),
        ("[services.web.health.headers]\nX = 'é'", "services.web.health.headers", "must not have"),
        (
            "[services.web.health.headers]\nContent-Length = '5'",
            "services.web.health.headers",
            "announces a body",
        ),
        ("[services.web.rollout]\nmax_parallel = 0", "services.web.rollout.max_parallel", "never end"),
        ("[services.web.rollout]\nmax_parallel = '0%'", "services.web.rollout.max_parallel", "never end"),
        ("[services.web.rollout]\nmin_ready = -1", "services.web.rollout.min_ready", "neither a number"),
        ("[services.web.rollout]\norder = 'both'", "services.web.rollout.order", "'start_first'"),
        ("[services.web.rollout]\nstrategy = 'x'", "services.web.rollout.strategy", "no such key"),
        ("[services.web.swap]\ndriver = 'magic'", "services.web.swap.driver", "Input should be"),
        ("[services.web.swap]\ndriver = 'command'", "services.web.swap.command", "needs command ="),
        ("[services.web.swap]\ncommand = ['x']", "services.web.swap.command", 'driver = "command"'),
        ("[services.web.swap]\nretire = ['x']", "services.web.swap.retire", 'driver = "command"'),
        (
            "[services.web.swap]\ndriver = 'command'\ncommand = 'rm -rf'",
            "services.web.swap.command",
            "valid list",
        ),
        ("[services.web.swap]\ndriver = 'command'\ncommand = []", "services.web.swap.command", "as a list"),
        ("[services.web.hooks]\nafter_swap = ['']", "services.web.hooks.after_swap", "as a list"),
        ('[services.web.hooks]\nafter_swap = ["a\\u0000"]', "services.web.hooks.after_swap", "NUL"),
        ("[services.web.hooks]\nafter_swop = ['a']", "services.web.hooks.after_swop", "no such key"),
        ("[services.web.transport]\ntls_ca = '/ca'", "services.web.transport.tls_ca", "without tls = true"),
        (
            "[services.web.transport]\ntls = true\ntls_ca = '/{x}'",
            "services.web.transport.tls_ca",
            "without braces",
        ),
        (
            "[services.web.transport]\ntls = true\ntls_server_name = '{x}'",
            "services.web.transport.tls_server_name",
            "is not a host name",
        ),
        ("[services.web.transport]\ntls = true\nh2c = true", "services.web.transport.h2c", "without TLS"),
        ('[services.web.canary]\nstrata = ["a b"]', "services.web.canary.strata.0", "should match pattern"),
        ('[services.web.canary]\nstrata = [""]', "services.web.canary.strata.0", "should match pattern"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
def test_a_fault_is_named_with_its_place(loaded: Load, text: str, place: str, why: str) -> None:
    (fault,) = faults(loaded, text)
    assert fault.startswith(f"{place}: ")
    assert why in fault


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "../a", ".a", "-a", "{a}", "a\\u0000", "a\\n", "é", "x" * 65, "a:b", "$(id)"]
)
def test_names_that_must_not_reach_a_path_are_refused(loaded: Load, name: str) -> None:
    (fault,) = faults(loaded, f'[services.web]\nupstreams = [{{id = "{name}", dial = "h:80"}}]')
    assert fault.startswith("services.web.upstreams.0.id: ")
    assert "is not a name" in fault


@pytest.mark.parametrize(
    "dial",
    [
        "",
        "h",
        ":80",
        "h:",
        "h:0",
        "h:1",
        "h:65536",
        "h:http",
        "::1:80",
        "[::1]",
        "h/x:80",
        "{x}:80",
        "h:{x}",
        "h:80/x",
        "http://h:80",
        "h:80 ",
        "0.0.0.0:80",
        "10.0.0:80",
        "h:80\\n",
        "u@h:80",
        "*:80",
    ],
)
@pytest.mark.parametrize("key", ["dial", "spare_dial"])
def test_addresses_that_must_not_reach_the_proxy_are_refused(loaded: Load, dial: str, key: str) -> None:
    first = "" if key == "dial" else 'dial = "other:80", '
    (fault,) = faults(loaded, f'[services.web]\nupstreams = [{{id = "a", {first}{key} = "{dial}"}}]')
    assert fault.startswith(f"services.web.upstreams.0.{key}: ")


def test_all_faults_are_told_at_once(loaded: Load) -> None:
    """Those of single values and those between values, of all sections."""
    text = """
    [daemon]
    listen = ":80"
    state_dirr = "x"
    [services.web]
    slots = 1
    upstreams = [
        {id = "a", dial = "h:80"},
        {id = "a", dial = "H:80"},
        {id = "b", dial = "h:81", spare_dial = "h:80", version = "-v"},
    ]
    [services.web.health]
    interval = "2 parsecs"
    [services.web.swap]
    driver = "command"
    timeout = "-1s"
    [services.api]
    slots = "many"
    upstreams = [{id = "a", dial = "h:81"}]
    """
    assert sorted(line.split(": ")[0] for line in faults(loaded, text)) == [
        "daemon.listen",
        "daemon.state_dirr",
        "services.api.hosts",
        "services.api.slots",
        "services.api.upstreams.0.dial",
        "services.web.health.interval",
        "services.web.slots",
        "services.web.swap.command",
        "services.web.swap.timeout",
        "services.web.upstreams",
        "services.web.upstreams.1.dial",
        "services.web.upstreams.2.spare_dial",
        "services.web.upstreams.2.version",
    ]


def test_an_address_belongs_to_one_upstream_in_any_spelling(loaded: Load) -> None:
    upstreams = "[{id = 'a', dial = '[::ffff:10.0.0.1]:80'}, {id = 'b', dial = '10.0.0.1:80'}]"
    (fault,) = faults(loaded, f"[services.web]\nupstreams = {upstreams}")
    assert fault == (
        "services.web.upstreams.1.dial: 10.0.0.1:80 is already the dial of a in services.web; give each its own"
    )


def test_a_host_name_belongs_to_one_service(loaded: Load) -> None:
    (fault,) = faults(loaded, "[services.a]\nhosts = ['x.y']\n[services.b]\nhosts = ['z', 'X.Y']")
    assert fault == "services.b.hosts: x.y on :443 goes to services.a already"
    (fault,) = faults(loaded, "[services.a]\n[services.b]\n")
    assert fault == "services.b.hosts: any host on :443 goes to services.a already"
    assert len(loaded("[services.a]\n[services.b]\nlisten = [':80']\n[services.c]\nhosts = ['x']").services) == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such file; give one with --config"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
    for data in (b"a = ", b"\xff\xfe", b"[a]\n[a]\n", b"a = 1\na = 2\n"):
        (tmp_path / "bad.toml").write_bytes(data)
        with pytest.raises(ConfigError, match=r"bad\.toml: not TOML: "):
            load(tmp_path / "bad.toml")


# -- the environment ---------------------------------------------------------------------------------------


def test_variables_override_the_file(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DAEMON__STATE_DIR": "/srv/trafficd",
        "CADDY__MANAGED": "true",
        "SERVICES__WEB__SLOTS": "7",
        "SERVICES__WEB__HEALTH__INTERVAL": "1m30s",
        "SERVICES__WEB__ROLLOUT__MAX_PARALLEL": "25%",
        "SERVICES__WEB__HOSTS": '["a.example"]',
        "SERVICES__MY_SITE_2__SLOTS": "8",
        "SERVICES__FRESH__SLOTS": "9",
        "SERVICES__FRESH__LISTEN": '[":80"]',
    }.items():
        monkeypatch.setenv(f"TRAFFICD_{name}", value)
    config = loaded(WEB + "[services.'My-site.2']\nhosts = ['b.example']\nslots = 3")
    assert config.daemon.state_dir == Path("/srv/trafficd")
    assert config.caddy.managed
    web = config.services["web"]
    assert (web.slots, web.health.interval, web.hosts) == (7, 90.0, ["a.example"])
    assert web.rollout.max_parallel == Amount(percent=25.0)
    assert web.upstreams[0].id == "a"
    assert {name: service.slots for name, service in config.services.items()} == {
        "web": 7,
        "My-site.2": 8,
        "fresh": 9,
    }


def test_a_whole_section_may_be_json(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAFFICD_DAEMON", '{"state_dir": "/srv"}')
    monkeypatch.setenv("TRAFFICD_SERVICES__WEB__UPSTREAMS", '[{"id": "b", "dial": "h:81"}]')
    config = loaded(WEB)
    assert config.daemon.state_dir == Path("/srv")
    assert [upstream.id for upstream in config.services["web"].upstreams] == ["b"]


@pytest.mark.parametrize(
    "name", ["CONFIG", "SOCKET", "URL", "TOKEN_FILE", "VERSION", "SERVICE", "UPSTREAM", "DIAL", "ROLLOUT"]
)
def test_other_variables_of_ours_are_not_the_configurations(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without = loaded(WEB).model_dump()
    monkeypatch.setenv(f"TRAFFICD_{name}", "/x")
    assert loaded(WEB).model_dump() == without


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("SERVICES__WEB__SLOTS", "many", "services.web.slots: Input should be a valid integer"),
        ("SERVICES__WEB__HOSTS", "a.b", "services.web.hosts: Input should be a valid list"),
        ("SERVICES__WEB__HOSTS", '["{x}"]', "services.web.hosts.0: '{x}' is not a host name"),
        ("DAEMON__STAT_DIR", "/x", "daemon.stat_dir: no such key"),
        ("DAEMON__STATE_DIR", "", "daemon.state_dir: give a path"),
        ("DEAMON__STATE_DIR", "/x", "deamon: no such key"),
    ],
)
def test_a_fault_in_a_variable_names_the_variable(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, name: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(f"TRAFFICD_{name}", value)
    (line,) = faults(loaded, WEB)
    assert line.startswith(fault)
    assert line.endswith(f"(set by the variable TRAFFICD_{name})")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("DAEMON", "{bad", "TRAFFICD_DAEMON is no JSON"),
        ("DAEMON", "/srv", "TRAFFICD_DAEMON is no JSON"),
        ("SERVICES__WEB__HOSTS", "[a.b]", "TRAFFICD_SERVICES__WEB__HOSTS is no JSON"),
        ("DAEMON__STATE_DIR__X", "y", "TRAFFICD_DAEMON__STATE_DIR__X sets a key of what is no table"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.setenv("TRAFFICD_DAEMON__STATE_DIR", "/x")
    monkeypatch.setenv(f"TRAFFICD_{name}", value)
    with pytest.raises(ConfigError, match=why):
        loaded(WEB)


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAFFICD_CONFIG", raising=False)
    assert default_path() == DEFAULT_PATH
    monkeypatch.setenv("TRAFFICD_CONFIG", "/x")
    assert default_path() == "/x"


# -- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("250ms", 0.25),
        ("5m", 300),
        ("1m30s", 90),
        ("1h", 3600),
        ("1.5s", 1.5),
        (" 2s ", 2),
        (3, 3),
        (0.5, 0.5),
        (0, 0),
        ("0s", 0),
        ("366h", 366 * 3600),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "s",
        "-1s",
        "1 s",
        "1s 2m",
        "1w",
        "10S",
        "1e3s",
        "1_0s",
        "٣s",
        ".5s",
        "1.s",
        True,
        None,
        [],
        -1,
        float("nan"),
        float("inf"),
        1e300,
        "9999999h",
        "1s\n1s",
    ],
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["v1", "1", "2024.1.0-rc.1", "sha256:ab", "ghcr.io/a/b:1@sha256:c", "a+b", "a..b"])
def test_versions(text: str) -> None:
    assert parse_version(text) == text


@pytest.mark.parametrize(
    "text", ["", "-v", ".v", "/v", "a b", "a\nb", "a\n", "a;b", "$(x)", "{v}", "é", "a" * 129, "a/../b", "a/.."]
)
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="is not a version"):
        parse_version(text)
    with pytest.raises(ValidationError):
        TypeAdapter[str](Version).validate_python(text)


@pytest.mark.parametrize(
    ("value", "total", "down", "up"),
    [
        (2, 10, 2, 2),
        ("3", 10, 3, 3),
        ("25%", 10, 2, 3),
        ("25%", 4, 1, 1),
        ("0%", 9, 0, 0),
        ("100%", 9, 9, 9),
        ("33.3%", 3, 0, 1),
        (" 50% ", 3, 1, 2),
        (0, 3, 0, 0),
        ("7%", 100, 7, 7),
    ],
)
def test_amounts(value: object, total: int, down: int, up: int) -> None:
    amount = parse_amount(value)
    assert isinstance(amount, Amount)
    assert (amount.of(total, up=False), amount.of(total, up=True)) == (down, up)


@pytest.mark.parametrize("value", [-1, 1.5, True, "", "x", "-1", "101%", "%", "1%%", "٣", "1e2%", [], {}, "nan%"])
def test_what_is_no_amount(value: object) -> None:
    with pytest.raises(ValueError, match="neither a number"):
        parse_amount(value)


@pytest.mark.parametrize(
    ("hosts", "listen", "tls", "mode"),
    [
        (["a"], [":443"], None, "auto"),
        ([], [":443"], None, "off"),
        (["a"], [":8443"], None, "off"),
        (["a"], [":443", ":80"], None, "off"),
        (["a"], [":8443"], "auto", "auto"),
        (["a"], [":443"], "off", "off"),
    ],
)
def test_the_default_of_tls(hosts: list[str], listen: list[str], tls: str | None, mode: str) -> None:
    service = ServiceSection.model_validate({"hosts": hosts, "listen": listen, "tls": tls})
    assert service.tls_mode == mode


# -- the policy of a rollout -------------------------------------------------------------------------------


def section(**rollout: object) -> ServiceSection:
    return ServiceSection.model_validate({"rollout": rollout})


def overrides(**changes: object) -> RolloutOverrides:
    """As a request brings them."""
    return RolloutOverrides.model_validate(changes)


def test_the_default_policy() -> None:
    assert section().policy(4) == Policy(
        max_parallel=1,
        min_ready=3,
        order=Order.STOP_FIRST,
        min_healthy_time=10.0,
        healthy_deadline=300.0,
        drain_timeout=30.0,
        drain_quiet=0.25,
        auto_revert=True,
        swap_timeout=600.0,
        prepare_timeout=600.0,
        hook_timeout=300.0,
        external=True,
    )


@pytest.mark.parametrize(
    ("upstreams", "rollout", "parallel", "ready"),
    [
        (1, {}, 1, 1),
        (2, {}, 1, 1),
        (0, {}, 1, 1),
        (10, {"max_parallel": 3}, 3, 7),
        (3, {"max_parallel": 9}, 9, 1),
        (10, {"max_parallel": "25%"}, 2, 8),
        (3, {"max_parallel": "25%"}, 1, 2),
        (10, {"max_parallel": "100%"}, 10, 1),
        (10, {"min_ready": 4}, 1, 4),
        (10, {"min_ready": "75%"}, 1, 8),
        (10, {"min_ready": 0}, 1, 0),
        (3, {"min_ready": "100%"}, 1, 3),
    ],
)
def test_numbers_of_upstreams(upstreams: int, rollout: dict[str, object], parallel: int, ready: int) -> None:
    """Percentages never take out more, nor leave less, than they say; but one may always go."""
    policy = section(**rollout).policy(upstreams)
    assert (policy.max_parallel, policy.min_ready) == (parallel, ready)


def test_a_request_overrides_the_policy() -> None:
    base = section(max_parallel=3, min_ready=1, min_healthy_time="10s", auto_revert=True)
    changed = base.policy(
        10,
        overrides(max_parallel="50%", order="start_first", min_healthy_time="1m", drain_quiet=0, auto_revert=False),
    )
    assert (changed.max_parallel, changed.min_ready, changed.order) == (5, 1, Order.START_FIRST)
    assert (changed.min_healthy_time, changed.drain_quiet, changed.auto_revert) == (60.0, 0.0, False)
    assert base.policy(10, overrides()) == base.policy(10)
    assert section().policy(10, overrides(max_parallel=4)).min_ready == 6
    assert base.policy(10, overrides(min_ready="90%")).min_ready == 9


@pytest.mark.parametrize(
    "changes", [{"max_parallel": 0}, {"order": "x"}, {"nope": 1}, {"healthy_deadline": "0s"}, {"min_ready": "x"}]
)
def test_overrides_are_checked_like_the_file(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        overrides(**changes)


def test_what_the_drivers_and_hooks_add_to_the_policy() -> None:
    service = ServiceSection.model_validate(
        {
            "swap": {"driver": "command", "command": ["x"], "prepare": ["p"], "timeout": "1m"},
            "hooks": {"after_swap": ["h"], "on_failure": ["h"], "timeout": 5},
        }
    )
    policy = service.policy(2)
    assert (policy.prepares, policy.retires, policy.external) == (True, False, False)
    assert (policy.swap_timeout, policy.hook_timeout) == (60.0, 5.0)
    assert policy.hooks == (StepKind.AFTER_SWAP, StepKind.ON_FAILURE)
    assert service.hooks.argv(StepKind.AFTER_SWAP) == ["h"]
    assert service.hooks.argv(StepKind.DRAIN) is None


def test_the_example_configuration_can_be_loaded() -> None:
    example = Path(__file__).parents[2] / "configs" / "trafficd.toml"
    assert [upstream.id for upstream in load(example).services["web"].upstreams] == ["a", "b"]


# -- what is verified, and how -----------------------------------------------------------------------------


def test_a_verification_and_its_defaults(loaded: Load) -> None:
    assert loaded(WEB).services["web"].verify == VerifySection()
    config = loaded(
        WEB
        + """
        [services.web.verify]
        rate = 120
        warm_up = "2s"
        on_fail = "revert"
        requests = [{path = "/orders", method = "POST", body = "x", headers = {"Content-Type" = "a/b"}, status = [201]}]
        compatible = [{path = "/v1/old.js"}]
        websockets = [{path = "/ws"}]
        """
    )
    verify = config.services["web"].verify
    assert (verify.rate, verify.warm_up, verify.cool_down, verify.on_fail) == (120, 2.0, 5.0, "revert")
    assert (verify.requests[0].method, verify.requests[0].status) == ("POST", [201])
    assert (verify.compatible[0].method, verify.websockets[0].connections) == ("GET", 2)


@pytest.mark.parametrize(
    ("line", "place", "says"),
    [
        ("rate = 0", "rate", "greater than 0"),
        ('warm_up = "0s"', "warm_up", "greater than 0"),
        ('address = "example.com:443"', "address", "is not like"),
        ('address = "https://example.com/path"', "address", "is not like"),
        ('address = "https://example.com:0"', "address", "is not like"),
        ('host = "*"', "host", "not a host name"),
        ('on_fail = "explode"', "on_fail", "'report' or 'revert'"),
        ("p99_factor = 1", "p99_factor", "greater than 1"),
        ('insecure = true\ntls_ca = "/ca.pem"', "tls_ca", "means nothing with insecure"),
        ('requests = [{path = "orders"}]', "requests.0.path", "pattern"),
        ('requests = [{path = "/", method = "get"}]', "requests.0.method", "not a method"),
        ('requests = [{path = "/", method = "CONNECT"}]', "requests.0.method", "not a method"),
        ('requests = [{path = "/", status = [99]}]', "requests.0.status.0", "greater than or equal to 200"),
        ('compatible = [{path = "/", weight = 0}]', "compatible.0.weight", "greater than or equal to 1"),
        ('compatible = [{path = "/", headers = {"Content-Length" = "1"}}]', "compatible.0.headers", "announces a body"),
        ("websockets = [{connections = 1}]", "websockets.0.path", "required"),
        ("speed = 3", "speed", "no such key"),
    ],
)
def test_a_verification_that_cannot_be(loaded: Load, line: str, place: str, says: str) -> None:
    (fault,) = faults(loaded, f"{WEB}[services.web.verify]\n{line}\n")
    assert fault.startswith(f"services.web.verify.{place}: ")
    assert says in fault
