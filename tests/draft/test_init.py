"""`trafficd init` itself: where it looks, what it refuses, and what it writes where. All addresses are on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trafficd import config as configuration
from trafficd.cli import main
from trafficd.demo.stage import free_ports
from trafficd.draft import caddy
from trafficd.draft.listening import listens
from trafficd.draft.machines import machines
from trafficd.errors import ConfigError
from trafficd.ssh.settings import Settings

FILE = """
{{
    {options}
}}
http://example.test {{
    reverse_proxy 127.0.0.1:{ports[0]} 127.0.0.1:{ports[1]} {{
        health_uri /healthz
        health_interval 5s
    }}
}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the tutorial's Caddyfile, whose instances do not run, and no Engine."""
    (tmp_path / "Caddyfile").write_text(FILE.format(options="", ports=free_ports(2)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(here: Path, *arguments: str, **environment: str) -> Result:
    variables: dict[str, str | None] = {"DOCKER_HOST": f"unix://{here}/none.sock", "DOCKER_CERT_PATH": None}
    result = CliRunner(env=variables | environment).invoke(main, ["init", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_caddyfile_is_enough(here: Path) -> None:
    result = init(here, "--caddyfile", "Caddyfile")
    assert result.exit_code == 0, result.output
    section = configuration.load(here / "trafficd.toml").services["example"]
    assert (section.route, section.swap.driver, section.health.path) == ("adopt", "external", "/healthz")
    assert "none.sock: NOT ASKED: nothing listens there" in result.stdout
    assert "trafficd.toml is written" in result.stdout
    assert "  trafficd run --config trafficd.toml" in result.stdout


def test_nothing_is_written_over(here: Path) -> None:
    (here / "trafficd.toml").write_text("mine")
    result = init(here, "--caddyfile", "Caddyfile")
    assert (result.exit_code, (here / "trafficd.toml").read_text()) == (2, "mine")
    assert "--force" in result.stderr
    assert init(here, "--caddyfile", "Caddyfile", "--force").exit_code == 0
    assert "[services.example]" in (here / "trafficd.toml").read_text()


def test_standard_output_is_the_file_and_nothing_else(here: Path) -> None:
    result = init(here, "--caddyfile", "Caddyfile", "--output", "-")
    assert list(tomllib.loads(result.stdout)["services"]) == ["example"]
    assert "Save it as trafficd.toml" in result.stderr
    assert not (here / "trafficd.toml").exists()


def test_as_json(here: Path) -> None:
    found = json.loads(init(here, "--caddyfile", "Caddyfile", "--json").stdout)
    assert found["output"] == "trafficd.toml"
    assert [one["name"] for one in found["services"]] == ["example"]
    assert found["next"][-1] == "trafficd drain example a"


def test_caddys_words_about_a_broken_file(here: Path) -> None:
    (here / "Caddyfile").write_text("http://example.test {\n    reverse_prox 127.0.0.1:2\n}\n")
    result = init(here, "--caddyfile", "Caddyfile")
    assert result.exit_code == 2
    assert "Caddyfile:2: unrecognized directive: reverse_prox" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--caddyfile", "missing"], "missing cannot be read: No such file"),
        (["--caddyfile", "Caddyfile", "--caddy", "http://127.0.0.1:2"], "give one of them"),
        (["--caddyfile", "Caddyfile", "--engine", "docker"], "--engine: 'docker' is not an Engine"),
        (["--caddy", "localhost:2019"], "--caddy: 'localhost:2019' is neither"),
        (["--caddyfile", "Caddyfile", "--output", "missing/t.toml"], "missing/t.toml cannot be written"),
        (["--caddyfile", "Caddyfile", "--output", "-", "--json"], "both go to standard output"),
    ],
)
def test_a_slip_of_the_pen_is_told(here: Path, arguments: list[str], said: str) -> None:
    result = init(here, *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_a_caddy_that_was_named_and_does_not_answer_is_an_error(here: Path) -> None:
    result = init(here, "--caddy", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr
    assert not (here / "trafficd.toml").exists()


def test_a_caddyfile_without_a_proxy_is_nothing_to_draft_from(here: Path) -> None:
    (here / "Caddyfile").write_text("http://example.test {\n    reverse_proxy unix//run/x.sock\n}\n")
    result = init(here, "--caddyfile", "Caddyfile")
    assert result.exit_code == 1
    assert "unix//run/x.sock is a unix socket" in result.stderr


async def test_where_no_caddy_runs_a_file_at_a_usual_place_is_read(here: Path) -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    seen = await caddy.found(None, None, [here / "none", here / "Caddyfile"], nobody)
    assert (seen.running, seen.origin, seen.admin) == (False, f"the file {here}/Caddyfile", "http://127.0.0.1:2019")
    with pytest.raises(ConfigError, match=r"there is neither .*/none nor .*/never.*--caddyfile PATH"):
        await caddy.found(None, None, [here / "none", here / "never"], nobody)


@pytest.mark.parametrize(
    ("admin", "address"),
    [
        (None, "http://127.0.0.1:2019"),
        ({"listen": ":3019"}, "http://127.0.0.1:3019"),
        ({"listen": "localhost:3019"}, "http://127.0.0.1:3019"),
        ({"listen": "10.0.0.1:3019"}, "http://10.0.0.1:3019"),
        ({"listen": "unix//run/caddy/admin.sock|0660"}, "unix:///run/caddy/admin.sock"),
    ],
)
def test_where_a_caddy_with_this_file_has_its_admin_api(here: Path, admin: Any, address: str) -> None:
    file = here / "caddy.json"
    file.write_text(json.dumps({} if admin is None else {"admin": admin}))
    assert caddy.of_file(file).admin == address


def test_a_caddy_without_an_admin_api_cannot_be_steered(here: Path) -> None:
    (here / "Caddyfile").write_text(FILE.format(options="admin off", ports=free_ports(2)))
    result = init(here, "--caddyfile", "Caddyfile")
    assert result.exit_code == 2
    assert "Take that line out" in result.stderr


def test_ports_that_a_process_and_its_children_listen_at() -> None:
    program = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    program += "; sys.stdin.read()"
    with (
        socket.create_server(("127.0.0.1", 0)) as own,
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        theirs = int(child.stdout.readline())
        found = listens(os.getpid())
        assert found is not None
        assert {own.getsockname()[1], theirs} <= found
        assert listens(child.pid) == frozenset({theirs})
    assert listens(child.pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_socket_that_is_not_ours_to_use_is_told_with_the_remedy() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as server:
        Path(directory).chmod(0o711)
        path = Path(directory) / "docker.sock"
        server.bind(str(path))
        server.listen()
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            (found,) = asyncio.run(machines([f"unix://{path}"], frozenset(), None, Settings()))
        finally:
            os.seteuid(0)
    assert found.failure is not None
    assert found.failure.startswith("permission denied. Run it as root, or as a user of the group root")


def test_an_engine_that_everybody_may_use_is_not_asked(here: Path) -> None:
    result = init(here, "--caddyfile", "Caddyfile", "--engine", "tcp://192.0.2.1:2375")
    assert result.exit_code == 0
    assert "tcp://192.0.2.1:2375: NOT ASKED: an Engine without TLS makes root of everybody" in result.stdout
