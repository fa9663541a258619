"""What both the text and the JSON of a machine show: the descriptors that could be read, the stacks of its TSS."""

from __future__ import annotations

from ..tables.tss import STACKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.machine import Machine, Stack, Table
    from ..tables.gdt import Entry, Gdt


def entries(gdt: Gdt, machine: Machine, table: Table) -> list[Entry]:
    """The descriptors that could be read, as the machine's mode has them: 8 bytes each outside of long mode."""
    walk = gdt.entries(wide=machine.wide)
    return [entry for entry in walk if table.known(entry.index * 8, entry.index * 8 + len(entry.raw))]


def stacks(machine: Machine) -> list[tuple[str, Stack]]:
    """The stacks that a 64-bit TSS names, by name; pointers that are 0 or not known left out."""
    table = machine.table("tss")
    if table is None or not machine.wide:
        return []
    tss = machine.tss
    found = []
    for name in STACKS:
        top = getattr(tss, name)
        if top and table.has(tss.field(name)):
            found.append((name.upper(), machine.stack(top)))
    return found
