"""Source lines for addresses, from an ELF file's DWARF: a unit is decoded when an address in it is asked for.

And what its code was compiled with, where compilers have recorded that.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from functools import cached_property
from io import BytesIO

from .. import budgets
from ..elf import DYN, EXEC, LOAD, Elf
from ..machine.symbols import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from ..machine.files import Data

    Row: TypeAlias = tuple[int, str | None]  # from this address on; None where a sequence ends

_ARANGES = struct.Struct("<IHIBB")  # the header of a set: length, version, offset of the unit, sizes of two things
_ARANGE = struct.Struct("<QQ")
SECTIONS = ("info", "aranges", "abbrev", "str", "ranges", "line", "addr", "str_offsets", "line_str", "rnglists")
UNUSED = (
    "debug_frame_sec", "eh_frame_sec", "debug_loc_sec", "debug_pubtypes_sec", "debug_pubnames_sec",
    "debug_loclists_sec", "debug_sup_sec", "gnu_debugaltlink_sec", "debug_types_sec",
)  # fmt: skip
# DWARF 5, section 7.5.6: bytes of the forms that entries of a line table may have; those with a length of their own 0
FORM_SIZES = {0x08: 0, 0x09: 0, 0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x0E: 4, 0x0F: 0, 0x1E: 16, 0x1F: 4}
STRING, BLOCK, ULEB = 0x08, 0x09, 0x0F
# DW_AT_producer of GCC, or of Clang with -grecord-command-line: with options, as no other string has them
PRODUCER = rb"(?:^|(?<=\0))(?:GNU (?!AS )|[^\0]{0,40}clang version )[^\0]* -[^\0]+"


class Lines:
    """`file.c:12` for an address as linked, from the bytes of an ELF file, which is opened at the first question.

    Debugging information that is missing, damaged or of a kind that is not read answers None: names do without it. So
    does one that costs too much: units may refer to the same list or string again and again.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self._dwarf: Any = None
        self._opened = False
        self._loaded: list[tuple[int, int]] = []  # start and stop of the segments that are executable
        self._ranges: list[tuple[int, int, int]] = []  # start, stop, offset of the unit
        self._rows: dict[int, list[Row]] = {}

    def __call__(self, address: int) -> str | None:
        try:
            if not self._opened:
                self._open()
            return self._find(address)
        except Exception:  # damage shows in many ways, and a name without its line is good enough
            return None

    def compiled(self, how: Callable[[str], bool]) -> tuple[str, ...] | None:
        """Some of the source files whose compiler and options, as it recorded them, are as `how` says; None where no
        compiler has recorded any, or this cannot be read."""
        try:
            if not any(map(how, self._producers)):
                return () if self._producers else None
            if not self._opened:
                self._open()
            found: dict[str, None] = {}
            for unit in self._dwarf.iter_CUs():
                top = unit.get_top_DIE().attributes
                self._dwarf.debug_info_sec.stream.budget.spend(len(top))
                if {"DW_AT_producer", "DW_AT_name"} <= top.keys() and how(
                    _text(top["DW_AT_producer"].value, budgets.COMPILER_OPTIONS)
                ):
                    found[_text(top["DW_AT_name"].value)] = None
                    if len(found) == budgets.NAMED_FILES:
                        break
            return tuple(found)
        except Exception:  # as for lines
            return None

    @cached_property
    def _producers(self) -> set[str]:
        """Compilers with their options; a search in the strings is faster than a walk over the units."""
        strings = _sections(Elf("", self._data), ("str",)).get("str", b"")
        return {_text(each, budgets.COMPILER_OPTIONS) for each in re.findall(PRODUCER, strings)}

    def _open(self) -> None:
        from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

        self._opened = True
        elf = Elf("", self._data)
        found = _sections(elf)
        if "info" not in found or elf.type not in (EXEC, DYN):
            return
        self._loaded = [(s.vaddr, s.vaddr + s.memsz) for s in elf.segments(LOAD) if "x" in s.permissions]
        budget = Budget(min(budgets.READS, budgets.READS_ANY_FILE + budgets.READS_PER_BYTE * len(self._data)))
        self._dwarf = DWARFInfo(
            DwarfConfig(True, "x64" if elf.bits == 64 else "x86", elf.bits // 8),
            **dict.fromkeys(UNUSED),
            **{
                f"debug_{name}_sec": DebugSectionDescriptor(Metered(found[name], budget), name, 0, len(found[name]), 0)
                if name in found
                else None
                for name in SECTIONS
            },
        )
        # compilers may leave .debug_aranges out: then the units themselves say what they cover
        self._ranges = sorted(_aranges(found.get("aranges", b""))) or sorted(self._units())

    def _find(self, address: int) -> str | None:
        if self._loaded and not any(start <= address < stop for start, stop in self._loaded):
            return None  # a function that the linker has discarded (--gc-sections) still has its lines, at 0
        number = bisect_right(self._ranges, (address, 1 << 64, 0)) - 1
        if number < 0 or address >= self._ranges[number][1]:
            return None
        unit = self._ranges[number][2]
        if unit not in self._rows:
            self._rows[unit] = []  # when it cannot be decoded, that is not tried again
            self._rows[unit] = sorted(self._decode(unit), key=lambda row: (row[0], row[1] is not None))
        rows = self._rows[unit]
        return rows[bisect_right(rows, address, key=lambda row: row[0]) - 1][1] if rows else None

    def _units(self) -> Iterator[tuple[int, int, int]]:
        """What each compilation unit covers."""
        lists = self._dwarf.range_lists()
        for unit in self._dwarf.iter_CUs():
            top = unit.get_top_DIE().attributes
            self._dwarf.debug_info_sec.stream.budget.spend(len(top))  # some take no byte, and so no read
            low = top["DW_AT_low_pc"].value if "DW_AT_low_pc" in top else 0
            if "DW_AT_high_pc" in top:
                high = top["DW_AT_high_pc"]
                yield low, high.value + (0 if high.form == "DW_FORM_addr" else low), unit.cu_offset
            elif "DW_AT_ranges" in top and lists is not None:
                base = low
                for entry in lists.get_range_list_at_offset(top["DW_AT_ranges"].value, cu=unit):
                    if not hasattr(entry, "begin_offset"):
                        base = entry.base_address
                    else:
                        start = 0 if getattr(entry, "is_absolute", False) else base
                        yield start + entry.begin_offset, start + entry.end_offset, unit.cu_offset

    def _decode(self, offset: int) -> Iterator[Row]:
        """The line table of one unit."""
        unit = self._dwarf.get_CU_at(offset)
        attributes = unit.get_top_DIE().attributes
        if "DW_AT_stmt_list" not in attributes:
            return
        data = self._dwarf.debug_line_sec.stream.getvalue()
        _check_line_header(data, attributes["DW_AT_stmt_list"].value, unit.structs.dwarf_format == 64)
        program = self._dwarf.line_program_for_CU(unit)
        directory = _text(attributes["DW_AT_comp_dir"].value) if "DW_AT_comp_dir" in attributes else ""
        names = _files(program.header, directory)
        for entry in program.get_entries():
            state = entry.state
            if state is not None:
                name = names.get(state.file, "?")
                yield state.address, None if state.end_sequence else f"{name}:{state.line}"


class Budget:
    """How many reads are left; ValueError when there are none."""

    def __init__(self, reads: int) -> None:
        self._all = self._left = reads

    def spend(self, reads: int) -> None:
        self._left -= reads
        if self._left < 0:
            raise ValueError(f"the debugging information refers to itself too often: more than {self._all} reads")


class Metered(BytesIO):
    """A section as pyelftools reads it, each read paid for, a long one as several."""

    def __init__(self, data: bytes, budget: Budget) -> None:
        super().__init__(data)
        self.budget = budget

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.budget.spend(1 + len(data) // 16)
        return data


def _sections(elf: Elf, wanted: tuple[str, ...] = SECTIONS) -> dict[str, bytes]:
    """Sections of debugging information, by name without `.debug_`; `.zdebug_` is how they once were compressed."""
    found = {}
    for section in elf.sections:
        _, packed, name = section.name.partition(".zdebug_")
        name = name or section.name.removeprefix(".debug_")
        if name in wanted and section.name.startswith((".debug_", ".zdebug_")):
            data = elf.contents(section)
            if packed and data[:4] == b"ZLIB":
                data = elf.unpack(section, data[12:], int.from_bytes(data[4:12], "big"))
            found[name] = data
    return found


def _check_line_header(data: bytes, at: int, wide: bool) -> None:
    """ValueError for a large table, and for entries of no byte in one of DWARF 5: pyelftools would count them all.

    DWARF 5, section 6.2.4: a list of forms, then a number of entries of these forms, for directories and for files.
    """
    length, version = struct.unpack_from("<4xQH" if wide else "<IH", data, at)
    if (data[at : at + 4] == b"\xff\xff\xff\xff") != wide or length > budgets.LINE_PROGRAM:
        raise ValueError("not as its unit says, or too large")
    if version < 5:
        return
    at += (12 + 4 + 8 if wide else 4 + 4 + 4) + 5  # up to opcode_base
    if not data[at]:
        raise ValueError("no opcodes")
    at += data[at]
    for _ in range(2):
        forms = []
        formats = data[at]
        at += 1
        for _ in range(formats):
            _, at = _uleb(data, at)
            form, at = _uleb(data, at)
            forms.append(form)
        count, at = _uleb(data, at)
        if not count:
            continue
        if not forms or not set(forms) <= FORM_SIZES.keys() or count > len(data):
            raise ValueError(f"{count} entries of the forms {forms}")
        for _ in range(count):
            for form in forms:
                if form == STRING:
                    at = data.index(0, at) + 1
                elif form == BLOCK:
                    size, at = _uleb(data, at)
                    at += size
                elif form == ULEB:
                    _, at = _uleb(data, at)
                else:
                    at += FORM_SIZES[form] * (2 if wide and form in (0x0E, 0x1F) else 1)
            if at > len(data):
                raise ValueError("entries beyond the end of the section")


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number of at most 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _aranges(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(start, stop, offset of the unit) of .debug_aranges, as 64-bit code has it."""
    at = 0
    while at + _ARANGES.size <= len(data):
        length, _, unit, width, segment = _ARANGES.unpack_from(data, at)
        end = at + 4 + length
        if width == 8 and not segment:
            first = at + (_ARANGES.size + 15 & ~15)
            whole = (min(end, len(data)) - first) // _ARANGE.size * _ARANGE.size
            for start, size in _ARANGE.iter_unpack(data[first : first + max(0, whole)]):
                if size:
                    yield start, start + size, unit
        at = end


def _files(header: Any, directory: str) -> dict[int, str]:
    """File number -> path, relative to the directory of compilation where it lies in there."""
    new = header["version"] >= 5
    folders = [_text(folder) for folder in header["include_directory"]]
    folders = folders if new else [directory, *folders]
    names = {}
    for number, file in enumerate(header["file_entry"], 0 if new else 1):
        name = _text(file.name)
        place = file.dir_index or 0  # DWARF 5 may leave it out
        folder = folders[place] if place < len(folders) else ""
        path = name if name.startswith("/") or not folder or folder == directory else f"{folder}/{name}"
        names[number] = path.removeprefix(directory + "/") if directory else path
    return names


def _text(value: Any, most: int = budgets.NAME) -> str:
    if len(value) > most:
        raise ValueError("a path that is too long")
    return printable(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)
