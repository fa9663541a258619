"""Synthetic machines: tables and mappings of linear memory, laid out in physical memory with page tables."""

from __future__ import annotations

from bisect import bisect_right

from ..errors import UsageError
from ..records import Record
from ..tables.gdt import SegmentDescriptor, SystemDescriptor
from .coverage import Coverage
from .machine import Machine
from .mappings import build
from .memory import PAGE, Memory
from .paging import Page
from .registers import LA57, LMA, LME, NXE, PAE, PE, PG, SCE, WP, Registers, Segment, TableRegister
from .registers import load as load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..tables.gdt import Gdt
    from ..tables.idt import Idt
    from ..tables.tss import Tss

FIRST_FRAME = 0x10_0000  # where physical memory is handed out from
# Ring 0 of 64-bit mode: paging with write protection and no-execute, no task and no LDT loaded
LONG_MODE = Registers(
    rip=0,
    rflags=2,
    ss=Segment(0),
    cr0=PE | PG | WP,
    cr2=0,
    cr4=PAE,
    efer=SCE | LME | LMA | NXE,
    tr=Segment(0, 0, 0xFFFF),
    ldtr=Segment(0, 0, 0xFFFF),
)


class Mapping(Record):
    """Linear memory from `address`, `size` bytes, both multiples of 4096.

    `permissions` are letters: `r` mapped, `w` writable, `x` executable, `u` for user mode; none of them makes it a
    guard. `data` is what is in it from its start, with zeros behind.
    """

    name: str
    address: int
    size: int
    permissions: str = "rw"
    data: bytes = b""


def synthetic_machine(
    mappings: Iterable[Mapping],
    *,
    gdt: tuple[int, Gdt] | None = None,
    idt: tuple[int, Idt] | None = None,
    tss: tuple[int, Tss] | None = None,
    ldt: tuple[int, Gdt] | None = None,
    registers: Registers = Registers(),  # noqa: B008 - a constant
    complete: bool = False,
    vendor: str = "intel",
    maxphyaddr: int = 52,
    cpu: int = 0,
) -> Machine:
    """The Machine with these tables, each given as (linear address, table), in this memory.

    Pages of a table that no mapping covers are mapped for the supervisor, readable and writable. Linear memory that is
    not declared is unknown; with `complete` it is not mapped. `registers` replaces what is chosen here: ring 0 of the
    first 64-bit code segment, paging with write protection and no-execute, TR as the GDT describes the TSS.
    UsageError when mappings overlap, are not aligned, or hold more data than their size.
    """
    known = list(mappings)
    for mapping in known:
        _check(mapping)
    placed = [
        (name, at[0], bytes(at[1])) for name, at in (("GDT", gdt), ("IDT", idt), ("TSS", tss), ("LDT", ldt)) if at
    ]
    known += _uncovered(placed, known)
    levels = 5 if (registers.cr4 or 0) & LA57 else 4
    memory, cr3 = lay_out(known, [(base, data) for _, base, data in placed], levels)
    chosen = _registers(gdt, idt, tss, ldt).replace(cr3=cr3)
    given = {name: value for name, value in registers.asdict().items() if value is not None and value != {}}
    coverage = None if complete else Coverage(range(m.address, m.address + m.size) for m in known)
    chosen = chosen.replace(**given)
    return Machine(chosen, memory, cpu=cpu, vendor=vendor, maxphyaddr=maxphyaddr, declared=coverage)


def lay_out(mappings: Sequence[Mapping], contents: Iterable[tuple[int, bytes]], levels: int = 4) -> tuple[Memory, int]:
    """Physical memory with these mappings, their page tables and (linear address, bytes) laid over them; and the CR3.

    UsageError when mappings overlap. What of `contents` lies in no mapping, or in a guard, is left out.
    """
    mapped = [mapping for mapping in mappings if mapping.permissions]
    held = _laid_over(sorted(mapped, key=lambda mapping: mapping.address), contents)
    pages, pieces, frame = [], [], FIRST_FRAME
    for mapping in mapped:
        rights = (letter in mapping.permissions for letter in "wux")
        pages.append(Page(mapping.address, frame, mapping.size, *rights))
        data = bytes(held.get(mapping.address, mapping.data)).ljust(mapping.size, b"\0")
        pieces.append((frame, mapping.size, data, 0))
        frame += mapping.size
    cr3, tables = build(pages, frame, levels)
    return Memory([*pieces, *((address, PAGE, table, 0) for address, table in tables.items())]), cr3


