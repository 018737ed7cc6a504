"""A real Caddy with TLS, a service of ours and a route of somebody else's, and certificates made for the test."""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from proxy.handler import Json
from proxy.pools import SlotPool
from proxy.site_list import Listed
from proxy.sites import Sites
from tests.proxy.caddy import RealCaddy
from trafficd.demo.stage import free_ports

SHOP = "shop.test"


@dataclass
class Pair:
    """A certificate and its key in files."""

    certificate: Path
    key: Path
    der: bytes

    @property
    def paths(self) -> tuple[str, str]:
        return str(self.certificate), str(self.key)


class Shop:
    """A Caddy with TLS: the service "web" answers for web.test, and somebody else's route for theirs.test."""

    def __init__(self, caddy: RealCaddy, directory: Path) -> None:
        self.caddy, self.directory = caddy, directory
        self.authority = trustme.CA()
        self.sites = Sites(caddy.admin, directory / "sites.json")
        self.pool: SlotPool

    async def start(self) -> None:
        config, etag = await self.caddy.admin.config()
        (http_port,) = free_ports(1)
        server = {"listen": [f"127.0.0.1:{self.caddy.port}"], "routes": [THEIRS]}
        await self.caddy.admin.write(
            {
                **(config or {}),
                "apps": {
                    "http": {"http_port": http_port, "https_port": self.caddy.port, "servers": {"srv0": server}},
                    # No test asks an authority elsewhere, nor puts one into this host's trust store.
                    "tls": {"automation": {"policies": [{"issuers": [{"module": "internal"}]}]}},
                    "pki": {"certificate_authorities": {"local": {"install_trust": False}}},
                },
            },
            etag,
        )
        self.pool = await self.caddy.serve({"a": 1}, hosts=("web.test",), tls="auto")

    def pair(self, *names: str, authority: trustme.CA | None = None, **options: Any) -> Pair:
        """A new certificate for these names, in files of its own."""
        leaf = (authority or self.authority).issue_cert(*names, **options)
        stem = f"{names[0].replace('*', 'any')}-{os.urandom(4).hex()}"
        certificate, key = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.touch(mode=0o600)
        key.write_bytes(leaf.private_key_pem.bytes())
        return Pair(certificate, key, ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode()))

    async def served(self, name: str) -> tuple[bytes, str]:
        """The certificate that a client that asks for this name gets, and who answers."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", self.caddy.port, ssl=context, server_hostname=name), 5
        )
        writer.write(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return der, answer.rpartition(b"\r\n\r\n")[2].decode()

    async def etag(self) -> str:
        return (await self.caddy.admin.config())[1]

    async def config(self) -> Json:
        config, _ = await self.caddy.admin.config()
        assert config is not None
        return config

    async def listed(self, name: str | None) -> Listed:
        found = [one for one in await self.sites.listing() if one.name == name]
        assert len(found) == 1, found
        return found[0]


THEIRS: Json = {
    "@id": "theirs",
    "match": [{"host": ["theirs.test"]}],
    "handle": [{"handler": "static_response", "body": "theirs"}],
}
