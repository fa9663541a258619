"""How the first event comes about on a CPU: an instruction at RIP, a pin, or an injected exception."""

from __future__ import annotations

from ..delivery.deliver import PUSHES
from ..delivery.events import GP, PF, SS, Event
from ..delivery.simulate import FETCHES
from ..delivery.state import TOP, CpuState
from ..machine.memory import PAGE
from ..machine.paging import Access, canonical
from ..machine.probe import FaultKind, Inaccessible, Unknown
from ..machine.registers import AC, RF
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.machine import Machine
    from ..machine.registers import Registers

PUSH_LOOP = b"\x50\xeb\xfd"  # push rax; jmp to it: touches a stack push by push
CODE = {
    "push": b"\x50",
    "call": b"\xe8\0\0\0\0",
    "read": b"\x8b\x00",  # mov eax, [rax]
    "write": b"\x89\x00",  # mov [rax], eax
    "div": b"\xf7\xf1",  # div ecx, with rcx = 0
    "ud2": b"\x0f\x0b",
    "int3": b"\xcc",
    "int1": b"\xf1",
    "step": b"\x90",  # nop, with TF
}
PINS = ("interrupt", "nmi", "exception")


class Stimulus(Record):
    """What happens first. `kind` is an instruction (a key of CODE, or `int` for INT `vector`), or one of PINS.

    `interrupt` and `nmi` come before the instruction at RIP; `exception` stands for one that no instruction here makes
    (#MC), with its `error_code`.
    """

    kind: str
    vector: int = 0
    error_code: int = 0

    @property
    def code(self) -> bytes:
        """The instruction that has to be at RIP; empty when none has to."""
        return bytes([0xCD, self.vector]) if self.kind == "int" else CODE.get(self.kind, b"")


def first_event(state: CpuState, stimulus: Stimulus) -> Event | None:
    """The event that `stimulus` leads to by the rules for instructions; None when the instruction simply runs.

    `step` leaves the registers behind its instruction. Inaccessible when the page tables that decide are not known.
    """
    machine, registers = state.machine, state.registers
    if stimulus.kind in PINS:
        made = {"interrupt": Event.interrupt(stimulus.vector), "nmi": Event.nmi()}
        return made.get(stimulus.kind) or Event.exception(stimulus.vector, stimulus.error_code)
    rip, user = registers.rip or 0, registers.cpl == 3
    if fault := _touch(machine, rip, len(stimulus.code), FETCHES[user], GP):
        return fault
    if stimulus.kind in ("push", "call"):
        access = PUSHES[user][_ac(registers)]
        return _touch(machine, ((registers.rsp or 0) - 8) % TOP, 8, access, SS)
    if stimulus.kind in ("read", "write"):
        access = Access(write=stimulus.kind == "write", user=user, ac=_ac(registers))
        return _touch(machine, registers.general.get("rax", 0), 4, access, GP)
    made = {"int3": Event.int3(), "int1": Event.int1(), "ud2": Event.exception("#UD"), "div": Event.exception("#DE")}
    if stimulus.kind == "step":
        state.registers = registers.replace(rip=rip + len(stimulus.code), rflags=(registers.rflags or 0) & ~RF)
        return Event.trap("#DB")
    return made.get(stimulus.kind) or Event.software(stimulus.vector)


def _ac(registers: Registers) -> bool:
    return (registers.rflags or 0) & AC != 0


def _touch(machine: Machine, linear: int, size: int, access: Access, refused: int) -> Event | None:
    """The fault of an instruction's own access, which may straddle two pages."""
    last = (linear + size - 1) % TOP
    if not canonical(last, machine.space.levels):
        return Event.exception(refused, 0)
    try:
        machine.space.translate(linear, access)
        if linear // PAGE != last // PAGE:
            linear = last & -PAGE
            machine.space.translate(linear, access)
    except Inaccessible as error:
        if isinstance(error.probe, Unknown):
            raise
        if error.probe.kind is FaultKind.NON_CANONICAL:
            return Event.exception(refused, 0)
        return Event(PF, error_code=error.probe.error_code, cr2=linear)
    return None
