"""What differs between two machines, as text."""

from __future__ import annotations

from ..difference import ADDRESSES, grouped
from ..tables.vectors import label, ranges
from .lines import coloured, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..api import Image
    from ..difference import Comparison, Difference
    from ..machine.symbols import Symbols

REGISTERS = {"gdtr": "GDT", "idtr": "IDT", "tr": "TSS"}


def text(before: Image, after: Image, titles: tuple[str, str], found: Sequence[Comparison]) -> Iterator[str]:
    """The lines that `diff` prints."""
    yield from wrap(f"{titles[0]} -> {titles[1]}", "  ")
    if len(before.machines) != len(after.machines) and before is not after:
        yield f"  {len(before.machines)} and {len(after.machines)} CPUs: those with the same number are compared"
    for one in found:
        yield ""
        yield f"{cpus(one)}  {count(one)}"
        yield from _comparison(one, before.symbols, after.symbols)


def cpus(one: Comparison) -> str:
    """`CPU 0`, `CPU 0 -> CPU 1`."""
    return f"CPU {one.before}" + (f" -> CPU {one.after}" if one.after != one.before else "")


def count(one: Comparison) -> str:
    """`no difference`, `3 differences`."""
    number = len(one.differences)
    return f"{number} difference{'s' if number > 1 else ''}" if number else "no difference"


def _comparison(one: Comparison, first: Symbols, second: Symbols) -> Iterator[str]:
    for name, said in facts(one):
        yield from wrap(f"  {name:<8} {said}", " " * 11)
    for numbers, each in grouped(one.differences):
        verdict = f"{coloured(str(each.before))} -> {coloured(str(each.after))}"
        said = verdict if each.table == "verdict" else line(numbers, each, first, second)
        yield from wrap(f"  {title(each):<8} {said}", " " * 13)


def facts(one: Comparison) -> Iterator[tuple[str, str]]:
    """What is no difference: what moved, and what could not be compared; each with its title."""
    if one.moved:
        yield "moved", f"all handlers by {_signed(one.moved)}"
    elif one.moved is None:
        yield "moved", "no: handlers differ by more than one distance"
    if one.relocated:
        names = [_place(() if each.index is None else (each.index,), each) for each in one.relocated]
        yield "moved" if one.before == one.after else "own", ", ".join(names)
    for name in one.unknown:
        yield name.upper(), "not compared: one of the two cannot be read"


def title(one: Difference) -> str:
    """The table that a difference is in: `IDT`, `verdict`."""
    return REGISTERS.get(one.table, one.table if one.table in ("verdict", "stack", "finding") else one.table.upper())


def line(numbers: tuple[int, ...], one: Difference, first: Symbols, second: Symbols) -> str:
    """`gate 14 (#PF) handler: 0x... -> 0x...`: what a difference other than of verdicts is, of one entry or several."""
    if one.table == "finding":
        return f"{'gone: ' if one.after is None else 'new: '}{one.field} ({one.before or one.after})"
    before, after = _value(one, one.before, first), _value(one, one.after, second)
    place = _place(numbers, one)
    if len(numbers) > 1 and one.field in ADDRESSES and isinstance(one.before, int) and isinstance(one.after, int):
        return f"{place}: moved by {_signed(one.after - one.before)}"
    if not one.field and one.before is None:
        return f"{place}: {after}, which was not there"
    if not one.field and one.after is None:
        return f"{place}: {before} is not there any more"
    return f"{place}: {before} -> {after}"


def _place(numbers: tuple[int, ...], one: Difference) -> str:
    """`gate 14 (#PF) handler`, `0x28 base`, `IST1`, `GDT limit`."""
    field = {"offset": "handler", "p": "present"}.get(one.field, one.field)
    if one.table == "idt":
        which = f"gate {numbers[0]} ({label(numbers[0])})" if len(numbers) == 1 and numbers[0] < 32 else ""
        which = which or f"gate{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"
    elif one.table == "gdt":
        which = ", ".join(f"{number:#x}" for number in numbers[:6]) + (", ..." if len(numbers) > 6 else "")
    elif one.table in REGISTERS and not numbers:
        which = REGISTERS[one.table]
    else:
        which, field = "", field.upper() if one.table in ("tss", "stack") else f"{one.table.upper()}.{field}"
    return " ".join(part for part in (which, field) if part)


def _value(one: Difference, value: object, symbols: Symbols) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        if one.table == "stack":
            return f"{value:,} bytes"
        name = symbols.place(value) if one.field == "offset" else None
        small = one.field in ("dpl", "ist")
        return (str(value) if small else f"{value:#x}") + (f" ({name})" if name else "")
    return "nothing" if value is None else str(value)


def _signed(distance: int) -> str:
    return f"{'-' if distance < 0 else '+'}{abs(distance):#x}"
