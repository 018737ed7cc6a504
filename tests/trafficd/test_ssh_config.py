"""Other hosts in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from trafficd.compose import check_files
from trafficd.config import Config, load
from trafficd.errors import ConfigError
from trafficd.ssh.settings import Settings

WEB = """
[[services.web.upstreams]]
id = "a"
dial = "10.0.0.1:8080"
{upstream}
[services.web.swap]
driver = "{driver}"
{swap}
{more}
"""


def loaded(tmp_path: Path, *, driver: str = "command", upstream: str = "", swap: str = "", more: str = "") -> Config:
    path = tmp_path / "trafficd.toml"
    command = 'command = ["x"]' if driver == "command" else ""
    path.write_text(WEB.format(driver=driver, upstream=upstream, swap=f"{command}\n{swap}", more=more))
    return load(path)


def test_hosts_and_the_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, upstream='host = "ssh://deploy@WEB1:22"', swap='host = "ssh://deploy@web2:2222"')
    section = config.services["web"]
    assert section.upstreams[0].host == "ssh://deploy@web1"
    assert section.ssh_hosts == {"ssh://deploy@web1", "ssh://deploy@web2:2222"}
    assert config.ssh.settings == Settings()


def test_the_section(tmp_path: Path) -> None:
    more = """
[ssh]
known_hosts = "/etc/trafficd/known_hosts"
identity_files = ["/etc/trafficd/id"]
agent = "/run/agent"
connect_timeout = "3s"
keepalive = "1m"
max_sessions = 2
"""
    assert loaded(tmp_path, more=more).ssh.settings == Settings(
        Path("/etc/trafficd/known_hosts"), (Path("/etc/trafficd/id"),), Path("/run/agent"), 3.0, 60.0, 2
    )


def test_a_fault_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, upstream='host = "web1"', swap='host = "ssh://web1"', more="[ssh]\nmax_sessions = 0")
    text = str(caught.value)
    assert "services.web.upstreams.0.host: 'web1' is not like \"ssh://deploy@web1\"" in text
    assert "services.web.swap.host: 'ssh://web1' is not like" in text
    assert "ssh.max_sessions: " in text


def test_a_host_means_nothing_where_no_command_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, driver="external", upstream='host = "ssh://d@web1"', swap='host = "ssh://d@web1"')
    text = str(caught.value)
    assert 'services.web.upstreams.0.host: is where a command or a unit runs: it needs swap.driver = "command"' in text
    assert 'services.web.swap.host: is where a command or a unit runs: it needs driver = "command"' in text


def test_files_that_are_missing_are_named_where_they_are_needed(tmp_path: Path) -> None:
    more = f'[ssh]\nknown_hosts = "{tmp_path}/known"\nidentity_files = ["{tmp_path}/id"]'
    check_files(loaded(tmp_path, more=more))
    config = loaded(tmp_path, swap='host = "ssh://d@web1"', more=more)
    with pytest.raises(ConfigError) as caught:
        check_files(config)
    text = str(caught.value)
    assert f"ssh.known_hosts: {tmp_path}/known: No such file or directory" in text
    assert "ssh-keyscan" in text
    assert f"ssh.identity_files: {tmp_path}/id: No such file or directory" in text
    (tmp_path / "known").touch()
    (tmp_path / "id").touch()
    check_files(config)
