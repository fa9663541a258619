"""An ELF core of a whole machine, as QEMU, VirtualBox and Linux write it; and the writer of such a file."""

from __future__ import annotations

import struct

from .. import budgets
from ..elf import CORE, LOAD, NOTE, X86, X86_64, Elf, ProgramHeader, header, is_elf, section_zero
from ..errors import ImageError
from ..machine.memory import PAGE, Memory
from ..machine.registers import Registers, Segment, TableRegister
from . import Contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from ..machine.files import Data, Sliced
    from ..machine.image import OpenOptions
    from ..machine.memory import Piece

NT_PRSTATUS = 1
COPIED = 1 << 20  # bytes at once
UNSAID = 1 << 20  # so many bytes behind all segments are worth a remark
_NOTE = struct.Struct("<III")
# QEMU's note: version, size, 16 general registers, rip, rflags, ten segments, cr0-4, and from QEMU 3 on kernel_gs_base
_STATE = struct.Struct("<II18Q" + "IIIIQ" * 10 + "5Q")
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldtr", "tr", "gdtr", "idtr")
_FLAGS = {f"{name}.flags": name for name in _SEGMENTS if name not in ("gdtr", "idtr")}
_OURS = b"x86tables"
_VIRTUALBOX = (b"VBCORE", b"VBCPU")
_SAID, _REMARKS = 0, 1  # kinds of our notes: NAME=VALUE with blanks between, and what was remarked of the whole image


def matches(data: Data) -> bool:
    """An ELF file of type ET_CORE."""
    return is_elf(data) and data[16:18] == CORE.to_bytes(2, "little")


def read(path: str, data: Data, options: OpenOptions) -> Contents:
    """Memory by physical address (p_paddr, whatever p_vaddr says) and the registers in its notes."""
    remarks: list[str] = []
    pieces, notes = _segments(path, data, remarks)
    memory = Memory(pieces)
    registers, kept, extra = noted(data, notes, remarks)
    if len(registers) > budgets.CPUS:
        raise ImageError(f"{path}: notes of more than {budgets.CPUS} CPUs are not read")
    if not pieces:
        raise ImageError(f"{path}: no memory in this core: {remarks[-1] if remarks else 'no segment has contents'}")
    # QEMU writes e_machine by EFER.LMA of CPU 0, and so do we
    long_mode = Elf(path, data).machine == X86_64 if kept else None
    unique = tuple(dict.fromkeys(remarks))[: budgets.REMARKS]
    why = remarks[-1] if remarks else "no note of QEMU, VirtualBox or Linux"
    lacks = f"this core has no registers that say where the tables are ({why})"
    if "cr3" in extra:
        lacks = "the notes of a crashed Linux do not say where its tables are"
    return Contents(
        memory,
        registers,
        remarks=unique,
        notes=kept,
        extra=extra,
        long_mode=long_mode,
        lacks=lacks,
    )


def noted(
    data: Sliced, places: Iterable[tuple[int, int]], remarks: list[str]
) -> tuple[tuple[Registers, ...], bytes, dict[str, str]]:
    """What notes at (offset, size) say: the registers of each CPU, the notes that a small image keeps, and what our own
    say beside."""
    registers: list[Registers] = []
    linux: list[bytes] = []  # PRSTATUS of each CPU
    kept = bytearray()
    extra: dict[str, str] = {}
    vmcoreinfo: bytes | None = None
    for name, kind, content, whole in _notes(data, places, remarks):
        if name == b"QEMU" and kind == 0:
            state = _state(content, remarks)
            if state is None:
                continue
            registers.append(state)
        elif name == _OURS and kind == _REMARKS:
            remarks += _remarked(content)
            continue  # they are part of the remarks now
        elif name in _VIRTUALBOX:
            from . import virtualbox

            state = virtualbox.registers(name, content, remarks)
            if state is not None:
                registers.append(state)
                kept += cpu_notes(state)
            continue
        elif name == _OURS:
            said = _said(content, remarks)
            if registers:
                registers[-1] = _with(registers[-1], said)
            extra |= said
            if said.keys() == {"ram"}:
                continue  # it is in `extra`
        elif name == b"VMCOREINFO":
            vmcoreinfo = content
            continue
        elif name != b"CORE" or kind != NT_PRSTATUS:
            continue
        else:
            linux.append(content)
        kept += whole
    if registers or vmcoreinfo is None:
        return tuple(registers), bytes(kept), extra
    from . import vmcore

    root, levels = vmcore.page_tables(vmcoreinfo)
    extra |= {"cr3": "vmcoreinfo"} if root is not None else {}
    extra |= {"levels": "5"} if levels == 5 else {}
    return vmcore.registers(linux, root), b"", extra


