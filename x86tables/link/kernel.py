"""A linked ELF file as far as patching it needs: segments, sections, symbols, relocations."""

from __future__ import annotations

import os
import re
import struct
from functools import partial

from ..errors import ImageError, UsageError
from ..machine.files import load as load_file
from ..machine.memory import PAGE
from ..machine.symbols import Symbols
from ..machine.synthetic import Mapping
from ..readers.elf import guarded, matches, open_elf
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..machine.files import Data

ALLOCATED, LOCAL_STORAGE = 1 << 1, 1 << 10  # sh_flags
FILE, THREAD_LOCAL = 4, 6  # types of symbols whose values are no addresses
UNDEFINED, RESERVED = 0, 0xFF00  # st_shndx: none; from here on no section (SHN_ABS is 0xfff1)


class Load(Record):
    """A loadable segment: linear addresses, letters of r, w and x; `held` bytes of it lie at `offset` of the file."""

    start: int
    stop: int
    permissions: str
    held: int
    offset: int


class Section(Record):
    """A section that the running kernel has: where it is, and whether the file has its contents."""

    name: str
    start: int
    stop: int
    filled: bool


class Relocations(Record):
    """What a relocation table will write when the kernel is loaded or moved; `target` is a section, None for any.

    `entries` are (address, size, type), read when they are asked for: a large kernel has a million.
    """

    target: Section | None
    entries: Callable[[], Iterator[tuple[int, int, str]]]


class Kernel(Record):
    """A linked ELF file as far as patching it needs.

    `names` gives (address, size) of each symbol of a name; `labels` are those that mark a place in a section.
    """

    path: str
    data: Data
    loads: tuple[Load, ...]
    sections: tuple[Section, ...]
    names: dict[str, set[tuple[int, int]]]
    labels: Symbols
    relocations: tuple[Relocations, ...]

    @property
    def segments(self) -> list[Mapping]:
        """What is mapped, for `config.image`."""
        return [Mapping("kernel", load.start, load.stop - load.start, load.permissions) for load in self.loads]


def read(path: str, base: int | None = None) -> Kernel:
    """The kernel in a file. A position-independent one needs `base`: the linear address of its first byte."""
    data = load_file(path)
    if matches(data) and len(data) != os.path.getsize(path):
        raise ImageError(f"{path}: compressed: the tables are linked in before the kernel is compressed")
    elf = open_elf(path, data)
    kind = elf["e_type"]
    if kind not in ("ET_EXEC", "ET_DYN"):
        what = {"ET_REL": "an object file, not linked yet", "ET_CORE": "a memory dump"}.get(kind, f"an ELF file {kind}")
        raise ImageError(f"{path}: {what}: a linked kernel expected (ET_EXEC at offset 0x10)")
    heads = f"program headers at offset {elf['e_phoff']:#x}"
    loads = tuple(guarded(path, heads, _loads(elf)))
    if not loads:
        raise ImageError(f"{path}: no loadable segment: a linked kernel expected")
    slide = 0
    if kind == "ET_DYN":
        if base is None:
            raise ImageError(f"{path}: position-independent (ET_DYN): --base ADDR says where it will be loaded")
        slide = base - (min(load.start for load in loads) & -PAGE)
        if base % PAGE:
            raise UsageError(f"--base {base:#x}: a multiple of {PAGE} expected")
    elif base is not None:
        raise UsageError(f"--base is for position-independent files: {path} is linked for fixed addresses (ET_EXEC)")
    for load in loads:
        if load.offset + load.held > len(data):
            raise ImageError(f"{path}: the segment at {load.start:#x} reaches beyond the end of the file")
    tables = f"symbols or section headers at offset {elf['e_shoff']:#x}"
    sections = tuple(guarded(path, tables, _sections(elf)))
    names: dict[str, set[tuple[int, int]]] = {}
    labels = []
    for name, address, size, placed in guarded(path, tables, _symbols(elf)):
        if placed:
            address = (address + slide) % (1 << 64)
            labels.append((address, name))
        names.setdefault(name, set()).add((address, size))
    return Kernel(
        path,
        data,
        tuple(load.replace(start=load.start + slide, stop=load.stop + slide) for load in loads),
        tuple(section.replace(start=section.start + slide, stop=section.stop + slide) for section in sections),
        names,
        Symbols(labels),
        tuple(guarded(path, "relocations", _relocations(path, elf, slide))),
    )


