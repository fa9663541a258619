"""Tables found in physical memory without a register: candidates by shape, confirmed through each other, scored.

`scan` looks through an image once for what looks like an IDT, a GDT's code segment or a top-level page table
(`shapes`), works out which page tables map the handlers of an IDT and by which addresses they map the tables
(`machines`), and takes from the GDT where the TSS is. Nothing here is known, all of it is likely: a score says how
much.
"""

from __future__ import annotations

from ..machine.paging import root
from ..machine.registers import PE, Registers
from ..records import Record
from .candidates import candidates
from .machines import FoundMachine, machines
from .protected import protected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..machine.memory import Memory
    from .machines import FoundCpu

    Note = Callable[[int], object]


class Scan(Record):
    """What a search has found: the machines, best first, and how much memory was looked at.

    `gates`, `codes` and `roots` count what looked like an IDT, a 64-bit code segment, or a top-level page table.
    """

    machines: tuple[FoundMachine, ...]
    size: int
    gates: int
    codes: int
    roots: int


def scan(memory: Memory, cr3: int | None = None, note: Note | None = None) -> Scan:
    """Search an image; with a known CR3, among its page tables only. `note` is called with the bytes looked at."""
    found = candidates(memory, note=note)
    tables = None if cr3 is None else [root(cr3, "4-level")]
    made = machines(memory, found, tables)
    if not made:  # an IDT with just a few gates
        found = candidates(memory, note=note, run=1)
        made = machines(memory, found, tables)
    if not made and cr3 is None:
        made = protected(memory)
    return Scan(made, found.size, len(found.gates), len(found.codes), len(found.roots))


def fill(registers: Sequence[Registers], found: FoundMachine) -> list[tuple[Registers, tuple[str, ...]]]:
    """The registers of each CPU with what they lack as it was found, and the names of those that were found.

    A CPU of which TR or GDTR is known gets the tables that these name, any other those at its own place in the list.
    """
    filled = []
    for number, known in enumerate(registers):
        values: dict[str, object] = {"cr0": PE} if found.root is None else {"cr3": found.root.physical}
        if (cpu := _own(known, number, found)) is not None:
            values |= {"gdtr": cpu.gdtr, "idtr": cpu.idt and cpu.idt.register, "tr": cpu.tr}
        lacking = {name: value for name, value in values.items() if value is not None and known[name] is None}
        filled.append((known.replace(**lacking), tuple(lacking)))
    return filled


def _own(known: Registers, number: int, found: FoundMachine) -> FoundCpu | None:
    """The tables of one CPU among those found."""
    for cpu in found.cpus:
        if known.tr is not None and cpu.tr is not None and known.tr.base == cpu.tr.base:
            return cpu
        if known.gdtr is not None and cpu.gdtr is not None and known.gdtr.base == cpu.gdtr.base:
            return cpu
    return found.cpus[number] if number < len(found.cpus) else None
