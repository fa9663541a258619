"""Names for addresses: from System.map, `nm`, or an ELF file's symbol table."""

from __future__ import annotations

import re
from bisect import bisect_right

from ..errors import ImageError, NotThere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .files import Data

MOST_ALIKE = 1 << 13  # symbols at one place within their pages: more of them tell nothing
FAR = 0x1_0000  # bytes between the entry code of a kernel and what else its gates lead to
_LINE = re.compile(rb"^([0-9a-fA-F]{8,16}) [A-Za-z] ([^\s]+)", re.MULTILINE)

_MOST = 1 << 28  # bytes of text: a kernel with all its debug symbols has a tenth of that


class Symbols:
    """Names by address, addresses by name, and source lines where debugging information has them.

    `lines` answers for an address as linked (`file.c:12` or None); `slide` is how far the names lie above those.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[int, str]] = (),
        offset: int = 0,
        lines: Callable[[int], str | None] | None = None,
        slide: int = 0,
    ) -> None:
        self._lines, self._slide = lines, slide + offset
        self.pairs = sorted((address + offset & (1 << 64) - 1, name) for address, name in pairs)
        self._addresses = [address for address, _ in self.pairs]
        self._by_name: dict[str, list[int]] = {}
        for address, name in self.pairs:
            self._by_name.setdefault(name, []).append(address)

    def __len__(self) -> int:
        return len(self.pairs)

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def moved(self, offset: int) -> Symbols:
        """The same names at addresses that lie `offset` higher."""
        return Symbols(self.pairs, offset, self._lines, self._slide)

    def name(self, address: int, reach: int = 0x10000) -> str | None:
        """`name` or `name+0x12` for the nearest symbol at or below; None when that is more than `reach` away."""
        number = bisect_right(self._addresses, address) - 1
        if number < 0 or address - self._addresses[number] > reach:
            return None
        base = self._addresses[number]
        while number and self._addresses[number - 1] == base:
            number -= 1  # the first of several names, so that the answer does not depend on the order of a file
        return self.pairs[number][1] + (f"+{address - base:#x}" if address != base else "")

    @property
    def lined(self) -> bool:
        """Whether there may be source lines."""
        return self._lines is not None

    def line(self, address: int) -> str | None:
        """`file.c:12` for an instruction, where the file of symbols has debugging information; looked up when asked."""
        return None if self._lines is None else self._lines(address - self._slide & (1 << 64) - 1)

    def place(self, address: int) -> str | None:
        """Name and source line together, for text: `page_fault at entry.S:120`, or what there is of the two."""
        name, line = self.name(address), self.line(address)
        short = line and line.rpartition("/")[2]
        return f"{name} at {short}" if name and short else name or short

    def address(self, name: str) -> int:
        """The address of a symbol; NotThere when there is none, or when several have the name."""
        found = self._by_name.get(name, [])
        if not found:
            raise NotThere(f"no symbol {name!r}")
        if len(set(found)) > 1:
            raise NotThere(f"symbol {name!r} is ambiguous: {', '.join(hex(address) for address in found[:4])}")
        return found[0]

    def offset_for(self, handlers: Iterable[int]) -> int | None:
        """How far a kernel was moved (KASLR): the one offset, a multiple of 4 KiB, that puts symbols on the handlers.

        A quarter of them may go without: some gates of a healthy kernel lead into init memory, far from the others. One
        without a symbol amid those that have one tells of another build. None when no offset does it, or several do
        equally well.
        """
        wanted = set(handlers)
        if len(wanted) < 4:
            return None
        by_place: dict[int, list[int]] = {}
        addresses = set(self._addresses)
        for address in addresses:
            by_place.setdefault(address & 0xFFF, []).append(address)
        hits: dict[int, int] = {}
        for handler in wanted:
            near = by_place.get(handler & 0xFFF, ())
            for address in near if len(near) <= MOST_ALIKE else ():
                hits[handler - address] = hits.get(handler - address, 0) + 1
        most = max(hits.values(), default=0)
        fitting = [offset for offset, count in hits.items() if count == most]
        if len(fitting) != 1 or most * 4 < len(wanted) * 3:
            return None
        named = {handler for handler in wanted if handler - fitting[0] in addresses}
        amid = range(min(named) - FAR, max(named) + FAR)
        return None if any(handler in amid for handler in wanted - named) else fitting[0]


def printable(text: str) -> str:
    """A name of a file's, with escapes (`\\x1b`) for whatever would move the cursor or hide on a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def parse_map(data: Data, path: str) -> Symbols:
    """A System.map, the output of `nm`, or /proc/kallsyms: `address type name` lines."""
    if len(data) > _MOST:
        raise ImageError(f"{path}: {len(data):#x} bytes are no list of symbols: at most {_MOST:#x} are read")
    pairs = [(int(address, 16), printable(name.decode("ascii", "replace"))) for address, name in _LINE.findall(data[:])]
    if not pairs:
        raise ImageError(f"{path}: no symbols: lines of `address type name`, or an ELF file, are expected")
    return Symbols(pairs)
