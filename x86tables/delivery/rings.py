"""The registers that the kernel, or a program, has on a CPU that was caught anywhere."""

from __future__ import annotations

from ..errors import NotThere
from ..machine.registers import Segment
from ..tables.gdt import SegmentDescriptor
from ..tables.selector import Selector

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.machine import Machine
    from ..machine.registers import Registers


def in_ring0(machine: Machine, stack: int | None = None) -> tuple[Registers, str]:
    """The registers of the kernel on this CPU: its own, or where it was caught elsewhere, those on RSP0's stack.

    Also a sentence that says so, else "". NotThere when neither RSP nor RSP0 is known; RSP0 is 0 in a kernel
    without programs.
    """
    r = machine.registers
    if r.cpl == 0:
        return (r if stack is None else r.replace(rsp=stack)), ""
    said = "CS is not known: judged in ring 0"
    if r.cpl is not None:
        said = f"caught in ring {r.cpl}: judged in ring 0, on the page tables that were captured"
    rsp, where = stack, "the stack given"
    if rsp is None:
        rsp, where = (r.rsp, "RSP") if r.cpl is None and r.rsp is not None else (_rsp0(machine), "RSP0")
    if rsp == 0 and r.cpl is None and where == "RSP0":
        raise NotThere("RSP is not known in ring 0, and RSP0 is 0")
    cs, rip = _kernel_code(machine)
    code = r.replace(cs=cs, ss=Segment(0, limit=0, flags=0), rsp=rsp, rip=rip, rflags=2)
    return code, f"{said}, from {where} {rsp:#x}"


def _rsp0(machine: Machine) -> int:
    table = machine.table("tss")
    if table is None or not table.known(4, 12):
        raise NotThere("RSP is not known in ring 0, and RSP0 cannot be read from the TSS")
    return machine.tss.rsp0


def _kernel_code(machine: Machine) -> tuple[Segment, int | None]:
    """The code segment and an address in it that the gates name."""
    try:
        for vector in (14, *range(len(machine.idt))):
            if vector in machine.idt and machine.idt[vector].p:
                gate = machine.idt[vector]
                descriptor = machine.gdt[gate.selector]
                if isinstance(descriptor, SegmentDescriptor):
                    return Segment(gate.selector & ~3, flags=_high(descriptor)), gate.offset
    except NotThere:
        pass
    return Segment(8, flags=_high(SegmentDescriptor.kernel_code())), None


def in_ring3(machine: Machine) -> Registers:
    """A program's registers: the CPU's own when it was caught in ring 3, else those of the first user code segment."""
    r = machine.registers
    if r.cpl == 3:
        return r
    selector = next(
        (
            entry.selector
            for entry in machine.gdt.entries()
            if entry.kind == "code64" and entry.descriptor.dpl == 3 and not entry.truncated
        ),
        0x30,
    )
    cs = Segment(int(Selector.from_int(selector).replace(rpl=3)), flags=_high(SegmentDescriptor.user_code()))
    return r.replace(cs=cs, ss=Segment(3, flags=0), rsp=0x7FFF_FFFF_F000, rip=0x40_0000, rflags=0x202)


def _high(descriptor: SegmentDescriptor) -> int:
    """What a segment register keeps of a descriptor beside base and limit."""
    return int.from_bytes(bytes(descriptor)[4:8], "little")
