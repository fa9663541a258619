"""The hostile ELF files of this folder: `python tests/hostile/elf_files.py` writes them again.

FILES are kept in the folder, each below 10 KiB; LARGE are made when they are tested.
"""

import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

TEXT = 0xFFFF_FFFF_8000_1000  # eight handlers, 16 bytes apart, where the gates of idt.bin lead
DATA = 0xFFFF_FFFF_8000_2000
EHDR, PHDR, SHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), struct.Struct("<IIQQQQIIQQ")
IDENT = b"\x7fELF\2\1\1".ljust(16, b"\0")
PROGBITS, SYMTAB, STRTAB, NOBITS = 1, 2, 3, 8
COMPRESSED = 1 << 11


class Section:
    """A section: `size` and `offset` are what its header claims, if it is not the truth."""

    def __init__(
        self, name: str, data: bytes = b"", kind: int = PROGBITS, flags: int = 0, address: int = 0, link: str = "",
        size: int | None = None, same: str = "",
    ) -> None:  # fmt: skip
        self.name, self.data, self.kind, self.flags, self.address, self.link = name, data, kind, flags, address, link
        self.size = len(data) if size is None else size
        self.same = same  # the section whose bytes these are


def elf(sections: Iterable[Section], segments: Iterable[tuple[str, int, int, int]] = (), kind: int = 2) -> bytes:
    """An ELF file. `segments` are (name of the section at its beginning or "", flags, address, size)."""
    everything = [*sections, Section(".shstrtab", kind=STRTAB)]
    everything[-1].data = b"\0" + b"".join(s.name.encode() + b"\0" for s in everything)
    everything[-1].size = len(everything[-1].data)
    numbers = {section.name: number for number, section in enumerate(everything, 1)}
    segments = list(segments)
    at = EHDR.size + PHDR.size * len(segments)
    contents, heads, places, name = b"", bytes(SHDR.size), {"": 0}, 1
    for section in everything:
        places[section.name] = places[section.same] if section.same else at + len(contents)
        contents += section.data
        heads += SHDR.pack(
            name, section.kind, section.flags, section.address, places[section.name], section.size,
            numbers.get(section.link, 0), 0, 1, 24 if section.kind == SYMTAB else 0,
        )  # fmt: skip
        name += len(section.name) + 1
    loads = b"".join(
        PHDR.pack(1, flags, places[section], address, address, size, size, 1)
        for section, flags, address, size in segments
    )
    header = EHDR.pack(
        IDENT, kind, 62, 1, TEXT, EHDR.size, at + len(contents), 0, 64, 56, len(segments), 64, len(everything) + 1,
        len(everything),
    )  # fmt: skip
    return header + loads + contents + heads


def symbol(name: int, value: int, size: int = 16) -> bytes:
    return struct.pack("<IBBHQQ", name, 0x12, 0, 1, value, size)


def symbols(values: dict[str, int]) -> list[Section]:
    """A symbol table and its names."""
    strings, table = b"\0", bytes(24)
    for name, value in values.items():
        table += symbol(len(strings), value, 0)
        strings += name.encode() + b"\0"
    return [Section(".symtab", table, SYMTAB, link=".strtab"), Section(".strtab", strings, STRTAB)]


HANDLERS = {f"handler{vector}": TEXT + 16 * vector for vector in range(8)}
NAMED = symbols(HANDLERS)


# Debugging information


