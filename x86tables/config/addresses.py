"""The addresses of symbols: from a linked kernel, from the configuration, and placeholders where neither has one."""

from __future__ import annotations

from ..errors import NotThere
from ..machine.memory import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.symbols import Symbols
    from .compiled import CompiledTables, Lookup

PLACEHOLDERS = 0xFFFF_C000_0000_0000  # where symbols without an address are put, to judge the tables all the same


def lookup(tables: CompiledTables, symbols: Symbols | None = None, path: str = "") -> Lookup:
    """The address of a symbol: from `symbols` (read from `path`), else from the configuration. NotThere without one.

    UsageError when both know it and differ: a configuration that was not kept up to date.
    """

    def find(name: str) -> int:
        declared = tables.known.get(name)
        try:
            found = symbols.address(name) if symbols else None
        except NotThere as error:
            if declared is None:
                raise NotThere(f"{path}: {error}") from None
            return declared
        if found is not None and declared is not None and found != declared:
            message = f"{declared:#x} here, but {found:#x} in {path}: take the entry out"
            raise tables.source.mistake(("symbols", name), message)
        if found is None and declared is None:
            raise NotThere(f"no address for {name}: give it in [symbols], or --symbols KERNEL.elf")
        return found if found is not None else declared or 0

    return find


def placeholders(tables: CompiledTables, find: Lookup) -> dict[str, int]:
    """Addresses for the symbols that have none, far enough apart for what is declared around each."""
    reach: dict[str, tuple[int, int]] = {}

    def note(symbol: str | None, low: int, high: int) -> None:
        if symbol is not None:
            before = reach.get(symbol, (0, 1))
            reach[symbol] = min(before[0], low), max(before[1], high)

    for address in tables.addresses:
        note(address.symbol, min(address.offset, 0), max(address.offset, 1))
    for table in tables.all:
        note(table.place.symbol, 0, table.size)
    for stack in tables.stacks:
        offset = stack.top.offset
        note(stack.top.symbol, offset - (stack.size or PAGE) - (stack.guard or PAGE), offset)
    placed, free = {}, PLACEHOLDERS
    for symbol, (low, high) in reach.items():
        try:
            find(symbol)
        except NotThere:
            low, high = low & -PAGE, high + PAGE - 1 & -PAGE
            placed[symbol] = free - low
            free += high - low + PAGE
    for memory in tables.memory:  # a range between two symbols, the second of which has no place of its own
        if memory.stop.symbol in placed and memory.start.symbol != memory.stop.symbol:
            placed[memory.stop.symbol] = (memory.start.at(lambda name: placed.get(name) or find(name))) + PAGE
    return placed
