"""Dumps whose pages are compressed one by one: QEMU's `dump-guest-memory -z`, -l and -s, and makedumpfile's.

Described by makedumpfile's diskdump_mod.h and IMPLEMENTATION, and QEMU's include/sysemu/dump.h. Written to a pipe, such
a file is flattened: records of (offset, size, bytes) in the order in which they were made.
"""

from __future__ import annotations

import re
import struct
import zlib
from array import array
from bisect import bisect_right

from .. import budgets
from ..errors import ImageError
from ..machine.memory import PAGE, Memory
from . import Contents, snappy_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..machine.files import Data, Sliced
    from ..machine.image import OpenOptions
    from ..machine.memory import Piece

_SIGNATURES = (b"KDUMP   ", b"DISKDUMP")
_FLAT = b"makedumpfile\0"
_FLAT_HEADER = 0x1000  # bytes before the first record
_RECORD = struct.Struct(">qq")
_HEADER = struct.Struct("<5I")  # at 428: block size, blocks of the sub-header and of both bitmaps, pages (32 bits), ...
_SUB_HEADER = struct.Struct("<QIIQQQQQQQQQQQ")  # phys_base, dump level, split; ranges; VMCOREINFO, notes, ...; pages
_DESCRIPTOR = struct.Struct("<QIIQ")  # offset, size, flags, page flags
ZLIB, LZO, SNAPPY, ZSTD = 0x1, 0x2, 0x4, 0x20
ZERO_PAGES, ALL_KINDS = 0x1, 0x1F  # what a dump level leaves out


def matches(data: Data) -> bool:
    """A kdump, or a flattened one."""
    return data[:8] in _SIGNATURES or data[: len(_FLAT)] == _FLAT


def read(path: str, data: Data, options: OpenOptions) -> Contents:
    """The pages that were dumped, unpacked when they are read, and the registers in QEMU's or Linux's notes."""
    from . import elfcore

    whole: Sliced = _Flattened(path, data) if data[: len(_FLAT)] == _FLAT else data
    if whole[:8] not in _SIGNATURES:
        raise ImageError(f"{path}: flattened data of another kind than a kdump: {bytes(whole[:8])!r}")
    remarks: list[str] = []
    block, sub_blocks, map_blocks, pages, _ = _unpacked(path, _HEADER, whole, 428, "the header")
    if block != PAGE:
        raise ImageError(f"{path}: blocks of {block:#x} bytes: {PAGE:#x} expected, the size of a page")
    fields = _unpacked(path, _SUB_HEADER, whole, block, "the sub-header")
    level, notes_at, notes_size, pages = fields[1], fields[7], fields[8], fields[13] or pages
    size = map_blocks * block // 2
    first = block * (1 + sub_blocks)
    if not map_blocks or first + 2 * size > len(whole):
        raise ImageError(f"{path}: bitmaps of {2 * size:#x} bytes at {first:#x}: the file ends at {len(whole):#x}")
    if size > budgets.BITMAP:
        raise ImageError(f"{path}: a bitmap of {size:#x} bytes: more than {budgets.BITMAP:#x} are not read")
    there, dumped = whole[first : first + size], whole[first + size : first + 2 * size]
    unpacked = _Pages(path, whole, dumped, first + 2 * size)
    # with nothing but pages of zeros left out, those are known
    held = there if level & ALL_KINDS == ZERO_PAGES else dumped
    pieces: list[Piece] = [(at, count, unpacked, at) for at, count in _runs(held)]
    if len(pieces) > budgets.PIECES:
        raise ImageError(f"{path}: more than {budgets.PIECES} pieces of memory apart are not read")
    if not pieces:
        raise ImageError(f"{path}: no page was dumped in this file")
    if level & ALL_KINDS & ~ZERO_PAGES:
        remarks.append(f"dumped with level {level}: pages of some kinds were left out, and are not known")
    registers, kept, extra = elfcore.noted(whole, [(notes_at, max(0, min(notes_size, len(whole) - notes_at)))], remarks)
    return Contents(
        Memory(pieces),
        registers,
        remarks=tuple(dict.fromkeys(remarks))[: budgets.REMARKS],
        notes=kept,
        extra=extra,
        lacks="this dump has no registers that say where the tables are",
    )


def _unpacked(path: str, kind: struct.Struct, data: Sliced, at: int, what: str) -> tuple[int, ...]:
    content = data[at : at + kind.size]
    if len(content) < kind.size:
        raise ImageError(f"{path}: {what} at {at:#x} has {kind.size} bytes: the file ends at {len(data):#x}")
    return kind.unpack(content)


