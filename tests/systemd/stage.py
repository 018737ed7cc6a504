"""An installation whose instances are units of a machine of our own (`machine.py`)."""

from __future__ import annotations

import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import trafficd
from tests.systemd.machine import Machine
from trafficd.demo.stage import Stage

ROOT = Path(trafficd.__file__).parents[1]
RELEASE = f"""#!/bin/sh
echo "release {{version}} starts on $2"
{{before}}
PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 exec {sys.executable} -m trafficd.demo.app "$2" {{version}} {{options}}
"""
DAEMON = f"""[Service]
Environment=PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 HOME={{directory}}
ExecStart={sys.executable} -m trafficd run --config {{config}}
StandardError=append:{{directory}}/daemon.log
KillMode=process
Restart=always
"""


def from_readme(path: str) -> str:
    """The unit file that the README shows under this path."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^```ini\n# {re.escape(path)}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None, path
    return found[1]


@dataclass
class Units(Stage):
    """`template`: the unit of a version at a port; `user`: of a user's manager. The daemon is a unit of the machine,
    too, where it is `inside`."""

    machine: Machine = field(kw_only=True)
    template: str = "web@{port}"
    user: bool = False
    inside: bool = True

    def ctl(self, *words: str, check: bool = True) -> str:
        """`systemctl` of the manager that has the instances."""
        return self.machine.user_ctl(*words, check=check) if self.user else self.machine.ctl(*words, check=check)

    def active(self, pattern: str) -> list[str]:
        """The units of such a name that are active."""
        listed = self.ctl("list-units", "--plain", "--no-legend", "--state=active", pattern, check=False)
        return sorted(line.split()[0] for line in listed.splitlines())

    def unit(self, dial: str, version: str = "") -> str:
        return f"{self.template.format(port=dial.rpartition(':')[2], version=version)}.service"

    def release(self, version: str, before: str = "", options: str = "") -> None:
        """Lay down a release; `before` is a line of the program's."""
        text = RELEASE.format(version=version, before=before, options=options)
        self.machine.write(f"/srv/web/{version}/bin/web", text)

    def told(self, dial: str) -> str:
        """What the version file of an instance says."""
        return self.machine.run("cat", f"/etc/web/{dial.rpartition(':')[2]}.env")

    def starts(self, version: str) -> int:
        """How often a release was started."""
        said = self.machine.run("journalctl", "-q", "-o", "cat", "--no-pager", check=False)
        return len(re.findall(rf"^release {version} starts", said, re.MULTILINE))

    def start_instances(self) -> None:
        for index in range(self.instances):
            dial = self.dial(index)
            self.machine.write(f"/etc/web/{dial.rpartition(':')[2]}.env", f"VERSION={self.version}\n")
            self.ctl("enable", "--now", self.unit(dial, self.version))

    def start_daemon(self) -> None:
        if not self.inside:
            super().start_daemon()
            return
        self.config.write_text(self.toml())
        unit = DAEMON.format(config=self.config, directory=self.directory)
        self.machine.write("/etc/systemd/system/trafficd.service", unit)
        self.machine.ctl("daemon-reload")
        self.machine.ctl("restart", "trafficd")

    def kill_daemon(self) -> None:
        """It is killed, and its systemd, which has seen that, starts it again."""

        def main() -> str:
            return self.machine.ctl("show", "--property=MainPID", "--value", "trafficd")

        pid = main()
        self.machine.run("kill", "-9", pid)
        while main() == pid:
            time.sleep(0.05)

    async def aclose(self) -> None:
        """Stop what runs in the machine. Its pids are no pids of this host, so nothing is ended by a pid file."""
        if self.inside:
            self.machine.ctl("kill", "--signal=INT", "trafficd", check=False)
            self.machine.ctl("stop", "trafficd", check=False)
        else:
            self.stop_daemon(signal.SIGINT)
        for unit in self.active(self.template.format(port="*", version="*") + ".service"):
            self.ctl("disable", "--now", unit, check=False)
