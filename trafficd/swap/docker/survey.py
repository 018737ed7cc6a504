"""The containers of one upstream on its Engine, and which of them is meant. Pure.

They are known by their labels, so that whoever comes after a crash finds what was done. A container that was there
before us and has been taken over has none of our labels; the one that took its place names it (`definition.PREVIOUS`).
Other daemons may be on the Engine, with services of the same names: what bears another's id is a stranger's. What bears
none was made by a trafficd that did not write ids yet, and counts as ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from trafficd.swap.docker import definition as words

_RUNNING = ("running", "restarting", "paused")


class Found(NamedTuple):
    """One container. `version` and `dial` are what it was made for, or what was known of one that was taken over."""

    id: str
    name: str
    state: str
    created: float
    image: str  # the id of its image
    reference: str  # the image's name when it was made
    version: str | None
    dial: str
    labels: Mapping[str, str]

    @property
    def running(self) -> bool:
        return self.state in _RUNNING

    @property
    def ours(self) -> bool:
        return words.SERVICE in self.labels

    @property
    def intent(self) -> str:
        return self.labels.get(words.INTENT, "")

    @property
    def rollout(self) -> str:
        return self.labels.get(words.ROLLOUT, "")

    @property
    def digest(self) -> str:
        return self.labels.get(words.DEFINITION, "")


class Foreign(NamedTuple):
    """A container that was taken over, as the one in its place remembers it."""

    id: str
    version: str | None
    dial: str


def listed(entry: Mapping[str, Any]) -> Found:
    """One of ours, from the Engine's list."""
    labels = entry.get("Labels") or {}
    names = entry.get("Names") or [""]
    return Found(
        id=entry["Id"],
        name=str(names[0]).lstrip("/"),
        state=str(entry.get("State", "")).lower(),
        created=float(entry.get("Created") or 0),
        image=entry.get("ImageID", ""),
        reference=entry.get("Image", ""),
        version=labels.get(words.VERSION) or None,
        dial=labels.get(words.DIAL, ""),
        labels=labels,
    )


def another_daemon(labels: Mapping[str, str], daemon: str) -> str | None:
    """The id of the daemon that made a container, where it is not `daemon`."""
    made_by = labels.get(words.DAEMON, daemon)
    return made_by if made_by != daemon else None


def of_daemon(listing: Iterable[Mapping[str, Any]], daemon: str) -> list[Found]:
    """Those of a list of one upstream's that this daemon made."""
    return [one for one in map(listed, listing) if another_daemon(one.labels, daemon) is None]


def foreign(inspect: Mapping[str, Any], version: str | None, dial: str) -> Found:
    """One that was taken over, from what the Engine says of it."""
    return Found(
        id=inspect["Id"],
        name=str(inspect.get("Name", "")).lstrip("/"),
        state=str(inspect["State"].get("Status", "")).lower(),
        created=0.0,  # before all of ours
        image=inspect.get("Image", ""),
        reference=inspect["Config"].get("Image", ""),
        version=version,
        dial=dial,
        labels={},
    )


def remembered(found: Iterable[Found]) -> list[Foreign]:
    """Those that were taken over, if they still exist: they are named by ours, and are none of them."""
    found = list(found)
    known = {one.id for one in found}
    named = {}
    for one in found:
        previous = one.labels.get(words.PREVIOUS, "")
        if previous and previous not in known:
            labels = one.labels
            named[previous] = Foreign(
                previous, labels.get(words.PREVIOUS_VERSION) or None, labels.get(words.PREVIOUS_DIAL, "")
            )
    return list(named.values())


def of_intent(found: Iterable[Found], intent: str) -> Found | None:
    """What this very step made."""
    return next((one for one in found if one.intent == intent), None)


def newest_at(found: Iterable[Found], dial: str) -> Found | None:
    """What runs at an address, or ran there last."""
    there = [one for one in found if one.dial == dial]
    return max(there, key=lambda one: (one.running, one.created), default=None)


def running_at(found: Iterable[Found], dial: str, but: str | None) -> list[Found]:
    """What has to go from an address before another one can run there."""
    return [one for one in found if one.running and one.dial == dial and one.id != but]


def ran(found: Iterable[Found], version: str) -> Found | None:
    """The newest container of a version that was here before."""
    those = [one for one in found if one.version == version]
    return max(those, key=lambda one: one.created, default=None)


def again(found: Iterable[Found], version: str, dial: str | None, digest: str | None) -> Found | None:
    """The container that only has to be started again: of this version, at this address (any, where the driver
    chooses), and made as it would be made now. One that was taken over is what it was. `digest` None: not known."""
    fit = [
        one
        for one in found
        if one.version == version
        and (dial is None or one.dial == dial)
        and (not one.ours or digest is None or one.digest == digest)
    ]
    return max(fit, key=lambda one: one.created, default=None)


def may_be_stopping(found: Iterable[Found], candidate: Found, rollout: str) -> bool:
    """Whether this rollout may have told it to stop, with nobody waiting for it any more: it may only look alive."""
    return any(one.labels.get(words.PREVIOUS) == candidate.id and one.rollout == rollout for one in found)


def failed(found: Iterable[Found], rollout: str, dial: str, but: str) -> list[Found]:
    """What a rollout itself had brought to an address, and now takes back."""
    return [one for one in found if one.rollout == rollout and one.dial == dial and one.id != but]


def surplus(found: Sequence[Found], keep: int) -> list[Found]:
    """What is too old to be kept: stopped, and not of the `keep` newest versions beside those that run."""
    running = {one.version for one in found if one.running}
    kept: list[str | None] = []
    too_old = []
    for one in sorted(found, key=lambda one: one.created, reverse=True):
        if one.running:
            continue
        if one.version in running or one.version in kept or len(kept) >= keep:
            too_old.append(one)
        else:
            kept.append(one.version)
    return too_old


def unused_images(removed: Iterable[Found], listing: Iterable[Mapping[str, Any]]) -> set[str]:
    """The images, by name, of what was removed, but those that any container of the Engine was made of."""
    used = {entry.get("Image") for entry in listing}
    return {one.reference for one in removed if one.ours} - used


def taken_ports(listing: Iterable[Mapping[str, Any]]) -> set[int]:
    """Ports that containers of an Engine have, or had and may have again."""
    taken = set()
    for entry in listing:
        taken |= {int(port["PublicPort"]) for port in entry.get("Ports") or [] if port.get("PublicPort")}
        port = str((entry.get("Labels") or {}).get(words.DIAL, "")).rpartition(":")[2]
        if port.isdigit():
            taken.add(int(port))
    return taken


def publishing(listing: Iterable[Mapping[str, Any]], dial: str) -> Mapping[str, Any] | None:
    """The container that publishes at an address of the host."""
    host, _, port = dial.rpartition(":")
    host = host.strip("[]")
    for entry in listing:
        for one in entry.get("Ports") or []:
            if one.get("Type", "tcp") != "tcp":
                continue
            if str(one.get("PublicPort")) == port and one.get("IP", "") in ("", "0.0.0.0", "::", host):
                return entry
    return None


def holder(listing: Sequence[Mapping[str, Any]], dial: str) -> Mapping[str, Any] | None:
    """The container that has an address of the host: it publishes there, or it is a trafficd's, on the host's network,
    which shows no ports."""
    labelled = (one for one in listing if dial and (one.get("Labels") or {}).get(words.DIAL) == dial)
    return publishing(listing, dial) or next((one for one in labelled if listed(one).running), None)
