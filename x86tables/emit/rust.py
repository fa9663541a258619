"""Rust: tables.rs, a module for edition 2015 to 2021; `rust-2024` is for later ones.

    #[export_name = "idt"]
    pub static mut IDT: Idt = {
        let mut gates = [NO_GATE; 256];
        gates[3] = Gate { selector: 0x8, type_s_dpl_p: 0x8e, ..NO_GATE }; // #BP
        gates[8] = Gate { selector: 0x8, ist_reserved0: 0x1, type_s_dpl_p: 0x8e, ..NO_GATE }; // #DF
        Idt(gates)
    };

        set_gate_offset(addr_of_mut!(IDT.0[3]), addr_of!(asm_bp) as u64);
        set_gate_offset(addr_of_mut!(IDT.0[8]), addr_of!(asm_df) as u64);

A constant holds no address as a number: the TSS and the operands of LGDT and LIDT are `global_asm!`, and the addresses
that descriptors and gates keep in pieces are filled in by `fill_tables()`, before the tables are loaded.
"""

from __future__ import annotations

from . import ALIGN, defines, headline, identifiers, members, number, settled
from ._assembly import contents
from .c import layouts, slot_name
from .gas import GAS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config.compiled import Address, CompiledTable, CompiledTables, Item, Lookup
    from ..tables.layout import Layout

# item by item, because a file that is included must not begin with an attribute of its own
UNUSED = "#[allow(dead_code)]\n"
PLAIN = "#[allow(unsafe_op_in_unsafe_fn)]\n"  # the body of an unsafe function is unsafe, as it was before edition 2024


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """One module."""
    return module(tables)


def module(tables: CompiledTables, unsafe: bool = False) -> dict[str, str]:
    """tables.rs; `unsafe` is whether attributes and foreign blocks are marked so, as edition 2024 wants it."""
    symbols = {symbol for table in tables.all for symbol in table.symbols}
    identifiers(sorted(symbols | {table.name for table in tables.all}), "rust")
    return {"tables.rs": "\n".join(_lines(tables, unsafe)) + "\n"}


def _lines(tables: CompiledTables, unsafe: bool) -> Iterator[str]:
    yield f"// {headline(tables)}\n// {defines(tables)}"
    yield "use core::arch::global_asm;\nuse core::ptr::{addr_of, addr_of_mut};\n"
    for name, value in tables.constants.items():
        yield f"{UNUSED}pub const {name}: u{64 if name == 'STAR' else 16} = {value:#x};"
    for layout in layouts(tables):
        yield f"\n/// {layout.cite}"
        yield f"{UNUSED}#[repr(C, packed)]\n#[derive(Clone, Copy)]\npub struct {layout.__name__} {{"
        yield from (f"    pub {m.name}: u{m.size * 8}," for m in members(layout))
        yield f"}}\n{_assert(layout.__name__, layout.size)}"
        zeros = ", ".join(f"{m.name}: 0" for m in members(layout))
        yield f"{UNUSED}const NO_{layout.__name__.upper()}: {layout.__name__} = {layout.__name__} {{ {zeros} }};"
    fills: list[tuple[type[Layout], str, str, Address]] = []
    yield from _gdt(tables.gdt, fills, unsafe)
    yield from _idt(tables.idt, fills, unsafe)
    yield "\nglobal_asm!("
    linked = (*tables.tss, tables.gdtr, tables.idtr)
    lines = ['.pushsection .data, "aw"']
    for table in linked:
        lines += [f".globl {table.name}", f".balign {ALIGN[table.kind]}", f"{table.name}:"]
        lines += [line.partition("#")[0].strip() for line in contents(table, GAS)]
    for line in [*lines, ".popsection"]:
        yield '    "{}",'.format(line.replace('"', '\\"'))
    yield ");"
    yield f'#[allow(non_upper_case_globals)]\n{"unsafe " if unsafe else ""}extern "C" {{'
    for table in linked:
        yield f"    {UNUSED}    pub static mut {table.name}: {type(table.items[0].value).__name__};"
    own = {table.name for table in tables.all}
    for symbol in sorted({address.symbol for _, _, _, address in fills if address.symbol} - own):
        yield f"    static {symbol}: u8;"
    yield "}"
    for layout, field in dict.fromkeys((layout, field) for layout, field, _, _ in fills):
        yield f"\n{PLAIN}unsafe fn {_setter(layout, field)}(to: *mut {layout.__name__}, address: u64) {{"
        for m in members(layout):
            if m.field is not None and m.field.name == field:
                shifted = f"(address >> {m.shift})" if m.shift else "address"
                yield f"    (*to).{m.name} = {shifted} as u{m.size * 8};"
        yield "}"
    yield "\n/// Fills in the addresses that the GDT and the IDT keep in pieces: to call before they are loaded."
    yield "///\n/// # Safety\n/// Nothing else may use the tables at the same time."
    yield f"{UNUSED}{PLAIN}pub unsafe fn fill_tables() {{"
    yield from (f"    {_setter(layout, f)}({to}, {_value(address)});" for layout, f, to, address in fills)
    yield "}"


