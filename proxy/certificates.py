"""Certificates and keys in PEM files, looked at before Caddy is told of them.

Caddy refuses a whole configuration for one bad file, and when it starts again with one it does not start at all. So a
pair is given to it only when both files can be read, belong together, are valid now, and cover the name. Nothing of a
key is kept or quoted, and messages name the file and the remedy.

The functions that take a path block on the disk; call them off the event loop.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from proxy.errors import CertificateError

_LARGEST = 1_048_576  # bytes; a chain is some kilobytes
_LONGEST = 1_000  # characters of a path


@dataclass(frozen=True)
class Certificate:
    """What people ask about a certificate. `fingerprint`: SHA-256 of the whole file, so that a renewed chain counts."""

    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...]
    fingerprint: str


def check_file_path(path: str) -> str:
    """A path as it may stand in Caddy's configuration. Raises `CertificateError`."""
    if not path.startswith("/") or len(path) > _LONGEST or any(c in '{}\\"' or not c.isprintable() for c in path):
        raise CertificateError(
            f"{path[:80]!r} cannot be given to Caddy: write an absolute path of at most {_LONGEST} characters, without "
            "braces (placeholders there), quotes, backslashes and control characters"
        )
    return path


def read(path: str) -> Certificate:
    """The first certificate in a file: a server's own, with its chain after it. Raises `CertificateError`."""
    return parse(_content(path, "certificate"), path)


def parse(pem: bytes, place: str) -> Certificate:
    """The first certificate of a PEM text; `place` says where it stands."""
    return _described(_first(pem, place), pem, place)


def check_pair(certificate: str, key: str, name: str, now: datetime) -> Certificate:
    """The certificate, when Caddy can serve `name` with it and its key. Raises `CertificateError`."""
    for path in (certificate, key):
        check_file_path(path)
    pem = _content(certificate, "certificate")
    first = _first(pem, certificate)
    _check_key(first, certificate, _content(key, "key"), key)
    found = _described(first, pem, certificate)
    if not covers(found.names, name):
        have = ", ".join(found.names) or "none"
        raise CertificateError(
            f"{certificate}: the certificate is not for {name}; its names are: {have}. Browsers would refuse it: "
            "get one that has the name among its subject alternative names"
        )
    if found.not_after <= now:
        raise CertificateError(f"{certificate}: the certificate expired at {_when(found.not_after)}; renew it first")
    if found.not_before > now:
        raise CertificateError(
            f"{certificate}: the certificate is valid only from {_when(found.not_before)} on; is the clock right?"
        )
    return found


def open_to_others(path: str) -> bool:
    """Whether every user of this host may read a file."""
    try:
        return bool(Path(path).stat().st_mode & 0o004)
    except OSError:
        return False


def covers(names: Iterable[str], name: str) -> bool:
    """Whether a certificate for `names` is one for `name`; a `*` stands for exactly one label (RFC 6125, 6.4.3)."""
    wildcard = "*." + name.partition(".")[2]
    return any(one in (name, wildcard) for one in names)


# -- reading -------------------------------------------------------------------------------------------


def _content(path: str, what: str) -> bytes:
    try:
        file = Path(path)
        if not stat.S_ISREG(file.stat().st_mode):
            raise CertificateError(f"{path}: is no file, so no {what} can be read from it")
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
    except OSError as error:
        raise CertificateError(
            f"{path}: the {what} cannot be read: {error.strerror}. The users of trafficd and of Caddy must both be "
            "able to read it, under this very path"
        ) from error
    if len(content) > _LARGEST:
        raise CertificateError(f"{path}: larger than any {what}")
    return content


def _first(pem: bytes, place: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CertificateError(
            f"{place}: holds no certificate in PEM (-----BEGIN CERTIFICATE-----): the server's own, then its chain"
        ) from error


def _check_key(certificate: x509.Certificate, certificate_path: str, pem: bytes, path: str) -> None:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise CertificateError(
            f"{path}: the key is encrypted, and Caddy cannot ask for a password; decrypt it: openssl pkey -in {path}"
        ) from error
    except Exception as error:  # several kinds, by the form of what is no key
        raise CertificateError(f"{path}: holds no private key in PEM (-----BEGIN PRIVATE KEY-----)") from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise CertificateError(f"{path}: is not the key of the certificate in {certificate_path}; give the pair")


def _described(certificate: x509.Certificate, pem: bytes, place: str) -> Certificate:
    try:
        return Certificate(
            subject=_text(certificate.subject),
            issuer=_text(certificate.issuer),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            names=tuple(name.lower() for name in _names(certificate)),
            fingerprint=hashlib.sha256(pem).hexdigest(),
        )
    except ValueError as error:
        raise CertificateError(f"{place}: the certificate is malformed: {error}") from error


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [_plain(name) for name in names.get_values_for_type(x509.DNSName)]


def _text(name: x509.Name) -> str:
    """A distinguished name in short, as people call it: its common name, else all of it."""
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _plain(str(common[0].value) if common else name.rfc4514_string())


def _plain(text: str) -> str:
    """Without what could harm a terminal: whoever made the certificate wrote it."""
    return "".join(character for character in text if character.isprintable())[:200]


def _when(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
