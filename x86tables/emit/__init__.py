"""Sources and bytes of tables: one module per language, found by its file name.

A module has `emit(tables, find) -> {file name: contents}`. It knows no bit positions: `members` cuts a layout into the
machine words that a language can write, and an address that is cut goes by pieces.
"""

from __future__ import annotations

import os
import re
import sys

from ..errors import UsageError
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ..config.compiled import Address, CompiledTable, CompiledTables, Item, Lookup
    from ..tables.layout import Field, Layout

MAP = "Link with tables.ld among the inputs: it defines the pieces of addresses that are cut."
# A TSS must not cross a page (SDM Vol. 3A, "Task-State Segment"): 128 bytes aligned to 128 never do
ALIGN = {"gdt": 16, "idt": 16, "tss": 128, "gdtr": 16, "idtr": 16}
DEFINING = ("tables.c", "tables.s", "tables.asm", "tables.rs")  # the files that define a symbol for each table
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def headline(tables: CompiledTables) -> str:
    """What stands in the comment at the top of every file: one line, whatever the path is, that ends no comment."""
    path = "".join(c if c.isprintable() and c != "*" else f"\\x{ord(c):02x}" for c in tables.source.path)
    return f"Made by x86tables from {path}: change that, not this."


def defines(tables: CompiledTables) -> str:
    """What a linker gets from such a file, and what to do where it has that already."""
    tss = tables.tss[0].name if len(tables.tss) == 1 else f"{tables.tss[0].name} to {tables.tss[-1].name}"
    found = ", ".join((tables.gdt.name, tables.idt.name, tss, tables.gdtr.name, tables.idtr.name))
    return (
        f"Defines {found}. If the linker finds a multiple definition of one of these, the kernel has its own: "
        "rename this one with [tables] gdt = NAME (idt, gdtr, idtr) or [cpu] tss = NAME."
    )


def names() -> list[str]:
    """The names of the languages."""
    files = (name for name in os.listdir(__path__[0]) if name.endswith(".py") and not name.startswith("_"))
    return sorted(name[:-3].replace("_", "-") for name in files)


def emit(name: str, tables: CompiledTables, find: Lookup) -> dict[str, bytes]:
    """The files of one language. UsageError for an unknown one; NotThere for an address that it needs."""
    if name not in names():
        raise UsageError(f"--emit {name}: one of {', '.join(names())}")
    module = f"{__name__}.{name.replace('-', '_')}"
    __import__(module)
    made: dict[str, Any] = sys.modules[module].emit(tables, find)
    return {
        file: text.encode(errors="backslashreplace") if isinstance(text, str) else text for file, text in made.items()
    }


class Member(Record):
    """A word of a structure: `size` bytes (1, 2, 4 or 8) at `offset`.

    Of one field from its bit `shift` on; `field` is None where several fields share a byte.
    """

    name: str
    offset: int
    size: int
    field: Field | None
    shift: int

    @property
    def whole(self) -> bool:
        """Whether this is all of its field."""
        return self.field is not None and self.field.width == self.size * 8

    def of(self, value: Layout) -> int:
        """What the word holds."""
        return int.from_bytes(bytes(value)[self.offset : self.offset + self.size], "little")


_MEMBERS: dict[type[Layout], tuple[Member, ...]] = {}


def members(layout: type[Layout]) -> tuple[Member, ...]:
    """The words that a structure consists of, in memory order."""
    if layout not in _MEMBERS:
        _MEMBERS[layout] = tuple(_cut(layout))
    return _MEMBERS[layout]


def _cut(layout: type[Layout]) -> Iterator[Member]:
    start = 0
    while start < layout.size:
        field, shift = _owner(layout, start)
        if field is None:
            yield Member(_shared(layout, start), start, 1, None, 0)
            start += 1
            continue
        count = 1
        while start + count < layout.size and _owner(layout, start + count) == (field, shift + count * 8):
            count += 1
        for offset, size in _words(start, count):
            at = shift + (offset - start) * 8
            yield Member(field.name if field.width == size * 8 else f"{field.name}_{at}", offset, size, field, at)
        start += count


def _words(start: int, count: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of words for `count` bytes: one, or where that is no word several, each aligned to its size."""
    if count in (1, 2, 4, 8):
        yield start, count
        return
    stop = start + count
    while start < stop:
        size = next(n for n in (8, 4, 2, 1) if start % n == 0 and start + n <= stop)
        yield start, size
        start += size


def _owner(layout: type[Layout], byte: int) -> tuple[Field | None, int]:
    """The field that has a byte for itself, and which of its bits is the byte's lowest."""
    for field in layout.fields:
        for at, low, width in field.parts:
            if low <= byte * 8 and byte * 8 + 8 <= low + width:
                return field, at + byte * 8 - low
    return None, 0


def _shared(layout: type[Layout], byte: int) -> str:
    """A name for a byte that several fields share, from its lowest bit up."""
    found = []
    for field in layout.fields:
        for at, low, width in field.parts:
            if low < byte * 8 + 8 and byte * 8 < low + width:
                first = at + max(0, byte * 8 - low)
                found.append((low, field.name + (f"_{first}" if first else "")))
    return "_".join(name for _, name in sorted(found))


def number(table: CompiledTable, item: Item) -> int:
    """Which slot of a GDT, or which vector of an IDT."""
    return int(item.offset) // (8 if table.kind == "gdt" else item.value.size)


class Piece(Record):
    """A part of an address that is too small for a relocation of its own: `name` is an absolute symbol."""

    name: str
    address: Address
    shift: int
    size: int


def piece(table: CompiledTable, item: Item, member: Member) -> Piece | None:
    """The piece of an address that a word holds: None for a constant, and for a whole address."""
    if member.field is None or member.whole or member.field.name not in item.addresses:
        return None
    address = item.addresses[member.field.name]
    name = f"{table.name}_{number(table, item)}_{member.name}"
    return None if address.symbol is None else Piece(name, address, member.shift, member.size)


def pieces(tables: CompiledTables) -> Iterator[Piece]:
    """Every piece of every address."""
    for table in tables.all:
        for item in table.items:
            if item.addresses:
                yield from filter(None, (piece(table, item, member) for member in members(type(item.value))))


def settled(item: Item) -> Item:
    """The item with those addresses in its value that are numbers already."""
    numbers = {field: address.offset for field, address in item.addresses.items() if address.symbol is None}
    if not numbers:
        return item
    left = {field: address for field, address in item.addresses.items() if field not in numbers}
    return item.replace(value=item.value.replace(**numbers), addresses=left)


def identifiers(words: Iterable[str], language: str) -> None:
    """UsageError unless all can be names in a language."""
    for word in words:
        if not _WORD.fullmatch(word):
            raise UsageError(f"--emit {language}: the symbol {word} is not an identifier there")
