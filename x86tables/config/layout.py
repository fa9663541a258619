"""What is mapped where: the tables, handlers, stacks and memory of a configuration as mappings of whole pages."""

from __future__ import annotations

from itertools import pairwise

from .. import budgets
from ..machine.memory import PAGE
from ..machine.paging import canonical
from ..machine.synthetic import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    from .compiled import CompiledStack, CompiledTables, Lookup, MemoryRange

    Ranked: TypeAlias = tuple[int, Mapping]  # of bytes, not yet of pages; of two for a page, the higher rank counts

IMPLIED, LINKED, DECLARED, GUARD = range(4)


def layout(tables: CompiledTables, find: Lookup, segments: Iterable[Mapping] = ()) -> list[Mapping]:
    """The mappings, by ascending address. UsageError names the key that cannot be mapped.

    The segments of a linked kernel (`segments`), over them the declared memory, over that the guards; and the pages of
    tables, stacks and handlers of which nothing else is said.
    """
    levels = 5 if tables.config.machine.la57 else 4
    ranked = [(rank, _whole_pages(mapping)) for rank, mapping in _ranked(tables, find, segments)]
    # addresses that are not canonical are left to the rules, which report them
    ranked = [(rank, mapping) for rank, mapping in ranked if _canonical(mapping, levels)]
    mappings = _joined(ranked)
    total = sum(mapping.size for mapping in mappings if mapping.permissions)
    if total > budgets.DECLARED_MEMORY:
        most = budgets.DECLARED_MEMORY >> 20
        message = f"{total >> 20} MiB are declared, {most} can be judged: declare what tables and stacks need"
        raise tables.source.mistake(("memory",), message)
    return mappings


def _ranked(tables: CompiledTables, find: Lookup, segments: Iterable[Mapping]) -> Iterator[Ranked]:
    for table in tables.all:
        yield IMPLIED, Mapping(f"the table {table.name}", table.place.at(find), table.size)
    for handler in tables.handlers:
        yield IMPLIED, Mapping("the handlers", handler.address.at(find), 1, "rx")
    for stack in tables.stacks:
        size = stack.size or PAGE
        yield IMPLIED, Mapping(tables.describe(stack), stack.top.at(find) - size, size)
        if stack.guard and stack.bottom is not None:
            yield GUARD, _guard(tables, stack, stack.bottom.at(find))
    for memory in tables.memory:
        yield DECLARED if memory.permissions else GUARD, _memory(tables, memory, find)
    for segment in segments:
        yield LINKED, segment


def _guard(tables: CompiledTables, stack: CompiledStack, bottom: int) -> Mapping:
    if bottom % PAGE:
        message = f"a guard is whole pages, and the stack begins {bottom % PAGE:#x} bytes into one: align it to {PAGE}"
        raise tables.source.mistake((*stack.path, "guard"), message)
    return Mapping(f"the guard of {tables.describe(stack)}", bottom - stack.guard, stack.guard, "")


def _memory(tables: CompiledTables, memory: MemoryRange, find: Lookup) -> Mapping:
    start, stop = memory.start.at(find), memory.stop.at(find)
    if stop <= start:
        raise tables.source.mistake(memory.path, f"the end {stop:#x} is not above the start {start:#x}")
    if not memory.permissions and (start | stop) % PAGE:
        raise tables.source.mistake(memory.path, f"a guard is whole pages: [{start:#x}, {stop:#x}) is not")
    return Mapping(f"the memory {memory.name}", start, stop - start, memory.permissions)


def _whole_pages(mapping: Mapping) -> Mapping:
    start, stop = mapping.address & -PAGE, mapping.address + mapping.size + PAGE - 1 & -PAGE
    return mapping.replace(address=start, size=stop - start)


def _canonical(mapping: Mapping, levels: int) -> bool:
    last = mapping.address + mapping.size - 1
    return mapping.address >= 0 and canonical(mapping.address, levels) and canonical(last, levels)


def _joined(ranked: list[Ranked]) -> list[Mapping]:
    """One mapping for each stretch of pages; equals in rank join their permissions."""
    order = sorted(range(len(ranked)), key=lambda number: ranked[number][1].address)
    edges = sorted({edge for _, m in ranked for edge in (m.address, m.address + m.size)})
    here: list[int] = []
    mappings: list[Mapping] = []
    first = 0
    for start, stop in pairwise(edges):
        here = [number for number in here if start < ranked[number][1].address + ranked[number][1].size]
        while first < len(order) and ranked[order[first]][1].address == start:
            here.append(order[first])
            first += 1
        if not here:
            continue
        rank = max(ranked[number][0] for number in here)
        chosen = [ranked[number][1] for number in sorted(here) if ranked[number][0] == rank]
        permissions = "".join(letter for letter in "rwxu" if any(letter in m.permissions for m in chosen))
        last = mappings[-1] if mappings else None
        if (
            last
            and last.address + last.size == start
            and (last.permissions, last.name) == (permissions, chosen[0].name)
        ):
            mappings[-1] = last.replace(size=last.size + stop - start)
        else:
            mappings.append(Mapping(chosen[0].name, start, stop - start, permissions))
    return mappings
