"""Windows' 64-bit crash dumps: complete ones by runs of pages, those of the kernel by a bitmap or by ranges.

Described by Volatility's crash64 and kdmp-parser's header; the ranges are those of dumps from Windows 11 on.
"""

from __future__ import annotations

import re
import struct

from .. import budgets
from ..errors import ImageError
from ..machine.memory import PAGE, Memory
from ..machine.paging import canonical
from ..machine.registers import Registers, Segment
from . import Contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..machine.files import Data
    from ..machine.image import OpenOptions
    from ..machine.memory import Piece

_HEADER = 0x2000  # bytes, and what says where the pages are follows
_ROOT, _RUNS, _CONTEXT, _TYPE = 0x10, 0x88, 0x348, 0xF98
_MOST_RUNS = (_CONTEXT - _RUNS - 16) // 16  # that the header has room for
_COMPLETE = 1
_MINIDUMP = 4
_BITMAP = struct.Struct("<4s4s24xQQQ")  # SDMP or FDMP, DUMP; the first page's offset, pages held, pages described
_RANGES = struct.Struct("<I4s4s4xQQ16x")  # 0x40, RDMP, DUMP; bytes of what follows, offset of the first page
# CONTEXT: flags, MXCSR, six selectors, EFLAGS; from 0x78 on registers, RIP; MXCSR again
_FLAGS = struct.Struct("<II6HI")
_REGISTERS = struct.Struct("<17Q")
_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_PATTERN = b"PAGE"  # what fills a header's unused fields


def matches(data: Data) -> bool:
    """A crash dump of 64-bit Windows."""
    return data[:8] == b"PAGEDU64"


def read(path: str, data: Data, options: OpenOptions) -> Contents:
    """Its pages, the page tables of the process that crashed, and the registers in its CONTEXT record."""
    if len(data) < _HEADER:
        raise ImageError(f"{path}: a crash dump's header has {_HEADER:#x} bytes: the file ends at {len(data):#x}")
    remarks: list[str] = []
    pieces: list[Piece] = []
    for address, size, offset in _pieces(path, data):
        held = max(0, min(size, len(data) - offset))
        if held and pieces and pieces[-1][0] + pieces[-1][1] == address:
            pieces[-1] = pieces[-1][0], pieces[-1][1] + held, data, pieces[-1][3]
        elif held:
            pieces.append((address, held, data, offset))
            if len(pieces) > budgets.PIECES:
                raise ImageError(f"{path}: more than {budgets.PIECES} pieces of memory apart are not read")
        if held < size:
            remarks.append(
                f"the file is cut off at {len(data):#x}: its header promises memory from {address + held:#x} on"
            )
            break
    if not pieces:
        raise ImageError(f"{path}: no memory in this crash dump{''.join(f': {remark}' for remark in remarks)}")
    return Contents(
        Memory(pieces),
        (_registers(data),),
        remarks=tuple(remarks),
        lacks="a crash dump does not say where the tables are",
    )


def _pieces(path: str, data: Data) -> Iterator[tuple[int, int, int]]:
    """Physical address, size and offset in the file of the memory."""
    kind = int.from_bytes(data[_TYPE : _TYPE + 4], "little")
    if kind == _COMPLETE:
        return _runs(path, data)
    if data[_HEADER : _HEADER + 8] in (b"SDMPDUMP", b"FDMPDUMP"):
        return _bitmap(path, data)
    if data[_HEADER + 4 : _HEADER + 12] == b"RDMPDUMP":
        return _ranges(path, data)
    what = "a minidump has no memory by physical address" if kind == _MINIDUMP else f"type {kind} is not read"
    raise ImageError(f"{path}: a crash dump, and {what}: take a complete or a kernel memory dump")


