"""NASM: tables.asm and constants.asm.

    idt:
        times 48 db 0
        ; 0x3 #BP
        dw idt_3_offset_0                       ; offset_0
        dw 0x8                                  ; selector
        db 0x0                                  ; ist_reserved0
        db 0x8e                                 ; type_s_dpl_p
        dw idt_3_offset_16                      ; offset_16
        dd idt_3_offset_32                      ; offset_32
        dd 0x0                                  ; reserved1

The symbols are those of `ld`: with its file among the linker's inputs the tables are complete after one link.
"""

from __future__ import annotations

from ._assembly import TableDialect, constants_source, tables_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config.compiled import CompiledTables, Lookup

NASM = TableDialect(
    comment=";",
    words={1: "db", 2: "dw", 4: "dd", 8: "dq"},
    zeros="times {} db 0",
    align="    align {}, db 0",
    public="    global {}:data {:#x}",
    outside="    extern {}",
    section="    section .{}",
    constant="{} equ {}",
    note="    section .note.GNU-stack noalloc noexec nowrite progbits",
)


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """The tables, and a file of constants."""
    return {"tables.asm": tables_source(tables, NASM), "constants.asm": constants_source(tables, NASM)}