def _laid_over(mapped: list[Mapping], contents: Iterable[tuple[int, bytes]]) -> dict[int, bytearray]:
    """What the mappings that any of the contents touch hold then, by address; the mappings ascend."""
    starts = [mapping.address for mapping in mapped]
    held: dict[int, bytearray] = {}
    for base, data in contents:
        for number in range(max(0, bisect_right(starts, base) - 1), len(mapped)):
            mapping = mapped[number]
            if base + len(data) <= mapping.address:
                break
            start, stop = max(base, mapping.address), min(base + len(data), mapping.address + mapping.size)
            if start < stop:
                page = held.setdefault(mapping.address, bytearray(mapping.data.ljust(mapping.size, b"\0")))
                page[start - mapping.address : stop - mapping.address] = data[start - base : stop - base]
    return held


def _check(mapping: Mapping) -> None:
    if (mapping.address | mapping.size) & PAGE - 1 or mapping.size <= 0:
        raise UsageError(
            f"{mapping.name}: address {mapping.address:#x} and size {mapping.size:#x} are multiples of {PAGE:#x}"
        )
    if extra := set(mapping.permissions) - set("rwxu"):
        raise UsageError(f"{mapping.name}: permission {min(extra)!r}: the letters are r, w, x and u")
    if len(mapping.data) > mapping.size:
        raise UsageError(f"{mapping.name}: {len(mapping.data)} bytes of data do not fit into {mapping.size:#x}")


def _uncovered(placed: list[tuple[str, int, bytes]], mappings: list[Mapping]) -> list[Mapping]:
    """A mapping for every page of a table that has none."""
    pages: dict[int, str] = {}
    for name, base, data in placed:
        for page in range(base & -PAGE, base + len(data), PAGE):
            if not any(mapping.address <= page < mapping.address + mapping.size for mapping in mappings):
                pages.setdefault(page, name)
    return [Mapping(name, page, PAGE) for page, name in pages.items()]


def _registers(
    gdt: tuple[int, Gdt] | None, idt: tuple[int, Idt] | None, tss: tuple[int, Tss] | None, ldt: tuple[int, Gdt] | None
) -> Registers:
    cs = _loaded(gdt[1], "code64") if gdt else None
    return LONG_MODE.replace(
        rsp=0,
        cs=cs or Segment(8, flags=int(SegmentDescriptor.kernel_code()) >> 32),
        ss=(_loaded(gdt[1], "data") if gdt else None) or Segment(0),
        gdtr=TableRegister(gdt[0], gdt[1].limit) if gdt else None,
        idtr=TableRegister(idt[0], idt[1].limit) if idt else None,
        tr=_system(gdt, tss[0]) or Segment(0, tss[0], 0x67) if tss else LONG_MODE.tr,
        ldtr=_system(gdt, ldt[0]) or Segment(8, ldt[0], ldt[1].limit) if ldt else LONG_MODE.ldtr,
    )


def _loaded(gdt: Gdt, kind: str) -> Segment | None:
    """The segment register that the first ring 0 descriptor of this kind gives."""
    for entry in gdt.entries():
        if entry.kind == kind and entry.descriptor.dpl == 0 and isinstance(entry.descriptor, SegmentDescriptor):
            return load(entry.selector, entry.descriptor)
    return None


def _system(gdt: tuple[int, Gdt] | None, base: int) -> Segment | None:
    """The TSS or LDT descriptor with this base, as TR or LDTR holds it."""
    if gdt is None:
        return None
    for entry in gdt[1].entries():
        if isinstance(entry.descriptor, SystemDescriptor) and entry.descriptor.base == base and not entry.truncated:
            return load(entry.selector, entry.descriptor)
    return None
