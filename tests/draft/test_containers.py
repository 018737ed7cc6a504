"""Which container serves an address."""

from __future__ import annotations

from tests.draft.world import A, container, machine, two_hosts
from trafficd.draft.containers import How, Machine, near, serving

HERE = ("127.0.0.1", "localhost", "10.0.0.11")


def name_of(dial: str, *machines: Machine) -> tuple[str, How] | None:
    found = serving(dial, machines)
    return None if found is None else (found.container.name, found.how)


def test_published_ports() -> None:
    here = machine(container("a", at="0.0.0.0:8080"), container("b", at="127.0.0.1:8081"), hosts=HERE)
    assert name_of("10.0.0.11:8080", here) == ("a", How.PUBLISHED)
    assert name_of("localhost:8080", here) == ("a", How.PUBLISHED)
    assert name_of("127.0.0.1:8081", here) == ("b", How.PUBLISHED)
    assert name_of("10.0.0.11:8081", here) is None, "published on loopback alone"
    assert name_of("127.0.0.1:8082", here) is None


def test_the_driver_is_led_by_name_where_a_port_does_not_lead_it() -> None:
    here = machine(container("b", at="127.0.0.1:8081"), hosts=HERE)
    by_address, by_word = serving("127.0.0.1:8081", [here]), serving("localhost:8081", [here])
    assert by_address is not None
    assert by_word is not None
    assert (by_address.by_name, by_word.by_name) == (False, True)


def test_a_port_alone_joins_no_address_to_a_machine() -> None:
    first, second = two_hosts()
    found = serving(A, [first, second])
    assert found is not None
    assert found.machine is first
    unknown = machine(container("web", at="0.0.0.0:8080"), url="ssh://deploy@web9")
    assert serving(A, [unknown]) is None
    assert [one.name for one, _ in near(A, [unknown])] == ["web"]
    assert near(A, [first]) == []


def test_an_address_that_an_engine_publishes_at_is_its_machines() -> None:
    assert name_of(A, machine(container("web", at="10.0.0.11:8080"))) == ("web", How.PUBLISHED)


def test_on_the_hosts_network_who_listens_is_known() -> None:
    one, other = (
        container("a", listens=frozenset({8080})),
        container("b", listens=frozenset({8081}), env=("PORT=8080",)),
    )
    assert name_of(A, machine(one, other, hosts=HERE)) == ("a", How.LISTENS)
    assert name_of(A, machine(other, hosts=HERE)) is None, "it says 8080, and does not listen there"


def test_where_sockets_are_not_seen_its_port_is_believed_if_it_is_the_only_one() -> None:
    one, other = container("a", env=("PORT=8080",)), container("b", env=("PORT=8081",))
    assert name_of(A, machine(one, other, hosts=HERE)) == ("a", How.TOLD)
    assert name_of(A, machine(one, container("c", env=("PORT=8080",)), hosts=HERE)) is None
    assert name_of(A, machine(one)) is None, "not known to be that machine"


def test_an_address_of_its_own_is_told_apart() -> None:
    one = container("web", at="0.0.0.0:9", address="172.17.0.2")
    assert name_of("172.17.0.2:3000", machine(one)) == ("web", How.INSIDE)
    assert name_of("web:3000", machine(one)) == ("web", How.INSIDE)


def test_images_and_their_tags() -> None:
    tags = {
        image: (container("x", image).repository, container("x", image).tag)
        for image in (
            "shop/web:v1",
            "web",
            "localhost:5000/web",
            "localhost:5000/web:1.2",
            "web@sha256:ab",
            "sha256:ab",
        )
    }
    assert tags == {
        "shop/web:v1": ("shop/web", "v1"),
        "web": ("web", "latest"),
        "localhost:5000/web": ("localhost:5000/web", "latest"),
        "localhost:5000/web:1.2": ("localhost:5000/web", "1.2"),
        "web@sha256:ab": ("web", None),
        "sha256:ab": ("", None),
    }
