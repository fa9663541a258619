"""Physical memory: bytes, or "not in this image"."""

from __future__ import annotations

from bisect import bisect_right

from .. import budgets
from .probe import Absent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    from .files import Data, Sliced

    Piece: TypeAlias = tuple[int, int, Sliced, int]

PAGE = 0x1000
DEVICES = range(0xFEC0_0000, 0xFEF0_0000)  # I/O and local APIC: a push there is lost


class Memory:
    """Pieces of files laid out over physical addresses; what no piece covers is absent, not zero.

    `read` answers with bytes or raises Absent with the first missing address. Of files, only what is read is loaded.
    `ram` are ranges that are known to be memory, although not everything in them is held.
    """

    ram: tuple[range, ...] = ()

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
        memory.ram = self.ram
        return memory

    def overlay(self, address: int, data: Data) -> None:
        """Lay `data` at `address` over whatever is there."""
        end = address + len(data)
        pieces: list[Piece] = [(address, end, data, 0)]
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

    def read_pages(self) -> list[Piece]:
        """The pages that a running machine was asked for, of memory that is made of `pages` by number."""
        held = {id(data): data for _, _, data, _ in self._pieces if hasattr(data, "pages")}
        return [(at, PAGE, content, 0) for data in held.values() for at, content in data.pages.items()]

    def parts(self, start: int, stop: int) -> Iterator[range]:
        """What is held of the addresses from `start` to before `stop`, in ascending order."""
        for number in range(max(0, bisect_right(self._starts, start) - 1), len(self._starts)):
            first, end = self._pieces[number][:2]
            if first >= stop:
                break
            if end > start:
                yield range(max(first, start), min(end, stop))

    def holds(self, address: int) -> bool:
        """Whether the byte at this address is known."""
        number = bisect_right(self._starts, address) - 1
        return number >= 0 and address < self._pieces[number][1]

    def backed(self, address: int) -> bool:
        """Whether there is memory at this address that can be written, whatever it holds; device registers are none."""
        return self._backed(address, self.holds(address))

    def _backed(self, address: int, held: bool) -> bool:
        return (held or any(address in known for known in self.ram)) and address not in DEVICES

    def _extents(self) -> Iterator[Piece]:
        """The pieces without what is a hole of a file."""
        for start, stop, data, offset in self._pieces:
            held = range(offset, offset + stop - start)
            extents = getattr(data, "extents", None)
            for extent in extents(held.start, held.stop) if extents else (held,):
                yield extent.start - offset + start, extent.stop - offset + start, data, extent.start

    @property
    def written(self) -> int:
        """How many bytes `windows` gives."""
        return sum(stop - start for start, stop, _, _ in self._extents())

    def windows(self, size: int) -> Iterator[tuple[int, bytes]]:
        """All bytes that are held, in windows of at most `size` from one multiple of it to the next: (address, bytes).

        A window begins with a page: what is not held of its first one is zeros. What is a hole of a file is left out.
        """
        for start, stop, data, offset in self._extents():
            at = start
            while at < stop:
                end = min(stop, (at // size + 1) * size)
                content = data[at - start + offset : end - start + offset]
                yield at & -PAGE, bytes(at % PAGE) + content if at % PAGE else content
                at = end

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
    """A view of another memory that notes every physical page whose contents decide something.

    Whether there is memory at an address is no question of contents, as long as a note can name all that there is.
    """

    def __init__(self, memory: Memory) -> None:
        self._set(memory._pieces)
        self.ram = memory.ram
        self.pages: set[int] = set()

    def read(self, address: int, size: int) -> bytes:
        self.pages.update(range(address & ~(PAGE - 1), address + size, PAGE))
        return super().read(address, size)

    def holds(self, address: int) -> bool:
        self.pages.add(address & -PAGE)
        return super().holds(address)

    def backed(self, address: int) -> bool:
        if len(self._pieces) + len(self.ram) > budgets.RANGES:
            self.pages.add(address & -PAGE)
        return self._backed(address, super().holds(address))
