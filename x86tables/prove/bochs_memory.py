"""Physical memory of the machine that Bochs runs: host pages, filled when they are first touched."""

from __future__ import annotations

import ctypes
import mmap

import bochscpu.memory

from ..machine.memory import PAGE
from ..machine.probe import Absent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.memory import Memory

LINE = 64  # bytes that are compared at a time
SLAB = 256  # host pages that are asked for at a time


class Pages:
    """The pages that the CPU has touched, each a copy of the image's; host pages are used again for the next run."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._slabs: list[mmap.mmap] = []
        self._pages: dict[int, tuple[int, bytes]] = {}  # page number -> host address, what it held at first

    def fill(self, number: int, memory: Memory) -> None:
        """Give Bochs a page: zero where the image has nothing."""
        if not self._free:
            self._slabs.append(mmap.mmap(-1, SLAB * PAGE))
            base = ctypes.addressof(ctypes.c_char.from_buffer(self._slabs[-1]))
            self._free = [base + at * PAGE for at in range(SLAB)]
        host, data = self._free.pop(), _known(memory, number * PAGE)
        ctypes.memmove(host, data, PAGE)
        self._pages[number] = host, data
        bochscpu.memory.page_insert(number * PAGE, host)

    def hold(self, physical: int) -> bool:
        """Whether the CPU has touched this page, and not a device's there."""
        return physical // PAGE in self._pages

    def read(self, physical: int, size: int) -> bytes:
        """Bytes of a page that was touched."""
        return ctypes.string_at(self._pages[physical // PAGE][0] + physical % PAGE, size)

    def changes(self, walked: set[int]) -> Iterator[tuple[int, int]]:
        """(physical address, byte) of all that changed, but for page-table entries that were `walked`."""
        for number, (host, before) in self._pages.items():
            after = ctypes.string_at(host, PAGE)
            if after == before:
                continue
            for line in range(0, PAGE, LINE):
                if before[line : line + LINE] != after[line : line + LINE]:
                    for at in range(line, line + LINE):
                        if before[at] != after[at] and number * PAGE + at not in walked:
                            yield number * PAGE + at, after[at]

    def clear(self) -> None:
        """Take all pages away from Bochs."""
        for number, (host, _) in self._pages.items():
            bochscpu.memory.page_remove(number * PAGE)
            self._free.append(host)
        self._pages.clear()


def _known(memory: Memory, start: int) -> bytes:
    try:
        return memory.read(start, PAGE)
    except Absent:
        page = bytearray(PAGE)
        for known in memory.ranges:
            first, stop = max(known.start, start), min(known.stop, start + PAGE)
            if first < stop:
                page[first - start : stop - start] = memory.read(first, stop - first)
        return bytes(page)
