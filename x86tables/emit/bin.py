"""The bytes of each table as a file, for `incbin` or a loader: gdt.bin, idt.bin, tss.bin, gdtr.bin, idtr.bin.

Several CPUs have tss0.bin, tss1.bin and so on. Every address must be known.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config.compiled import CompiledTables, Lookup


def emit(tables: CompiledTables, find: Lookup) -> dict[str, bytes]:
    """One file per table. NotThere when a symbol has no address."""
    several = len(tables.tss) > 1
    counts = {id(table): str(number) if several else "" for number, table in enumerate(tables.tss)}
    return {f"{table.kind}{counts.get(id(table), '')}.bin": table.build(find) for table in tables.all}
