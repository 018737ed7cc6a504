"""What Caddy must log so that each answer can be charged to the upstream that gave it. Pure.

One file has a line of JSON for each request of our services (`proxy.accessline` decodes it, `proxy.accesslog` follows
it), written by a named logger of our own. Nothing waits for its reader: it is a plain file that Caddy rolls.

The parts, and why:
- In the route: `log_append` of the service, the upstream and the retries. Those run on the way back, and an answer that
  is cut short never comes back: Caddy's handler panics. So the address of whoever answered is put down a second time
  (`answered`) at the moment when its header arrives, by `handle_response`, together with the time that took
  (`latency`, of this attempt alone). A header of the response would do as well, but show the address to everybody.
  `copy_response` then answers as Caddy would have; for 101 (streams) it is not asked, as it has not seen what Caddy
  made of the request.
- In a handler that is not ours (`proxy.adopt_log`), `handle_response` may be its owner's already: there the same is
  put down first, and the upstream's own status too (`answered_status`), since an error page may be sent with 200.
- In the route: `vars` `access_logger_names`, which take the place of the names that the server has for the host. So
  the user's own names are repeated there: what they log stays as it is.
- In the server: `logs`, without which there is no access log at all. A server that had none gets a default name that
  nobody writes (`OTHER`), and hosts that were not to be logged get that name too: else our requests would be skipped.
- At the top: the logger (`NAME`), and an exclusion for each other logger that would take its lines as well.
- The warnings of `http.handlers.reverse_proxy` go into the file too. A cut answer looks the same in the access log
  whether the upstream broke off or the client left; only the warning, written just before, says which.

Invariants: putting in what is there changes nothing. Other loggers write what they wrote before, but that the errors
of our requests are named `http.log.error.trafficd` where the server had no `logs`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Json = dict[str, Any]

NAME = "trafficd"  # the logger, and the name of requests that nobody else logs
ALSO = "trafficd.also"  # the name beside those of others
OTHER = "trafficd.other"  # the name of requests that are not to be logged
STRATUM_HEADER = "X-Trafficd-Stratum"  # by which our own load and testers say that they are no users

ROLL_MB = 50  # Caddy keeps a writer as long as it has the same path: to change this, it must be started again
ROLL_KEEP = 2
MODE = "0644"  # Caddy may run as another user, and rolls the file itself; who may read it, the directory says

_ACCESS = "http.log.access"
_PROXY = "http.handlers.reverse_proxy"
_EXCLUDED = (f"{_ACCESS}.{NAME}", f"http.log.error.{ALSO}")  # the errors of ALSO are logged under the other names
_UPSTREAM = "{http.reverse_proxy.upstream.hostport}"
_FIELDS = frozenset({"service", "stratum", "upstream", "retries", "answered", "answered_status", "latency"})
_DROPPED = ("request>headers", "request>proto", "request>host", "request>remote_ip", "resp_headers")
_DROPPED_TOO = ("user_id", "bytes_read", "err_id", "err_trace")
_PATH_LENGTH = 200
# A host with a port: Caddy compares none, and refuses to name a logger by one.
_PORT = re.compile(r"^[^:\[]*:[^:]*$|\]:[^:]*$")


# -- in a route ----------------------------------------------------------------------------------------


def handlers(service: str, hosts: Sequence[str], logs: Json | None, *, stratum: bool = True) -> list[Json]:
    """The handlers that go before those of the route, in a server that says this of its `logs`. Without `stratum` that
    is for the route to say, by handlers of its own (`stratum_of`)."""
    return [_names(hosts, logs or {}), *fields(service, stratum=stratum)]


def fields(service: str, *, stratum: bool = True) -> list[Json]:
    """The same without the choice of the logger."""
    return [_append("service", service, early=True), *([stratum_of()] if stratum else []), *_late()]


def stratum_of(pin: str | None = None) -> Json:
    """The handler that says where a request comes from: by its pin, or else by what it says of that itself."""
    return _append("stratum", pin or f"{{http.request.header.{STRATUM_HEADER}}}", early=True)


def answered() -> list[Json]:
    """`handle_response` of a reverse_proxy handler: who answers is put down before the body comes."""
    return [{"match": {"status_code": [2, 3, 4, 5]}, "routes": [{"handle": [*_early(), {"handler": "copy_response"}]}]}]


def answered_first() -> Json:
    """A route that goes before those of somebody else's `handle_response`, and changes nothing for them."""
    return {"handle": [*_early(), _append("answered_status", "{http.reverse_proxy.status_code}", early=True)]}


