"""Where each table goes in a linked kernel, and its bytes; refused is what cannot be patched."""

from __future__ import annotations

from itertools import pairwise

from ..config.addresses import lookup
from ..errors import ImageError
from ..machine.memory import PAGE
from ..machine.symbols import Symbols, readable
from ..records import Record
from .kernel import Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config.compiled import Address, CompiledTable, CompiledTables, Item, Lookup
    from .kernel import Section

# SDM Vol. 3A, "Global and Local Descriptor Tables" and "Interrupt Descriptor Table (IDT)": bases on 8 bytes
ALIGN = {"gdt": 8, "idt": 8}
TSS_READ = 104  # SDM Vol. 3A, "Task-State Segment (TSS)": no page boundary in the part that the CPU reads


class Patch(Record):
    """The bytes of a table, and where they go: a linear address, an offset in the file."""

    table: CompiledTable
    address: int
    offset: int
    data: bytes


class Plan(Record):
    """Everything resolved, nothing written. `remarks` are what is left to the kernel."""

    kernel: Kernel
    tables: CompiledTables
    find: Lookup
    patches: tuple[Patch, ...]
    remarks: tuple[str, ...]


def plan(kernel: Kernel, tables: CompiledTables) -> Plan:
    """Where each table goes, and its bytes. ImageError when the kernel has no place for one that can be patched."""
    tables, remarks = _operands(kernel, tables)
    pairs = [(address, name) for name, found in kernel.names.items() for address, _ in found]
    pairs += [
        (section.start, table.place.symbol)
        for table in tables.all
        if table.place.symbol is not None and table.place.symbol not in kernel.names
        for section in _named(kernel, table)
    ]
    known = {name for _, name in pairs} | tables.known.keys()
    _resolved(kernel, tables, known)
    find = lookup(tables, Symbols(pairs), kernel.path)
    patches = tuple(_patch(kernel, table, find) for table in tables.all if table.items)
    _apart(kernel, patches)
    for patch in patches:
        _free(kernel, patch)
        _stays(kernel, patch)
    return Plan(kernel, tables, find, patches, tuple(remarks))


def _named(kernel: Kernel, table: CompiledTable) -> list[Section]:
    """The sections that are reserved for a table: of its name, with or without a dot."""
    return [section for section in kernel.sections if section.name in (table.place.symbol, f".{table.place.symbol}")]


def _operands(kernel: Kernel, tables: CompiledTables) -> tuple[CompiledTables, list[str]]:
    """The tables without what LGDT and LIDT read where the kernel has no place for it, and makes it itself."""
    remarks = []
    for kind in ("gdtr", "idtr"):
        table: CompiledTable = getattr(tables, kind)
        given = getattr(tables.config.tables, kind) != kind or kind in tables.known
        if not given and kind not in kernel.names and not _named(kernel, table):
            of: CompiledTable = getattr(tables, kind[:-1])
            loads = "LGDT" if kind == "gdtr" else "LIDT"
            remarks.append(f"no symbol {kind}: the kernel itself makes what {loads} reads: limit {of.size - 1:#x}")
            tables = tables.replace(**{kind: table.replace(place=of.place, items=())})
    return tables, remarks


def _uses(tables: CompiledTables) -> Iterator[tuple[Address, str]]:
    """Every address of the declaration, and what it is."""
    for table in tables.all:
        yield table.place, f"place of the {table.kind.upper()}"
        for item in table.items:
            for field, address in item.addresses.items():
                yield address, f"{entry_name(table, item)}.{field}"
    for stack in tables.stacks:
        yield stack.top, f"stack {stack.name}"
    for memory in tables.memory:
        yield memory.start, f"memory {memory.name}"
        yield memory.stop, f"memory {memory.name}"


def entry_name(table: CompiledTable, item: Item) -> str:
    """`idt #DF`, `gdt tss`."""
    return table.name if item.name == table.name else f"{table.name} {item.name}"


def _resolved(kernel: Kernel, tables: CompiledTables, known: set[str]) -> None:
    """Refuse symbols that the kernel does not have, or has several times."""
    wrong: dict[str, str] = {}
    for address, use in _uses(tables):
        name = address.symbol
        if name is None or name in tables.known:
            continue
        if name not in known:
            wrong.setdefault(name, f"no symbol {name!r} ({use})")
        elif len(places := {place for place, _ in kernel.names.get(name, ())}) > 1:
            shown = ", ".join(f"{place:#x}" for place in sorted(places)[:4])
            wrong.setdefault(name, f"symbol {name!r} ({use}) is ambiguous: {shown}; {_choose(tables, name)}")
    if not wrong:
        return
    if not kernel.names:
        raise ImageError(f"{kernel.path}: no symbols: patch the tables in before the kernel is stripped")
    from difflib import get_close_matches

    first = next(iter(wrong))
    near = [] if first in known else get_close_matches(first, kernel.names, 1, 0.7)
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    reasons = "; ".join(list(wrong.values())[:3]) + more
    raise ImageError(f"{kernel.path}: {reasons}" + (f"; did you mean {near[0]}?" if near else ""))


