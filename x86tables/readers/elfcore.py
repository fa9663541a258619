"""An ELF core of a whole machine, as QEMU's `dump-guest-memory` writes it; and the writer of such a file."""

from __future__ import annotations

import struct

from ..errors import ImageError
from ..machine import Registers, Segment, TableRegister
from ..memory import PAGE, Memory
from . import Contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ..image import Options
    from ..memory import Data, Piece

CORE, PT_LOAD, PT_NOTE, NT_PRSTATUS, MANY = 4, 1, 4, 1, 0xFFFF
MOST_SEGMENTS = 1 << 20
# e_type .. e_shnum without e_ident, and a program header; the 32-bit ones have other widths, the program header's
# fields another order
_HEADER = {1: struct.Struct("<HHIIIIIHHHHH"), 2: struct.Struct("<HHIQQQIHHHHH")}
_SEGMENT = {1: struct.Struct("<IIIIIIII"), 2: struct.Struct("<IIQQQQQQ")}
_NOTE = struct.Struct("<III")
# QEMU's note: version, size, 16 general registers, rip, rflags, ten segments, cr0-4, and from QEMU 3 on kernel_gs_base
_STATE = struct.Struct("<II18Q" + "IIIIQ" * 10 + "5Q")
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldtr", "tr", "gdtr", "idtr")
_OURS = b"x86tables"


def matches(data: Data) -> bool:
    """An ELF file of type ET_CORE."""
    return data[:4] == b"\x7fELF" and data[16:18] == CORE.to_bytes(2, "little")


def read(path: str, data: Data, options: Options) -> Contents:
    """Memory by physical address (p_paddr, whatever p_vaddr says) and the registers of QEMU's notes."""
    remarks: list[str] = []
    pieces, notes = _segments(path, data, remarks)
    memory = Memory(pieces)
    registers: list[Registers] = []
    kept = bytearray()
    extra: dict[str, str] = {}
    for start, size in notes:
        for name, kind, content, whole in _notes(data[start : start + size], start, remarks):
            if name == b"QEMU" and kind == 0:
                state = _state(content, remarks)
                if state is not None:
                    registers.append(state)
                    kept += whole
            elif name == b"CORE" and kind == NT_PRSTATUS:
                kept += whole
            elif name == _OURS:
                kept += whole
                said = dict(item.split("=", 1) for item in content.decode("ascii", "replace").split() if "=" in item)
                if registers:
                    registers[-1] = _with(registers[-1], said)
                extra |= said
    if not registers and not options.registers and not (options.gdt or options.idt or options.tss):
        reason = remarks[-1] if remarks else "no note of QEMU"
        raise ImageError(f"{path}: no registers in this core ({reason}): give --registers FILE, or --cr3 and --idt")
    if not memory.ranges:
        raise ImageError(f"{path}: no memory in this core: {remarks[-1] if remarks else 'no segment has contents'}")
    return Contents(memory, tuple(registers), remarks=tuple(remarks), notes=bytes(kept), extra=extra)


def _segments(
    path: str, data: Data, remarks: list[str]
) -> tuple[list[tuple[int, int, Data, int]], list[tuple[int, int]]]:
    """Pieces of memory, and (offset, size) of the notes, cut to what the file really holds."""
    width, size = data[4] if len(data) > 4 else 0, len(data)
    if width not in _HEADER or size < 16 + _HEADER[width].size:
        raise ImageError(f"{path}: cut off within the ELF header: {size} bytes")
    _, _, _, _, offset, sections, _, _, entry, count, _, _ = _HEADER[width].unpack_from(data, 16)
    form = _SEGMENT[width]
    if count == MANY and sections:
        at = sections + (44 if width == 2 else 28)  # sh_info of section 0
        if at + 4 > size:
            raise ImageError(f"{path}: the number of segments should stand at offset {at:#x}, beyond the end {size:#x}")
        count = int.from_bytes(data[at : at + 4], "little")
    if count > MOST_SEGMENTS:
        raise ImageError(f"{path}: {count} segments: more than {MOST_SEGMENTS} are not read")
    if not count or entry != form.size:
        raise ImageError(f"{path}: {count} segments of {entry} bytes: segments of {form.size} bytes expected")
    if offset + count * entry > size:
        count = max(0, size - offset) // entry
        remarks.append(f"the file is cut off: it ends within the program headers, at {size:#x}")
    pieces: list[Piece] = []
    notes: list[tuple[int, int]] = []
    missing = 0
    for fields in form.iter_unpack(memoryview(data)[offset : offset + count * entry]):
        if width == 2:
            kind, _, start, _, address, held, _, _ = fields
        else:
            kind, start, _, address, held, _, _, _ = fields
        inside = min(held, max(0, size - start))
        if kind == PT_NOTE:
            missing += held - inside
            notes.append((start, inside))
        elif kind == PT_LOAD and held:
            missing += held - inside
            if pieces and pieces[-1][0] + pieces[-1][1] == address and pieces[-1][3] + pieces[-1][1] == start:
                pieces[-1] = pieces[-1][0], pieces[-1][1] + inside, data, pieces[-1][3]
            elif inside:
                pieces.append((address, inside, data, start))
    if missing:
        remarks.append(f"the file is cut off or damaged: {missing:#x} bytes that its headers promise are not in it")
    return pieces, notes


