"""What both the text and the JSON of a machine show: the descriptors that could be read, the stacks of its TSS."""

from __future__ import annotations

from ..delivery.extent import Extent, extent
from ..delivery.occupants import Occupants, tss_stacks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.machine import Machine, Table
    from ..tables.gdt import Entry, Gdt


def entries(gdt: Gdt, machine: Machine, table: Table, within: Iterable[range] | None = None) -> list[Entry]:
    """The descriptors that could be read, in all of a table or in some ranges of its bytes, as the machine's mode has
    them: 8 bytes each outside of long mode."""
    walk = gdt.entries(wide=machine.wide, within=within)
    return [entry for entry in walk if table.known(entry.index * 8, entry.index * 8 + len(entry.raw))]


def stacks(machine: Machine, occupants: Occupants) -> list[tuple[str, Extent]]:
    """The stacks that a 64-bit TSS names, by name; null pointers and those that cannot be read left out."""
    return [
        (pointer.name, extent(machine, pointer.top, occupants=occupants))
        for pointer in tss_stacks(machine)
        if pointer.top
    ]
