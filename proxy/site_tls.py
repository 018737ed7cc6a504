"""What Caddy's configuration says of a server's TLS, and what it would be for one more name. Pure."""

from __future__ import annotations

from proxy.certificates import covers
from proxy.errors import SiteRefusedError
from proxy.handler import Json, hosts_of


def servers_of(config: Json | None) -> Json:
    """The HTTP servers of a configuration, by name."""
    servers: Json = ((config or {}).get("apps", {}).get("http") or {}).get("servers") or {}
    return servers


def routes_of(server: Json) -> list[Json]:
    return server.get("routes") or []


def speaks_tls(config: Json | None, server_name: str) -> bool:
    """Whether clients of a server speak TLS, by the rules of Caddy's automatic HTTPS (2.11, phase 1)."""
    http = (config or {}).get("apps", {}).get("http") or {}
    server = servers_of(config)[server_name]
    if server.get("tls_connection_policies"):
        return True
    automatic = server.get("automatic_https") or {}
    ports = {str(address).rpartition(":")[2] for address in server.get("listen") or []}
    if automatic.get("disable") or ports <= {str(http.get("http_port") or 80)}:
        return False
    if ports <= {str(http.get("https_port") or 443)}:
        return True
    skipped = automatic.get("skip") or []
    return any(host not in skipped for route in routes_of(server) for host in hosts_of(route))


def policies_of(config: Json | None) -> list[Json]:
    """The policies by which Caddy gets certificates."""
    tls = (config or {}).get("apps", {}).get("tls") or {}
    return (tls.get("automation") or {}).get("policies") or []


def policy_for(policies: list[Json], name: str, server_name: str) -> tuple[int, Json]:
    """Where in a server's list a policy for this name is to stand, and what it is to demand of a client: what the one
    that is for the name until now demands. Else the name would be a way round, say, the client certificates that all
    others must show. Just before that one, and policies for single names stay before one for a wildcard.

    Raises `SiteRefusedError` when it is not clear.
    """
    if not policies:
        return 0, {}
    for index, policy in enumerate(policies):
        match = policy.get("match") or {}
        if match.keys() - {"sni"}:
            break  # it is for some clients only, and so one of ours would have to be several
        if not match or covers(match["sni"] or [], name):
            if policy.get("drop"):
                break
            own = ("@id", "match", "certificate_selection")
            return index, {key: value for key, value in policy.items() if key not in own}
    raise SiteRefusedError(
        f"Caddy's server {server_name!r} has tls_connection_policies of its own, and none that lets in every client "
        f"that asks for {name}; so what to demand of its clients is not known. Add one there with "
        f'"match": {{"sni": ["{name}"]}}, or one without a match at the end'
    )


def refuse_unmanaged(config: Json, server_name: str, name: str) -> None:
    """Refuse a name without a certificate where Caddy would get none for it: clients would meet a failed handshake."""
    server = servers_of(config)[server_name]
    automatic = server.get("automatic_https") or {}
    remedy = "give it --certificate and --key"
    for key in ("disable", "disable_certificates"):
        if automatic.get(key):
            raise SiteRefusedError(
                f"automatic_https.{key} is set for Caddy's server {server_name!r}, so Caddy would get no certificate "
                f"for {name}; {remedy}"
            )
    for key in ("skip", "skip_certificates"):
        if name in (automatic.get(key) or []):
            raise SiteRefusedError(
                f"automatic_https.{key} of Caddy's server {server_name!r} has {name}, so Caddy would get no "
                f"certificate for it; {remedy}, or take it out there"
            )
    if name.startswith("*.") and not any(name in (p.get("subjects") or []) for p in policies_of(config)):
        raise SiteRefusedError(
            f"an authority certifies {name} only by a DNS challenge, and Caddy has no automation policy with "
            f"that subject; {remedy}, or add such a policy"
        )
    if server.get("tls_connection_policies"):
        policy_for(server["tls_connection_policies"], name, server_name)
