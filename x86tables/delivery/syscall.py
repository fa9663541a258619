"""The gaps beside SYSCALL and SYSRET: code of ring 0 that runs on whatever RSP the program has, or will have.

SYSCALL leaves RSP as it is, and before SYSRET the kernel has loaded the program's again (SDM Vol. 2B, SYSCALL and
SYSRET). With page-table isolation CR3 is the user's for a few instructions on either side.
"""

from __future__ import annotations

from ..errors import NotThere
from ..machine.memory import PAGE
from ..machine.registers import Segment
from ..records import Record
from ..tables.gdt import SegmentDescriptor
from ..tables.selector import Star
from .events import Event
from .rings import in_ring3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.machine import Machine
    from ..machine.probe import PageEntry
    from ..machine.registers import Registers


class GapEvent(Record):
    """An event in one of the gaps: what it is called, the registers then, and the machine with the page tables then."""

    name: str
    event: Event
    registers: Registers
    machine: Machine


def after_syscall(machine: Machine, kernel: Registers) -> list[GapEvent]:
    """NMI, a #DB that MOV SS has put off, and #MC, before the kernel has switched stacks.

    `kernel` are the registers of ring 0. No cases where SYSCALL is off; NotThere where that is not known.
    """
    events = [Event.nmi(), Event.trap("#DB"), Event.exception("#MC")]
    return _in_ring0(machine, kernel, events, "") if _on(machine) else []


def before_sysret(machine: Machine, kernel: Registers) -> list[GapEvent]:
    """NMI and #MC on the program's stack, and the #GP of SYSRET itself where RCX is not canonical; on the kernel's page
    tables and the user's where both are known.

    Intel raises that #GP in ring 0, RSP being the program's already; AMD in ring 3, once RIP is loaded (APM Vol. 3,
    SYSRET).
    """
    if not _on(machine):
        return []
    found = []
    other = isolated_pair(machine)
    for each in (machine, other) if other is not None else (machine,):
        tables = "" if other is None else f", {_whose(each)} page tables"
        registers = kernel.replace(cr3=each.registers.cr3)
        gp, events = Event.exception("#GP"), [Event.nmi(), Event.exception("#MC")]
        if each.vendor == "amd":
            program = in_ring3(machine).replace(cr3=each.registers.cr3, rip=_outside(machine))
            found.append(GapEvent(f"#GP of SYSRET in ring 3{tables}", gp, program, each))
        else:
            events.insert(0, gp)
        found += _in_ring0(each, registers, events, tables)
    return found


def isolated_pair(machine: Machine) -> Machine | None:
    """The machine on the other root of a pair with page-table isolation, as Linux has it: bit 12 of CR3 is set in the
    user's. None where there is none: both map the IDT by one and the same table."""
    r = machine.registers
    if r.cr3 is None or r.idtr is None:
        return None
    other = machine.replace(r.replace(cr3=r.cr3 ^ PAGE))
    seen: list[set[tuple[str, int]]] = []
    for each in (machine, other):
        entries: list[PageEntry] = []
        try:
            each.space.walk(r.idtr.base, entries.append)
        except NotThere:
            return None
        seen.append({(entry.name, entry.address) for entry in entries})
    return other if seen[0] & seen[1] else None


def _whose(machine: Machine) -> str:
    return "the user's" if (machine.registers.cr3 or 0) & PAGE else "the kernel's"


def _on(machine: Machine) -> bool:
    """Whether SYSCALL is on; NotThere where that is not known."""
    on = machine.registers.syscall
    if on is None:
        raise NotThere("EFER is not known (bit SCE: is SYSCALL in use)")
    return on


def _outside(machine: Machine) -> int:
    """An address above the lower canonical half."""
    return (1 << machine.space.levels * 9 + 11) + PAGE


def _in_ring0(machine: Machine, kernel: Registers, events: list[Event], where: str) -> list[GapEvent]:
    """Each event on each stack pointer that a program may have left."""
    r = machine.registers
    kernel = kernel.replace(rflags=2)
    if r.star is not None:
        star = Star.from_int(r.star)
        kernel = kernel.replace(cs=_syscall_cs(star), ss=Segment(star.syscall_ss))
    pointers = [("a pointer that is not canonical", _outside(machine))]
    if r.cpl == 3 and r.rsp is not None:
        pointers.insert(0, ("the program's stack", r.rsp))
    return [
        GapEvent(f"{event.label} on {name}{where}", event, kernel.replace(rsp=rsp), machine)
        for event in events
        for name, rsp in pointers
    ]


def _syscall_cs(star: Star) -> Segment:
    """What SYSCALL loads into CS: fixed attributes, whatever the descriptor says."""
    flags = int.from_bytes(bytes(SegmentDescriptor.kernel_code())[4:8], "little")
    return Segment(star.syscall_cs, flags=flags)
