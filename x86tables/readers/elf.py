"""A linked kernel: tables by symbol or section name, as linked and not yet as loaded."""

from __future__ import annotations

import re
from functools import cache, partial

from ..elf import ALLOCATED, LOAD, Elf, is_elf
from ..errors import ImageError
from ..machine.memory import Memory
from ..machine.probe import Absent, Inaccessible, Unknown
from ..machine.registers import Registers, Segment, TableRegister
from ..machine.symbols import Symbols
from . import Contents
from .dwarf import Lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..machine.files import Data
    from ..machine.image import OpenOptions

NOTYPE, OBJECT = 0, 1  # types of symbols
# Names that kernels give their tables, the likeliest first; compared without case and leading underscores or dots.
NAMES = {
    "gdt": ("gdt", "gdt_table", "gdt64", "boot_gdt", "global_descriptor_table", "gdt_start"),
    "idt": ("idt", "idt_table", "idt64", "interrupt_descriptor_table", "idt_start"),
    "tss": ("tss", "tss64", "cpu_tss", "task_state_segment", "kernel_tss", "tss0"),
}
LARGEST = {"gdt": 0x10000, "idt": 0x1000, "tss": 0x68}
_ENDS = re.compile("end|ptr|pointer|desc|gdtr|idtr|size|limit")
SMALLEST_STACK, LARGEST_STACK = 1 << 10, 1 << 18  # what is larger holds more than one stack, or is a heap
DEFAULT_SIZE = {"gdt": 0, "idt": 0x1000, "tss": 0x68}


class Linked(Memory):
    """The contents of a linked ELF by virtual address; what has none is not known until the kernel runs."""

    reserved: tuple[range, ...] = ()

    def read(self, address: int, size: int) -> bytes:
        try:
            return super().read(address, size)
        except Absent as absent:
            if any(absent.address in place for place in self.reserved):
                needs = f"{absent.address:#x} has no contents in the file: filled at run time: take a memory dump"
                raise Inaccessible(Unknown(needs)) from None
            raise


def matches(data: Data) -> bool:
    """Any ELF file but a core."""
    return is_elf(data)


def symbol_table(path: str, data: Data) -> Symbols:
    """Every named symbol that has a place, with source lines where the file has debugging information."""
    return _symbols(Elf(path, data), data)


def _symbols(elf: Elf, data: Data) -> Symbols:
    objects: list[tuple[int, int]] = []
    pairs = _pairs(elf, objects)
    lines = Lines(data)
    return Symbols(
        pairs,
        lines=lines,
        sizes=partial(_size, elf),
        objects=objects,
        compiled=lines.compiled,
        below_rsp=cache(partial(_below_rsp, elf)),
    )


def _below_rsp(elf: Elf) -> tuple[str, ...]:
    from .red_zone import below_rsp

    return below_rsp(elf)


def _pairs(elf: Elf, objects: list[tuple[int, int]]) -> Iterator[tuple[int, str]]:
    """Address and name of each symbol; what may be a stack goes into `objects`."""
    for name, address, size, info, _ in elf.symbols():
        if SMALLEST_STACK <= size <= LARGEST_STACK and info & 15 in (NOTYPE, OBJECT):
            objects.append((address, size))
        yield address, name


def _size(elf: Elf, wanted: str) -> int:
    """The size of the symbol of a name, the largest where several have it."""
    return max((size for name, _, size, _, _ in elf.symbols() if name == wanted), default=0)


def read(path: str, data: Data, options: OpenOptions) -> Contents:
    """The segments by virtual address, the symbols, and the tables that symbols or sections name."""
    elf = Elf(path, data)
    pieces, reserved = [], []
    for segment in elf.segments(LOAD):
        start, held, size = segment.vaddr, segment.filesz, segment.memsz
        if segment.offset + held > len(data):
            raise ImageError(f"{path}: the segment at {start:#x} reaches beyond the end of the file ({len(data):#x})")
        pieces.append((start, held, data, segment.offset))
        if size > held:
            reserved.append(range(start + held, start + size))
    memory = Linked(pieces)
    memory.reserved = tuple(reserved)
    triples = [(address, name, size) for name, address, size, _, _ in elf.symbols()]
    symbols = _symbols(elf, data)
    places = _places(elf, triples)
    remarks = [
        f"{name.upper()} at {base:#x} ({what}): as linked, not as loaded"
        for name, (base, _, what) in places.items()
        if not options.registers and getattr(options, name) is None
    ]
    if not places and not (options.registers or options.gdt or options.idt or options.tss):
        raise ImageError(
            f"{path}: no symbol or section of this ELF file looks like a GDT, IDT or TSS: "
            "give --gdt SYMBOL, --idt SYMBOL or --tss SYMBOL, or take a memory dump of the running kernel"
        )
    found: dict[str, Any] = {}
    for name, (base, size, _) in places.items():
        if name == "tss":
            found["tr"] = Segment(0xFFF8, base, (size or DEFAULT_SIZE[name]) - 1)
        else:
            found[name + "r"] = TableRegister(base, (size or DEFAULT_SIZE[name] or 8) - 1)
    return Contents(memory, (Registers(**found),), symbols, tuple(remarks), running=False)


def _places(elf: Elf, symbols: list[tuple[int, str, int]]) -> dict[str, tuple[int, int, str]]:
    """Where each table is: (address, size or 0, what says so)."""
    sections = [(s.address, s.name, s.size) for s in elf.sections if s.flags & ALLOCATED and s.size]
    places: dict[str, tuple[int, int, str]] = {}
    for table, names in NAMES.items():
        for what, candidates in (("symbol", symbols), ("section", sections)):
            by_name = {name.lower().lstrip("_."): (address, size, name) for address, name, size in candidates}
            hit = next((by_name[name] for name in names if name in by_name), None)
            if hit is not None and table not in places:
                base, size, name = hit
                end = None if size else _end(table, base, symbols)
                more = f", which ends at {end[1]}" if end else ""
                places[table] = base, end[0] - base if end else size, f"{what} {name}{more}"
    return places


def _end(table: str, base: int, symbols: list[tuple[int, str, int]]) -> tuple[int, str] | None:
    """The label that ends a table of an assembler's, which says no size; labels of single entries are passed over."""
    for address, name, _ in sorted(symbols):
        inside = name.lower().lstrip("_.").startswith(table) and not _ENDS.search(name.lower())
        if base < address <= base + LARGEST[table] and not inside:
            return address, name
    return None
