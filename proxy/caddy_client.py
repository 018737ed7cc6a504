"""caddy-api-client (PyPI) over a configuration in memory: it decides what goes, and never talks to Caddy itself.

The library is synchronous, knows no If-Match, raises bare `Exception` and writes whole configurations. All of its
requests go through one method, which is replaced here: a read is answered from a document that the caller made, a
write is kept for the caller, anything else is refused. The caller (`proxy.site_config`) reads Caddy's configuration
with its ETag, shows the library what belongs to one site and nothing else, and puts what is left of it back; the
write with If-Match, and the second attempt after somebody else's, are `proxy.admin.Admin.edit`'s.

What of it is used, and what is not (0.2.5, read whole):
- `get_domain_config` is sound: it looks a route up by its `@id` in every server, and a certificate by its tag.
- `delete_domain` is sound only for a document that has nothing else in it. It knows one server, "srv0". It takes out
  any route whose first matcher is this host alone, other paths of the host and other people's routes too. It drops a
  connection policy that names the host, for all the names that share it. And it takes the host from the subjects of
  automation policies: a policy that has none left is one for every name there is.
- `add_domain_with_tls` is not used. It puts the private key into the configuration, which Caddy's admin API shows to
  whoever may ask; appends to "srv0", behind routes that take any host; gives the server its first connection policy
  without one for all other names, whose handshakes then fail; and writes "h1" where the protocol is called "http/1.1".
- `update_domain` forgets every handler that it does not know, and ends in the same policies.
- `add_domain_with_auto_tls` writes another company's e-mail address for ACME, and on-demand TLS. It refuses here.
- `reload` posts to /load, which ignores If-Match; `_update_tls_config` deletes all of `apps.tls` first. The transport
  here answers neither.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from caddy_api_client import CaddyAPIClient

from proxy.errors import CaddyRefusedError, ProxyError
from proxy.handler import Json

SERVER = "srv0"  # the one server that the library knows


class _Answer:
    """What stands in for `requests.Response`, of which the library wants this one method."""

    def __init__(self, value: Json) -> None:
        self._value = value

    def json(self) -> Json:
        return self._value


class MemoryClient(CaddyAPIClient):  # type: ignore[misc]  # it has no types
    """The library over `shown`; `written` is what it would have written. Pure but for what it prints, which is lost."""

    def __init__(self, shown: Json) -> None:
        super().__init__("memory:")
        self._shown = shown
        self.written: Json | None = None

    def look_up(self, route_id: str) -> tuple[Json | None, Json | None]:
        """The route with this `@id`, and the certificate with this tag."""
        found = _called(self.get_domain_config, route_id)
        return found["route"] or None, found["certificates"].get("certificate")

    def without(self, name: str) -> Json:
        """What is shown, without this host, its connection policies, and the certificates that those select."""
        _called(self.delete_domain, name)
        if self.written is None:
            raise CaddyRefusedError(f"caddy-api-client wrote nothing when it was to take out {name}")
        return self.written

    def _make_request(self, method: str, endpoint: str, data: Any = None, headers: Any = None) -> _Answer:
        match method, endpoint:
            case "GET", "/config/":
                return _Answer(copy.deepcopy(self._shown))
            case "POST", "/config/":
                self.written = data
                return _Answer({})
            case _:
                raise CaddyRefusedError(f"{method} {endpoint} is no request that trafficd lets caddy-api-client make")

    def add_domain_with_auto_tls(self, *_: Any, **__: Any) -> NoReturn:
        """Never: see the module. Without a certificate of its own, a name has Caddy's own automatic HTTPS."""
        raise CaddyRefusedError("trafficd does not use caddy-api-client's automatic TLS: it sets a stranger's e-mail")


def _called(method: Callable[[str], Any], argument: str) -> Any:
    """The library's answer, and its errors as ours."""
    with _quiet():
        try:
            return method(argument)
        except Exception as error:
            for cause in _causes(error):
                if isinstance(cause, ProxyError):
                    raise cause from error
            raise CaddyRefusedError(f"caddy-api-client does not understand Caddy's configuration: {error}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """It prints where it finds nothing, and our stdout is for answers. Nothing runs in between: no await."""
    return contextlib.redirect_stdout(io.StringIO())
