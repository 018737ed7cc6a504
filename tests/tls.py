"""Certificates for tests, made where they are needed."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


def server_context(name: str, authority_file: Path) -> ssl.SSLContext:
    """A server's context with a certificate for `name` (host or address); its authority goes into a file."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(authority_file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context
