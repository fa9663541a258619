"""Many translations at once: with NumPy, level by level for all of them; without it, one after the other."""

from __future__ import annotations

from array import array

from .memory import PAGE
from .paging import PS, US, P
from .probe import Absent, Ok

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    import numpy as np

    from .paging import AddressSpace

    Words = np.ndarray[Any, np.dtype[np.uint64]]

NOWHERE = (1 << 64) - 1  # no physical address is that high
AT_ONCE = 1 << 15  # addresses: in the worst case as many page tables are held at a time
_ADDRESS = 0x000F_FFFF_FFFF_F000
_PAGE, _NONE, _ABSENT = -1, -2, -3  # instead of the number of the next table


def translate_all(space: AddressSpace, addresses: Iterable[int]) -> array[int]:
    """The physical address of each linear one, as `space.translate` gives it for reading; NOWHERE where that raises.

    An array of 64-bit numbers (typecode `Q`) is taken as it is, also one of NumPy's.
    """
    try:
        import numpy
    except ImportError:
        return one_by_one(space, addresses)
    if space.declared is not None or space.paging.mode not in ("4-level", "5-level"):
        return one_by_one(space, addresses)
    whole = isinstance(addresses, array | numpy.ndarray)
    linear = numpy.frombuffer(addresses if whole else array("Q", addresses), numpy.uint64)  # type: ignore[call-overload]
    walk = _Walk(space)
    found = array("Q")
    for start in range(0, len(linear), AT_ONCE):
        found.frombytes(walk.translate(linear[start : start + AT_ONCE]).tobytes())
    return found


def one_by_one(space: AddressSpace, addresses: Iterable[int]) -> array[int]:
    """`translate_all` without NumPy."""
    answers = (space.probe(int(linear)) for linear in addresses)
    return array("Q", (answer.physical if isinstance(answer, Ok) else NOWHERE for answer in answers))


class _Walk:
    """A walk of many addresses: at each level a block of tables, and for each address which one and which entry."""

    def __init__(self, space: AddressSpace) -> None:
        import numpy

        self.np, self.space = numpy, space
        self.smap = space.paging.smap
        self.unused = 64 - (57 if space.levels == 5 else 48)

    def translate(self, linear: Words) -> Words:
        """The physical addresses, NOWHERE for what is not mapped."""
        np = self.np
        found: Words = np.full(len(linear), NOWHERE, np.uint64)
        signed = linear.view(np.int64)
        where = np.flatnonzero(signed << self.unused >> self.unused == signed)
        at, rows = linear[where], np.zeros(len(where), np.intp)
        tables, absent = self._tables(np.array([self.space.paging.root | US], np.uint64))
        if absent.any():
            return self._slowly(linear, found, where)
        for _, shift, mask, large, _, as_table, as_page in self.space.steps:
            keys = rows * 512 + (at >> np.uint64(shift) & np.uint64(mask)).astype(np.intp)
            low = np.uint64((1 << shift) - 1)
            if shift == 12:
                values = tables.entries[keys]
                good = values & np.uint64(as_page | P) == P
                if self.smap:
                    good &= values & tables.user[rows] & np.uint64(US) == 0
                found[where[good]] = (values[good] & np.uint64(_ADDRESS)) + (at[good] & low)
                break
            used = np.zeros(len(tables.entries), bool)
            used[keys] = True
            used = np.flatnonzero(used)
            values = tables.entries[used]
            page = values & np.uint64(PS) != 0 if large else np.zeros(len(used), bool)
            wrong = np.where(page, values & np.uint64(as_page), values & np.uint64(as_table))
            good = (values & np.uint64(P) != 0) & (wrong == 0)
            users = values & tables.user[used // 512] & np.uint64(US)
            if self.smap:
                good &= ~(page & (users != 0))
            below = good & ~page
            names, numbers = np.unique(values[below] & np.uint64(_ADDRESS) | users[below], return_inverse=True)
            step = np.full(len(tables.entries), _NONE, np.intp)
            step[used[good & page]] = _PAGE
            next_, absent = self._tables(names)
            step[used[below]] = np.where(absent[numbers], _ABSENT, numbers)
            rows = step[keys]
            if (is_page := rows == _PAGE).any():
                frames = tables.entries[keys[is_page]] & np.uint64(_ADDRESS & ~((1 << shift) - 1))
                found[where[is_page]] = frames + (at[is_page] & low)
            if (lost := rows == _ABSENT).any():
                self._slowly(linear, found, where[lost])
            going = rows >= 0
            where, at, rows, tables = where[going], at[going], rows[going], next_
        return found

    def _tables(self, names: Words) -> tuple[_Tables, Any]:
        """The entries of tables one after the other, and which of them the image does not hold; the name of a table is
        its address, and US where all levels above have that."""
        np = self.np
        parts, absent = [], []
        for name in names.tolist():
            try:
                parts.append(self.space.memory.read(name & -PAGE, PAGE))
                absent.append(False)
            except Absent:
                parts.append(bytes(PAGE))
                absent.append(True)
        return _Tables(np.frombuffer(b"".join(parts), np.uint64), names & np.uint64(US)), np.array(absent, bool)

    def _slowly(self, linear: Words, found: Words, where: Any) -> Words:
        """Where the image holds a part of a table only: one by one."""
        found[where] = self.np.frombuffer(one_by_one(self.space, linear[where].tolist()), self.np.uint64)
        return found


class _Tables:
    """A block of tables: all entries, and for each table US or 0."""

    def __init__(self, entries: Words, user: Words) -> None:
        self.entries, self.user = entries, user
