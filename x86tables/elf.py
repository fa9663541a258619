"""ELF files for x86: headers, segments, sections, symbols, relocations, and the headers of a new file.

The one place that knows the format (System V gABI, chapters 4 and 5; the x86-64 psABI for relocations). Sizes in a file
are claims: each is held against the size of the file before anything is read, and what a few bytes can make large
(compressed sections, names that share one string, many headers over one table) has a limit. What is damaged is an
ImageError that names file and offset.
"""

from __future__ import annotations

import struct

from . import budgets
from .errors import ImageError
from .machine.symbols import printable
from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .machine.files import Data

MAGIC = b"\x7fELF"
REL, EXEC, DYN, CORE = 1, 2, 3, 4  # e_type
LOAD, DYNAMIC, NOTE = 1, 2, 4  # p_type
SYMTAB, RELA, NOBITS, RELOCATIONS, DYNSYM, RELR = 2, 4, 8, 9, 11, 19  # sh_type; 9 is SHT_REL
ALLOCATED, LOCAL_STORAGE, COMPRESSED = 1 << 1, 1 << 10, 1 << 11  # sh_flags
UNDEFINED, RESERVED = 0, 0xFF00  # st_shndx: none; from here on not a section (SHN_ABS is 0xfff1)
FILE, THREAD_LOCAL = 4, 6  # types of symbols whose values are not addresses
RELATIVE = 8  # R_X86_64_RELATIVE and R_386_RELATIVE
X86, X86_64 = MACHINES = (3, 62)  # e_machine
MANY = 0xFFFF  # e_phnum, e_shstrndx: the number stands in section 0

_HEADER = {32: struct.Struct("<HHIIIIIHHHHHH"), 64: struct.Struct("<HHIQQQIHHHHHH")}  # behind e_ident
_SEGMENT = {32: struct.Struct("<8I"), 64: struct.Struct("<IIQQQQQQ")}
_SECTION = {32: struct.Struct("<10I"), 64: struct.Struct("<IIQQQQIIQQ")}
_SYMBOL = {32: struct.Struct("<IIIBBH"), 64: struct.Struct("<IBBHQQ")}
_RELOCATION = {32: {RELOCATIONS: "<II", RELA: "<III"}, 64: {RELOCATIONS: "<QQ", RELA: "<QQQ"}}
_DYNAMIC = {32: struct.Struct("<II"), 64: struct.Struct("<QQ")}
_COMPRESSION = {32: struct.Struct("<III"), 64: struct.Struct("<I4xQQ")}  # ch_type, ch_size, ch_addralign
_IDENT = b"\x7fELF\2\1\1".ljust(16, b"\0")


class ProgramHeader(Record):
    """A segment: its fields as ELF64 orders them."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int = 0

    @property
    def permissions(self) -> str:
        """Letters of r, w and x."""
        return "".join(letter for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if self.flags & bit)

    def packed(self) -> bytes:
        """The header as an ELF64 file has it."""
        return _SEGMENT[64].pack(*self)


class SectionHeader(Record):
    """A section; `link` and `info` are numbers of other sections, by type."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int