def uleb(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def dwarf(directories: bytes, *, attributes: bytes = b"", units: int = 1, more: Iterable[Section] = ()) -> bytes:
    """Units with one line table of version 5, whose header ends with the lists of directories and files."""
    abbreviation = b"\1\x11\0" + b"\x10\x17" + b"\x11\1" + b"\x12\7" + attributes + bytes(3)
    unit = struct.pack("<HBBIBIQQ", 5, 1, 8, 0, 1, 0, TEXT, 0x80)
    rest = b"\1\1\1\xfb\x0e\x0d\0\1\1\1\1\0\0\0\1\0\0\1" + directories
    program = b"\0\x09\2" + struct.pack("<Q", TEXT) + b"\1" + b"\xf3" * 7 + b"\2\x10\0\1\1"
    body = struct.pack("<HBBI", 5, 8, 0, len(rest)) + rest + program
    return elf([
        *NAMED,
        Section(".debug_abbrev", abbreviation),
        Section(".debug_info", (struct.pack("<I", len(unit)) + unit) * units),
        Section(".debug_line", struct.pack("<I", len(body)) + body),
        *more,
    ])  # fmt: skip


SOUND = b"\1\1\x08\1src\0" + b"\1\1\x08\2kernel.c\0kernel.c\0"  # a directory and two files, paths as strings


def files_of_one_string() -> bytes:
    """Each file of a line table is named by the same long string."""
    many = b"\1\1\x1f" + uleb(1500) + bytes(4 * 1500)
    return dwarf(b"\1\1\x08\1src\0" + many, more=[Section(".debug_line_str", b"x" * 2000 + b"\0")])


# Symbols


def tables_of_symbols(count: int, entries: int) -> bytes:
    """Very many section headers over one symbol table, each a little different."""
    table = bytes(24) + symbol(1, TEXT) * entries
    more = [
        Section(f".{number}", b"", SYMTAB, link=".strtab", size=len(table) - 24 * (number % 7), same=".symtab")
        for number in range(count)
    ]
    return elf([Section(".symtab", table, SYMTAB, link=".strtab"), Section(".strtab", b"\0name\0", STRTAB), *more])


def names_in_one_string(length: int, count: int) -> bytes:
    """Symbols whose names begin one after the other in the same string."""
    table = bytes(24) + b"".join(symbol(1 + at, TEXT + at) for at in range(count))
    strings = Section(".strtab", b"\0" + b"a" * length + b"\0", STRTAB)
    return elf([Section(".symtab", table, SYMTAB, link=".strtab"), strings])


def packed(claimed: int, data: bytes) -> bytes:
    return struct.pack("<IIQQ", 1, 0, claimed, 1) + zlib.compress(data, 9)


def compressed_names(claimed: int, size: int) -> bytes:
    strings = Section(".strtab", packed(claimed, b"\0" + b"a" * size), STRTAB, COMPRESSED)
    return elf([Section(".symtab", bytes(24) + symbol(1, TEXT), SYMTAB, link=".strtab"), strings])


# Kernels for `link`

SIZES = {"gdt": 40, "idt": 4096, "tss": 104, "gdtr": 10, "idtr": 10}


def kernel(*, over_header: bool = False, shared: bool = False) -> bytes:
    """A kernel with room for all tables; its segments may name file bytes that belong to something else."""
    place, values = DATA, dict(HANDLERS)
    for name, size in SIZES.items():
        place = place + 127 & -128
        values[name] = place
        place += size
    values["end"] = place
    values |= {"stack": DATA + 0xA000, "second_stack": DATA + 0xC000}
    room = bytes(place - DATA)
    sections = [
        Section(".text", b"\xf4" * 128, flags=6, address=TEXT),
        Section(".data", room, flags=3, address=DATA),
        Section(".bss", kind=NOBITS, flags=3, address=DATA + 0x8000, size=0x8000),
    ]
    loads = [(".text", 5, TEXT, 128), ("" if over_header else ".data", 6, DATA, len(room))]
    if shared:  # the TSS is in a segment of its own, at the bytes of the GDT
        values["tss"] = DATA + 0x4000
        loads.append((".data", 6, DATA + 0x4000, 128))
    return elf([*sections, *symbols(values)], loads)


CONFIG = """[cpu]
stack = { bottom = "stack", size = 4096, guard = 4096 }
ist1 = { name = "double_fault", bottom = "second_stack", size = 4096 }
[idt]
"#BP" = "handler3"
"#DF" = { handler = "handler7", ist = "double_fault" }
"""


def idt() -> bytes:
    """Eight gates that lead to the handlers."""
    gates = b""
    for vector in range(8):
        at = TEXT + 16 * vector
        gates += struct.pack("<HHBBHII", at & 0xFFFF, 8, 0, 0x8E, at >> 16 & 0xFFFF, at >> 32, 0)
    return gates


FILES: dict[str, Callable[[], bytes]] = {
    "idt.bin": idt,
    "kernel.toml": CONFIG.encode,
    "kernel.elf": kernel,
    "over-header.elf": lambda: kernel(over_header=True),
    "shared-bytes.elf": lambda: kernel(shared=True),
    "sound-lines.elf": lambda: dwarf(SOUND),
    "directories.elf": lambda: dwarf(b"\0" + uleb(1 << 40) + b"\0\0"),
    "directories-of-no-byte.elf": lambda: dwarf(b"\1\1\x19" + uleb(1 << 40) + b"\0\0"),
    "files.elf": lambda: dwarf(b"\1\1\x08\1src\0" + b"\0" + uleb(1 << 40)),
    "files-of-one-string.elf": files_of_one_string,
    "no-opcodes.elf": lambda: dwarf(SOUND).replace(b"\1\1\1\xfb\x0e\x0d", b"\1\1\1\xfb\x0e\0"),
    "units-of-one-abbreviation.elf": lambda: dwarf(SOUND, attributes=b"\x3f\x19" * 2000, units=130),
    "no-bits.elf": lambda: elf([*NAMED, Section(".debug_info", kind=NOBITS, size=3 << 30)]),
    "claims-debug.elf": lambda: elf([*NAMED, Section(".debug_info", packed(3 << 30, b""), flags=COMPRESSED)]),
    "claims-names.elf": lambda: compressed_names(3 << 30, 10),
    "packed-names.elf": lambda: compressed_names(4 << 20, 4 << 20),
    "packed-to-nothing.elf": lambda: compressed_names(0, 4 << 20),
    "tables.elf": lambda: tables_of_symbols(60, 140),
    "long-name.elf": lambda: names_in_one_string(6000, 100),
    "name-without-end.elf": lambda: elf([
        Section(".symtab", bytes(24) + symbol(1, TEXT), SYMTAB, link=".strtab"), Section(".strtab", b"\0abc", STRTAB)
    ]),
    "names-are-symbols.elf": lambda: elf([Section(".symtab", bytes(24) + symbol(1, 0), SYMTAB, link=".symtab")]),
}  # fmt: skip
LARGE: dict[str, Callable[[], bytes]] = {
    "many-tables.elf": lambda: tables_of_symbols(780, 100_000),
    "one-string.elf": lambda: names_in_one_string(4000, 4000),
}


def write(folder: Path) -> None:
    for name, make in FILES.items():
        (folder / name).write_bytes(make())


if __name__ == "__main__":
    write(Path(__file__).parent)
