"""TOML with comments, whatever stands in it."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from trafficd.draft.document import Key, Table, name, render

_texts = st.text(st.characters(codec=None, exclude_categories=()))


@given(st.lists(_texts, max_size=3), st.dictionaries(_texts, _texts, max_size=3), _texts, st.booleans())
def test_any_text_is_one_value_and_any_comment_says_nothing(
    texts: list[str], table: dict[str, str], remark: str, off: bool
) -> None:
    keys = (Key("list", texts, remark), Key("table", table, remark, off), Key("one", remark))
    text = render([remark], [Table(name("services", remark or "x"), keys, (remark, f"  {remark}"))], [remark])
    found = tomllib.loads(text.encode("utf-8").decode("utf-8"))
    whole = {"list": texts, "one": remark} | ({} if off else {"table": table})
    assert found == _storable({"services": {remark or "x": whole}})


def _storable(value: object) -> object:
    """What a file can hold: no half characters. Keys that become the same are one."""
    if isinstance(value, str):
        return "".join("\ufffd" if 0xD800 <= ord(c) <= 0xDFFF else c for c in value)
    if isinstance(value, list):
        return [_storable(one) for one in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(one) for key, one in value.items()}
    return value


def test_a_table_that_is_off_is_all_comment() -> None:
    text = render([], [Table("a", (Key("b", 1), Key("c", value=True, why="why", off=True)), off=True)])
    assert tomllib.loads(text) == {}
    assert "# [a]\n# b = 1\n# c = true  # why\n" in text


def test_what_is_to_be_copied_stays_on_its_line() -> None:
    command = "  trafficd " + "x " * 100 + "&& true"
    assert f"# {command}\n" in render([command], [])
