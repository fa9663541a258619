"""What `decode --in` prints: the entry or page that an error code names, CPU by CPU."""

from __future__ import annotations

from ...checks.error_lookup import NamedGate, NamedPage
from ...documents import LEFT_OUT, Document, one_of
from .. import error_lookup as words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ...documents import U13, U16, Hex, Natural, Raw
    from ...machine.symbols import Symbols
    from ..error_lookup import Named, NamedEntry


class EntryFindingJson(Document, severity=one_of("error", "warning", "note")):
    """What a rule found about an entry."""

    where: str
    message: str
    severity: str
    rule: str


class NamedEntryJson(Document, table=one_of("gdt", "ldt", "idt")):
    """The gate or descriptor that an error code names on one CPU.

    index: vector or slot
    error: why there is nothing to show
    selector: of a descriptor
    handler: of a gate: the symbol
    line: of a gate's handler: file:line
    used_by: the registers and gates that name a descriptor
    problems: what is wrong with it
    or: another meaning of the code
    """

    cpu: Natural
    table: str
    index: U13
    error: str = LEFT_OUT
    selector: U16 = LEFT_OUT
    address: Hex = LEFT_OUT
    raw: Raw = LEFT_OUT
    meaning: str = LEFT_OUT
    handler: str | None = LEFT_OUT
    line: str | None = LEFT_OUT
    used_by: list[str] = LEFT_OUT
    problems: list[str]
    findings: list[EntryFindingJson]
    or_: str = LEFT_OUT


class PageEntryJson(Document):
    """A paging-structure entry of a walk."""

    name: str
    address: Hex
    value: Hex
    bits: str


class NamedPageJson(Document):
    """The page that a page fault is about on one CPU.

    error: why there is no walk
    result: where the walk leads
    problems: whether the access faults here
    """

    cpu: Natural
    address: Hex
    error: str = LEFT_OUT
    walk: list[PageEntryJson] = LEFT_OUT
    result: str = LEFT_OUT
    problems: list[str]


def in_image(found: Sequence[Named], symbols: Symbols) -> list[NamedEntryJson | NamedPageJson]:
    """What an error code names, CPU by CPU."""
    return [_page(one) if isinstance(one, NamedPage) else _entry(one, symbols) for one in found]


def _entry(one: NamedEntry, symbols: Symbols) -> NamedEntryJson:
    shown: dict[str, Any] = {"problems": words.problems(one), "or_": words.old_qemu(one) or LEFT_OUT}
    if one.missing is not None:
        return NamedEntryJson.of(one, error=words.missing(one), **shown)
    shown |= {"address": one.address, "raw": words.raw(one), "meaning": words.meaning(one)}
    if isinstance(one, NamedGate):
        shown |= {"handler": words.handler(one, symbols), "line": words.handler_line(one, symbols)}
    else:
        shown |= {"selector": one.selector, "used_by": words.used_by(one)}
    return NamedEntryJson.of(one, **shown)


def _page(one: NamedPage) -> NamedPageJson:
    if one.missing is not None:
        return NamedPageJson.of(one, error=words.missing(one), problems=[])
    walk = [PageEntryJson.of(entry, bits=words.bits(entry)) for entry in one.walk]
    return NamedPageJson.of(one, walk=walk, result=words.result(one), problems=words.page_problems(one))
