"""Facts that others published, one a line in golden/*.txt, whose form descriptors.txt explains."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from x86tables import Layout, schemas, strategies

GOLDEN = Path(__file__).parent / "golden"
LAYOUTS = {layout.__name__: layout for layout in strategies.LAYOUTS}


def facts() -> Iterator[object]:
    for path in sorted(GOLDEN.glob("*.txt")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line and not line.startswith("#"):
                value, layout, expected, source = (part.strip() for part in line.split("|", 3))
                yield pytest.param(value, LAYOUTS[layout], expected, source, id=f"{path.stem}-{number}")


def in_memory(value: str, layout: type[Layout]) -> bytes:
    """The bytes of a value as the files write it."""
    if value.startswith("0x"):
        return int(value, 16).to_bytes(layout.size, "little")
    pairs = (byte.partition("*") for byte in value.split())
    return b"".join(bytes.fromhex(byte) * int(times or 1) for byte, _, times in pairs)


def meaning(word: str) -> int | str:
    return int(word, 0) if word[0].isdigit() else word


@pytest.mark.parametrize(("value", "layout", "expected", "source"), list(facts()))
def test_published_fact(value: str, layout: type[Layout], expected: str, source: str) -> None:
    assert source, "each fact says where it is published"
    data = in_memory(value, layout)
    decoded = layout.parse(data)
    words = {name: meaning(word) for name, _, word in (pair.partition("=") for pair in expected.split())}
    assert {name: getattr(decoded, name) for name in words} == words
    # and the other way, from the named fields alone
    fields = {field.name: words.get(field.name, 0) for field in layout.fields}
    assert bytes(layout(**fields)) == schemas.Of(layout).build(fields) == data


def test_every_kind_of_structure_has_a_fact_but_frames_and_call_gates() -> None:
    lines = [line for path in GOLDEN.glob("*.txt") for line in path.read_text().splitlines() if line[:1] not in "#"]
    assert set(LAYOUTS) - {line.split("|")[1].strip() for line in lines} == {"CallGate", "Frame", "ErrorFrame"}
