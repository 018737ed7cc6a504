"""Addresses and names, before they may reach a path or Caddy's JSON."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import AddressError
from proxy.model import NOBODY, parse_dial, parse_name, stream_alias


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("Web-1.Internal:8080", "web-1.internal:8080"),
        ("[0:0:0::1]:80", "[::1]:80"),
        ("[::FFFF:10.0.0.1]:80", "10.0.0.1:80"),
        ("10.0.0.1:080", "10.0.0.1:80"),
    ],
)
def test_an_address_has_one_spelling(text: str, canonical: str) -> None:
    assert parse_dial(text) == canonical
    assert parse_dial(canonical) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", ":80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:8a", "10.0.0.1:٨٠",
        "0.0.0.0:80", "[::]:80", "224.0.0.1:80", "1.1.1:80", "999.1.1.1:80", "::1:80", "[10.0.0.1]:80", "[::1%eth0]:80",
        "{env.HOME}:80", "a{b:80", "http://a:80", "tcp/a:80", "a/../b:80", "a b:80", "a\n:80", "a:80\n", "a:80\0",
        "user@a:80", "-a:80", "a-:80", "a..b:80", NOBODY, "localhost:1", "a" * 254 + ":80", "é.example:80",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_dial(text)


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a{b}", "-a", "a\n", "a b", "é", "a" * 65, "%2e", "a\0"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_name(text)


@given(st.ip_addresses(), st.integers(2, 65535))
def test_the_alias_of_an_ip_address_leads_to_the_same_place(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    text = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    try:
        dial = parse_dial(text)
    except AddressError:
        return
    alias = stream_alias(dial)
    assert alias != dial
    assert parse_dial(alias) == dial
