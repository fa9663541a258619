"""Documents: one declaration writes an object and is its schema."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from x86tables.documents import LEFT_OUT, Answer, Document, one_of, schema

TYPE_CHECKING = False
if TYPE_CHECKING:
    from x86tables.documents import U3, Hex, Natural, Raw


class PartJson(Document):
    """A part.

    size: in bytes
    """

    size: Natural
    at: Hex | None


class WholeJson(Answer, kind=one_of("new", "old")):
    """All of it."""

    kind: str
    ist: U3
    from_: Hex
    pointers: list[Hex | None]
    parts: list[PartJson] | None
    raw: Raw
    line: str | None = LEFT_OUT


class Part:
    size, at = 3, 0xABC


def whole(**changes: Any) -> WholeJson:
    values: dict[str, Any] = {
        "kind": "new", "ist": 7, "from_": 0, "pointers": [0x10, None], "raw": b"\x0f\xf0", "parts": None,
    }  # fmt: skip
    return WholeJson(**(values | changes))


def test_what_is_written() -> None:
    assert whole() == {
        "schema": 1, "kind": "new", "ist": 7, "from": "0x0", "pointers": ["0x10", None], "parts": None, "raw": "0ff0",
    }  # fmt: skip
    assert [*whole(line=None)] == ["schema", "kind", "ist", "from", "pointers", "parts", "raw", "line"]


def test_what_is_made_of_a_source() -> None:
    assert PartJson.of(Part()) == {"size": 3, "at": "0xabc"}
    assert PartJson.of(Part(), at=None) == {"size": 3, "at": None}
    assert whole(parts=[Part(), PartJson(size=0, at=None)])["parts"] == [PartJson.of(Part()), {"size": 0, "at": None}]


def test_what_is_not_declared() -> None:
    with pytest.raises(TypeError, match="PartJson has no length"):
        PartJson(size=1, at=2, length=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="PartJson lacks at"):
        PartJson(size=1)  # type: ignore[call-arg]


WRONG: list[dict[str, Any]] = [
    {"schema": 2}, {"kind": "middling"}, {"ist": 8}, {"from": 0}, {"from": "0x0A"}, {"from": "0x00"}, {"from": None},
    {"pointers": ["1"]}, {"pointers": None}, {"parts": [{"size": 3}]}, {"parts": [{"size": -1, "at": None}]},
    {"raw": "0f0"}, {"line": 1}, {"more": 1},
]  # fmt: skip


def test_the_schema() -> None:
    made = schema("it", WholeJson)
    Draft202012Validator.check_schema(made)
    fits = Draft202012Validator(made).is_valid
    good = whole(parts=[PartJson.of(Part())])
    assert fits(good) and fits({**good, "line": "a.c:1"})
    assert [change for change in WRONG if fits({**good, **change})] == []
    assert not fits({key: value for key, value in good.items() if key != "raw"})
    assert made["$defs"]["Part"]["properties"]["size"] == {"type": "integer", "minimum": 0, "description": "in bytes"}
