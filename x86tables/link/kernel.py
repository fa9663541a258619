"""A linked ELF file as far as patching it needs: segments, sections, symbols, relocations."""

from __future__ import annotations

import os
from functools import partial

from ..elf import (
    ALLOCATED,
    CORE,
    DYN,
    EXEC,
    LOAD,
    LOCAL_STORAGE,
    NOBITS,
    REL,
    RELA,
    RELOCATIONS,
    RELR,
    RESERVED,
    THREAD_LOCAL,
    Elf,
    is_elf,
)
from ..errors import ImageError, UsageError
from ..machine.files import load as load_file
from ..machine.memory import PAGE
from ..machine.symbols import Symbols
from ..machine.synthetic import Mapping
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..elf import SectionHeader
    from ..machine.files import Data

# Types of relocations and how many bytes each writes (x86-64 psABI, table "Relocation Types"); others write 8 at most.
KINDS = {
    1: ("64", 8), 2: ("PC32", 4), 3: ("GOT32", 4), 4: ("PLT32", 4), 5: ("COPY", 8), 6: ("GLOB_DAT", 8),
    7: ("JUMP_SLOT", 8), 8: ("RELATIVE", 8), 9: ("GOTPCREL", 4), 10: ("32", 4), 11: ("32S", 4), 12: ("16", 2),
    13: ("PC16", 2), 14: ("8", 1), 15: ("PC8", 1), 24: ("PC64", 8), 37: ("IRELATIVE", 8), 41: ("GOTPCRELX", 4),
    42: ("REX_GOTPCRELX", 4),
}  # fmt: skip


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


class Occupied(Record):
    """Bytes of the file that hold something, and the linear address of the first; None where they are not loaded."""

    start: int
    stop: int
    what: str
    address: int | None


class Kernel(Record):
    """A linked ELF file as far as patching it needs.

    `names` gives (address, size) of each symbol of a name; `labels` are those that mark a place in a section. `base` is
    where a position-independent one will be loaded.
    """

    path: str
    data: Data
    base: int | None
    loads: tuple[Load, ...]
    sections: tuple[Section, ...]
    names: dict[str, set[tuple[int, int]]]
    labels: Symbols
    relocations: tuple[Relocations, ...]
    occupied: tuple[Occupied, ...]

    @property
    def segments(self) -> list[Mapping]:
        """What is mapped, for `config.image`."""
        return [Mapping("kernel", load.start, load.stop - load.start, load.permissions) for load in self.loads]


def read(path: str, base: int | None = None) -> Kernel:
    """The kernel in a file. A position-independent one needs `base`: the linear address of its first byte."""
    data = load_file(path)
    if is_elf(data) and len(data) != os.path.getsize(path):
        raise ImageError(f"{path}: compressed: patch the tables in before the kernel is compressed")
    elf = Elf(path, data)
    if elf.type not in (EXEC, DYN):
        what = {REL: "an object file, not linked yet", CORE: "a memory dump"}.get(elf.type, f"ELF type {elf.type}")
        raise ImageError(f"{path}: {what}: a linked kernel expected (ET_EXEC at offset 0x10)")
    loads = tuple(_loads(elf))
    if not loads:
        raise ImageError(f"{path}: no loadable segment: a linked kernel expected")
    slide = 0
    if elf.type == DYN:
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
    names, labels = _names(elf, slide)
    return Kernel(
        path,
        data,
        base,
        tuple(load.replace(start=load.start + slide, stop=load.stop + slide) for load in loads),
        # thread-local ones have addresses that others have too
        tuple(
            _section(section, slide)
            for section in elf.sections
            if section.flags & (ALLOCATED | LOCAL_STORAGE) == ALLOCATED and section.size
        ),
        names,
        Symbols(labels),
        tuple(_relocations(elf, slide)),
        tuple(
            Occupied(held.start, held.stop, what, None if address is None else address + slide)
            for held, what, address in elf.extents()
        ),
    )


def _loads(elf: Elf) -> Iterator[Load]:
    for header in elf.segments(LOAD):
        if header.memsz:
            held = min(header.filesz, header.memsz)
            yield Load(header.vaddr, header.vaddr + header.memsz, header.permissions, held, header.offset)


def _section(section: SectionHeader, slide: int) -> Section:
    start = section.address + slide
    return Section(section.name, start, start + section.size, section.type != NOBITS)


def _names(elf: Elf, slide: int) -> tuple[dict[str, set[tuple[int, int]]], list[tuple[int, str]]]:
    """`names` and the pairs of `labels`. A global symbol hides local ones of its name, as it does for the linker."""
    names: dict[str, set[tuple[int, int]]] = {}
    labels = []
    local: list[tuple[str, int, int]] = []
    for name, value, size, info, place in elf.symbols():
        if info & 15 == THREAD_LOCAL:
            continue
        if place < RESERVED:
            value = (value + slide) % (1 << 64)
            labels.append((value, name))
        if info >> 4 == 0:
            local.append((name, value, size))
        else:
            names.setdefault(name, set()).add((value, size))
    outside = set(names)
    for name, value, size in local:
        if name not in outside:
            names.setdefault(name, set()).add((value, size))
    return names, labels


def _relocations(elf: Elf, slide: int) -> Iterator[Relocations]:
    """The tables for the running kernel: those that `ld --emit-relocs` keeps, and those of the dynamic linker."""
    for section in elf.tables(RELOCATIONS, RELA, RELR):
        entries = partial(_entries, elf, (section.type, section.offset, section.size), slide)
        target = elf.sections[section.info] if 0 < section.info < len(elf.sections) else None
        if target is None or section.flags & ALLOCATED:  # .rela.plt names the section of its slots
            yield Relocations(None, entries)
        elif target.flags & ALLOCATED:
            yield Relocations(_section(target, slide), entries)
    if not elf.sections:
        for table in elf.dynamic_relocations():
            yield Relocations(None, partial(_entries, elf, table, slide))


def _entries(elf: Elf, table: tuple[int, int, int], slide: int) -> Iterator[tuple[int, int, str]]:
    for address, number in elf.relocations(*table):
        if number and elf.bits == 64:
            name, size = KINDS.get(number, (str(number), 8))
            yield address + slide, size, f"R_X86_64_{name}"
        elif number:
            yield address + slide, 4, f"R_386 type {number}"
