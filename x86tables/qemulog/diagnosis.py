"""Why a delivery failed, as far as a log shows: from the registers at the event, and the fault that came of it."""

from __future__ import annotations

from ..machine.registers import LMA
from ..records import Record
from ..tables import vectors
from ..tables.pseudo import ErrorFrame
from ..tables.selector import SelectorErrorCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.registers import Registers
    from .entries import Delivering

NP, TS, PF = (vectors.number(name) for name in ("#NP", "#TS", "#PF"))


class Failure(Record):
    """Why a delivery failed: `cause` is a key for programs, `why` the sentence; `cr2` is the nested page fault's."""

    cause: str
    why: str
    fault: int
    cr2: int | None = None


def named_vector(code: int, among: Iterable[int]) -> int | None:
    """The vector that an error code with IDT=1 means: index = vector, or twice that in QEMU 7.2 and older."""
    parsed = SelectorErrorCode.from_int(code & 0xFFFFFFFF)
    if not parsed.idt:
        return None
    return next((vector for vector in among if parsed.index in (vector, 2 * vector)), None)


def pushed(address: int, rsp: int) -> bool:
    """Whether a frame on the stack that RSP stands on reaches this address."""
    return (rsp & ~15) - ErrorFrame.size <= address < rsp


def place_of(address: int, registers: Registers | None) -> str | None:
    """The table that an address lies in: `IDT`, `GDT`, `TSS`; None for others."""
    if registers is None:
        return None
    for name, table in (("IDT", registers.idtr), ("GDT", registers.gdtr), ("TSS", registers.tr)):
        if table is not None and table.base <= address <= table.base + table.limit:
            return name
    return None


def diagnose(event: Delivering, fault: int, cr2: int | None, code: int | None) -> Failure:
    """Why the delivery of `event` met `fault`, from the registers at the event, CR2 and the error code after it."""
    registers, vector = event.registers, event.vector
    wide = registers is None or registers.efer is None or registers.efer & LMA != 0
    size = 16 if wide else 8
    name = vectors.label(fault)

    def because(cause: str, why: str) -> Failure:
        return Failure(cause, f"{name}: {why}", fault, cr2)

    idtr = registers.idtr if registers is not None else None
    if idtr is not None and (not idtr.limit or (not idtr.base and idtr.limit == 0x3FF)):
        kind = ", as in real mode" if idtr.limit else ""
        return because("no-idt", f"no IDT is loaded: IDTR has base {idtr.base:#x}, limit {idtr.limit:#x}{kind}")
    if idtr is not None and vector * size + size - 1 > idtr.limit and fault != PF:
        covered = (idtr.limit + 1) // size
        return because("idt-limit", f"the IDT's limit, {idtr.limit:#x}, covers {covered} gates, not gate {vector}")
    if fault == PF:
        if cr2 is None:
            return because("page", "the log does not say at which address")
        table = place_of(cr2, registers)
        if table is not None:
            return because(f"{table.lower()}-page", f"the {table}, in which {cr2:#x} lies, cannot be read there")
        if event.cpl == 0 and pushed(cr2, event.rsp):
            return because(
                "same-stack", f"its frame goes to the stack in use, which is full: nothing can be pushed at {cr2:#x}"
            )
        return because(
            "stack",
            f"its frame cannot be pushed at {cr2:#x}: it is on it is on no page of the stack that the TSS names for it",
        )
    if fault == NP:
        return because("gate-absent", f"gate {vector} is not present")
    if code is not None and named_vector(code, [vector]) is not None:
        if event.software and event.cpl:
            return because("gate", f"gate {vector} is not one that ring {event.cpl} may call")
        return because("gate", f"gate {vector} is empty, or of a type that this mode refuses")
    if fault == TS:
        return because("tss", "the TSS is too short for the stack, or its stack segment is refused")
    return because(
        "refused", f"gate {vector} is empty, or the segment, the stack or the address that it names is refused"
    )
