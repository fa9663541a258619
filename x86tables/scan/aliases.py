"""Where page tables map given physical pages: the linear addresses of each, by one walk over tables that lead there."""

from __future__ import annotations

import struct
from bisect import bisect_left
from itertools import islice

from .. import budgets
from ..machine.memory import PAGE
from ..machine.paging import LEVELS, NX, PS, RW, US, P, sign_extend
from ..machine.probe import Absent
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..machine.memory import Memory
    from .roots import Effort

_ADDRESS = 0x000F_FFFF_FFFF_F000
_TABLE = struct.Struct("<512Q")


class Alias(Record):
    """One linear address of a physical page, and what is allowed there."""

    linear: int
    writable: bool
    user: bool
    executable: bool
    size: int


class Lister:
    """The aliases of some physical pages in one set of page tables.

    A table is read once for each level that it stands at, however often it is named: tables that name one another have
    an end like any.
    """

    def __init__(self, memory: Memory, root: int, mode: str, pages: Iterable[int], effort: Effort) -> None:
        self.memory, self.root, self.levels = memory, root, LEVELS[mode]
        self.bits = 57 if mode == "5-level" else 48
        self.wanted = sorted({page & -PAGE for page in pages})
        self._ways: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        self.effort = effort

    def aliases(self) -> dict[int, list[Alias]]:
        """For each page that is mapped at all: where; at most ALIASES addresses in all."""
        found: dict[int, list[Alias]] = {}
        for page, alias in islice(self._follow(0, self.root, 0, RW | US | NX), budgets.ALIASES):
            found.setdefault(page, []).append(alias)
        return found

    def _follow(self, depth: int, table: int, linear: int, allowed: int) -> Iterator[tuple[int, Alias]]:
        shift = self.levels[depth][1]
        for index, value, page in self._leading(depth, table):
            here = linear | index << shift
            rights = allowed & (value ^ NX)
            if page < 0:
                yield from self._follow(depth + 1, value & _ADDRESS, here, rights)
                continue
            size = 1 << shift
            for wanted in self._within(value & _ADDRESS & -size, size):
                at = sign_extend(here + (wanted & size - 1), self.bits)
                yield wanted, Alias(at, rights & RW != 0, rights & US != 0, rights & NX != 0, size)

    def _within(self, start: int, size: int) -> list[int]:
        return self.wanted[bisect_left(self.wanted, start) : bisect_left(self.wanted, start + size)]

    def _leading(self, depth: int, table: int) -> list[tuple[int, int, int]]:
        """The entries of a table that lead to a wanted page: index, value, and 1 for a page, -1 for a table."""
        known = self._ways.get((depth, table))
        if known is not None:
            return known
        found: list[tuple[int, int, int]] = []
        self._ways[depth, table] = found  # while it is read: what names itself leads nowhere new
        self.effort.tables -= 1
        if self.effort.tables < 0:
            return found
        try:
            entries = _TABLE.unpack(self.memory.read(table, PAGE))
        except Absent:
            return found
        _, shift, _, large = self.levels[depth]
        last = shift == 12
        wanted = set(self.wanted) if last else ()
        for index, value in enumerate(entries):
            if not value & P:
                continue
            if last:
                if value & _ADDRESS in wanted:
                    found.append((index, value, 1))
            elif large and value & PS:
                if self._within(value & _ADDRESS & -1 << shift, 1 << shift):
                    found.append((index, value, 1))
            elif not value & PS and self._leading(depth + 1, value & _ADDRESS):
                found.append((index, value, -1))
        return found
