"""One family of errors. A message says what happened, to what, and what to do about it.

Errors that an operator's request can cause carry the HTTP status they are answered with.
"""

from __future__ import annotations

from collections.abc import Iterable


class TrafficdError(Exception):
    """Anything that trafficd reports to a person."""

    status = 500
    title = "Internal error"


class ConfigError(TrafficdError):
    """The configuration cannot be used; the message lists every fault with its place."""

    title = "Configuration not usable"


class StateError(TrafficdError):
    """The state directory cannot be used: locked by another daemon, of another version, damaged."""

    status = 503
    title = "State not usable"


class JournalError(TrafficdError):
    """The journal cannot be written or read; nothing is done that is not journalled first."""

    status = 503
    title = "Journal not writable"


class NotFoundError(TrafficdError):
    status = 404
    title = "Not found"

    @classmethod
    def service(cls, name: str, known: Iterable[str]) -> NotFoundError:
        """None of the configured services has this name."""
        return cls(f"there is no service {name!r}; the configuration has: {', '.join(sorted(known)) or 'none'}")


class ConflictError(TrafficdError):
    """The request is understood and refused, given how things stand."""

    status = 409
    title = "Refused"


class InvalidError(TrafficdError):
    status = 422
    title = "Invalid request"


class GateError(TrafficdError):
    """An upstream did not become healthy in time."""

    status = 504
    title = "Not healthy in time"


class ProxyUnavailableError(TrafficdError):
    """Caddy, or the slots it reads, cannot be reached or written."""

    status = 503
    title = "Proxy not available"


class DaemonUnreachableError(TrafficdError):
    """The command line found no daemon to talk to."""

    status = 503
    title = "Daemon not reachable"


class HostUnreachableError(TrafficdError):
    """Another host cannot be reached over SSH, or the connection to it was lost."""

    status = 502
    title = "Host not reachable"


class HostRefusedError(HostUnreachableError):
    """Another host, or we, refuse to go on: its key is not the known one, it takes none of our keys. Trying again
    changes nothing."""
