"""Names for addresses: from System.map, `nm`, or an ELF file's symbol table."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from functools import cache
from itertools import accumulate, islice, repeat

from .. import budgets
from ..errors import ImageError, NotThere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from .files import Data

    Row: TypeAlias = tuple[int, bytes]  # address, name

MASK = (1 << 64) - 1
FAR = 0x1_0000  # bytes between the entry code of a kernel and what else its gates lead to
_PLAIN = bytes(range(0x20, 0x7F)) + b"\t\n"  # what names may hold as it is
_CHUNK, _ROWS = 1 << 20, 1 << 14  # bytes of text, symbols: so many are taken in hand at once


class Symbols:
    """Names by address, addresses by name, and source lines where debugging information has them.

    What names an address is `readable`; an address is found by either form of a name, as the linker has it first.

    `lines` answers for an address as linked (`file.c:12` or None), `sizes` for a name (in bytes, 0 where it is not
    known), `compiled` for a test of compilers' options (some source files compiled so, None where that is not known),
    `below_rsp` for functions that keep data there. `objects` are the addresses and sizes of what may be a stack. A
    symbol costs 12 bytes and its name: millions of them fit into memory.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[int, str]] = (),
        lines: Callable[[int], str | None] | None = None,
        sizes: Callable[[str], int] | None = None,
        objects: Sequence[tuple[int, int]] = (),
        compiled: Callable[[Callable[[str], bool]], tuple[str, ...] | None] | None = None,
        below_rsp: Callable[[], tuple[str, ...]] | None = None,
    ) -> None:
        self._lines, self._sizes, self._offset = (
            lines,
            sizes,
            0,
        )  # the offset lies between the addresses as linked, kept here, and as moved
        self._objects, self._compiled, self._below_rsp = objects, compiled, below_rsp
        self._addresses, self._starts, self._names = array("Q"), array("I"), bytearray(b"\0")  # NUL around each name
        self._append(sorted((address & MASK, _encoded(name)) for address, name in pairs))

    def _append(self, rows: list[Row]) -> None:
        """Add sorted rows, none of which lies below those that are there already."""
        if rows:
            addresses, names = zip(*rows, strict=True)
            self._addresses.extend(addresses)
            sizes = map((1).__add__, map(len, names[:-1]))
            self._starts.extend(accumulate(sizes, initial=len(self._names)))
            self._names += b"\0".join(names) + b"\0"

    def _rows(self) -> Iterator[Row]:
        return ((address, self._encoded(number)) for number, address in enumerate(self._addresses))

    def _encoded(self, number: int) -> bytes:
        stop = self._starts[number + 1] if number + 1 < len(self) else len(self._names)
        return bytes(self._names[self._starts[number] : stop - 1])

    def _named(self, name: str) -> list[int]:
        """The numbers of the symbols of this name; where there are none, of those that are shown so."""
        encoded = _encoded(name)
        exact = [number for number in self._holding(b"\0%b\0" % encoded, 1) if self._encoded(number) == encoded]
        if exact or "::" not in name:
            return exact
        import re

        words = re.findall(r"(?:^|::)([^\W\d]\w*)", name)  # which stand in the mangled name as they are
        near = self._holding(_encoded(words[-1])) if words else ()
        return [number for number in near if readable(_decoded(self._encoded(number))) == name]

    def _holding(self, text: bytes, skip: int = 0) -> Iterator[int]:
        """The numbers of the symbols in whose name a text begins `skip` bytes before."""
        before, at = -1, self._names.find(text)
        while at >= 0:
            number = bisect_right(self._starts, at + skip) - 1
            if number > before:
                yield number
            before, at = number, self._names.find(text, at + 1)

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def pairs(self) -> list[tuple[int, str]]:
        """Every (address, name), in ascending order."""
        return sorted((address + self._offset & MASK, _decoded(name)) for address, name in self._rows())

    def moved(self, offset: int) -> Symbols:
        """The same names at addresses that lie `offset` higher."""
        moved = object.__new__(Symbols)
        moved.__dict__.update(self.__dict__)
        moved._offset = self._offset + offset & MASK
        return moved

    def name(self, address: int, reach: int = 0x10000) -> str | None:
        """`name` or `name+0x12` for the nearest symbol at or below; None when that is more than `reach` away."""
        if not self:
            return None
        linked = address - self._offset & MASK
        base = self._addresses[bisect_right(self._addresses, linked) - 1]  # the last one where linked addresses wrap
        distance = linked - base & MASK
        if distance > min(reach, address):
            return None
        # the first of several names, so that the answer does not depend on the order of a file
        name = readable(_decoded(self._encoded(bisect_left(self._addresses, base))))
        return name + (f"+{distance:#x}" if distance else "")

    @property
    def lined(self) -> bool:
        """Whether there may be source lines."""
        return self._lines is not None

    def line(self, address: int) -> str | None:
        """`file.c:12` for an instruction, where the file of symbols has debugging information; looked up when asked."""
        return None if self._lines is None else self._lines(address - self._offset & MASK)

    def place(self, address: int) -> str | None:
        """Name and source line together, for text: `page_fault at entry.S:120`, or what there is of the two."""
        name, line = self.name(address), self.line(address)
        short = line and line.rpartition("/")[2]
        return f"{name} at {short}" if name and short else name or short

    def address(self, name: str) -> int:
        """The address of a symbol; NotThere when there is none, or when several have the name."""
        found = sorted({self._addresses[number] + self._offset & MASK for number in self._named(name)})
        if not found:
            raise NotThere(f"no symbol {name!r}")
        if len(found) > 1:
            raise NotThere(f"symbol {name!r} is ambiguous: {', '.join(hex(address) for address in found[:4])}")
        return found[0]

    def has(self, name: str) -> bool:
        """Whether there is a symbol of this name, or several."""
        return bool(self._named(name))

    def size(self, name: str) -> int:
        """How many bytes a symbol has; 0 where the file of symbols does not tell."""
        if self._sizes is None:
            return 0
        return max(map(self._sizes, {_decoded(self._encoded(number)) for number in self._named(name)}), default=0)

    def compiled(self, how: Callable[[str], bool]) -> tuple[str, ...] | None:
        """Some source files for whose compiler and options, as DW_AT_producer has them, `how` is true; None where no
        options were recorded."""
        return None if self._compiled is None else self._compiled(how)

    def below_rsp(self) -> tuple[str, ...]:
        """Names of some functions that keep data below RSP; none where none is known."""
        return () if self._below_rsp is None else tuple(map(readable, self._below_rsp()))

    @property
    def objects(self) -> tuple[range, ...]:
        """Where the variables lie that may be stacks, in order."""
        starts = sorted((address + self._offset & MASK, size) for address, size in self._objects)
        return tuple(range(start, start + size) for start, size in starts)

    def offset_for(self, handlers: Iterable[int]) -> int | None:
        """How far a kernel was moved (KASLR): the one offset, a multiple of 4 KiB, that puts symbols on the handlers.

        A quarter of them may go without: some gates of a healthy kernel lead into init memory, far from the others. One
        without a symbol amid those that have one tells of another build. None when no offset does it, or several do
        equally well.
        """
        wanted = set(handlers)
        if len(wanted) < 4:
            return None
        by_place: dict[int, set[int]] = {handler & 0xFFF: set() for handler in wanted}
        for linked in self._addresses:
            alike = by_place.get(linked + self._offset & 0xFFF)
            if alike is not None and len(alike) <= budgets.ALIKE_SYMBOLS:
                alike.add(linked + self._offset & MASK)
        hits: dict[int, int] = {}
        for handler in wanted:
            near = by_place[handler & 0xFFF]
            for address in near if len(near) <= budgets.ALIKE_SYMBOLS else ():
                hits[handler - address] = hits.get(handler - address, 0) + 1
        most = max(hits.values(), default=0)
        fitting = [offset for offset, count in hits.items() if count == most]
        if len(fitting) != 1 or most * 4 < len(wanted) * 3:
            return None
        named = {handler for handler in wanted if self.name(handler - fitting[0], 0) is not None}
        amid = range(min(named) - FAR, max(named) + FAR)
        return None if any(handler in amid for handler in wanted - named) else fitting[0]


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def printable(text: str) -> str:
    """A name of a file's, with escapes (`\\x1b`) for whatever would move the cursor or hide on a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def readable(name: str) -> str:
    """A name as the source has it, where Rust's compiler has mangled it and the package pyderust (`rust`) is there."""
    demangle = _demangler() if name.startswith(("_R", "_ZN")) else None
    try:
        plain = printable(demangle(name)) if demangle is not None else name
    except ValueError:  # C++, or damaged
        return name
    return plain if len(plain) <= budgets.NAME else name  # a short one can stand for a megabyte


