"""All that page tables map, listed; and page tables made for the pages that are wanted."""

from __future__ import annotations

import struct
from itertools import compress, repeat

from ..errors import UsageError
from .memory import PAGE
from .paging import ADDRESS, LEVELS, NX, PS, RW, US, P, canonical, page_of
from .probe import Absent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    from .paging import AddressSpace, Page

    Entries: TypeAlias = list[tuple[int, bool, int, int]]

KEPT = 256  # tables that a listing of all mappings keeps decoded: some systems name one of them thousands of times
_RIGHTS_BYTE = bytes(byte & (P | RW | US) for byte in range(256))  # of byte 0 of an entry; NX is in byte 7
_NX_IN_BYTE = 8
_NX_BYTE = bytes(byte >> 7 and _NX_IN_BYTE for byte in range(256))
_P_BYTE = bytes(byte & P for byte in range(256))
_NOT_PRESENT = bytes(range(0, 256, 2))
_HIGH_NIBBLE, _LOW_NIBBLE = bytes(byte & 0xF0 for byte in range(256)), bytes(byte & 0xF for byte in range(256))
_RIGHTS: dict[int, dict[int, tuple[bool, bool, bool]]] = {}  # of at most eight kinds


def mappings(space: AddressSpace) -> Iterator[Page]:
    """Every mapping in ascending order of the lower and then the upper half; tables not in the image are left out.

    A generator without end would be possible (a table may point at itself many times over): stop when you have
    seen enough.
    """
    if space.steps:
        for pages in _Lister(space).below(0, space.paging.root, 0, RW | US | NX, {}):
            yield from pages


class _Lister:
    def __init__(self, space: AddressSpace) -> None:
        self.space, self.mask = space, space.table_mask

    def below(
        self, depth: int, table: int, base: int, allowed: int, seen: dict[tuple[int, int], Entries]
    ) -> Iterator[list[Page]]:
        """The pages below one table, in lists as they come; `seen` are tables decoded before, by depth and address.

        `allowed` has the permissions of all levels above, as in a walk.
        """
        shift = self.space.steps[depth][1]
        if shift == 12:
            yield self._leaf(table, base, allowed)
            return
        entries = seen.get((depth, table))
        if entries is None:
            if len(seen) >= KEPT:
                seen.clear()
            entries = seen[depth, table] = list(self._entries(depth, table))
        pages: list[Page] = []
        size, allows = 1 << shift, _rights(allowed)
        for offset, page, start, rights in entries:
            if page:
                pages.append(page_of((base + offset, start, size, *allows[rights])))
                continue
            if pages:
                yield pages
                pages = []
            yield from self.below(depth + 1, start, base + offset, allowed & (rights ^ NX), seen)
        if pages:
            yield pages

    def _leaf(self, table: int, base: int, allowed: int) -> list[Page]:
        """The pages of one page table."""
        reserved, rights, mask = self.space.steps[-1][6], _rights(allowed), self.mask
        data = self._table(-1, table)
        if self.space.wide and not reserved:
            return _columns(data, base, rights)
        return [
            page_of((base + number * PAGE, value & mask, PAGE, *rights[value & (RW | US | NX)]))
            for number, value in enumerate(self._numbers(data))
            if value & (reserved | P) == P
        ]

    def _table(self, depth: int, table: int) -> bytes:
        """A whole table of a level; none where the image does not hold all of it."""
        try:
            return self.space.memory.read(table, (self.space.steps[depth][2] + 1) * self.space.entry_size)
        except Absent:
            return b""

    def _numbers(self, data: bytes) -> Sequence[int]:
        return struct.unpack(f"<{len(data) // self.space.entry_size}{'I' if self.space.narrow else 'Q'}", data)

    def _entries(self, depth: int, table: int) -> Iterator[tuple[int, bool, int, int]]:
        """The present entries of a table without reserved bits: what they add to the linear address, whether they map
        a page, where it or the next table is, and their bits RW, US and NX."""
        _, shift, _, large, has_rights, as_table, as_page = self.space.steps[depth]
        upper = 1 << (56 if self.space.levels == 5 else 47) if depth == 0 and self.space.wide else None
        for index, value in enumerate(self._numbers(self._table(depth, table))):
            if not value & P:
                continue
            page = large and value & PS != 0
            if value & (as_page if page else as_table):
                continue
            offset = index << shift
            if upper is not None and offset & upper:
                offset += (1 << 64) - 2 * upper
            start = self.space.frame(value, shift) if page else value & self.mask
            yield offset, page, start, value & (RW | US | NX) if has_rights else RW | US