def _segments(path: str, data: Data, remarks: list[str]) -> tuple[list[Piece], list[tuple[int, int]]]:
    """Pieces of memory, and (offset, size) of the notes, cut to what the file really holds."""
    size, elf = len(data), Elf(path, data)
    if not elf.segment_count:
        raise ImageError(f"{path}: 0 segments: a core has them")
    if elf.segments_held < elf.segment_count:
        remarks.append(f"the file is cut off: it ends within the program headers, at {size:#x}")
    pieces: list[Piece] = []
    notes: list[tuple[int, int]] = []
    said: list[tuple[int, int]] = [(0, elf.segments_at + 56 * elf.segment_count)]  # what of the file is accounted for
    missing = 0
    for segment in elf.segments(LOAD, NOTE, cut_off=True):
        start, address, held = segment.offset, segment.paddr, segment.filesz
        if not held:
            continue
        inside = held if start + held <= size else max(0, size - start)
        missing += held - inside
        if inside and start == said[-1][1]:
            said[-1] = said[-1][0], start + inside
        elif inside:
            said.append((start, start + inside))
        if segment.type == NOTE:
            notes.append((start, inside))
        elif pieces and pieces[-1][0] + pieces[-1][1] == address and pieces[-1][3] + pieces[-1][1] == start:
            pieces[-1] = pieces[-1][0], pieces[-1][1] + inside, data, pieces[-1][3]
        elif inside:
            pieces.append((address, inside, data, start))
            if len(pieces) > budgets.PIECES:
                raise ImageError(
                    f"{path}: {elf.segment_count} segments from {elf.segments_at:#x} on: "
                    f"more than {budgets.PIECES} are not read"
                )
    if missing:
        remarks.append(f"the file is cut off or damaged: {missing:#x} bytes that its headers promise are not in it")
    between, after = _unsaid(said, size)
    if between + after > UNSAID:
        which = f"{between + after:#x} bytes of the file" if between else f"the last {after:#x} bytes"
        remarks.append(
            f"no segment says where {which} belong "
            "(QEMU's dump-guest-memory -p writes such files): dump again without -p"
        )
    return pieces, notes


def _unsaid(said: list[tuple[int, int]], size: int) -> tuple[int, int]:
    """How many bytes of a file lie between the stretches of it that something is said of, and how many after them.

    Gaps of less than a page are padding.
    """
    between = end = 0
    for start, stop in sorted(said):
        between += start - end if start - end >= PAGE else 0
        end = max(end, stop)
    return between, max(0, size - end)


def _notes(
    data: Sliced, places: Iterable[tuple[int, int]], remarks: list[str]
) -> Iterator[tuple[bytes, int, bytes, bytes]]:
    """(name, type, contents, whole note) of each note; one that reaches beyond its segment ends that segment's list."""
    room = budgets.NOTES
    for at, held in places:
        if held > room:
            remarks.append(f"notes from offset {at + room:#x} on are not read: more than {budgets.NOTES:#x} bytes")
        stop = at + min(held, room)
        room -= stop - at
        while at + _NOTE.size <= stop:
            name_size, size, kind = _NOTE.unpack(data[at : at + _NOTE.size])
            body = at + _NOTE.size + (name_size + 3 & ~3)
            end = body + (size + 3 & ~3)
            if body + size > stop:
                remarks.append(f"the note at offset {at:#x} claims {name_size + size:#x} bytes, beyond its segment")
                break
            if not name_size:
                break  # no name: padding, or no notes at all
            name = data[at + _NOTE.size : at + _NOTE.size + name_size].rstrip(b"\0")
            yield name, kind, data[body : body + size], data[at : min(end, stop)].ljust(end - at, b"\0")
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
    for name, selector in zip(_SEGMENTS, values[20:70:5], strict=True):
        if selector > 0xFFFF:
            remarks.append(f"QEMU's note has {selector:#x} as the selector in {name.upper()}: 16 bits expected")
            return None
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


def _said(content: bytes, remarks: list[str]) -> dict[str, str]:
    """What our own note says, NAME=VALUE with blanks between; nothing when any of it is not as we write it."""
    said = dict(item.partition("=")[::2] for item in content.decode("ascii", "replace").split())
    try:
        numbers = [int(said[name], 16) for name in ("efer", "star") if name in said]
        bits = int(said.get("maxphyaddr", "52"))
    except ValueError:
        numbers, bits = [], 0
    unknown = {name for name in said.get("unknown", "").split(",") if name}
    known = unknown <= {*Registers._names, *_FLAGS} - {"general"}  # type: ignore[attr-defined]
    if 32 <= bits <= 52 and known and all(0 <= number < 1 << 64 for number in numbers):
        return said
    remarks.append(f"the note of x86tables is damaged and not used: {content[:40]!r}")
    return {}