def _gdt(table: CompiledTable, fills: list[tuple[type[Layout], str, str, Address]], unsafe: bool) -> Iterator[str]:
    yield f"\n{UNUSED}#[repr(C, packed)]\npub struct Descriptors {{"
    yield from (f"    pub {slot_name(table, item)}: {type(item.value).__name__}," for item in table.items)
    yield f"}}\n#[repr(C, align({ALIGN['gdt']}))]\npub struct Gdt(pub Descriptors);"
    yield _assert("Descriptors", table.size)
    yield f"{_exported(table, unsafe)}\npub static mut GDT: Gdt = Gdt(Descriptors {{"
    for item in map(settled, table.items):
        yield f"    {slot_name(table, item)}: {_initial(item)},"
        place = f"addr_of_mut!(GDT.0.{slot_name(table, item)})"
        fills += [(type(item.value), field, place, to) for field, to in item.addresses.items()]
    yield "});"


def _idt(table: CompiledTable, fills: list[tuple[type[Layout], str, str, Address]], unsafe: bool) -> Iterator[str]:
    count = len(table.items)
    yield f"\n#[repr(C, align({ALIGN['idt']}))]\npub struct Idt(pub [Gate; {count}]);"
    used = [item for item in map(settled, table.items) if any(bytes(item.value))]
    yield f"{_exported(table, unsafe)}\npub static mut IDT: Idt = {{"
    yield f"    let {'mut ' if used else ''}gates = [NO_GATE; {count}];"
    for item in used:
        vector = number(table, item)
        yield f"    gates[{vector}] = {_initial(item)}; // {item.name}"
        fills += [(type(item.value), f, f"addr_of_mut!(IDT.0[{vector}])", to) for f, to in item.addresses.items()]
    yield "    Idt(gates)\n};"


def _exported(table: CompiledTable, unsafe: bool) -> str:
    attribute = f'export_name = "{table.name}"'
    return f"#[unsafe({attribute})]" if unsafe else f"#[{attribute}]"


def _assert(what: str, size: int) -> str:
    return f"const _: () = assert!(core::mem::size_of::<{what}>() == {size});"


def _initial(item: Item) -> str:
    name = type(item.value).__name__
    words = [f"{m.name}: {m.of(item.value):#x}" for m in members(type(item.value)) if m.of(item.value)]
    rest = [] if len(words) == len(members(type(item.value))) else [f"..NO_{name.upper()}"]
    return f"{name} {{ {', '.join(words + rest)} }}"


def _setter(layout: type[Layout], field: str) -> str:
    return f"set_{layout.__name__.lower()}_{field}"


def _value(address: Address) -> str:
    base = f"addr_of!({address.symbol}) as u64"
    return f"({base}).wrapping_add({address.offset % (1 << 64):#x})" if address.offset else base
