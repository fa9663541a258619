"""Memory whose pages stand anywhere in a file, or are all one byte: what a dump of single pages becomes."""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .files import Data

_PAGE = 0x1000  # bytes; as in memory.py, whose types name the class here
_CHUNK = 512  # pages whose places are kept together
_FILLED = 1 << 63  # a place that is none: the low byte is what the page is full of


class ScatteredPages:
    """The bytes of `size`, by `[start:stop]` as those of a file; a page that was never put is zeros, and a hole.

    What is kept grows with the pages that are put, not with `size`.
    """

    def __init__(self, data: Data, size: int) -> None:
        self._data, self._size = data, size
        self._chunks: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return self._size

    def put(self, page: int, offset: int) -> None:
        """The page with this number stands at `offset` in the file; what was put for it before is forgotten."""
        chunk = self._chunks.get(page // _CHUNK)
        if chunk is None:
            if not offset:
                return
            chunk = self._chunks[page // _CHUNK] = array("Q", bytes(8 * _CHUNK))
        chunk[page % _CHUNK] = offset

    def fill(self, page: int, byte: int) -> None:
        """The page with this number is all one byte."""
        self.put(page, _FILLED | byte if byte else 0)

    def _place(self, page: int) -> int:
        chunk = self._chunks.get(page // _CHUNK)
        return chunk[page % _CHUNK] if chunk is not None else 0

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        parts: list[bytes] = []
        while start < stop:
            at = start % _PAGE
            count = min(_PAGE - at, stop - start)
            place = self._place(start // _PAGE)
            if not place or place & _FILLED:
                parts.append(bytes([place & 0xFF]) * count)
            else:
                parts.append(self._data[place + at : place + at + count])
            start += count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, start: int, stop: int) -> Iterator[range]:
        """What was put between two offsets."""
        stop = min(stop, self._size)
        for number in sorted(self._chunks):
            first = number * _CHUNK
            if first * _PAGE >= stop or (first + _CHUNK) * _PAGE <= start:
                continue
            begin: int | None = None
            for page, place in enumerate((*self._chunks[number], 0), first):
                if place and page < first + _CHUNK:
                    begin = page if begin is None else begin
                elif begin is not None:
                    found = range(max(begin * _PAGE, start), min(page * _PAGE, stop))
                    if found:
                        yield found
                    begin = None