@cache
def _demangler() -> Callable[[str], str] | None:
    try:
        from pyderust import demangle
    except ImportError:
        return None
    return demangle


def parse_map(data: Data, path: str) -> Symbols:
    """A System.map, the output of `nm`, or /proc/kallsyms: `address type name` lines."""
    if len(data) > budgets.SYMBOL_TEXT:
        raise ImageError(
            f"{path}: {len(data):#x} bytes are too many for a list of symbols: at most {budgets.SYMBOL_TEXT:#x} are "
            "read"
        )
    runs = [Symbols()]  # a file in order, which most are, is one run
    for rows in _sorted_chunks(data):
        if runs[-1] and rows[0][0] <= runs[-1]._addresses[-1]:
            runs.append(Symbols())
        runs[-1]._append(rows)
    if not runs[0]:
        raise ImageError(f"{path}: no symbols: lines of `address type name`, or an ELF file, are expected")
    if len(runs) == 1:
        return runs[0]
    from heapq import merge

    symbols, ordered = Symbols(), merge(*(run._rows() for run in runs))
    while rows := list(islice(ordered, _ROWS)):
        symbols._append(rows)
    return symbols


def _sorted_chunks(data: Data) -> Iterator[list[Row]]:
    """The symbols of one piece of a map after the other, each sorted; all of one address in one piece, if in a row."""
    import re

    line = re.compile(rb"^([0-9a-fA-F]{8,16}) [A-Za-z] (\S+)", re.MULTILINE)
    rest = b""
    rows: list[Row] = []
    for at in range(0, len(data), _CHUNK):
        whole, newline, rest = (rest + data[at : at + _CHUNK]).rpartition(b"\n")
        if at + _CHUNK >= len(data):
            whole, rest = whole + newline + rest, b""
        plain = not whole.translate(None, _PLAIN)
        found = line.findall(whole)
        addresses, names = zip(*found, strict=True) if found else ((), ())
        if not plain:
            names = tuple(_encoded(printable(name.decode("ascii", "replace"))) for name in names)
        rows += zip(map(int, addresses, repeat(16)), names, strict=True)
        rows.sort()
        last = bisect_left(rows, (rows[-1][0],)) if rows else 0
        if last:
            yield rows[:last]
            rows = rows[last:]
    if rows:
        yield rows
