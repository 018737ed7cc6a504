"""All faults at once: those of single values, which pydantic finds, and those between values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

Model = TypeVar("Model", bound=BaseModel)

Clash = tuple[tuple[str | int, ...], str]
"""Where, and what does not fit together there."""


def _gather(title: str, error: ValidationError | None, clashes: list[Clash]) -> ValidationError:
    """One error of the faults of single values and of those between values."""
    found = [(fault["loc"], reason(fault)) for fault in error.errors(include_url=False)] if error else []
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": text}), loc=place, input=None)
            for place, text in [*found, *clashes]
        ],
    )


def made_or_all_faults(
    title: str, value: Any, handler: ModelWrapValidatorHandler[Model], clashes: list[Clash]
) -> Model:
    """The model, for a wrap validator. Raises `ValidationError` with the clashes beside pydantic's own faults."""
    try:
        made = handler(value)
    except ValidationError as error:
        raise _gather(title, error, clashes) from None
    if clashes:
        raise _gather(title, None, clashes)
    return made


class Section(BaseModel):
    """A table of the file. What must fit together is looked at even where single values are wrong, so that
    all faults are known at once: `clashes` sees the values as they were given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def clashes(cls, given: Mapping[str, Any]) -> Iterator[Clash]:
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        clashes = list(cls.clashes(value)) if isinstance(value, dict) else []
        return made_or_all_faults(cls.__name__, value, handler, clashes)


def items(value: object) -> Iterator[tuple[int, object]]:
    if isinstance(value, list):
        yield from enumerate(value)


def get(table: object, key: str) -> object:
    return table.get(key) if isinstance(table, dict) else None


def doubles(texts: Iterator[str]) -> list[str]:
    """Those that occur more than once, in any spelling."""
    seen = [text.lower() for text in texts]
    return sorted({text for text in seen if seen.count(text) > 1})


def reason(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "no such key; see the README for the keys of this section"
    message = str(fault["msg"]).removeprefix("Value error, ")
    given = fault.get("input")
    if isinstance(given, str | int | float) and fault["type"] != "value_error":
        message += f" (given: {given!r})"
    return message