def _runs(bitmap: bytes) -> Iterator[tuple[int, int]]:
    """Address and size of each stretch of pages whose bits are set."""
    start = stop = 0
    for found in re.finditer(rb"\xff+|[^\x00\xff]", bitmap, re.DOTALL):
        page, bits = 8 * found.start(), found[0]
        groups = [(page, 8 * len(bits))] if bits[0] == 0xFF else [(page + n, 1) for n in range(8) if bits[0] >> n & 1]
        for at, count in groups:
            if at == stop and stop:
                stop += count
                continue
            if stop > start:
                yield start * PAGE, (stop - start) * PAGE
            start, stop = at, at + count
    if stop > start:
        yield start * PAGE, (stop - start) * PAGE


class _Flattened:
    """A flattened file as the file that it was made of: bytes by `[start:stop]`; what no record has is zeros."""

    def __init__(self, path: str, data: Data) -> None:
        self._data = data
        records, at = [], _FLAT_HEADER
        while True:
            offset, size = _unpacked(path, _RECORD, data, at, "a record")
            at += _RECORD.size
            if offset < 0:
                break
            if size < 0 or at + size > len(data):
                raise ImageError(f"{path}: the record at {at - 16:#x} claims {size:#x} bytes: the file ends before")
            records.append((offset, size, at))
            if len(records) > budgets.RECORDS:
                raise ImageError(f"{path}: more than {budgets.RECORDS:,} records are not read: take it as a file")
            at += size
        records.sort()
        self._starts, self._sizes, self._places = (
            array("Q", column) for column in zip(*records, strict=True) or [()] * 3
        )
        self._size = max((offset + size for offset, size, _ in records), default=0)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        content = bytearray(max(0, stop - start))
        number = max(0, bisect_right(self._starts, start) - 1)
        while number < len(self._starts) and self._starts[number] < stop:
            first, size = self._starts[number], self._sizes[number]
            begin, end = max(first, start), min(first + size, stop)
            if begin < end:
                place = self._places[number] + begin - first
                content[begin - start : end - start] = self._data[place : place + end - begin]
            number += 1
        return bytes(content)


class _Pages:
    """Physical memory by `[start:stop]`: the pages whose bits are set, each unpacked when it is read; others are 0."""

    def __init__(self, path: str, data: Sliced, bitmap: bytes, at: int) -> None:
        self._path, self._data, self._bitmap, self._at = path, data, bitmap, at
        self._before = array("Q", [0])  # pages dumped before each KiB of the bitmap
        for start in range(0, len(bitmap), 1024):
            bits = int.from_bytes(bitmap[start : start + 1024], "little")
            self._before.append(self._before[-1] + bits.bit_count())
        self._kept: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._bitmap) * 8 * PAGE

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self))
        parts = []
        while start < stop:
            at = start % PAGE
            count = min(PAGE - at, stop - start)
            parts.append(self._page(start // PAGE)[at : at + count])
            start += count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _page(self, page: int) -> bytes:
        content = self._kept.get(page)
        if content is None:
            if len(self._kept) == budgets.UNPACKED_PAGES:
                self._kept.clear()
            content = self._kept[page] = self._read(page)
        return content

    def _read(self, page: int) -> bytes:
        if not self._bitmap[page // 8] >> page % 8 & 1:
            return bytes(PAGE)
        start = page // 8 // 1024 * 1024
        bits = int.from_bytes(self._bitmap[start : page // 8 + 1], "little") & (1 << page - 8 * start) - 1
        place = self._at + (self._before[start // 1024] + bits.bit_count()) * _DESCRIPTOR.size
        offset, size, flags, _ = _unpacked(self._path, _DESCRIPTOR, self._data, place, "the descriptor of a page")
        where = f"{self._path}: the page of {page * PAGE:#x}, at offset {offset:#x}"
        content = self._data[offset : offset + size] if size <= 2 * PAGE else b""
        if len(content) < size or not size:
            raise ImageError(f"{where}, has {size:#x} bytes: the file is damaged or cut off")
        kind = flags & (ZLIB | LZO | SNAPPY | ZSTD)
        if kind:
            try:
                content = _unpacker(where, kind)(content)
            except ImageError:
                raise
            except Exception as error:  # each library has one of its own
                raise ImageError(f"{where}, is damaged: {error}") from None
        if len(content) != PAGE:
            raise ImageError(f"{where}, is damaged: it unpacks to {len(content):#x} bytes")
        return content


def _unpacker(where: str, kind: int) -> Callable[[bytes], bytes]:
    """What unpacks a page; never more than one."""
    if kind == ZLIB:
        return lambda content: zlib.decompressobj().decompress(content, PAGE)
    if kind == SNAPPY:
        return lambda content: snappy_data.unpack(where, content, PAGE)
    try:
        if kind == ZSTD:
            import zstandard

            return lambda content: zstandard.ZstdDecompressor().decompress(content, max_output_size=PAGE)
        if kind == LZO:
            from lzallright import LZOCompressor

            return lambda content: bytes(LZOCompressor.decompress(content, PAGE))
    except ImportError as error:
        raise ImageError(f"{where}, needs the package {error.name}: pip install {error.name}") from None
    raise ImageError(f"{where}, is packed by more than one method: {kind:#x}")
