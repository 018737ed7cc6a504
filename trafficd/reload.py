"""What a changed configuration must not change while the daemon lives. Pure.

A reload starts the daemon anew in place: it folds the journal and goes on, as after any restart. So nearly everything
may change; not where the daemon itself lives, and not what a live rollout stands on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from trafficd.config import Config, ServiceSection

_HOME = ("state_dir", "socket", "listen")
_UNDER_A_ROLLOUT = (
    *("upstreams", "swap", "docker", "systemd", "hooks", "slots"),
    *("route", "control", "affinity", "preview", "pins"),
)


def refusals(old: Config, new: Config, live: Mapping[str, str], left: Collection[str] = ()) -> list[str]:
    """Why the change must not be taken up now, one line a reason; `live`: the live rollout of each service, `left`:
    the services that Caddy goes on with alone."""
    return [*_home(old, new), *_live(old, new, live), *_adopted(old, new, left)]


def _home(old: Config, new: Config) -> Iterator[str]:
    for key in _HOME:
        if getattr(old.daemon, key) != getattr(new.daemon, key):
            yield f"daemon.{key} changed: stop the daemon and start it again for that"
    for key in ("admin", "managed"):
        if getattr(old.caddy, key) != getattr(new.caddy, key):
            yield f"caddy.{key} changed: stop the daemon and start it again for that"


def _live(old: Config, new: Config, live: Mapping[str, str]) -> Iterator[str]:
    for name, rollout in sorted(live.items()):
        before, after = old.services.get(name), new.services.get(name)
        changed = _changed(before, after)
        if changed:
            yield (
                f"rollout {rollout} is live and {', '.join(f'services.{name}{key}' for key in changed)} changed: wait "
                f"for its end, or `trafficd abort {name}`"
            )


def _adopted(old: Config, new: Config, left: Collection[str]) -> Iterator[str]:
    """A handler of somebody else's, once ours no more, would keep the last slots, and nobody would move them."""
    for name, before in old.services.items():
        after = new.services.get(name)
        stays = after is not None and after.route == before.route
        if before.routed and before.route == "adopt" and not stays and name not in left:
            yield (
                f"services.{name} was adopted and is {'gone' if after is None else 'adopted no more'}: say `trafficd "
                f"leave {name}` first, so that Caddy goes on with plain upstreams, and then reload"
            )


def _changed(before: ServiceSection | None, after: ServiceSection | None) -> list[str]:
    if before is None or after is None:
        return [""] if before is not after else []
    return [f".{key}" for key in _UNDER_A_ROLLOUT if getattr(before, key) != getattr(after, key)]
