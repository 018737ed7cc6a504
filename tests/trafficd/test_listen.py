"""Sockets that outlive a reload."""

from __future__ import annotations

from pathlib import Path

from trafficd.listen import hand_over, inherited, unix_socket


def test_a_socket_of_an_earlier_life_is_found_and_given_to_no_program(tmp_path: Path) -> None:
    place = str(tmp_path / "sock")
    with unix_socket(Path(place)) as listener:
        environment = hand_over({place: listener})
        assert listener.get_inheritable(), "it outlives the exec"
        found = inherited(environment)
        assert list(found) == [place]
        assert not found[place].get_inheritable()
        found[place].detach()  # the same descriptor
