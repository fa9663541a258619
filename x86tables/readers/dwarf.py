"""Source lines for addresses, from an ELF file's DWARF: a unit is decoded when an address in it is asked for."""

from __future__ import annotations

import struct
from bisect import bisect_right

from ..machine.symbols import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    from ..machine.files import Data

    Row: TypeAlias = tuple[int, str | None]  # from this address on; None where a sequence ends

_ARANGES = struct.Struct("<IHIBB")  # the header of a set: length, version, offset of the unit, sizes of two things
_ARANGE = struct.Struct("<QQ")


class Lines:
    """`file.c:12` for an address as linked, from the bytes of an ELF file, which is opened at the first question.

    Debugging information that is missing, damaged or of a kind that is not read answers None: names do without it.
    """

    def __init__(self, data: Data) -> None:
        self._data: Any = data
        self._dwarf: Any = None
        self._opened = False
        self._ranges: list[tuple[int, int, int]] = []  # start, stop, offset of the unit
        self._rows: dict[int, list[Row]] = {}

    def __call__(self, address: int) -> str | None:
        try:
            if not self._opened:
                self._open()
            return self._find(address)
        except Exception:  # damage shows in many ways, and a name without its line is good enough
            return None

    def _open(self) -> None:
        from elftools.elf.elffile import ELFFile

        self._opened = True
        elf = ELFFile(self._data)
        if elf.has_dwarf_info() and elf["e_type"] != "ET_REL":
            self._dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False)
            section = self._dwarf.debug_aranges_sec
            ranges = _aranges(section.stream.getvalue()) if section is not None else iter(())
            # compilers may leave .debug_aranges out: then the units themselves say what they cover
            self._ranges = sorted(ranges) or sorted(self._units())

    def _find(self, address: int) -> str | None:
        number = bisect_right(self._ranges, (address, 1 << 64, 0)) - 1
        if number < 0 or address >= self._ranges[number][1]:
            return None
        unit = self._ranges[number][2]
        if unit not in self._rows:
            self._rows[unit] = sorted(self._decode(unit), key=lambda row: (row[0], row[1] is not None))
        rows = self._rows[unit]
        return rows[bisect_right(rows, address, key=lambda row: row[0]) - 1][1] if rows else None

    def _units(self) -> Iterator[tuple[int, int, int]]:
        """What each compilation unit covers."""
        lists = self._dwarf.range_lists()
        for unit in self._dwarf.iter_CUs():
            top = unit.get_top_DIE().attributes
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
        program = self._dwarf.line_program_for_CU(unit)
        if program is None:
            return
        attributes = unit.get_top_DIE().attributes
        directory = _text(attributes["DW_AT_comp_dir"].value) if "DW_AT_comp_dir" in attributes else ""
        names = _files(program.header, directory)
        for entry in program.get_entries():
            state = entry.state
            if state is not None:
                name = names.get(state.file, "?")
                yield state.address, None if state.end_sequence else f"{name}:{state.line}"


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
        folder = folders[file.dir_index] if file.dir_index < len(folders) else ""
        path = name if name.startswith("/") or not folder or folder == directory else f"{folder}/{name}"
        names[number] = path.removeprefix(directory + "/") if directory else path
    return names


def _text(value: Any) -> str:
    return printable(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
