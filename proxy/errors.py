"""What can be wrong with the proxy. A message says what happened, to what, and what to do about it."""

from __future__ import annotations


class ProxyError(Exception):
    """Anything this package reports to a person."""


class AddressError(ProxyError, ValueError):
    """A name or address that must not reach a path or Caddy's configuration."""


class CaddyUnreachableError(ProxyError):
    """The admin API does not answer."""


class CaddyRefusedError(ProxyError):
    """The admin API answered, and not with what was asked for."""


class ConfigConflictError(CaddyRefusedError):
    """Somebody else changed Caddy's configuration between our read and our write (412)."""


class CaddyTooOldError(ProxyError):
    """This Caddy lacks what trafficd builds on."""


class CaddyStartError(ProxyError):
    """A Caddy of our own did not start."""


class SlotError(ProxyError):
    """The slot directory cannot be read or written."""


class SlotsNotResolvedError(ProxyError):
    """Caddy does not resolve our slots: other files, no permission, or another mount."""


class CertificateError(ProxyError, ValueError):
    """A certificate or key that must not be given to Caddy: unreadable, not a pair, expired, for other names."""


class SiteRefusedError(ProxyError):
    """A public name that cannot be added or removed, given what Caddy's configuration has."""


class SiteBookError(ProxyError):
    """The file that remembers the sites cannot be read or written."""


class AccessLogError(ProxyError):
    """The access log is there and cannot be read."""
