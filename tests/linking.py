"""Tables built with the tools of kernels: what is run, what is linked, and what is in it."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from x86tables import config
from x86tables.config.compiled import CompiledTables
from x86tables.emit import emit

ASSEMBLERS = {
    "gas": (["as", "--fatal-warnings", "-o", "tables.o", "tables.s"], ["as", "-o", "stubs.o", "stubs.s"]),
    "nasm": (
        ["nasm", "-Werror", "-f", "elf64", "-o", "tables.o", "tables.asm"],
        ["nasm", "-Werror", "-f", "elf64", "-o", "stubs.o", "stubs.asm"],
    ),
}


def written(folder: Path, tables: CompiledTables, *languages: str) -> None:
    """Write the sources of some languages."""
    for language in languages:
        for name, contents in emit(language, tables, config.lookup(tables)).items():
            (folder / name).write_bytes(contents)


def run(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> bytes:
    """What a program prints that has nothing to complain about."""
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout


def outside(tables: CompiledTables, *, handlers: bool, align: int = 8) -> str:
    """An assembler source of what the tables refer to and do not have themselves: code and stacks."""
    own = {table.name for table in tables.all}
    stubs = {e.address.symbol for e in tables.handlers if e.stub}
    symbols = {address.symbol for address in tables.addresses if address.symbol} - own
    if handlers:
        symbols |= {tables.config.stubs.common}
    else:
        symbols -= stubs
    lines = [".text", f".globl {tables.config.stubs.common}", f"{tables.config.stubs.common}: hlt", ".bss"]
    for symbol in sorted(symbols - {tables.config.stubs.common}):
        lines += [f".globl {symbol}", ".skip 0x2238", f".balign {align}", f"{symbol}: .skip 0x6000"]
    return "\n".join([*lines, '.section .note.GNU-stack, "", @progbits', ""])


class Linked:
    """A linked file: its symbols, and its bytes by address."""

    def __init__(self, path: Path) -> None:
        self.symbols: dict[str, int] = {}
        self.kinds: dict[str, tuple[str, int]] = {}  # type and size
        self.pieces: list[tuple[int, bytes]] = []
        with path.open("rb") as file:
            elf = ELFFile(file)
            for section in elf.iter_sections():
                if isinstance(section, SymbolTableSection):
                    for symbol in section.iter_symbols():
                        self.symbols[symbol.name] = symbol["st_value"]
                        self.kinds[symbol.name] = symbol["st_info"]["type"], symbol["st_size"]
                elif section["sh_flags"] & 2 and section["sh_type"] == "SHT_PROGBITS":
                    self.pieces.append((section["sh_addr"], section.data()))

    def read(self, address: int, size: int) -> bytes:
        start, data = next((s, d) for s, d in self.pieces if s <= address < s + len(d))
        return data[address - start : address - start + size]

    def check(self, tables: CompiledTables, contents: Mapping[str, bytes] | None = None) -> None:
        """Every table, in the file or as a program printed it, is the one at this file's addresses."""
        for table in tables.all:
            at = self.symbols[table.name]
            found = self.read(at, table.size) if contents is None else contents[table.name]
            assert found.hex(" ", 8) == table.build(self.symbols.__getitem__).hex(" ", 8), table.name
            assert at % 16 == 0
            assert table.kind != "tss" or at % 4096 + table.size <= 4096
