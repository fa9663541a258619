"""What `diff` prints: two machines compared."""

from __future__ import annotations

from ...difference import ADDRESSES
from ...documents import Answer, Document, hexadecimal
from . import ImageJson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...api import Image
    from ...difference import Comparison, Difference
    from ...documents import Natural


class DifferenceJson(Document):
    """A field that differs.

    table: gdt, idt, tss, a register, or verdict, stack (the size of an interrupt stack), finding
    index: the vector or the selector of the entry; null for what is not in an entry
    field: "" for the whole entry
    before: as text; addresses are hex; null: not there
    """

    table: str
    index: Natural | None
    field: str
    before: str | None
    after: str | None


class ComparisonJson(Document):
    """Two CPUs.

    moved: how far all handlers have moved; null: no distance is that of most
    relocated: addresses that differ as they do from boot to boot, or from CPU to CPU
    not_compared: tables that one of the two does not have
    """

    before: Natural
    after: Natural
    moved: str | None
    differences: list[DifferenceJson]
    relocated: list[DifferenceJson]
    not_compared: list[str]


class DiffJson(Answer):
    """The CPUs of two machines.

    same: no CPU differs
    """

    before: ImageJson
    after: ImageJson
    same: bool
    cpus: list[ComparisonJson]


def diff(before: Image, after: Image, found: Sequence[Comparison]) -> DiffJson:
    """What `diff --format json` prints."""
    return DiffJson(
        before=ImageJson.of(before),
        after=ImageJson.of(after),
        same=not any(one.differences for one in found),
        cpus=[
            ComparisonJson(
                before=one.before,
                after=one.after,
                moved=None if one.moved is None else f"{one.moved:#x}",
                differences=list(map(_difference, one.differences)),
                relocated=list(map(_difference, one.relocated)),
                not_compared=list(one.unknown),
            )
            for one in found
        ],
    )


def _difference(one: Difference) -> DifferenceJson:
    def value(each: object) -> str | None:
        if isinstance(each, int) and not isinstance(each, bool) and one.field in ADDRESSES:
            return hexadecimal(each)
        return None if each is None else str(each).lower() if isinstance(each, bool) else str(each)

    return DifferenceJson.of(one, before=value(one.before), after=value(one.after))
