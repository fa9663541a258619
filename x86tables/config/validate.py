"""What is wrong with declared stacks, by the declaration alone."""

from __future__ import annotations

from bisect import bisect_left

from .addresses import placeholders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .compiled import CompiledTables, Lookup
    from .lines import Path

ALIGNMENT = 16  # bytes at most between two neighbours: that to which the ABI aligns a stack


def problems(tables: CompiledTables, find: Lookup) -> dict[str, Path]:
    """Stacks without a guard right above something that an overflow would overwrite: a sentence each, and the key."""
    placed = placeholders(tables, find)

    def known(name: str) -> int:
        return placed[name] if name in placed else find(name)

    ends = [(table.place.at(known) + table.size, f"the table {table.name}") for table in tables.all]
    ends += [(stack.top.at(known), tables.describe(stack)) for stack in tables.stacks]
    ends.sort()
    found: dict[str, Path] = {}
    for stack in tables.stacks:
        if stack.bottom is None or stack.guard:
            continue
        bottom = stack.bottom.at(known)
        first, last = (bisect_left(ends, (end, "")) for end in (bottom - ALIGNMENT + 1, bottom + 1))
        for _, name in ends[first:last]:
            found[
                f"{tables.describe(stack)} has no guard, and right below it lies {name}, which an overflow "
                "overwrites: leave a page between them, and declare guard = 4096"
            ] = stack.path
    return found
