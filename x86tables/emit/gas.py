"""GNU as: tables.s and constants.inc.

    idt:
        .zero 48
        # 0x3 #BP
        .2byte idt_3_offset_0                   # offset_0
        .2byte 0x8                              # selector
        .byte 0x0                               # ist_reserved0
        .byte 0x8e                              # type_s_dpl_p
        .2byte idt_3_offset_16                  # offset_16
        .4byte idt_3_offset_32                  # offset_32
        .4byte 0x0                              # reserved1

The symbols are those of `ld`: with its file among the linker's inputs the tables are complete after one link.
"""

from __future__ import annotations

from ._assembly import TableDialect, constants_source, tables_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config.compiled import CompiledTables, Lookup

GAS = TableDialect(
    comment="#",
    words={1: ".byte", 2: ".2byte", 4: ".4byte", 8: ".8byte"},
    zeros=".zero {}",
    align="    .balign {}",
    public="    .globl {0}\n    .type {0}, @object\n    .size {0}, {1:#x}",
    outside="",
    section="    .{}",
    constant=".set {}, {}",
    note='    .section .note.GNU-stack, "", @progbits',
)


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """The tables, and a file of constants to `.include`."""
    return {"tables.s": tables_source(tables, GAS), "constants.inc": constants_source(tables, GAS)}
