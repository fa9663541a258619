"""Which page tables an IDT belongs to: those that map its handlers as code of the supervisor's."""

from __future__ import annotations

from .. import budgets
from ..machine.memory import PAGE
from ..machine.paging import LEVELS, AddressSpace, P, Paging, root
from ..machine.probe import Inaccessible
from ..records import Record
from .candidates import held

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.memory import Memory

    Handlers = tuple[tuple[int, int], ...]

MODES = ("4-level", "5-level")


class Effort:
    """What is left of the work that one search may take: walks to handlers, page tables read for aliases."""

    def __init__(self) -> None:
        self.walks, self.tables = budgets.SCANNED_WALKS, budgets.SCANNED_TABLES


class Root(Record):
    """Page tables: how many of the gates (`of`) lead to what they map as code of the supervisor's, and how many
    entries of the top table lead to the lower and to the upper half."""

    physical: int
    mode: str
    mapped: int
    of: int
    lower: int
    upper: int
    high: bool  # the handlers are in the upper half

    @property
    def rank(self) -> tuple[int, str, int, int, int]:
        """Better ones first: most handlers, the kernel's own, without a program; then those with most memory."""
        return -self.mapped, self.mode, self.lower if self.high else -self.lower, -self.upper, self.physical


def roots_for(memory: Memory, handlers: Handlers, tables: Iterable[int], effort: Effort) -> list[Root]:
    """The tables that map handlers, best first."""
    tables, found = [table for table in tables if held(memory, table, PAGE) == PAGE], []
    for mode in MODES:
        shift = LEVELS[mode][0][1]
        indices = sorted({linear >> shift & 511 for linear, _ in handlers})
        for table in tables:
            if not any(_entry(memory, table, index) & P for index in indices):
                continue
            effort.walks -= len(handlers)
            if effort.walks < 0:
                break
            space = AddressSpace(memory, Paging(mode, table))
            mapped = sum(count for linear, count in handlers if _code(space, linear))
            if mapped:
                of, high = sum(count for _, count in handlers), handlers[-1][0] >> 63 == 1
                found.append(Root(table, mode, mapped, of, *_halves(memory, table), high))
    return sorted(_without_doubles(memory, found, handlers), key=lambda one: one.rank)


def _without_doubles(memory: Memory, found: list[Root], handlers: Handlers) -> list[Root]:
    """One meaning for each table. What another names as its next level is no root; a root that maps as much with 4
    levels as with 5, because pages are mapped one to one, has 4; one of 5 has one of 4 below."""
    four = {one.physical for one in found if one.mode == "4-level"}
    below: set[int] = set()
    five: set[int] = set()
    for one in found:
        shift = LEVELS[one.mode][0][1]
        next_ = {root(_entry(memory, one.physical, linear >> shift & 511), one.mode) for linear, _ in handlers} - {0}
        if one.physical in next_:
            continue
        if one.mode == "5-level" and one.physical not in four and next_ <= four:
            five.add(one.physical)
        elif one.mode == "5-level":
            continue
        below |= next_
    return [one for one in found if (one.physical in five if one.mode == "5-level" else one.physical not in below)]


def _entry(memory: Memory, table: int, index: int) -> int:
    at = table + index * 8
    return int.from_bytes(memory.read(at, 8), "little") if memory.holds(at) and memory.holds(at + 7) else 0


def _code(space: AddressSpace, linear: int) -> bool:
    """Whether the supervisor may run what is at `linear`: where that is held, not zeros."""
    try:
        page = space.page(linear)
        if page.user or not page.executable:
            return False
        physical = page.physical + linear - page.linear
        return not space.memory.holds(physical) or any(space.memory.read(physical, 4))
    except Inaccessible:
        return False


def _halves(memory: Memory, table: int) -> tuple[int, int]:
    """How many entries of a top table are present in its lower and in its upper half."""
    present = [byte & P for byte in memory.read(table, PAGE)[::8]]
    return sum(present[:256]), sum(present[256:])
