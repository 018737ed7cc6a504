"""Which container is meant."""

from __future__ import annotations

from typing import Any

from trafficd.swap.docker import survey
from trafficd.swap.docker.survey import Found

HERE, SPARE = "10.0.0.1:80", "10.0.0.1:81"


def one(
    id: str, version: str, created: float, *, running: bool = False, dial: str = HERE, ours: bool = True, **labels: str
) -> Found:
    own = {"trafficd.service": "web"} if ours else {}
    given = own | {f"trafficd.{name}": value for name, value in labels.items()}
    state = "running" if running else "exited"
    return Found(id, id, state, created, f"image {version}", f"web:{version}", version, dial, given)


def test_an_entry_of_the_engines_list() -> None:
    labels = {"trafficd.service": "web", "trafficd.version": "v1", "trafficd.dial": HERE, "trafficd.intent": "r 1"}
    entry = {"Id": "x", "Names": ["/web-a"], "State": "running", "Created": 5, "ImageID": "i", "Labels": labels}
    found = survey.listed(entry)
    assert (found.name, found.version, found.dial, found.intent, found.running, found.ours) == (
        *("web-a", "v1", HERE, "r 1", True),
        True,
    )
    bare = survey.listed({"Id": "x"})
    assert (bare.version, bare.dial, bare.ours, bare.running) == (None, "", False, False)


def test_what_another_daemon_made_is_not_ours_and_what_nobody_signed_is() -> None:
    listing = [
        {"Id": id, "Labels": {"trafficd.service": "web"} | ({"trafficd.daemon": by} if by else {})}
        for id, by in (("mine", "d1"), ("theirs", "d2"), ("old", ""))
    ]
    assert [found.id for found in survey.of_daemon(listing, "d1")] == ["mine", "old"]
    assert survey.another_daemon({"trafficd.daemon": "d2"}, "d1") == "d2"
    assert survey.another_daemon({}, "d1") is None


def test_an_image_goes_only_with_its_last_container_of_anybodys() -> None:
    removed = [one("a", "v1", 1), one("b", "v2", 2), one("f", "v3", 0, ours=False)]
    stopped = {"Id": "x", "Image": "web:v1", "State": "exited", "Labels": {"trafficd.daemon": "d2"}}
    assert survey.unused_images(removed, [stopped]) == {"web:v2"}


def test_what_was_taken_over_is_remembered_by_what_took_its_place() -> None:
    new = one("n", "v2", 2, previous="old", previous_version="v1", previous_dial=HERE)
    assert survey.remembered([new]) == [survey.Foreign("old", "v1", HERE)]
    assert survey.remembered([new, one("old", "v1", 1)]) == [], "one of ours"


def test_the_one_that_runs_comes_before_newer_ones_that_do_not() -> None:
    old, new = one("o", "v1", 1, running=True), one("n", "v2", 2)
    assert survey.newest_at([old, new], HERE) == old
    assert survey.newest_at([new, one("m", "v3", 3, dial=SPARE)], HERE) == new
    assert survey.newest_at([new], SPARE) is None


def test_a_container_is_started_again_only_as_it_would_be_made() -> None:
    v1 = one("a", "v1", 1, definition="same")
    assert survey.again([v1], "v1", HERE, "same") == v1
    assert survey.again([v1], "v1", HERE, "another") is None
    assert survey.again([v1], "v1", SPARE, "same") is None
    assert survey.again([v1], "v2", HERE, "same") is None
    assert survey.again([v1], "v1", None, "same") == v1, "where the driver chooses the address"
    taken_over = one("f", "v1", 0, ours=False)
    assert survey.again([taken_over], "v1", HERE, "another") == taken_over


def test_only_what_the_rollout_itself_brought_is_taken_back() -> None:
    mine, theirs = one("m", "v2", 2, rollout="r2"), one("t", "v1", 1, rollout="r1")
    assert survey.failed([mine, theirs], "r2", HERE, "n") == [mine]
    assert survey.failed([mine], "r2", HERE, "m") == []
    assert survey.failed([mine], "r2", SPARE, "n") == []


def test_the_newest_versions_are_kept_beside_the_running_one() -> None:
    those = [one(f"c{n}", f"v{n}", n) for n in range(5)] + [one("c5", "v5", 5, running=True)]
    assert [old.id for old in survey.surplus(those, 3)] == ["c1", "c0"]
    twice = [one("x", "v1", 1), one("y", "v1", 2), one("z", "v2", 0), one("r", "v2", 3, running=True)]
    assert [old.id for old in survey.surplus(twice, 3)] == ["x", "z"], "one container a version is enough"


def test_ports_that_are_or_may_be_taken() -> None:
    listing: list[dict[str, Any]] = [
        {"Ports": [{"PublicPort": 20000, "PrivatePort": 80}, {"PrivatePort": 81}]},
        {"Ports": [], "Labels": {"trafficd.dial": "10.0.0.1:20001"}},
        {"Labels": {"trafficd.dial": ""}},
    ]
    assert survey.taken_ports(listing) == {20000, 20001}


def test_who_publishes_at_an_address() -> None:
    entry = {"Id": "x", "Ports": [{"IP": "0.0.0.0", "PublicPort": 80}]}
    assert survey.publishing([entry], HERE) == entry
    assert survey.publishing([entry], SPARE) is None
    elsewhere = {"Id": "x", "Ports": [{"IP": "10.0.0.9", "PublicPort": 80}]}
    assert survey.publishing([elsewhere], HERE) is None
    udp = {"Id": "u", "Ports": [{"IP": "0.0.0.0", "PublicPort": 80, "Type": "udp"}]}
    assert survey.publishing([udp, entry], HERE) == entry, "another container's UDP at that number is none of ours"


def test_who_has_an_address_on_the_hosts_network() -> None:
    entry = {"Id": "x", "State": "running", "Ports": [], "Labels": {"trafficd.dial": HERE}}
    assert survey.holder([entry], HERE) == entry
    assert survey.holder([{**entry, "State": "exited"}], HERE) is None
    assert survey.holder([entry], SPARE) is None
    worker = {"Id": "w", "State": "running", "Labels": {"trafficd.dial": ""}}
    assert survey.holder([worker], "") is None, "workers have none"