class Elf:
    """An ELF file for x86: its header is read at once, the rest when asked for. `bits` is its class, 32 or 64."""

    bits: int
    type: int
    machine: int
    segment_count: int
    segments_at: int
    _segment_size: int
    _sections_at: int
    _section_count: int
    _section_size: int
    _names: int

    def __init__(self, path: str, data: Data) -> None:
        self.path, self.data = path, data
        if not is_elf(data):
            raise ImageError(f"{path}: not an ELF file: it begins with {data[:4].hex(' ')}, 7f 45 4c 46 expected")
        head = data[:64]
        width = head[4] if len(head) > 4 else 2
        if width not in (1, 2):
            raise ImageError(f"{path}: the ELF class at offset 0x4 is {width}: 1 (32-bit) or 2 (64-bit) expected")
        self.bits = 32 * width
        if len(data) < 16 + _HEADER[self.bits].size:
            raise ImageError(f"{path}: cut off within the ELF header: it ends at {len(data):#x}")
        if head[5] != 1:
            raise ImageError(f"{path}: the byte order at offset 0x5 is {head[5]}: 1 (little-endian) expected")
        (
            self.type, self.machine, _, _, self.segments_at, self._sections_at, _, _,
            self._segment_size, self.segment_count, self._section_size, self._section_count, self._names,
        ) = _HEADER[self.bits].unpack_from(head, 16)  # fmt: skip
        if self.machine not in MACHINES:
            raise ImageError(f"{path}: the machine at offset 0x12 is {self.machine}: 62 (x86-64) or 3 (x86) expected")
        if self.segment_count == MANY and self._sections_at:
            at = self._sections_at + (44 if self.bits == 64 else 28)  # sh_info of section 0
            if at + 4 > len(data):
                raise ImageError(
                    f"{path}: the number of segments should stand at offset {at:#x}, beyond the end {len(data):#x}"
                )
            self.segment_count = int.from_bytes(data[at : at + 4], "little")
        self._sections: tuple[SectionHeader, ...] | None = None
        self._room = budgets.ANY_FILE + budgets.SECTIONS_RATIO * len(data)  # for what is unpacked

    # Segments

    @property
    def segments_held(self) -> int:
        """How many program headers the file really holds; ImageError when they have another size than ELF's."""
        size = _SEGMENT[self.bits].size
        if self.segment_count and self._segment_size != size:
            raise ImageError(
                f"{self.path}: {self.segment_count} segments of {self._segment_size} bytes: "
                f"segments of {size} bytes expected"
            )
        return min(self.segment_count, max(0, len(self.data) - self.segments_at) // size)

    def segments(self, *types: int, cut_off: bool = False) -> Iterator[ProgramHeader]:
        """The segments of these types. ImageError when the file ends within the headers, unless it may be `cut_off`."""
        held = self.segments_held
        if held < self.segment_count and not cut_off:
            raise self._beyond("the program headers", self.segments_at, self.segment_count * self._segment_size)
        form = _SEGMENT[self.bits]
        make = ProgramHeader.maker()
        for row in form.iter_unpack(self.data[self.segments_at : self.segments_at + held * form.size]):
            if row[0] in types:
                yield make(row if self.bits == 64 else (row[0], row[6], *row[1:6], row[7]))

    # Sections

    @property
    def sections(self) -> tuple[SectionHeader, ...]:
        """All sections, by number; none in a file without section headers."""
        if self._sections is None:
            self._sections = tuple(self._read_sections())
        return self._sections

    def _read_sections(self) -> Iterator[SectionHeader]:
        form, at = _SECTION[self.bits], self._sections_at
        if not at:
            return
        if self._section_size != form.size:
            raise ImageError(
                f"{self.path}: the section headers at offset {at:#x} have {self._section_size} bytes: "
                f"{form.size} expected"
            )
        self._inside("the section headers", at, form.size)
        first = form.unpack(self.data[at : at + form.size])
        count = self._section_count or first[5]
        names = first[6] if self._names == MANY else self._names
        self._inside("the section headers", at, count * form.size)
        rows = list(form.iter_unpack(self.data[at : at + count * form.size]))
        text = _Names(self.path, b"")
        if names:
            if names >= count:
                raise ImageError(f"{self.path}: section {names} should hold the names of sections: there are {count}")
            _, kind, _, _, offset, size = rows[names][:6]
            if kind != NOBITS:
                self._inside("the names of sections", offset, size)
                text = _Names(self.path, self.data[offset : offset + size])
        for row in rows:
            yield SectionHeader(text(row[0]) if names else "", *row[1:8])

    def section(self, number: int) -> SectionHeader:
        """A section by its number, as another one names it."""
        if number >= len(self.sections):
            raise ImageError(f"{self.path}: section {number} is named, but there are {len(self.sections)} sections")
        return self.sections[number]

    def contents(self, section: SectionHeader) -> bytes:
        """The bytes of a section, unpacked; b"" where the file has none. ImageError when they are too many."""
        if section.type == NOBITS:
            return b""
        self._inside(f"section {section.name}", section.offset, section.size)
        data = self.data[section.offset : section.offset + section.size]
        if not section.flags & COMPRESSED:
            return data
        form = _COMPRESSION[self.bits]
        kind, size, _ = form.unpack_from(data) if len(data) >= form.size else (0, 0, 0)
        if kind != 1:
            raise ImageError(f"{self.path}: section {section.name} is compressed by method {kind}: 1 (zlib) expected")
        return self.unpack(section, data[form.size :], size)

    def unpack(self, section: SectionHeader, data: bytes, size: int) -> bytes:
        """The contents of a zlib stream that claims so many. ImageError when it holds others, or more than the room."""
        import zlib

        self._room -= size
        if self._room < 0:
            raise ImageError(
                f"{self.path}: section {section.name} unpacks to {size:#x} bytes: all sections of a file may unpack to "
                f"{budgets.SECTIONS_RATIO} times its size and {budgets.ANY_FILE:#x} bytes"
            )
        try:
            content = zlib.decompressobj().decompress(data, size or 1)  # 0 would be no limit
        except zlib.error as error:
            raise ImageError(f"{self.path}: section {section.name} is damaged: {error}") from None
        if len(content) != size:
            raise ImageError(
                f"{self.path}: section {section.name} unpacks to other than the {size} bytes that it claims"
            )
        return content

    def tables(self, *types: int) -> list[SectionHeader]:
        """The sections of these types, those that say the same once. ImageError when they are larger than the file."""
        found = {(s.type, s.offset, s.size, s.link, s.info): s for s in self.sections if s.type in types}
        if sum(section.size for section in found.values()) > len(self.data):
            raise ImageError(
                f"{self.path}: {len(found)} tables of symbols or relocations are larger than the file: they overlap"
            )
        return list(found.values())

    # Symbols and relocations

    def symbols(self) -> Iterator[tuple[str, int, int, int, int]]:
        """Name, value, size, st_info and st_shndx of each symbol that has a name and is defined, but for files' names.

        Names are printable: what would move the cursor is escaped. About 1 us a symbol: plain tuples, not records.
        """
        form = _SYMBOL[self.bits]
        for section in self.tables(SYMTAB, DYNSYM):
            name_of = _Names(self.path, self.contents(self.section(section.link)))
            known = name_of.known
            data = self.contents(section)
            rows = form.iter_unpack(data[: len(data) // form.size * form.size])
            if self.bits == 32:
                rows = ((name, info, other, place, value, size) for name, value, size, info, other, place in rows)
            for name, info, _, place, value, size in rows:
                if name and place != UNDEFINED and info & 15 != FILE:
                    text = known.get(name) or name_of(name)
                    if text:
                        yield text, value, size, info, place

    def relocations(self, kind: int, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Address and type of each entry of a relocation table, whose `kind` is that of such a section."""
        self._inside("a relocation table", offset, size)
        if kind == RELR:
            yield from self._relative(offset, size)
            return
        form = struct.Struct(_RELOCATION[self.bits][kind])
        mask = 0xFF if self.bits == 32 else 0xFFFF_FFFF
        for address, info, *_ in form.iter_unpack(self.data[offset : offset + size // form.size * form.size]):
            yield address, info & mask

    def _relative(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """A table of type RELR: an address, then bitmaps of the words behind it (gABI, "Relative Relocation Table")."""
        word = self.bits // 8
        place = 0
        data = self.data[offset : offset + size // word * word]
        for (entry,) in struct.iter_unpack("<Q" if word == 8 else "<I", data):
            if not entry & 1:
                yield entry, RELATIVE
                place = entry + word
                continue
            for bit in range(1, self.bits):
                if entry >> bit & 1:
                    yield place + word * (bit - 1), RELATIVE
            place += word * (self.bits - 1)

    def dynamic_relocations(self) -> Iterator[tuple[int, int, int]]:
        """(kind, offset, size) of the relocation tables that the dynamic segment names: there need not be sections."""
        form = _DYNAMIC[self.bits]
        for segment in self.segments(DYNAMIC):
            self._inside("the dynamic segment", segment.offset, segment.filesz)
            tags: dict[int, int] = {}
            data = self.data[segment.offset : segment.offset + segment.filesz // form.size * form.size]
            for tag, value in form.iter_unpack(data):
                if not tag:
                    break
                tags.setdefault(tag, value)
            jumps = RELA if tags.get(20) == 7 else RELOCATIONS  # DT_PLTREL is DT_RELA
            for kind, place, size in ((RELA, 7, 8), (RELOCATIONS, 17, 18), (RELR, 36, 35), (jumps, 23, 2)):
                if place in tags and tags.get(size):
                    yield kind, self.file_offset(tags[place]), tags[size]

    def file_offset(self, address: int) -> int:
        """Where the file has the byte that is loaded at an address."""
        for segment in self.segments(LOAD):
            if segment.vaddr <= address < segment.vaddr + segment.filesz:
                return segment.offset + address - segment.vaddr
        raise ImageError(f"{self.path}: a relocation table at {address:#x}, which no segment has in the file")

    # What must not be overwritten

    def extents(self) -> Iterator[tuple[range, str, int | None]]:
        """Which bytes of the file are what: headers, and sections with the address of their first byte if loaded."""
        yield range(16 + _HEADER[self.bits].size), "the ELF header", None
        end = self.segments_at + self.segment_count * self._segment_size
        yield range(self.segments_at, end), "the program headers", None
        end = self._sections_at + len(self.sections) * self._section_size
        yield range(self._sections_at, end), "the section headers", None
        for section in self.sections:
            if section.type not in (0, NOBITS):
                held = range(section.offset, section.offset + section.size)
                yield held, f"section {section.name}", section.address if section.flags & ALLOCATED else None

    def _inside(self, what: str, offset: int, size: int) -> None:
        if offset + size > len(self.data):
            raise self._beyond(what, offset, size)

    def _beyond(self, what: str, offset: int, size: int) -> ImageError:
        return ImageError(
            f"{self.path}: damaged or cut off: {what} at offset {offset:#x} with {size:#x} bytes "
            f"cannot be read: the file ends at {len(self.data):#x}"
        )


class _Names:
    """The names in a string table, each read once; all together not much longer than the table."""

    def __init__(self, path: str, strings: bytes) -> None:
        self.known: dict[int, str] = {}
        self._path, self._strings = path, strings
        self._room = budgets.ANY_FILE + budgets.NAMES_RATIO * len(strings)

    def __call__(self, at: int) -> str:
        if at in self.known:
            return self.known[at]
        end = self._strings.find(0, at, at + budgets.NAME + 1)
        if end < 0:
            if at + budgets.NAME < len(self._strings):
                raise ImageError(f"{self._path}: a name is longer than {budgets.NAME} bytes")
            raise ImageError(f"{self._path}: damaged: the name at {at:#x} of a string table has no end")
        self._room -= end - at
        if self._room < 0:
            raise ImageError(
                f"{self._path}: the names share strings: all together may be {budgets.NAMES_RATIO} times as long as "
                "their table"
            )
        text = self.known[at] = printable(self._strings[at:end].decode("utf-8", "backslashreplace"))
        return text


def is_elf(data: Data) -> bool:
    """Whether these are the bytes of an ELF file."""
    return data[:4] == MAGIC


def header(kind: int, segments: int, entry: int = 0, machine: int = X86_64) -> bytes:
    """The header of an ELF64 file whose program headers follow; behind those of 0xffff and more, `section_zero`."""
    many = segments >= MANY
    sections = 64 + 56 * segments if many else 0
    fields = (kind, machine, 1, entry, 64, sections, 0, 64, 56, MANY if many else segments, 64, int(many), 0)
    return _IDENT + _HEADER[64].pack(*fields)


def section_zero(segments: int) -> bytes:
    """The section that holds the number of segments where it does not fit into the header."""
    return bytes(44) + segments.to_bytes(4, "little") + bytes(16) if segments >= MANY else b""