def writes(handler: Any) -> bool:
    """Whether a handler, in a place of ours, is one of these."""
    match handler:
        case {"handler": "log_append", "key": key}:
            return key in _FIELDS
        case {"handler": "vars", "access_logger_names": names}:
            return NAME in names or ALSO in names
        case {"handler": "subroute", "routes": [*routes]}:
            return routes != [] and all(route.get("group") == NAME for route in routes)
    return False


def disturbed(part: Any) -> str | None:
    """What in somebody else's part of a configuration would write over these, in words; None where nothing would."""
    match part:
        case {"handler": "log_append", "key": key} if key in _FIELDS and not _is_exactly_ours(part):
            return f'a log field "{key}" (log_append), which is also one of ours'
        case {"handler": "vars", "access_logger_names": names} if NAME not in names and ALSO not in names:
            return "a choice of loggers by request (log_name), and a request has one"
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return next((found for found in map(disturbed, inner) if found is not None), None)


def _is_exactly_ours(handler: Json) -> bool:
    """What looks like it and is not ours comes before ours, and so does no harm."""
    if handler["key"] in ("service", "stratum"):
        return handler.get("early") is True
    return handler in (*_late(), *answered_first()["handle"])


def _late() -> list[Json]:
    """Who answered in the end, and after how many refusals."""
    return [_append("upstream", _UPSTREAM), _append("retries", "{http.reverse_proxy.retries}")]


def _early() -> list[Json]:
    """Who answers, and after which time; put down when the header comes."""
    return [
        _append("answered", _UPSTREAM, early=True),
        _append("latency", "{http.reverse_proxy.upstream.latency_ms}", early=True),
    ]


def _append(key: str, value: str, *, early: bool = False) -> Json:
    built: Json = {"handler": "log_append", "key": key, "value": value}
    return {**built, "early": True} if early else built


def _names(hosts: Sequence[str], logs: Json) -> Json:
    """The handler that names the loggers of a request: one for all hosts, or by host where that makes a difference."""
    named = logs.get("logger_names") or {}
    special = [key for key in named if not hosts or any("*" in host for host in hosts)]
    keys = sorted({*hosts, *special}, key=lambda key: (key.count("*"), key))
    by_host = [(key, _kept(named, key, logs)) for key in keys]
    rest = _kept({}, "", logs) if not hosts else by_host[-1][1]
    if all(kept == rest for _, kept in by_host):
        return _vars(rest)
    # One of a group is taken, the first that fits; a `terminal` route would end the whole chain here.
    cases = [{"match": [{"host": [key]}], "handle": [_vars(kept)]} for key, kept in by_host]
    routes = [{"group": NAME, **case} for case in (*cases, {"handle": [_vars(rest)]})]
    return {"handler": "subroute", "routes": routes}


def _kept(named: Json, host: str, logs: Json) -> list[str]:
    """The names that Caddy would log this host under, without ours: the exact host, wildcards from the left, or the
    default (`ServerLogConfig.getLoggerHosts`)."""
    labels = host.split(".")
    tries = [host, *(".".join(["*"] * (i + 1) + labels[i + 1 :]) for i in range(len(labels)))]
    found = next((named[key] for key in tries if key in named), logs.get("default_logger_name", ""))
    return [name for name in ([found] if isinstance(found, str) else found) if name != OTHER]


def names_in(logs: Json) -> frozenset[str]:
    """All names that a server logs requests under, by what it says of its `logs`."""
    lists = [[name] if isinstance(name, str) else name for name in (logs.get("logger_names") or {}).values()]
    return frozenset(name for names in [*lists, [logs.get("default_logger_name", "")]] for name in names)


def _vars(kept: Iterable[str]) -> Json:
    names = list(kept)
    return {"handler": "vars", "access_logger_names": [*names, ALSO] if names else [NAME]}


# -- in a configuration --------------------------------------------------------------------------------


def put_server(server: Json) -> None:
    """Make a server log the requests of our routes, in place, and no others that it did not log before."""
    logs = server.get("logs")
    if logs is None:
        server["logs"] = {"default_logger_name": OTHER}
        return
    skipped = logs.get("skip_hosts") or []
    if named := [host for host in skipped if not _PORT.search(host)]:
        names = logs.setdefault("logger_names", {})
        for host in named:
            names.setdefault(host, [OTHER])
        logs["skip_hosts"] = [host for host in skipped if host not in named]
    if not logs.get("skip_hosts"):
        logs.pop("skip_hosts", None)
    if logs.pop("skip_unmapped_hosts", False):
        logs["default_logger_name"] = OTHER


def put_logger(config: Json, path: str) -> None:
    """Make Caddy have our logger, in place, writing to this file, and keep its lines out of all others."""
    loggers: Json = config.setdefault("logging", {}).setdefault("logs", {})
    loggers[NAME] = logger(path)
    loggers.setdefault("default", {})  # Caddy's own would take everything
    for name, other in loggers.items():
        if name != NAME:
            _keep_out(other)


