"""Physical memory: bytes, or "not in this image"."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right

from ..errors import Absent, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO, Any, TypeAlias

    Data: TypeAlias = bytes | mmap.mmap
    Piece: TypeAlias = tuple[int, int, Data, int]

PAGE = 0x1000
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_STEP, _SMALL = 0x400, 0x20  # bytes unpacked at once, and where zstd makes very many of one: up to 32,768
_MANY, _MOST = 1 << 18, 128 << 20  # that is so many from one step; memory for a dictionary
# What is not zero and may be unpacked: a machine that runs has a kernel beside what repeats, and stays far below.
_RATIO, _ALWAYS = 4096, 1 << 29


class Memory:
    """Pieces of files laid out over physical addresses; what no piece covers is absent, not zero.

    `read` answers with bytes or raises Absent with the first missing address. Files stay mapped: only what is read is
    loaded.
    """

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        """Memory made of (address, size, data, offset in data); where two overlap, the lower start has the bytes."""
        laid: list[Piece] = []  # start, stop, data, offset
        for start, size, data, offset in sorted(pieces, key=lambda piece: piece[0]):
            stop = start + size
            if laid:
                last_start, last_stop, last_data, last_offset = laid[-1]
                if data is last_data and start <= last_stop and offset - start == last_offset - last_start:
                    laid[-1] = last_start, max(stop, last_stop), data, last_offset
                    continue
                if start < last_stop:
                    start, offset = last_stop, offset + last_stop - start
            if start < stop:
                laid.append((start, stop, data, offset))
        self._set(laid)

    def _set(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self._starts = [piece[0] for piece in pieces]

    def copy(self) -> Memory:
        """The same pieces in a memory of its own: what is laid over one is not seen in the other."""
        memory = Memory()
        memory._set(self._pieces)
        return memory

    def overlay(self, address: int, data: Data) -> None:
        """Lay `data` at `address` over whatever is there."""
        end = address + len(data)
        pieces = [(address, end, data, 0)]
        for start, stop, below, offset in self._pieces:
            if start < min(stop, address):
                pieces.append((start, min(stop, address), below, offset))
            if stop > max(start, end):
                first = max(start, end)
                pieces.append((first, stop, below, offset + first - start))
        self._set(sorted(pieces, key=lambda piece: piece[0]))

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes from a physical address."""
        number = bisect_right(self._starts, address) - 1
        if number >= 0:
            start, stop, data, offset = self._pieces[number]
            if address + size <= stop:
                at = offset + address - start
                return data[at : at + size]
        return b"".join(self._parts(address, size))

    def _parts(self, address: int, size: int) -> Iterator[bytes]:
        end = address + size
        while address < end:
            number = bisect_right(self._starts, address) - 1
            if number < 0 or self._pieces[number][1] <= address:
                raise Absent(address)
            start, stop, data, offset = self._pieces[number]
            at, count = offset + address - start, min(end, stop) - address
            yield data[at : at + count]
            address += count

    def holds(self, address: int) -> bool:
        """Whether the byte at this address is known."""
        number = bisect_right(self._starts, address) - 1
        return number >= 0 and address < self._pieces[number][1]

    @property
    def ranges(self) -> list[range]:
        """The address ranges that are known, in ascending order, neighbours joined."""
        found: list[range] = []
        for start, stop, _, _ in self._pieces:
            if found and found[-1].stop == start:
                found[-1] = range(found[-1].start, stop)
            else:
                found.append(range(start, stop))
        return found


class Recording(Memory):
    """A view of another memory that notes every physical page that is read."""

    def __init__(self, memory: Memory) -> None:
        self._set(memory._pieces)
        self.pages: set[int] = set()

    def read(self, address: int, size: int) -> bytes:
        self.pages.update(range(address & ~(PAGE - 1), address + size, PAGE))
        return super().read(address, size)


def load(path: str) -> Data:
    """The contents of a file, mapped; gzip, xz and zstd are unpacked first, into a file that has no name."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a name that no file can have
        raise ImageError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    if not os.path.isfile(path):
        raise ImageError(f"{path}: not a file")
    with open(path, "rb") as file:
        head = file.read(6)
        for magic, name in _COMPRESSED.items():
            if head.startswith(magic):
                file.seek(0)
                return _unpack(path, file, name)
        return _map(path, file)


def _map(path: str, file: IO[bytes]) -> Data:
    if os.fstat(file.fileno()).st_size == 0:
        raise ImageError(f"{path}: the file is empty")
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, OverflowError) as error:
        raise ImageError(f"{path}: the file cannot be mapped: {error}") from None


def _unpack(path: str, file: IO[bytes], name: str) -> Data:
    """The file unpacked; ImageError when there is no room for it, or when it is made to have no end."""
    import tempfile

    directory = "a temporary directory"
    room = most = max(_ALWAYS, _RATIO * os.fstat(file.fileno()).st_size)
    hole = 0  # instead of zeros: memory is mostly that
    try:
        directory = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=directory) as out:
            for content in _unpacked(path, file, name):
                for part in _parts(content):
                    if part == bytes(len(part)):
                        hole += len(part)
                        continue
                    room -= len(part)
                    if room < 0:
                        raise ImageError(
                            f"{path}: the {name} data holds more than {most:#x} bytes other than zeros, {_RATIO} "
                            "for each of its own, as no memory does: unpack it first if it is an image"
                        )
                    if hole:
                        out.seek(hole, os.SEEK_CUR)
                        hole = 0
                    out.write(part)
            out.truncate(out.tell() + hole)
            out.flush()
            return _map(path, out)
    except OSError as error:
        raise ImageError(
            f"{path}: the {name} data cannot be unpacked into {directory}: {error.strerror or error}: "
            "set TMPDIR to a directory with room, or unpack it first"
        ) from None


def _parts(content: bytes) -> Iterator[bytes]:
    """The pages of what holds very many of them and not just zeros, else all of it."""
    if len(content) <= 16 * PAGE or content == bytes(len(content)):
        yield content
    else:
        yield from (content[at : at + PAGE] for at in range(0, len(content), PAGE))


def _unpacked(path: str, file: IO[bytes], name: str) -> Iterator[bytes]:
    """What a compressed file holds, all its members; in small steps, for a few bytes can hold very many."""
    create, failure = _packer(path, name)
    member, step = None, _STEP
    while packed := file.read(step):
        while packed:
            if member is None:
                packed = packed.lstrip(b"\0")  # there may be padding between members
                if not packed:
                    break
                member = create()
            try:
                content = member.decompress(packed)
            except failure as error:
                raise ImageError(f"{path}: the {name} data is damaged or cut off: {error}") from None
            yield content
            step = _SMALL if len(content) > _MANY else _STEP  # memory for more costs far more time than unpacking it
            packed, member = (member.unused_data, None) if member.eof else (b"", member)
    if member is not None:
        raise ImageError(f"{path}: the {name} data is damaged or cut off: it ends at {file.tell():#x}, too early")


def _packer(path: str, name: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor for one member of a file, and the error that it raises."""
    if name == "gzip":
        import zlib

        return lambda: zlib.decompressobj(31), zlib.error
    if name == "xz":
        import lzma

        return lambda: lzma.LZMADecompressor(memlimit=_MOST), lzma.LZMAError
    try:
        import zstandard
    except ImportError:
        raise ImageError(f"{path}: zstd data needs the package zstandard: pip install 'x86tables[zstd]'") from None
    return lambda: zstandard.ZstdDecompressor(max_window_size=_MOST).decompressobj(), zstandard.ZstdError
