"""The pieces of addresses as absolute symbols, for GNU ld: tables.ld, an input file like any other.

    idt_8_offset_0 = ABSOLUTE((asm_df) & 0xffff);
    idt_8_offset_16 = ABSOLUTE(((asm_df) >> 16) & 0xffff);
    idt_8_offset_32 = ABSOLUTE(((asm_df) >> 32) & 0xffffffff);

A relocation fills a word with an address, but a gate keeps the address of its handler in three words. The linker can
compute: every piece is a symbol here, and the tables of `gas` and `nasm` name it in its place.
"""

from __future__ import annotations

from . import headline, pieces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config.compiled import CompiledTables, Lookup


def emit(tables: CompiledTables, find: Lookup) -> dict[str, str]:
    """One file: `ld -o kernel ... tables.o tables.ld`."""
    lines = [f"/* {headline(tables)} */"]
    for piece in pieces(tables):
        shifted = f"({piece.address})" if not piece.shift else f"(({piece.address}) >> {piece.shift})"
        lines.append(f"{piece.name} = ABSOLUTE({shifted} & {(1 << piece.size * 8) - 1:#x});")
    return {"tables.ld": "\n".join(lines) + "\n"}