def _runs(path: str, data: Data) -> Iterator[tuple[int, int, int]]:
    (count,) = struct.unpack("<I", data[_RUNS : _RUNS + 4])
    if count > _MOST_RUNS:
        raise ImageError(f"{path}: {count} runs of memory: the header has room for {_MOST_RUNS}")
    offset = _HEADER
    for page, pages in struct.iter_unpack("<QQ", data[_RUNS + 16 : _RUNS + 16 + 16 * count]):
        yield _checked(path, page, pages, offset)
        offset += pages * PAGE


def _bitmap(path: str, data: Data) -> Iterator[tuple[int, int, int]]:
    head = data[_HEADER : _HEADER + _BITMAP.size].ljust(_BITMAP.size, b"\0")
    _, _, offset, _, pages = _BITMAP.unpack(head)
    start = _HEADER + _BITMAP.size
    size = (pages + 7) // 8
    if start + size > len(data):
        raise ImageError(f"{path}: a bitmap of {pages:#x} pages: the file ends at {len(data):#x}, before the end of it")
    if size > budgets.BITMAP:
        raise ImageError(f"{path}: a bitmap of {size:#x} bytes: more than {budgets.BITMAP:#x} are not read")
    # a byte of pages at a time: those that are all there together, others bit by bit
    for found in re.finditer(rb"\xff+|[^\x00\xff]", data[start : start + size], re.DOTALL):
        page, bits = 8 * found.start(), found[0]
        if bits[0] == 0xFF:
            yield _checked(path, page, 8 * len(bits), offset)
            offset += 8 * len(bits) * PAGE
            continue
        for bit in range(8):
            if bits[0] >> bit & 1:
                yield _checked(path, page + bit, 1, offset)
                offset += PAGE


def _ranges(path: str, data: Data) -> Iterator[tuple[int, int, int]]:
    head = data[_HEADER : _HEADER + _RANGES.size].ljust(_RANGES.size, b"\0")
    _, _, _, size, offset = _RANGES.unpack(head)
    start, end = _HEADER + _RANGES.size, offset
    if size + _HEADER + 0x20 != offset or not start <= end <= len(data):
        raise ImageError(
            f"{path}: {size:#x} bytes of ranges, and memory from offset {offset:#x} on, in a file of {len(data):#x} "
            "bytes: the file is damaged or cut off"
        )
    for at in range(start, end - 15, 16):
        page, pages = struct.unpack("<QQ", data[at : at + 16])
        if not page or not pages:
            return
        yield _checked(path, page, pages, offset)
        offset += pages * PAGE


def _checked(path: str, page: int, pages: int, offset: int) -> tuple[int, int, int]:
    if page + pages > 1 << 40:  # 52 bits of a physical address
        raise ImageError(f"{path}: memory from page {page:#x} on, {pages:#x} pages: physical addresses have 52 bits")
    return page * PAGE, pages * PAGE, offset


def _registers(data: Data) -> Registers:
    """CR3, and the CONTEXT record of the CPU that crashed; a record that was never filled in says nothing."""
    root = int.from_bytes(data[_ROOT : _ROOT + 8], "little")
    at = _CONTEXT + 0x30
    flags, mxcsr, cs, ds, es, fs, gs, ss, rflags = _FLAGS.unpack(data[at : at + _FLAGS.size])
    values = _REGISTERS.unpack(data[_CONTEXT + 0x78 : _CONTEXT + 0x78 + _REGISTERS.size])
    again = int.from_bytes(data[_CONTEXT + 0x118 : _CONTEXT + 0x11C], "little")
    rip = values[16]
    filled = flags != int.from_bytes(_PATTERN, "little") and flags and mxcsr == again and cs and canonical(rip)
    if not filled:
        return Registers(cr3=root)
    general = dict(zip(_GENERAL, values, strict=False))
    selectors = {"cs": cs, "ds": ds, "es": es, "fs": fs, "gs": gs, "ss": ss}
    segments: dict[str, Any] = {name: Segment(selector) for name, selector in selectors.items()}
    return Registers(rip=rip, rsp=general["rsp"], rflags=rflags, cr3=root, **segments, general=general)