def _notes(data: bytes, start: int, remarks: list[str]) -> Iterator[tuple[bytes, int, bytes, bytes]]:
    """(name, type, contents, whole note) of each note; a note that reaches beyond the segment ends the list."""
    at = 0
    while at + _NOTE.size <= len(data):
        name_size, size, kind = _NOTE.unpack_from(data, at)
        body = at + _NOTE.size + (name_size + 3 & ~3)
        end = body + (size + 3 & ~3)
        if body + size > len(data):
            remarks.append(f"the note at offset {start + at:#x} claims {name_size + size:#x} bytes, beyond its segment")
            return
        name = data[at + _NOTE.size : at + _NOTE.size + name_size].rstrip(b"\0")
        yield name, kind, data[body : body + size], data[at:end].ljust(end - at, b"\0")
        at = end


def _state(note: bytes, remarks: list[str]) -> Registers | None:
    """The registers in QEMU's note; None for a version that is not known."""
    if len(note) < _STATE.size:
        remarks.append(f"QEMU's note has {len(note)} bytes: at least {_STATE.size} expected")
        return None
    values = _STATE.unpack_from(note)
    if values[0] != 1:
        remarks.append(f"QEMU's note has version {values[0]}: 1 expected")
        return None
    general = dict(zip(_GENERAL, values[2:18], strict=True))
    segments: dict[str, Any] = {
        name: Segment(values[at], values[at + 4], values[at + 1], values[at + 2])
        for name, at in zip(_SEGMENTS, range(20, 70, 5), strict=True)
    }
    for name in ("gdtr", "idtr"):
        segments[name] = TableRegister(segments[name].base, segments[name].limit)
    cr0, _, cr2, cr3, cr4 = values[70:75]
    return Registers(
        rip=values[18], rsp=general["rsp"], rflags=values[19], cr0=cr0, cr2=cr2, cr3=cr3, cr4=cr4,
        **segments, general=general,
    )  # fmt: skip


def _with(registers: Registers, said: dict[str, str]) -> Registers:
    """The registers of one CPU with what our own note says of them beside QEMU's."""
    changes: dict[str, Any] = {name: int(said[name], 16) for name in ("efer", "star") if name in said}
    changes |= dict.fromkeys((name for name in said.get("unknown", "").split(",") if name), None)
    return registers.replace(**changes)


def note(name: bytes, kind: int, content: bytes) -> bytes:
    """One ELF note."""
    padded = (name + b"\0").ljust(len(name) + 4 & ~3, b"\0")
    return _NOTE.pack(len(name) + 1, len(content), kind) + padded + content.ljust(len(content) + 3 & ~3, b"\0")


def state_note(registers: Registers) -> bytes:
    """QEMU's note for registers that came from elsewhere; what is not known becomes 0."""
    values: list[int] = [1, _STATE.size, *(registers.general.get(name, 0) for name in _GENERAL)]
    values[2 + _GENERAL.index("rsp")] = registers.rsp or 0
    values += [registers.rip or 0, registers.rflags or 0]
    for name in _SEGMENTS:
        register = getattr(registers, name)
        if isinstance(register, TableRegister):
            values += [0, register.limit, 0, 0, register.base]
        else:
            s = register or Segment(0, 0, 0xFFFF, 0)
            values += [s.selector, s.limit, s.flags or 0, 0, s.base]
    values += [registers.cr0 or 0, 0, registers.cr2 or 0, registers.cr3 or 0, registers.cr4 or 0]
    return note(b"QEMU", 0, _STATE.pack(*values))


def extra_note(registers: Registers, more: dict[str, str]) -> bytes:
    """A note of our own, behind QEMU's, for what that has no place for: EFER, STAR, registers that are not known."""
    said = {name: f"{value:#x}" for name in ("efer", "star") if (value := getattr(registers, name)) is not None}
    unknown = [name for name, value in registers.asdict().items() if value is None and name not in ("efer", "star")]
    if unknown:
        said["unknown"] = ",".join(unknown)
    said |= more
    return note(_OURS, 0, " ".join(f"{name}={value}" for name, value in said.items()).encode("ascii")) if said else b""


def write(path: str, memory: Memory, pages: Iterable[int], notes: bytes) -> int:
    """Write a core with these physical pages, as far as the memory holds them, and these notes; the number of pages."""
    runs: list[list[int]] = []
    count = 0
    for page in sorted(set(pages)):
        if not memory.holds(page):
            continue
        count += 1
        if runs and runs[-1][1] == page:
            runs[-1][1] = page + PAGE
        else:
            runs.append([page, page + PAGE])
    many = len(runs) + 1 >= MANY
    headers = 64 + 56 * (len(runs) + 1) + (64 if many else 0)
    begin = headers + len(notes) + PAGE - 1 & -PAGE
    with open(path, "wb") as out:
        section = 64 + 56 * (len(runs) + 1) if many else 0
        identity = b"\x7fELF\2\1\1".ljust(16, b"\0")
        phnum = MANY if many else len(runs) + 1
        out.write(identity + _HEADER[2].pack(CORE, 62, 1, 0, 64, section, 0, 64, 56, phnum, 64, int(many)))
        out.write(b"\0\0")  # e_shstrndx
        out.write(_SEGMENT[2].pack(PT_NOTE, 0, headers, 0, 0, len(notes), len(notes), 0))
        place = begin
        for start, stop in runs:
            out.write(_SEGMENT[2].pack(PT_LOAD, 0, place, start, start, stop - start, stop - start, 0))
            place += stop - start
        if many:
            out.write(bytes(44) + (len(runs) + 1).to_bytes(4, "little") + bytes(16))
        out.write(notes)
        out.write(bytes(begin - headers - len(notes)))
        for start, stop in runs:
            for page in range(start, stop, PAGE):
                out.write(memory.read(page, PAGE))
    return count