def _columns(data: bytes, base: int, rights: dict[int, tuple[bool, bool, bool]]) -> list[Page]:
    """The pages of a table of 8-byte entries without reserved bits: every step is taken for all entries at once."""
    few = int.from_bytes(data[::8].translate(_RIGHTS_BYTE), "little")  # P, RW and US of each, as a byte
    kinds = (few | int.from_bytes(data[7::8].translate(_NX_BYTE), "little")).to_bytes(len(data) // 8, "little")
    frames = bytearray(data)
    frames[::8] = frames[7::8] = bytes(len(kinds))
    frames[1::8], frames[6::8] = data[1::8].translate(_HIGH_NIBBLE), data[6::8].translate(_LOW_NIBBLE)
    places: Iterable[int] = range(base, base + len(kinds) * PAGE, PAGE)
    starts: Iterable[int] = struct.unpack(f"<{len(kinds)}Q", frames)
    present = kinds.translate(_P_BYTE)
    if 0 in present:
        places, starts = compress(places, present), compress(starts, present)
        kinds = kinds.translate(None, _NOT_PRESENT)
    allows = [rights[kind & (RW | US) | (NX if kind & _NX_IN_BYTE else 0)] for kind in range(16)]
    if kinds.count(kinds[:1]) == len(kinds):  # the usual case
        columns: list[Iterable[bool]] = [*map(repeat, allows[kinds[0] if kinds else 0])]
    else:
        columns = [map(column.__getitem__, kinds) for column in zip(*allows, strict=True)]
    return [*map(page_of, zip(places, starts, repeat(PAGE), *columns, strict=False))]


def _rights(allowed: int) -> dict[int, tuple[bool, bool, bool]]:
    """What a page allows whose entry has such bits of RW, US and NX, below tables that allow `allowed`."""
    known = _RIGHTS.get(allowed)
    if known is None:
        known = _RIGHTS[allowed] = {
            bits: (allowed & bits & RW != 0, allowed & bits & US != 0, allowed & ~bits & NX != 0)
            for bits in (w | u | x for w in (0, RW) for u in (0, US) for x in (0, NX))
        }
    return known


def build(pages: Iterable[Page], tables: int, levels: int = 4) -> tuple[int, dict[int, bytes]]:
    """Page tables for `pages`, of any size, in 4 KiB pages: (CR3, physical address -> page of a table).

    The tables take physical pages from `tables` upwards, as many as they need. Intermediate entries allow everything;
    the last level has the permissions. UsageError for unaligned, non-canonical or overlapping pages.
    """
    built: dict[int, list[int]] = {tables: [0] * 512}
    steps = LEVELS["4-level" if levels == 4 else "5-level"]
    for page in pages:
        if (page.linear | page.size | page.physical) & PAGE - 1:
            raise UsageError(f"page at {page.linear:#x}: address, size and place are multiples of {PAGE:#x}")
        for offset in range(0, page.size, PAGE):
            linear, table = page.linear + offset, tables
            if not canonical(linear, levels):
                raise UsageError(f"page at {page.linear:#x}: {linear:#x} is not canonical")
            for _, shift, _, _ in steps[:-1]:
                index = linear >> shift & 511
                if not built[table][index]:
                    new = tables + len(built) * PAGE
                    built[new] = [0] * 512
                    built[table][index] = new | P | RW | US
                table = built[table][index] & ADDRESS
            index = linear >> 12 & 511
            if built[table][index]:
                raise UsageError(f"page at {page.linear:#x}: {linear:#x} is mapped already")
            built[table][index] = (
                page.physical + offset
                | P
                | (RW if page.writable else 0)
                | (US if page.user else 0)
                | (0 if page.executable else NX)
            )
    return tables, {address: struct.pack("<512Q", *entries) for address, entries in built.items()}
