"""The bytes that a step of a delivery read: the entry of a table, or the page-table entry that refused."""

from __future__ import annotations

from ..errors import NotThere
from ..machine.paging import PUSH, Access
from ..machine.probe import Fault, PageEntry
from ..tables.gdt import SegmentDescriptor
from ..tables.idt import Gate
from .state import TOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.machine import Machine
    from .events import Step

ENTRIES: dict[str, type[Gate] | type[SegmentDescriptor]] = {
    "IDT entry": Gate, "GDT entry": SegmentDescriptor, "LDT entry": SegmentDescriptor,
}  # fmt: skip


def evidence(machine: Machine, step: Step, failed: bool = False) -> Gate | SegmentDescriptor | PageEntry | None:
    """What a step read, as it is in the machine's memory; of one that failed, the page-table entry that refused.

    None for a step that read nothing, or where that is not known.
    """
    if step.address is None:
        return None
    if failed:
        access = Access(fetch=True) if step.step == "fetch" else PUSH
        answer = machine.probe(step.address % TOP, access)
        return answer.entry if isinstance(answer, Fault) else None
    layout = ENTRIES.get(step.step.rpartition(" ")[0])
    if layout is None:
        return None
    try:
        return layout.parse(machine.read(step.address, layout.size))
    except NotThere:
        return None
