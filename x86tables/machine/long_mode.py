"""Whether a CPU is in long mode, where EFER is not known: what CS, CR3, CR4 and the page tables themselves tell."""

from __future__ import annotations

from ..records import Record
from .paging import NX, RW, US, AddressSpace, P, Paging, root
from .probe import Inaccessible
from .registers import LA57, PAE, PCIDE, PG, VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from .coverage import Coverage
    from .memory import Memory
    from .probe import PageEntry
    from .registers import Registers

    Led: TypeAlias = tuple[int, int]

# MOV to CR3 refuses a present PDPTE of PAE paging with one of these (SDM Vol. 3A, table "Format of a PAE
# Page-Directory-Pointer-Table Entry"): bits 1, 2, 5 to 8, and those above any physical address. Bit 5 tells nothing:
# QEMU sets it, as an accessed bit, when it walks through such an entry.
RESERVED = 0x1C6 | 0x7FF << 52 | NX
_LEVELS = {"4-level": "four", "5-level": "five"}


class LongMode(Record):
    """EFER.LMA: `active`, what was `assumed` for it, and what would have to be known where nothing tells (`needs`)."""

    active: bool
    assumed: str | None = None
    needs: str | None = None


def infer(registers: Registers, memory: Memory, declared: Coverage | None = None, core: bool | None = None) -> LongMode:
    """EFER.LMA of a CPU whose EFER is not known. `core` is what the headers of a core say of it; None: nothing.

    The page tables decide by what is not possible in the other mode: the top entries of PAE paging have no bits R/W and
    U/S, while a PML4E without both maps nothing that could be written; and page tables that lead to memory that the
    image holds beat those that do not.
    """
    r = registers
    if r.cr0 is None:
        return LongMode(True, "64-bit mode (no control registers are known)")
    cr4 = r.cr4 or 0
    if not (r.cr0 & PG and cr4 & PAE):
        return LongMode(False)
    if r.cs is not None and r.cs.descriptor.l:
        return LongMode(True, "EFER.LME=1 (CS.L, CR0.PG and CR4.PAE are set)")
    tables = [table.base for table in (r.gdtr, r.idtr) if table is not None]
    if any(base >> 32 for base in tables):
        return LongMode(True, "EFER.LME=1 (a table lies above 4 GiB)")
    if cr4 & PCIDE:
        return LongMode(True, "EFER.LME=1 (CR4.PCIDE is set)")
    if (r.rflags or 0) & VM:
        return LongMode(False, "EFER.LME=0 (RFLAGS.VM is set)")
    mode = "5-level" if cr4 & LA57 else "4-level"
    addresses = tables + _in_use(r)
    long, pae = _as_long(trial(r, memory, mode, declared), addresses), _as_pae(r, memory, addresses, declared)
    if long > pae:
        return LongMode(True, f"EFER.LME=1 (the page tables have {_LEVELS[mode]} levels)")
    if pae > long:
        return LongMode(False, "EFER.LME=0 (the page tables are PAE's)")
    if core is not None:
        said = "for a CPU in long mode" if core else "for a CPU outside of long mode"
        return LongMode(core, f"EFER.LME={core:d} (the core's headers are those {said})")
    needs = f"EFER: the page tables may have {_LEVELS[mode]} levels or PAE's three (--reg efer=0x500 or efer=0)"
    return LongMode(False, "EFER.LME=0 (nothing decides it: --reg efer=0x500 says that it is 1)", needs)


def trial(registers: Registers, memory: Memory, mode: str, declared: Coverage | None = None) -> AddressSpace:
    """A trial address space, where NX is no reserved bit."""
    return AddressSpace(memory, Paging(mode, root(registers.cr3 or 0, mode)), declared)


def walks(space: AddressSpace, addresses: Iterable[int]) -> list[tuple[int, list[PageEntry]]]:
    """For each address that the page tables lead to: the physical one, and the entries read."""
    found = []
    for address in addresses:
        entries: list[PageEntry] = []
        try:
            page = space.walk(address, entries.append)
        except Inaccessible:
            continue
        found.append((page.physical + address - page.linear, entries))
    return found


def _in_use(registers: Registers) -> list[int]:
    """The linear addresses of the next instruction, of the stack and of the TSS, as far as they are known."""
    r, found = registers, []
    for segment, offset in ((r.cs, r.rip), (r.ss, r.rsp)):
        if offset is not None:
            found.append((segment.base if segment is not None else 0) + offset & 0xFFFF_FFFF)
    return found + ([r.tr.base] if r.tr is not None and not r.tr.null else [])


def _as_long(space: AddressSpace, addresses: list[int]) -> Led:
    """Where the page tables lead, by top entries that a running system may have."""
    found = walks(space, addresses)
    return _led(space, [at for at, entries in found if entries[0].value & (RW | US)])


def _as_pae(registers: Registers, memory: Memory, addresses: list[int], declared: Coverage | None) -> Led:
    """Where the page tables lead; nowhere when the top entries are not such as MOV to CR3 takes."""
    space = trial(registers, memory, "PAE", declared)
    for at in range(space.paging.root, space.paging.root + 32, 8):
        entry = int.from_bytes(memory.read(at, 8), "little") if memory.holds(at) and memory.holds(at + 7) else 0
        if entry & P and entry & RESERVED:
            return 0, 0
    return _led(space, [at for at, _ in walks(space, addresses)])


def _led(space: AddressSpace, found: list[int]) -> Led:
    """How many addresses lead to memory that the image holds, and how many lead anywhere."""
    return sum(map(space.memory.holds, found)), len(found)
