"""C beside tables of `gas` or `nasm`: tables.h alone.

    extern struct x86_gate idt[256];
    void load_tables(void);

The linker completes those tables, so that there is nothing to fill in.
"""

from __future__ import annotations

from . import identifiers
from .c import header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config.compiled import CompiledTables, Lookup


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """The header of `c` without the function that fills in addresses."""
    identifiers([table.name for table in tables.all], "c-header")
    return {"tables.h": header(tables)}
