"""C: tables.h (types, constants, declarations) and tables.c (the tables, and what fills in the addresses that are cut).

    struct x86_gate idt[256] __attribute__((aligned(16))) = {
        [3] = { .selector = 0x8, .type_s_dpl_p = 0x8e },  /* #BP */
        [8] = { .selector = 0x8, .ist_reserved0 = 0x1, .type_s_dpl_p = 0x8e },  /* #DF */
    };

        x86_gate_offset(&idt[3], (uint64_t)&asm_bp);
        x86_gate_offset(&idt[8], (uint64_t)&asm_df);

A static initialiser holds an address only whole: those of the TSS and of the operands of LGDT and LIDT are there after
linking, the others are filled in by `fill_tables()`, which the kernel calls before it loads the tables.
"""

from __future__ import annotations

import re

from . import ALIGN, defines, headline, identifiers, members, number, settled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..config.compiled import Address, CompiledTable, CompiledTables, Item, Lookup
    from ..tables.layout import Layout

FILL = "fill_tables"


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """Header and source."""
    names = {table.name for table in tables.all} | {symbol for table in tables.all for symbol in table.symbols}
    identifiers(sorted(names), "c")
    fill = (
        f"/* Fills in the addresses of {tables.gdt.name} and {tables.idt.name}: call it before they are loaded. */",
        f"void {FILL}(void);",
    )
    return {"tables.h": header(tables, fill), "tables.c": "\n".join(_source(tables)) + "\n"}


def header(tables: CompiledTables, more: Iterable[str] = ()) -> str:
    """tables.h: types, constants, and declarations of the tables, of `more` and of the routine that loads them."""
    return "\n".join(_header(tables, more)) + "\n"


def type_name(layout: type[Layout]) -> str:
    """`x86_gate` of Gate."""
    return "x86" + re.sub("([A-Z])", r"_\1", layout.__name__).lower()


def layouts(tables: CompiledTables) -> list[type[Layout]]:
    """Every structure that occurs."""
    return list(dict.fromkeys(type(item.value) for table in tables.all for item in table.items))


def slot_name(table: CompiledTable, item: Item) -> str:
    """The name of a descriptor in the GDT's own structure."""
    return f"{item.name}_{number(table, item)}" if item.name == "null" else item.name


def _header(tables: CompiledTables, more: Iterable[str]) -> Iterator[str]:
    yield f"/* {headline(tables)} */"
    yield from ("#ifndef X86TABLES_H", "#define X86TABLES_H", "", "#include <stdint.h>", "")
    for name, value in tables.constants.items():
        yield f"#define {name} {value:#x}{'ull' if name == 'STAR' else ''}"
    for layout in layouts(tables):
        yield f"\n/* {layout.cite} */"
        yield f"struct {type_name(layout)} {{"
        yield from (f"    uint{m.size * 8}_t {m.name};" for m in members(layout))
        yield "} __attribute__((packed));"
        yield _assert(f"struct {type_name(layout)}", layout.size)
    yield "\nstruct x86_gdt {"
    for item in tables.gdt.items:
        yield f"    struct {type_name(type(item.value))} {slot_name(tables.gdt, item)};"
    yield "} __attribute__((packed));"
    yield _assert("struct x86_gdt", tables.gdt.size)
    yield ""
    for table in tables.all:
        yield f"extern {_variable(table)};"
    yield ""
    yield from more
    cpu = "unsigned cpu" if len(tables.tss) > 1 else "void"
    yield f"/* In the output of `stubs`: loads the tables{' of CPU `cpu`' if len(tables.tss) > 1 else ''}. */"
    yield f"void {tables.config.stubs.load}({cpu});"
    yield "\n#endif"


def _assert(what: str, size: int) -> str:
    return f'_Static_assert(sizeof({what}) == {size}, "{what} has {size} bytes");'


def _variable(table: CompiledTable) -> str:
    if table.kind == "gdt":
        return f"struct x86_gdt {table.name}"
    count = f"[{len(table.items)}]" if table.kind == "idt" else ""
    return f"struct {type_name(type(table.items[0].value))} {table.name}{count}"


def _source(tables: CompiledTables) -> Iterator[str]:
    yield f"/* {headline(tables)}\n * {defines(tables)} */"
    yield '#include "tables.h"\n'
    own = {table.name for table in tables.all}
    for symbol in sorted({symbol for table in tables.all for symbol in table.symbols} - own):
        yield f"extern char {symbol}[];"
    fills = []
    for table in tables.all:
        yield f"\n{_variable(table)} __attribute__((aligned({ALIGN[table.kind]}))) = {{"
        for item in map(settled, table.items):
            words, left = _initial(item)
            if table.kind == "gdt":
                yield f"    .{slot_name(table, item)} = {{ {words} }},"
            elif table.kind == "idt" and words:
                yield f"    [{number(table, item)}] = {{ {words} }},  /* {item.name} */"
            elif table.kind != "idt":
                yield f"    {words}"
            place = f".{slot_name(table, item)}" if table.kind == "gdt" else f"[{number(table, item)}]"
            fills += [(type(item.value), field, f"&{table.name}{place}", to) for field, to in left.items()]
        yield "};"
    for layout, field in dict.fromkeys((layout, field) for layout, field, _, _ in fills):
        yield f"\nstatic void {type_name(layout)}_{field}(struct {type_name(layout)} *to, uint64_t address)\n{{"
        for m in members(layout):
            if m.field is not None and m.field.name == field:
                yield f"    to->{m.name} = (uint{m.size * 8}_t)(address >> {m.shift});"
        yield "}"
    yield f"\nvoid {FILL}(void)\n{{"
    yield from (f"    {type_name(layout)}_{field}({to}, {_value(address)});" for layout, field, to, address in fills)
    yield "}"


def _initial(item: Item) -> tuple[str, dict[str, Address]]:
    """The initialiser of a structure, and the addresses that it cannot hold."""
    words, left = [], dict(item.addresses)
    for m in members(type(item.value)):
        if m.whole and m.field is not None and m.field.name in left:
            words.append(f".{m.name} = {_value(left.pop(m.field.name))}")
        elif m.of(item.value):
            words.append(f".{m.name} = {m.of(item.value):#x}")
    return ", ".join(words) or ("" if not left and not any(bytes(item.value)) and _is_gate(item) else "0"), left


def _is_gate(item: Item) -> bool:
    return "selector" in item.value.asdict()


def _value(address: Address) -> str:
    offset = f" + {address.offset:#x}" if address.offset > 0 else f" - {-address.offset:#x}" if address.offset else ""
    return f"(uint64_t)&{address.symbol}{offset}"