def _keep_out(other: Json) -> None:
    included = other.get("include") or []
    excluded = list(other.get("exclude") or [])
    ours = [name for name in _EXCLUDED if name not in excluded and _takes(included, name)]
    if not ours:
        return
    excluded += ours
    # Caddy wants an exclusion above or below each inclusion; below these there is nothing to be excluded.
    excluded += [f"{name}.{NAME}" for name in included if not any(_related(name, no) for no in excluded)]
    other["exclude"] = excluded


def _takes(included: Sequence[str], name: str) -> bool:
    """Whether a logger takes what has this name, without having asked for that very name."""
    return not included or (name not in included and any(f"{name}.".startswith(f"{above}.") for above in included))


def _related(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def logger(path: str) -> Json:
    """The logger: a file that Caddy rolls, with the fields cut down to what `proxy.accessline` reads."""
    dropped: Json = {field: {"filter": "delete"} for field in (*_DROPPED, *_DROPPED_TOO)}
    return {
        "include": [f"{_ACCESS}.{NAME}", _PROXY],
        "exclude": [f"{_ACCESS}.{OTHER}", f"{_PROXY}.health_checker"],
        "writer": {
            "output": "file",
            "filename": path,
            "mode": MODE,
            "roll_size_mb": ROLL_MB,
            "roll_keep": ROLL_KEEP,
            "roll_keep_days": 1,
            "roll_compression": "none",  # what was rolled while we were not looking is still read
        },
        "encoder": {
            "format": "filter",
            "wrap": {"format": "json", "message_key": "", "level_key": "", "name_key": ""},
            "fields": {
                **dropped,
                "request>uri": _cut(rf"^([^?]{{0,{_PATH_LENGTH}}}).*$"),
                "stratum": _cut(r"^(.{0,40}).*$"),
                "error": _cut(r"^(.{0,200}).*$"),
            },
        },
    }


def _cut(pattern: str) -> Json:
    return {"filter": "regexp", "regexp": f"(?s){pattern}", "value": "$1"}


def present(config: Json, server: Json, path: str) -> bool:
    """Whether the configuration has our logger, writing to this file, and the server logs what it is to."""
    loggers = (config.get("logging") or {}).get("logs") or {}
    wanted = {"logging": {"logs": copy.deepcopy(loggers)}}
    put_logger(wanted, path)
    wanted_server = {"logs": copy.deepcopy(server["logs"])} if "logs" in server else {}
    put_server(wanted_server)
    return wanted["logging"]["logs"] == loggers and wanted_server.get("logs") == server.get("logs")


def tidy(config: Json) -> None:
    """Take our logger and what it needed out again, in place, when no route is logged by it any more: what others had
    is as it was."""
    loggers: Json = (config.get("logging") or {}).get("logs") or {}
    if NAME not in loggers or any(_is_logged(server.get("routes")) for server in _servers(config)):
        return
    loggers.pop(NAME, None)
    for other in loggers.values():
        left = [name for name in other.get("exclude") or [] if not _is_ours(name)]
        if left:
            other["exclude"] = left
        else:
            other.pop("exclude", None)
    if loggers.get("default") == {}:
        del loggers["default"]
    if config["logging"] == {"logs": {}}:
        del config["logging"]
    for server in _servers(config):
        _take_from_server(server)


def _take_from_server(server: Json) -> None:
    """Undo `put_server`."""
    logs: Json = server.get("logs") or {}
    if logs == {"default_logger_name": OTHER}:
        del server["logs"]
        return
    names = logs.get("logger_names") or {}
    skipped = [host for host, named in names.items() if named == [OTHER]]
    if skipped:
        logs["skip_hosts"] = sorted([*(logs.get("skip_hosts") or []), *skipped])
        logs["logger_names"] = {host: named for host, named in names.items() if host not in skipped}
        if not logs["logger_names"]:
            del logs["logger_names"]
    if logs.get("default_logger_name") == OTHER:
        del logs["default_logger_name"]
        logs["skip_unmapped_hosts"] = True


def _is_logged(part: Any) -> bool:
    """Whether some handler in this part of a configuration names our logger."""
    if isinstance(part, list):
        return any(_is_logged(inner) for inner in part)
    if isinstance(part, dict):
        names = part.get("access_logger_names") or ()
        return NAME in names or ALSO in names or any(_is_logged(inner) for inner in part.values())
    return False


def _is_ours(name: str) -> bool:
    return name in _EXCLUDED or name.endswith(f".{NAME}")


def _servers(config: Json) -> Iterator[Json]:
    yield from (((config.get("apps") or {}).get("http") or {}).get("servers") or {}).values()
