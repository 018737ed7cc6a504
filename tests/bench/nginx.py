"""Debian's nginx as what load generators are measured against: one worker, on the loopback, with files of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme

from trafficd.demo.stage import free_ports

# A connection is never closed for its age, so that only answering is measured.
_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    sendfile on;
    open_file_cache max=10;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    ssl_certificate {directory}/certificate.pem;
    ssl_certificate_key {directory}/key.pem;
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        listen 127.0.0.1:{tls} ssl http2 backlog=4096;
        location = /12 {{ return 200 "hello world\\n"; }}
        location = /1k {{ return 200 "{kilobyte}"; }}
        location = /100k {{ root {directory}; }}
    }}
}}
"""
_READY = 10.0  # s


@dataclass(frozen=True)
class Nginx:
    """`/12`, `/1k` and `/100k` answer with so many bytes; under TLS it speaks HTTP/2 to who asks for it."""

    plain: str  # URL without a path
    tls: str
    authority: Path  # who certifies it


def installed() -> bool:
    return _program() is not None


@contextlib.contextmanager
def nginx() -> Iterator[Nginx]:
    """Start it, and end it after the block."""
    program = _program()
    assert program is not None
    directory = Path(tempfile.mkdtemp(prefix="trafficd-nginx-"))
    directory.chmod(0o755)  # its worker may be another user
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(directory / "certificate.pem"))
    (directory / "100k").write_bytes(b"x" * 100_000)
    plain, tls = free_ports(2)
    configuration = directory / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(directory=directory, plain=plain, tls=tls, kilobyte="x" * 1024))
    process = subprocess.Popen([program, "-c", str(configuration), "-p", str(directory)], stderr=subprocess.DEVNULL)
    try:
        _wait(plain, process)
        yield Nginx(f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{tls}", directory / "authority.pem")
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


def _program() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY
    while True:
        with socket.socket() as knock:
            if not knock.connect_ex(("127.0.0.1", port)):
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("nginx did not start")
        time.sleep(0.02)