def _choose(tables: CompiledTables, name: str) -> str:
    """What to do about a name that several symbols have: a table can have another."""
    table = next((table for table in tables.all if table.place.symbol == name), None)
    return "make the one that is meant global" + ("" if table is None else f", or name another: {_key(table)} = SYMBOL")


def _renamed(table: CompiledTable) -> str:
    """What to do where the symbol of a table turns out to be the kernel's own."""
    name = table.place.symbol
    return "" if name is None else f"; if {name} is a table of the kernel's own, name another: {_key(table)} = SYMBOL"


def _key(table: CompiledTable) -> str:
    """Where the declaration names a table."""
    return "[cpu] tss" if table.kind == "tss" else f"[tables] {table.kind}"


def _patch(kernel: Kernel, table: CompiledTable, find: Lookup) -> Patch:
    """One table at its place."""
    address = table.place.at(find)
    what = f"{kernel.path}: {table.name} at {address:#x}"
    load = next((load for load in kernel.loads if load.start <= address < load.stop), None)
    section = next((section for section in kernel.sections if section.start <= address < section.stop), None)
    if load is None:
        raise ImageError(f"{what}: no segment is loaded there: reserve space in a section such as .data")
    at = address - load.start
    reserve = "reserve the space in a section such as .data" + _renamed(table)
    if at >= load.held or (section is not None and not section.filled):
        where = section.name if section else "its segment"
        raise ImageError(f"{what}: {where} has no contents in the file: {reserve}")
    room, why = _room(kernel, table, address, section.stop if section else load.start + load.held)
    if room < table.size:
        raise ImageError(f"{what}: {room} bytes are reserved ({why}), {table.size} needed{_renamed(table)}")
    if at + table.size > load.held:
        raise ImageError(f"{what}: {load.held - at} bytes of it are in the file, {table.size} needed")
    if address % ALIGN.get(table.kind, 1):
        raise ImageError(f"{what}: misaligned: a multiple of {ALIGN[table.kind]} expected")
    if table.kind == "tss" and address % PAGE > PAGE - TSS_READ:
        raise ImageError(f"{what}: misaligned: it crosses a page at {(address | PAGE - 1) + 1:#x}; align it to 128")
    return Patch(table, address, load.offset + at, table.build(find))


def _room(kernel: Kernel, table: CompiledTable, address: int, end: int) -> tuple[int, str]:
    """How many bytes are reserved for a table, and how that is known."""
    size = max((size for _, size in kernel.names.get(table.place.symbol or "", ())), default=0)
    if size:
        return size, f"the size of {table.place.symbol}"
    place, name = min(((at, name) for at, name in kernel.labels.pairs if address < at < end), default=(end, ""))
    return place - address, f"{readable(name)} follows" if name else "then its section ends"


def _apart(kernel: Kernel, patches: tuple[Patch, ...]) -> None:
    """Refuse tables that share bytes, in memory or in the file: segments may name the same bytes of it."""
    for low, high in pairwise(sorted(patches, key=lambda patch: patch.address)):
        if low.address + len(low.data) > high.address:
            raise ImageError(
                f"{kernel.path}: {low.table.name} at {low.address:#x} reaches into {high.table.name} at "
                f"{high.address:#x}: each table needs a place of its own"
            )
    for low, high in pairwise(sorted(patches, key=lambda patch: patch.offset)):
        if low.offset + len(low.data) > high.offset:
            raise ImageError(
                f"{kernel.path}: {low.table.name} at {low.address:#x} and {high.table.name} at {high.address:#x} share "
                f"bytes at offset {high.offset:#x} of the file: two of its segments overlap there"
            )


def _free(kernel: Kernel, patch: Patch) -> None:
    """Refuse bytes of the file that are something else too: its headers, or a section that is loaded elsewhere."""
    stop = patch.offset + len(patch.data)
    for held in kernel.occupied:
        own = held.address is not None and patch.address - held.address == patch.offset - held.start
        if held.start < stop and patch.offset < held.stop and not own:
            raise ImageError(
                f"{kernel.path}: {patch.table.name} at {patch.address:#x} is at offset {patch.offset:#x} of the file, "
                f"over {held.what}: the program headers are wrong"
            )


def _stays(kernel: Kernel, patch: Patch) -> None:
    """Refuse bytes that the loader, or the kernel that moves itself, would overwrite."""
    start, stop = patch.address, patch.address + len(patch.data)
    for table in kernel.relocations:
        if table.target is not None and (table.target.stop <= start or stop <= table.target.start):
            continue
        for address, size, kind in table.entries():
            if address < stop and start < address + size:
                raise ImageError(
                    f"{kernel.path}: a relocation ({kind}) at {address:#x} would overwrite bytes of {patch.table.name}"
                    " when the kernel is loaded: reserve space without addresses in it"
                )
