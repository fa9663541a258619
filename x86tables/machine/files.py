"""The files that are read: their bytes as they are asked for; gzip, xz and zstd unpacked."""

from __future__ import annotations

import errno
import os
import sys

from .. import budgets
from ..errors import ImageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any, Protocol, TextIO, TypeAlias

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_STEP, _SMALL = 0x400, 0x20  # bytes unpacked at once, and where zstd makes very many of one: up to 32,768
_MANY = 1 << 18  # that is so many from one step
_ZEROS = 0x1000  # bytes: pages of zeros are left out of the unpacked (sparse) file
_BLOCK, _BLOCKS = 0x1000, 0x1000  # bytes that are read at least; so many such blocks are kept


def standard_input() -> TextIO:
    """Standard input; UsageError when it is closed."""
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    return sys.stdin


class File:
    """The bytes of a file by `[start:stop]`, each read when it is asked for; also a stream.

    Not a mapping: when a mapped file is truncated meanwhile (a log begun anew, a dump still being written), the
    process dies of SIGBUS; here it is an ImageError.
    """

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        self.path, self._size, self._at = path, size, 0
        self._descriptor = os.dup(descriptor)
        self._blocks: dict[int, bytes] = {}  # entries of tables, a few bytes each, are asked for one by one

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop = part.start, part.stop
        if start and stop and stop > start:  # a block that is kept already, the usual case
            content = self._blocks.get(start // _BLOCK)
            if content is not None and (end := stop - (start & -_BLOCK)) <= _BLOCK:
                return content[start & _BLOCK - 1 : end]
        start, stop, _ = part.indices(self._size)
        block, at = divmod(start, _BLOCK)
        if at + stop - start > _BLOCK:
            return self._read(start, stop)
        content = self._blocks.get(block)
        if content is None:
            if len(self._blocks) == _BLOCKS:
                self._blocks.clear()
            end = min(start - at + _BLOCK, self._size)
            content = self._blocks[block] = self._read(start - at, end)
        return content[at : at + stop - start] if start < stop else b""

    def _read(self, start: int, stop: int) -> bytes:
        parts: list[bytes] = []
        try:
            while start < stop:  # the system reads at most 2 GiB at once
                parts.append(os.pread(self._descriptor, stop - start, start))
                start += len(parts[-1])
                if not parts[-1]:
                    raise ImageError(
                        f"{self.path}: the file was truncated while it was read: it had {self._size:#x} bytes and "
                        f"ends at {os.fstat(self._descriptor).st_size:#x} now"
                    )
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be read at {start:#x}: {error.strerror}") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, start: int, stop: int) -> Iterator[range]:
        """What is not a hole of the file between two offsets; all of it where the system does not tell."""
        stop = min(stop, self._size)
        while start < stop:
            try:
                first = os.lseek(self._descriptor, start, os.SEEK_DATA)
                end = os.lseek(self._descriptor, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # which says that there is no data any more
                    yield range(start, stop)
                return
            if first < stop:
                yield range(first, min(end, stop))
            start = end

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, all that are left by default."""
        content = self[self._at : self._size if size < 0 else self._at + size]
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset: from the start, from here, or from the end."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        """Where `read` goes on."""
        return self._at


if TYPE_CHECKING:
    Data: TypeAlias = bytes | File

    class Sliced(Protocol):
        """What memory is made of: bytes by `[start:stop]`, wherever they come from."""

        def __len__(self) -> int: ...
        def __getitem__(self, part: slice, /) -> bytes: ...


def load(path: str) -> Data:
    """The contents of a file; gzip, xz and zstd are unpacked first, into a file that has no name."""
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
                return _unpack(path, file, name, os.fstat(file.fileno()).st_size)
        return _opened(path, file)


def _opened(path: str, file: IO[bytes]) -> Data:
    size = os.fstat(file.fileno()).st_size
    if size:
        return File(path, file.fileno(), size)
    file.seek(0)
    content = file.read(budgets.FILE_WITHOUT_SIZE + 1)
    if not content:
        raise ImageError(f"{path}: the file is empty")
    if len(content) > budgets.FILE_WITHOUT_SIZE:
        raise ImageError(
            f"{path}: more than {budgets.FILE_WITHOUT_SIZE:#x} bytes in a file that does not say its size are not read"
        )
    return content


def unpack(path: str, file: File, offset: int, name: str) -> Data:
    """What is packed in a file from an offset on, by `gzip`, `xz` or `zstd`; as `load` unpacks whole ones."""
    file.seek(offset)
    return _unpack(path, file, name, len(file))


def _unpack(path: str, file: IO[bytes] | File, name: str, size: int) -> Data:
    """The file unpacked; ImageError when there is no room for it, or when it is made to have no end."""
    import tempfile

    directory = "a temporary directory"
    room = most = max(budgets.FILE_UNPACKED, budgets.FILE_RATIO * size)
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
                            f"{path}: the {name} data unpacks to more than {most:#x} bytes other than zeros, "
                            f"{budgets.FILE_RATIO} for each of its own, unlike any memory image: unpack it first if "
                            "it is one"
                        )
                    if hole:
                        out.seek(hole, os.SEEK_CUR)
                        hole = 0
                    out.write(part)
            out.truncate(out.tell() + hole)
            out.flush()
            return _opened(path, out)
    except OSError as error:
        raise ImageError(
            f"{path}: the {name} data cannot be unpacked into {directory}: {error.strerror or error}: "
            "set TMPDIR to a directory with room, or unpack it first"
        ) from None


def _parts(content: bytes) -> Iterator[bytes]:
    """The pages of what holds very many of them and not just zeros, else all of it."""
    if len(content) <= 16 * _ZEROS or content == bytes(len(content)):
        yield content
    else:
        yield from (content[at : at + _ZEROS] for at in range(0, len(content), _ZEROS))


def _unpacked(path: str, file: IO[bytes] | File, name: str) -> Iterator[bytes]:
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
                if "memory" in str(error).lower():  # both say so when a dictionary would not fit
                    raise ImageError(
                        f"{path}: the {name} data needs a dictionary of more than {budgets.DICTIONARY >> 20} MiB: "
                        "unpack it first"
                    ) from None
                raise ImageError(f"{path}: the {name} data is damaged or cut off: {error}") from None
            yield content
            step = _SMALL if len(content) > _MANY else _STEP  # memory for more costs far more time than unpacking it
            packed, member = (member.unused_data, None) if member.eof else (b"", member)
    if member is not None:
        raise ImageError(f"{path}: the {name} data is damaged or cut off: it ends early, at {file.tell():#x}")


def _packer(path: str, name: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor for one member of a file, and the error that it raises."""
    if name == "gzip":
        import zlib

        return lambda: zlib.decompressobj(31), zlib.error
    if name == "xz":
        import lzma

        return lambda: lzma.LZMADecompressor(memlimit=budgets.DICTIONARY), lzma.LZMAError
    try:
        import zstandard
    except ImportError:
        raise ImageError(f"{path}: zstd data needs the package zstandard: pip install zstandard") from None
    return lambda: zstandard.ZstdDecompressor(max_window_size=budgets.DICTIONARY).decompressobj(), zstandard.ZstdError
