"""What the assemblers have in common: the same tables in another dialect."""

from __future__ import annotations

from ..records import Record
from . import ALIGN, MAP, defines, headline, members, number, piece, pieces, settled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config.compiled import CompiledTable, CompiledTables, Item


class TableDialect(Record):
    """How an assembler writes data; `words` by size in bytes, `public` makes a name known with its type and size."""

    comment: str
    words: dict[int, str]
    zeros: str
    align: str
    public: str
    outside: str
    section: str
    constant: str
    note: str


def tables_source(tables: CompiledTables, dialect: TableDialect) -> str:
    """All tables in a writable section: LTR marks the TSS busy in the GDT."""
    note = dialect.comment
    lines = [f"{note} {sentence}" for sentence in (headline(tables), MAP, defines(tables))]
    lines += [dialect.note, dialect.section.format("data")]
    outside = {symbol for table in tables.all for symbol in table.symbols} - {table.name for table in tables.all}
    cut = {found.name for found in pieces(tables)}
    whole = {
        address.symbol
        for table in tables.all
        for item in table.items
        for field, address in item.addresses.items()
        if item.value.field(field).width == 64 and any(m.whole and m.name == field for m in members(type(item.value)))
    }
    if dialect.outside:
        lines += [dialect.outside.format(name) for name in sorted((outside & whole) | cut)]
    for table in tables.all:
        lines += [
            "",
            dialect.public.format(table.name, table.size),
            dialect.align.format(ALIGN[table.kind]),
            f"{table.name}:",
        ]
        lines += contents(table, dialect)
    return "\n".join(lines) + "\n"


def contents(table: CompiledTable, dialect: TableDialect) -> Iterator[str]:
    """The lines of one table, label left out."""
    empty = 0
    for item in map(settled, table.items):
        if table.kind == "idt" and not any(bytes(item.value)):
            empty += item.value.size
            continue
        if empty:
            yield f"    {dialect.zeros.format(empty)}"
            empty = 0
        if table.kind in ("gdt", "idt"):
            where = number(table, item) if table.kind == "idt" else item.offset
            yield f"    {dialect.comment} {where:#x} {item.name}"
        yield from (f"    {line}" for line in _item(table, item, dialect))
    if empty:
        yield f"    {dialect.zeros.format(empty)}"


def _item(table: CompiledTable, item: Item, dialect: TableDialect) -> Iterator[str]:
    data = bytes(item.value)
    if not item.addresses and len(data) % 8 == 0 and table.kind == "gdt":
        for start in range(0, len(data), 8):
            yield f"{dialect.words[8]} {int.from_bytes(data[start : start + 8], 'little'):#018x}"
        return
    for member in members(type(item.value)):
        found = piece(table, item, member)
        if found is not None:
            text = found.name
        elif member.field is not None and member.field.name in item.addresses:
            text = str(item.addresses[member.field.name])
        else:
            text = f"{member.of(item.value):#x}"
        line = f"{dialect.words[member.size]} {text}"
        yield f"{line:<44}{dialect.comment} {member.name}"


def constants_source(tables: CompiledTables, dialect: TableDialect) -> str:
    """Selectors, IST numbers and STAR by name."""
    lines = [f"{dialect.comment} {headline(tables)}"]
    lines += [dialect.constant.format(name, f"{value:#x}") for name, value in tables.constants.items()]
    return "\n".join(lines) + "\n"
