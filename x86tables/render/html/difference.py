"""What differs between two machines, as a page."""

from __future__ import annotations

from ...difference import grouped
from .. import difference as words
from ..markup import Markup, element, join
from .page import badge, page, pairs, paragraph, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...api import Image
    from ...difference import Comparison, Difference
    from ...machine.symbols import Symbols


def diff(before: Image, after: Image, titles: tuple[str, str], found: Sequence[Comparison]) -> Iterator[str]:
    """The pieces of the page."""
    return page(f"{titles[0]} and {titles[1]}: x86tables diff", _blocks(before, after, titles, found))


def _blocks(before: Image, after: Image, titles: tuple[str, str], found: Sequence[Comparison]) -> Iterator[Markup]:
    yield paragraph(f"A: {titles[0]}", "about")
    yield paragraph(f"B: {titles[1]}", "about")
    number = sum(len(one.differences) for one in found)
    yield element("h1", "No difference" if not number else f"{number} difference{'s' if number > 1 else ''}")
    if len(before.machines) != len(after.machines) and before is not after:
        counts = f"{len(before.machines)} and {len(after.machines)} CPUs"
        yield paragraph(f"{counts}: those with the same number are compared.")
    for one in found:
        yield element("h2", f"{words.cpus(one)}: {words.count(one)}")
        if facts := list(words.facts(one)):
            yield pairs(facts)
        if rows := [_row(numbers, each, before.symbols, after.symbols) for numbers, each in grouped(one.differences)]:
            yield table(f"What differs on {words.cpus(one)}", ("table", "what differs: A -> B"), rows)


def _row(numbers: tuple[int, ...], one: Difference, first: Symbols, second: Symbols) -> tuple[object, object]:
    if one.table == "verdict":
        return words.title(one), join(badge(str(one.before)), " -> ", badge(str(one.after)))
    return words.title(one), words.line(numbers, one, first, second)