def _loads(elf: Any) -> Iterator[Load]:
    for header in elf.iter_segments("PT_LOAD"):
        letters = "".join(letter for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if header["p_flags"] & bit)
        start = header["p_vaddr"]
        if header["p_memsz"]:
            held = min(header["p_filesz"], header["p_memsz"])
            yield Load(start, start + header["p_memsz"], letters, held, header["p_offset"])


def _section(section: Any) -> Section:
    start = section["sh_addr"]
    return Section(section.name, start, start + section["sh_size"], section["sh_type"] != "SHT_NOBITS")


def _sections(elf: Any) -> Iterator[Section]:
    for section in elf.iter_sections():  # thread-local ones have addresses that others have too
        if section["sh_flags"] & (ALLOCATED | LOCAL_STORAGE) == ALLOCATED and section["sh_size"]:
            yield _section(section)


def _symbols(elf: Any) -> Iterator[tuple[str, int, int, bool]]:
    """Name, value, size of each symbol, and whether it marks a place in a section.

    A global one hides local ones of its name, as it does for the linker. Read without pyelftools' `iter_symbols`, which
    takes ten seconds for the symbols of a large kernel.
    """
    local, outside = [], set()
    for section in elf.iter_sections():
        if section["sh_type"] not in ("SHT_SYMTAB", "SHT_DYNSYM"):
            continue
        data, strings = section.data(), elf.get_section(section["sh_link"]).data()
        form = struct.Struct("<IBBHQQ" if elf.elfclass == 64 else "<IIIBBH")
        for row in form.iter_unpack(data[: len(data) // form.size * form.size]):
            name, info, _, place, value, size = row if elf.elfclass == 64 else (row[0], *row[3:], row[1], row[2])
            if not name or place == UNDEFINED or info & 15 in (FILE, THREAD_LOCAL):
                continue
            text = strings[name : strings.index(0, name)].decode("utf-8", "backslashreplace")
            if info >> 4 == 0:
                local.append((text, value, size, place < RESERVED))
            else:
                outside.add(text)
                yield text, value, size, place < RESERVED
    yield from (row for row in local if row[0] not in outside)


def _relocations(path: str, elf: Any, slide: int) -> Iterator[Relocations]:
    """The tables for the running kernel: those that `ld --emit-relocs` keeps, and those of the dynamic linker."""
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.relocation import RelocationSection, RelrRelocationSection

    for section in elf.iter_sections():
        if isinstance(section, RelocationSection | RelrRelocationSection):
            number = section["sh_info"]
            aimed = elf.get_section(number) if number and number < elf.num_sections() else None
            if aimed is None or section["sh_flags"] & ALLOCATED:  # .rela.plt names the section of its slots
                yield Relocations(None, partial(_entries, path, section, slide))
            elif aimed["sh_flags"] & ALLOCATED:
                target = _section(aimed)
                target = target.replace(start=target.start + slide, stop=target.stop + slide)
                yield Relocations(target, partial(_entries, path, section, slide))
    for segment in elf.iter_segments("PT_DYNAMIC"):
        if isinstance(segment, DynamicSegment) and not elf.num_sections():
            for table in segment.get_relocation_tables().values():
                yield Relocations(None, partial(_entries, path, table, slide))


def _entries(path: str, table: Any, slide: int) -> Iterator[tuple[int, int, str]]:
    from elftools.elf.enums import ENUM_RELOC_TYPE_x64

    kinds = {number: name for name, number in ENUM_RELOC_TYPE_x64.items()}
    for entry in guarded(path, "relocations", table.iter_relocations()):
        kind = kinds.get(entry["r_info_type"], "of unknown type") if "r_info" in entry.entry else "R_X86_64_RELATIVE"
        bits = re.search(r"(8|16|32)S?$", kind)
        if kind != "R_X86_64_NONE":
            yield entry["r_offset"] + slide, int(bits[1]) // 8 if bits else 8, kind
