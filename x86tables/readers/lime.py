"""Ranges of physical memory one after the other, as LiME and AVML write them; AVML's second version packs each.

Described by LiME's own document, and by AVML's image module: a header of 32 bytes (magic, version, first and last
address), then the bytes, or a framed snappy stream and 8 bytes with its size.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

from .. import budgets
from ..errors import ImageError
from ..machine.memory import Memory
from . import Contents
from .snappy_data import unpack, unpacked_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.files import Data
    from ..machine.image import OpenOptions
    from ..machine.memory import Piece

_LIME, _AVML = b"EMiL", b"LMVA"  # little-endian numbers of four letters
_HEADER = struct.Struct("<4sIQQ8x")
_FRAMES, _PACKED, _PLAIN, _CHECKSUM = 0xFF, 0x00, 0x01, 4
_MOST = 1 << 16  # bytes that a frame unpacks to, as the format has it


def matches(data: Data) -> bool:
    """A LiME header, or one of AVML's."""
    return data[:4] in (_LIME, _AVML)


def read(path: str, data: Data, options: OpenOptions) -> Contents:
    """The ranges; there are no registers in such a file."""
    pieces: list[Piece] = []
    remarks: list[str] = []
    at = 0
    while at < len(data):
        head = data[at : at + _HEADER.size]
        if len(head) < _HEADER.size:
            remarks.append(f"the file is cut off: it ends within the header of a range, at {at:#x}")
            break
        magic, version, first, last = _HEADER.unpack(head)
        kind = magic, version
        if kind not in ((_LIME, 1), (_AVML, 1), (_AVML, 2)):
            raise ImageError(f"{path}: at {at:#x} a range is expected, LiME's or AVML's: {head[:8].hex(' ')} found")
        if kind == (_AVML, 2):  # which names the address behind the last
            last -= 1
        if not first <= last < 1 << 52:
            raise ImageError(f"{path}: the range at {at:#x} is from {first:#x} to {last:#x}: addresses have 52 bits")
        size, start = last + 1 - first, at + _HEADER.size
        if kind == (_AVML, 2):
            frames = _Frames(path, data, start, size)
            pieces.append((first, len(frames), frames, 0))
            held, at = len(frames), frames.end + 8
        else:
            held = min(size, len(data) - start)
            if held:
                pieces.append((first, held, data, start))
            at = start + size
        if held < size:
            remarks.append(f"the file is cut off at {len(data):#x}: memory from {first + held:#x} on is not in it")
            break
        if len(pieces) > budgets.PIECES:
            raise ImageError(f"{path}: more than {budgets.PIECES} ranges are not read")
    if not pieces:
        raise ImageError(f"{path}: no memory in this file{''.join(f': {remark}' for remark in remarks)}")
    return Contents(Memory(pieces), remarks=tuple(remarks), lacks="a dump of memory alone has no registers")


class _Frames:
    """What a framed snappy stream holds, by `[start:stop]`: each frame is unpacked when it is read."""

    def __init__(self, path: str, data: Data, at: int, size: int) -> None:
        self._path, self._data, self._kept = path, data, (-1, b"")
        self._starts: list[int] = []
        self._frames: list[tuple[int, int, int]] = []  # kind, offset of the contents, their size
        self._size = 0
        while self._size < size and at + 4 <= len(data):
            head = int.from_bytes(data[at : at + 4], "little")
            kind, length = head & 0xFF, head >> 8
            content = at + 4 + _CHECKSUM
            if at + 4 + length > len(data):
                break
            if kind in (_PACKED, _PLAIN) and length > _CHECKSUM:
                count = length - _CHECKSUM if kind == _PLAIN else unpacked_size(data[content : content + 5])
                if not 0 < count <= _MOST:
                    raise ImageError(f"{path}: the frame at {at:#x} unpacks to {count:#x} bytes: at most {_MOST:#x}")
                self._starts.append(self._size)
                self._frames.append((kind, content, length - _CHECKSUM))
                self._size += count
                if len(self._frames) > budgets.RECORDS:
                    raise ImageError(f"{path}: more than {budgets.RECORDS:,} frames are not read")
            elif kind < 0x80 or (kind == _FRAMES and data[at + 4 : at + 10] != b"sNaPpY"):
                raise ImageError(f"{path}: a frame of snappy data is expected at {at:#x}: kind {kind:#x} found")
            at += 4 + length
        self.end = at
        self._size = min(self._size, size)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        parts = []
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            content = self._frame(number)
            at = start - self._starts[number]
            parts.append(content[at : at + stop - start])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _frame(self, number: int) -> bytes:
        if self._kept[0] != number:
            kind, place, length = self._frames[number]
            content = self._data[place : place + length]
            if kind == _PACKED:
                where = f"{self._path}: the frame at {place - 4 - _CHECKSUM:#x}"
                try:
                    content = unpack(where, content, unpacked_size(content))
                except ValueError as error:
                    raise ImageError(f"{where}, is damaged: {error}") from None
            self._kept = number, content
        return self._kept[1]
