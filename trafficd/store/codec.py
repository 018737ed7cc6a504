"""Journal events to and from JSON bytes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from trafficd.core.events import Event

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def encode(event: Event) -> bytes:
    """Raises `ValueError` for an event that could not be read again (not a number, half a surrogate pair):
    one such in the journal, and no daemon starts on it any more."""
    body = _ADAPTER.dump_json(event)
    _ADAPTER.validate_json(body)
    return body


def decode(body: bytes) -> Event:
    """Raises `pydantic.ValidationError` when the bytes are no event of ours."""
    return _ADAPTER.validate_json(body)


def as_dict(event: Event) -> dict[str, Any]:
    """The event as plain JSON values."""
    values: dict[str, Any] = _ADAPTER.dump_python(event, mode="json")
    return values
