"""A registry with one layer an image, that wants a name and a password: what a pull of Docker needs, and no more."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from aiohttp import web

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
USER, PASSWORD = "deploy", "s3cret"


class Registry:
    """`address` is "127.0.0.1:PORT", which every Engine pulls from without TLS."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._tags: dict[str, str] = {}
        self.pulls: list[str] = []

    def push(self, name: str, script: str) -> str:
        """Make "repository:tag" an image whose program is a shell script of busybox; its digest."""
        layer = _layer(script)
        compressed = gzip.compress(layer, mtime=0)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh", "/run.sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._keep(json.dumps(config).encode(), "application/vnd.docker.container.image.v1+json"),
            "layers": [self._keep(compressed, "application/vnd.docker.image.rootfs.diff.tar.gzip")],
        }
        digest = str(self._keep(json.dumps(manifest).encode(), _MANIFEST)["digest"])
        self._tags[name] = digest
        return digest

    def _keep(self, data: bytes, kind: str) -> dict[str, str | int]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._blobs[digest] = data
        return {"mediaType": kind, "size": len(data), "digest": digest}

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v2/", self._hello)
        app.router.add_get("/v2/{name:.+}/manifests/{reference}", self._manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"127.0.0.1:{next(a[1] for a in self._runner.addresses if isinstance(a, tuple))}"

    async def aclose(self) -> None:
        await self._runner.cleanup()

    def write_credentials(self, directory: Path) -> None:
        """What `docker login` would have left there."""
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (directory / "config.json").write_text(json.dumps({"auths": {self.address: {"auth": auth}}}))

    def _refused(self, request: web.Request) -> web.Response | None:
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if request.headers.get("Authorization") == wanted:
            return None
        return web.json_response({}, status=401, headers={"WWW-Authenticate": 'Basic realm="test"'})

    async def _hello(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.json_response({})

    async def _manifest(self, request: web.Request) -> web.Response:
        reference = request.match_info["reference"]
        name = f"{request.match_info['name']}:{reference}"
        digest = self._tags.get(name, reference)
        if refused := self._refused(request):
            return refused
        if digest not in self._blobs:
            error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return web.json_response(error, status=404)
        self.pulls.append(name)
        headers = {"Docker-Content-Digest": digest, "Content-Type": _MANIFEST}
        return web.Response(body=self._blobs[digest], headers=headers)

    async def _blob(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.Response(body=self._blobs[request.match_info["digest"]])


def _layer(script: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        entry = tarfile.TarInfo("bin/sh")
        entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(entry)
        entry = tarfile.TarInfo("run.sh")
        entry.size = len(script)
        tar.addfile(entry, io.BytesIO(script.encode()))
    return archive.getvalue()