def _with(registers: Registers, said: dict[str, str]) -> Registers:
    """The registers of one CPU with what our own note says of them beside QEMU's."""
    changes: dict[str, Any] = {name: int(said[name], 16) for name in ("efer", "star") if name in said}
    for name in said.get("unknown", "").split(","):
        if name in _FLAGS:
            changes[_FLAGS[name]] = getattr(registers, _FLAGS[name]).replace(flags=None)
        elif name:
            changes[name] = None
    return registers.replace(**changes)


def note(name: bytes, kind: int, content: bytes) -> bytes:
    """One ELF note."""
    padded = (name + b"\0").ljust(len(name) + 4 & ~3, b"\0")
    return _NOTE.pack(len(name) + 1, len(content), kind) + padded + content.ljust(len(content) + 3 & ~3, b"\0")


def cpu_notes(registers: Registers, more: Mapping[str, str] = {}) -> bytes:
    """The notes of one CPU, QEMU's and ours; ours says `more`, too."""
    return state_note(registers) + extra_note(registers, more)


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


def extra_note(registers: Registers, more: Mapping[str, str]) -> bytes:
    """A note of our own, behind QEMU's, for what that has no place for: EFER, STAR, registers that are not known."""
    said = {name: f"{value:#x}" for name in ("efer", "star") if (value := getattr(registers, name)) is not None}
    unknown = [name for name, value in registers.asdict().items() if value is None and name not in ("efer", "star")]
    unknown += [flags for flags, name in _FLAGS.items() if (s := getattr(registers, name)) and s.flags is None]
    if unknown:
        said["unknown"] = ",".join(unknown)
    said |= more
    text = " ".join(f"{name}={value}" for name, value in said.items())
    return note(_OURS, _SAID, text.encode("ascii")) if said else b""


def ram_note(memory: Memory) -> bytes:
    """A note of our own that says where there is memory, held or not; none for memory in very many pieces."""
    known: list[range] = []
    for each in sorted([*memory.ranges, *memory.ram], key=lambda each: each.start):
        if known and each.start <= known[-1].stop:
            known[-1] = range(known[-1].start, max(known[-1].stop, each.stop))
        else:
            known.append(each)
    text = ",".join(f"{each.start:#x}-{each.stop:#x}" for each in known)
    return note(_OURS, _SAID, f"ram={text}".encode("ascii")) if len(known) <= budgets.RANGES else b""


def remarks_note(remarks: Iterable[str]) -> bytes:
    """A note of our own with what was remarked of an image, for the small one that is cut from it."""
    text = "\n".join(remarks)
    return note(_OURS, _REMARKS, text.encode()) if text else b""


def _remarked(content: bytes) -> list[str]:
    """The remarks in such a note, those that a terminal can show."""
    return [line for line in content.decode("utf-8", "replace").split("\n") if line and line.isprintable()]


def write(path: str, memory: Memory, pages: Iterable[int], notes: bytes, long_mode: bool = True) -> int:
    """Write a core with these physical pages, as far as the memory holds them, and these notes; the number of pages.

    `long_mode` is whether CPU 0 is in long mode, which e_machine says.
    """
    runs: list[list[int]] = []
    held = set()
    for page in sorted(set(pages)):
        for part in memory.parts(page, page + PAGE):
            held.add(page)
            if runs and runs[-1][1] == part.start:
                runs[-1][1] = part.stop
            else:
                runs.append([part.start, part.stop])
    segments = len(runs) + 1
    extra = section_zero(segments)
    headers = 64 + 56 * segments + len(extra)
    begin = headers + len(notes) + PAGE - 1 & -PAGE
    with open(path, "wb") as out:
        out.write(header(CORE, segments, machine=X86_64 if long_mode else X86))
        out.write(ProgramHeader(NOTE, 0, headers, 0, 0, len(notes), len(notes)).packed())
        place = begin
        for start, stop in runs:
            out.write(ProgramHeader(LOAD, 0, place, start, start, stop - start, stop - start).packed())
            place += stop - start
        out.write(extra)
        out.write(notes)
        out.write(bytes(begin - headers - len(notes)))
        for start, stop in runs:
            for at in range(start, stop, COPIED):
                out.write(memory.read(at, min(COPIED, stop - at)))
    return len(held)
