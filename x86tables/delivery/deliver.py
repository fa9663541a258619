"""deliver(machine, event): from an event to the handler's first instruction, check by check, as the manual has it.

Sources: Intel SDM Vol. 2A, operation of INT n; Vol. 3A, chapters "Interrupt and Exception Handling" and "Paging"; AMD
APM Vol. 2, chapter "Exceptions and Interrupts". Where they conflict or are silent, docs/delivery.md says what is done.
"""

from __future__ import annotations

import struct

from ..errors import NotThere, UsageError
from ..machine.machine import Machine
from ..machine.memory import PAGE
from ..machine.paging import WRITE, Access, canonical
from ..machine.probe import Fault, FaultKind, Inaccessible, Unknown
from ..machine.registers import AC, CET, FRED, IF, NT, RF, TF, VM, Segment, load
from ..tables import vectors
from ..tables.gdt import SegmentDescriptor
from ..tables.idt import INTERRUPT as INTERRUPT_GATE
from ..tables.idt import TRAP as TRAP_GATE
from ..tables.idt import Gate
from ..tables.selector import Selector, SelectorErrorCode
from ..tables.tss import Tss
from .events import (
    DELIVERED,
    DF,
    EXCEPTION,
    GP,
    INT,
    INT1,
    NP,
    PF,
    SHUTDOWN,
    SS,
    TS,
    UNKNOWN,
    Attempt,
    Delivery,
    Event,
    Step,
    class_of,
    pushes_error_code,
)
from .state import TOP, CpuState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    Enter = Callable[["Checks"], tuple[str, bytes | None]]

# A push is the new privilege level's own access, so RFLAGS.AC lifts SMAP from it. [user][AC]
PUSHES = tuple(tuple(Access(write=True, user=user, ac=ac) for ac in (False, True)) for user in (False, True))
# Source: SDM Vol. 3A, table "Conditions for Generating a Double Fault": pairs that are not listed are handled serially.
MAKES_DOUBLE_FAULT = {
    (vectors.CONTRIBUTORY, vectors.CONTRIBUTORY),
    (vectors.PAGE_FAULT, vectors.CONTRIBUTORY),
    (vectors.PAGE_FAULT, vectors.PAGE_FAULT),
}


class MissingInput(NotThere):
    """What decides is not known: a register, a page, or something that is not modelled here."""


class NestedFault(Exception):  # noqa: N818 - the manual's word
    """A fault met while delivering an event."""

    def __init__(self, event: Event, why: str) -> None:
        super().__init__(why)
        self.event, self.why = event, why


def deliver(at: Machine | CpuState, event: Event, enter: Enter | None = None) -> Delivery:
    """Deliver `event` as the processor does, escalating until a handler is entered or it shuts down.

    A Machine is never changed. A CpuState is: what was pushed stays in its memory, and its registers become the
    handler's. `enter` replaces `enter_handler` to model a processor that deviates from the manual.
    UsageError when the machine is not in long mode.
    """
    state = CpuState(at) if isinstance(at, Machine) else at
    attempts: list[Attempt] = []
    outcome, reason, needs = SHUTDOWN, "", None
    # SDM Vol. 3A, "Error Code": EXT is set when the event being delivered came from outside of the program.
    ext = event.kind != INT
    rip = _after(state, event)
    if event.vector == PF and event.kind == EXCEPTION and event.cr2 is not None:
        state.cr2 = event.cr2
    while True:
        attempt = Checks(state, event, ext, rip)
        try:
            _refuse_what_is_not_modelled(state)
            entered = (enter or enter_handler)(attempt)
        except NestedFault as fault:
            attempts.append(Attempt(event, tuple(attempt.steps), fault.event))
            following = escalate(state.machine.vendor, event, fault.event)
            if following is None:
                reason = f"{event.label} cannot be delivered: {fault.why}"
                break
            # The saved RIP of a nested fault is the instruction's during which all of this happened.
            event, ext, rip = following, True, state.registers.rip
        except MissingInput as error:
            attempts.append(Attempt(event, tuple(attempt.steps)))
            outcome, reason = UNKNOWN, f"while delivering {event.label}: {error}"
            needs = str(error)
            break
        else:
            attempts.append(Attempt(event, tuple(attempt.steps)))
            return Delivery(
                tuple(attempts), DELIVERED, f"{event.label} is delivered", state.registers, state.cr2, None,
                event.vector, *entered,
            )  # fmt: skip
    return Delivery(tuple(attempts), outcome, reason, state.registers, state.cr2, needs)


def escalate(vendor: str, event: Event, fault: Event) -> Event | None:
    """The event that follows when delivering `event` met `fault`; None for shutdown.

    Source: SDM Vol. 3A, table "Conditions for Generating a Double Fault".
    """
    first, second = class_of(event, vendor), class_of(fault, vendor)
    # "If another contributory or page fault occurs while delivering a double fault, the processor shuts down."
    if first == vectors.DOUBLE_FAULT:
        return None
    if (first, second) in MAKES_DOUBLE_FAULT:
        return Event(DF, EXCEPTION, 0)
    # Handled serially: the second replaces the first, which happens again if its instruction does.
    return fault


def _after(state: CpuState, event: Event) -> int | None:
    rip = state.registers.rip
    return None if rip is None else (rip + event.length) % TOP


def _refuse_what_is_not_modelled(state: CpuState) -> None:
    machine, registers = state.machine, state.registers
    if not machine.long_mode:
        raise UsageError(f"CPU {machine.cpu} is in {machine.mode} mode: delivery is simulated for long mode only")
    if registers.cr3 is None or machine.space.paging.mode not in ("4-level", "5-level"):
        raise MissingInput("CR3 is not known: no page can be judged without it")
    if registers.cr4 and registers.cr4 & FRED:
        raise MissingInput("CR4.FRED is set: events are delivered without an IDT, which is not modelled")
    if registers.cr4 and registers.cr4 & CET and registers.general.get("s_cet", 0) & 1:
        raise MissingInput("supervisor shadow stacks are on (CR4.CET and IA32_S_CET), which is not modelled")
    if registers.cs is None or registers.rsp is None:
        raise MissingInput(f"{'CS' if registers.cs is None else 'RSP'} is not known")


class Checks:
    """One event on its way to its handler: where it happens, and the steps taken so far."""

    __slots__ = ("cpl", "event", "ext", "rip", "stack", "state", "steps")

    def __init__(self, state: CpuState, event: Event, ext: bool, rip: int | None) -> None:
        self.state, self.event, self.ext, self.rip = state, event, ext, rip
        self.cpl = state.registers.cpl or 0  # without CS nothing is delivered
        self.stack = ""  # where the frame goes, in words
        self.steps: list[Step] = []

    def passed(self, step: str, address: int | None, found: str, rule: str) -> None:
        """Note a check that let the event go on."""
        self.steps.append(Step(step, address, found, rule))

    def refuse(
        self, step: str, address: int | None, found: str, rule: str, vector: int, code: int, cr2: int | None = None
    ) -> NoReturn:
        """Note the check that failed, and raise its fault."""
        self.steps.append(Step(step, address, found, f"{rule}{rule and ': '}{vectors.label(vector)}({code:#x})"))
        if cr2 is not None:  # loaded as soon as a page fault is detected, however its delivery ends
            self.state.cr2 = cr2
        where = ("" if address is None else f" at {address:#x}") + self.stack
        raise NestedFault(Event(vector, EXCEPTION, code, 0, cr2), f"{step}{where}: {found}")

    def read(self, step: str, linear: int, size: int) -> bytes:
        """A table's bytes: the supervisor's implicit access at any privilege level."""
        try:
            if linear % PAGE + size <= PAGE:
                return self.state.read(linear, size)
            return b"".join(self._read_8((linear + at) % TOP) for at in range(0, size, 8))
        except Inaccessible as error:
            self.stop(step, linear, error.probe, GP)

    def stop(
        self, step: str, address: int, probe: Fault | Unknown, not_canonical: int = GP, cr2: int | None = None
    ) -> NoReturn:
        """Note what memory answered, and raise the fault that the processor raises for it.

        `not_canonical` is the vector for an address that is not canonical: #GP, or #SS for a push. `cr2` is the address
        of a page fault where it is not the first byte that was asked for.
        """
        if isinstance(probe, Unknown):
            self.passed(step, address, probe.needs, "not known")
            raise MissingInput(probe.needs)
        if probe.kind is FaultKind.NON_CANONICAL:
            self.refuse(step, address, "not canonical", "", not_canonical, self.null_code())
        self.refuse(step, address, probe.why, "", PF, probe.error_code, probe.address if cr2 is None else cr2)

    def _read_8(self, linear: int) -> bytes:
        """One 8-byte access. Whether its addresses are canonical is asked before any of them is translated."""
        if not canonical((linear + 7) % TOP, self.state.machine.space.levels):
            raise Inaccessible(Fault(FaultKind.NON_CANONICAL, linear))
        return self.state.read(linear, 8)

    def gate_code(self) -> int:
        """The error code that names the event's gate: IDT=1, index = vector."""
        return int(SelectorErrorCode(index=self.event.vector, idt=True, ext=self.ext))

    def selector_code(self, selector: Selector) -> int:
        """The error code that names a descriptor; its TI bit is the selector's."""
        return int(SelectorErrorCode(index=selector.index, ti=selector.ti, ext=self.ext))

    def null_code(self) -> int:
        """The error code that names nothing: EXT alone."""
        return int(SelectorErrorCode(ext=self.ext))


def enter_handler(this: Checks) -> tuple[str, bytes | None]:
    """All of it for one event: (stack used, frame pushed). NestedFault or MissingInput at the check that fails."""
    gate = read_gate(this)
    check_gate(this, gate)
    selector = Selector.from_int(gate.selector)
    place, code = read_code_segment(this, selector)
    cpl = check_code_segment(this, selector, code)
    stack, rsp = choose_stack(this, gate.ist, cpl)
    check_offset(this, gate.offset)
    this.stack = f" on {stack}" if stack != "current" else " on the same stack (no IST)"
    rsp, frame = push_frame(this, rsp, cpl)
    code = mark_accessed(this, place, code)
    commit(this, gate, code, cpl, rsp)
    return stack, frame


def read_gate(this: Checks) -> Gate:
    """The vector's entry in the IDT."""
    idtr, vector = this.state.registers.idtr, this.event.vector
    if idtr is None:
        raise MissingInput("IDTR is not known")
    offset = vector * Gate.size
    # "If the vector is beyond the limit of the IDT, #GP": all 16 bytes of the entry have to be inside.
    last = offset + Gate.size - 1
    if last > idtr.limit:
        found = f"limit {idtr.limit:#x}, entry {vector} ends at {last:#x}"
        this.refuse("IDT limit", None, found, "entry beyond the limit", GP, this.gate_code())
    this.passed("IDT limit", None, f"{idtr.limit:#x}", f"covers entry {vector}")
    name, address = f"IDT entry {vector}", (idtr.base + offset) % TOP
    # "Reads of the IDT are implicit supervisor-mode accesses."
    gate = Gate.parse(this.read(name, address, Gate.size))
    found = f"{gate.kind} gate to {gate.selector:#x}:{gate.offset:#x}, IST {gate.ist}, DPL {gate.dpl}"
    if gate.kind == "absent":
        found = "absent gate"
    this.passed(name, address, found, "read")
    return gate


def check_gate(this: Checks, gate: Gate) -> None:
    """Type, privilege, presence, in this order."""
    # "The descriptor must be a 64-bit interrupt gate or trap gate, else #GP(vector number * 8 + 2 + EXT)."
    if gate.s or gate.type not in (INTERRUPT_GATE, TRAP_GATE):
        found = "all zero" if gate.kind == "absent" else f"S {gate.s:d}, type {gate.type:#x}"
        this.refuse("gate type", None, found, "not an interrupt or trap gate", GP, this.gate_code())
    this.passed("gate type", None, f"{gate.type:#x}", f"{gate.kind} gate")
    # "If the event is a software interrupt (INT n, INT3) and the gate's DPL < CPL, #GP"; EXT is 0 then anyhow.
    if this.event.kind == INT:
        if gate.dpl < this.cpl:
            this.refuse("gate DPL", None, f"DPL {gate.dpl}, CPL {this.cpl}", "DPL below CPL", GP, this.gate_code())
        this.passed("gate DPL", None, f"DPL {gate.dpl}, CPL {this.cpl}", "software may use it")
    # "If the gate is not present, #NP(vector number * 8 + 2 + EXT)."
    if not gate.p:
        this.refuse("gate P", None, "P 0", "gate not present", NP, this.gate_code())
    this.passed("gate P", None, "P 1", "present")


def read_code_segment(this: Checks, selector: Selector) -> tuple[int, SegmentDescriptor]:
    """The descriptor that the gate's selector names, and its linear address."""
    # "If the selector is null, #GP(EXT)"; its RPL does not matter, here or later.
    if selector.null:
        this.refuse("gate selector", None, f"{int(selector):#x}", "null selector", GP, this.null_code())
    table = "LDT" if selector.ti else "GDT"
    register = this.state.registers.ldtr if selector.ti else this.state.registers.gdtr
    if register is None:
        raise MissingInput(f"{table}R is not known")
    # "If the selector's index is not within the table's limit, #GP(selector + EXT)." A null LDTR has no table.
    offset = selector.index * SegmentDescriptor.size
    if isinstance(register, Segment) and register.null:
        this.refuse("LDT limit", None, "LDTR is null", "no LDT", GP, this.selector_code(selector))
    if offset + SegmentDescriptor.size - 1 > register.limit:
        found = f"limit {register.limit:#x}, selector {int(selector):#x}"
        this.refuse(f"{table} limit", None, found, "selector beyond the limit", GP, this.selector_code(selector))
    this.passed(f"{table} limit", None, f"{register.limit:#x}", f"covers selector {int(selector):#x}")
    name, address = f"{table} entry {selector.index}", (register.base + offset) % TOP
    descriptor = SegmentDescriptor.parse(this.read(name, address, SegmentDescriptor.size))
    found = f"{descriptor.kind}{', conforming' if descriptor.s and descriptor.conforming else ''}"
    this.passed(name, address, f"{found}, DPL {descriptor.dpl}", "read")
    return address, descriptor


def check_code_segment(this: Checks, selector: Selector, code: SegmentDescriptor) -> int:
    """Whether a handler may run in this segment; the privilege level it gets."""
    cpl = this.cpl
    # "If the segment is not a code segment, or its DPL > CPL, #GP(selector + EXT)."
    if not code.s or not code.code:
        this.refuse("segment type", None, code.kind, "not a code segment", GP, this.selector_code(selector))
    if code.dpl > cpl:
        found = f"DPL {code.dpl}, CPL {cpl}"
        this.refuse("segment DPL", None, found, "less privileged than CPL", GP, this.selector_code(selector))
    this.passed("segment DPL", None, f"DPL {code.dpl}, CPL {cpl}", "code that may be entered")
    # "If the segment is not present, #NP(selector + EXT)."
    if not code.p:
        this.refuse("segment P", None, "P 0", "segment not present", NP, this.selector_code(selector))
    # "In IA-32e mode the handler's segment must be 64-bit code (L=1, D=0), else #GP(selector + EXT)."
    if not code.l or code.d_b:
        found = f"L {code.l:d}, D {code.d_b:d}"
        this.refuse("segment L, D", None, found, "not a 64-bit code segment", GP, this.selector_code(selector))
    this.passed("segment P, L, D", None, "P 1, L 1, D 0", "present 64-bit code")
    # A conforming segment runs at the privilege level that was interrupted, any other at its DPL.
    return cpl if code.conforming else code.dpl


def choose_stack(this: Checks, ist: int, cpl: int) -> tuple[str, int]:
    """The stack that the frame goes to: (its name, RSP before it is aligned)."""
    # "If the gate's IST is not 0, RSP := IST n of the TSS; else if CPL changes, RSP := RSP of the new CPL; else RSP."
    if ist:
        name, field = f"IST{ist}", f"ist{ist}"
    elif cpl < this.cpl:
        name, field = f"RSP{cpl}", f"rsp{cpl}"
    else:
        rsp = this.state.registers.rsp or 0
        this.passed("stack", None, f"RSP {rsp:#x}", "no IST, same privilege")
        return "current", rsp
    tr, offset = this.state.registers.tr, Tss.field(field).offset
    if tr is None:
        raise MissingInput("TR is not known")
    # "If the stack pointer is not within the limit of the current TSS, #TS(TSS selector + EXT)." What TR has cached
    # counts; a TR that was never loaded is not refused for being null.
    if offset + 7 > tr.limit:
        found = f"limit {tr.limit:#x}, {name} ends at {offset + 7:#x}"
        code = this.selector_code(Selector.from_int(tr.selector))
        this.refuse("TSS limit", None, found, "pointer beyond the limit", TS, code)
    this.passed("TSS limit", None, f"{tr.limit:#x}", f"covers {name}")
    address = (tr.base + offset) % TOP
    rsp = int.from_bytes(this.read(f"TSS {name}", address, 8), "little")
    # "If the new stack pointer is not canonical, #SS(EXT)": the new SS is null in 64-bit mode. 0 is a
    # pointer like any other.
    if not canonical(rsp, this.state.machine.space.levels):
        this.refuse(f"TSS {name}", address, f"{rsp:#x}", "not canonical", SS, this.null_code())
    this.passed(f"TSS {name}", address, f"{rsp:#x}", "the new stack")
    return name, rsp


def check_offset(this: Checks, offset: int) -> None:
    """The handler's address."""
    # "If the instruction pointer in the gate is not canonical, #GP(EXT)", before anything is pushed.
    if not canonical(offset, this.state.machine.space.levels):
        this.refuse("gate offset", None, f"{offset:#x}", "not canonical", GP, this.null_code())
    this.passed("gate offset", None, f"{offset:#x}", "canonical")


def push_frame(this: Checks, rsp: int, cpl: int) -> tuple[int, bytes | None]:
    """SS, RSP, RFLAGS, CS, RIP and the error code: (RSP after the last push, the frame)."""
    state, registers = this.state, this.state.registers
    if registers.rflags is None and state.machine.space.paging.smap:
        raise MissingInput("RFLAGS is not known, and with CR4.SMAP its AC bit decides about pushes")
    access = PUSHES[cpl == 3][(registers.rflags or 0) & AC != 0]
    values = _pushed_values(this)
    frame = _frame(list(values.values()))
    # "RSP := newRSP & ~15", on the same stack too; each push is 8 bytes, in this order. None straddles a page, so
    # that the pushes within one page fare alike: the frame is written page by page, from above.
    top, size, done = rsp & ~15, len(frame), 0
    while done < size:
        first = (top - done - 8) % TOP
        count = min(size - done, first % PAGE + 8)
        at = (top - done - count) % TOP
        step = f"push {list(values)[done // 8]}"
        # "If a push's address is not canonical, #SS(EXT)." What was pushed before a fault stays in memory.
        try:
            state.write(at, frame[size - done - count : size - done], count, access)
        except Inaccessible as error:
            this.stop(step, first, error.probe, SS, cr2=first)
        this.passed("push", at, f"{count} bytes below {at + count:#x}", "written")
        done += count
    return at, frame if isinstance(frame, bytes) else None


def _pushed_values(this: Checks) -> dict[str, int | None]:
    """What is pushed, in order; None for a register that is not known."""
    registers, event = this.state.registers, this.event
    values = {
        "SS": None if registers.ss is None else registers.ss.selector,
        "RSP": registers.rsp,
        "RFLAGS": _rflags_image(this),
        "CS": None if registers.cs is None else registers.cs.selector,
        "RIP": this.rip,
    }
    if pushes_error_code(event, this.state.machine.vendor):
        values["error code"] = event.error_code or 0
    return values


def _frame(values: list[int | None]) -> bytes | list[int | None]:
    """The bytes of the pushes, the lowest address first; a list with None where they are not known."""
    if None not in values:
        return struct.pack(f"<{len(values)}Q", *reversed(values))
    parts: list[int | None] = []
    for value in reversed(values):
        parts += [None] * 8 if value is None else value.to_bytes(8, "little")
    return parts


def _rflags_image(this: Checks) -> int | None:
    """RFLAGS as pushed. Source: SDM Vol. 3B, "Instruction-Breakpoint Exception Condition" (RF)."""
    rflags, event = this.state.registers.rflags, this.event
    if rflags is None:
        return None
    # "The image has RF=1 for every fault but an instruction breakpoint"; an INT n has cleared RF by executing.
    if event.kind in (INT, INT1):
        return rflags & ~RF
    vector = event.vector
    fault = vector >= len(vectors.EXCEPTIONS) or vector == DF or vectors.EXCEPTIONS[vector].kind == "fault"
    return rflags | RF if fault and event.kind == EXCEPTION else rflags


def mark_accessed(this: Checks, address: int, code: SegmentDescriptor) -> SegmentDescriptor:
    """Set the accessed bit of the code segment's descriptor in memory, if it is clear."""
    if code.accessed:
        return code
    code = code.replace(type=code.type | 1)
    place = SegmentDescriptor.field("type").offset
    at = (address + place) % TOP
    # "The processor sets the accessed bit with a locked supervisor-mode write": a read-only table faults with WP=1.
    try:
        this.state.write(at, bytes(code)[place : place + 1], 1, WRITE)
    except Inaccessible as error:
        this.stop("accessed bit", at, error.probe)
    this.passed("accessed bit", at, "A 0", "set")
    return code


def commit(this: Checks, gate: Gate, code: SegmentDescriptor, cpl: int, rsp: int) -> None:
    """Load the registers: from here on the handler runs."""
    state, registers = this.state, this.state.registers
    changes: dict[str, object] = {"rip": gate.offset, "rsp": rsp, "cr2": state.cr2}
    # "CS := selector of the gate, with RPL = new CPL."
    changes["cs"] = load(gate.selector - Selector.from_int(gate.selector).rpl + cpl, code)
    # "If CPL changed, SS := null selector with RPL = new CPL"; an IST alone leaves SS as it is.
    if cpl != this.cpl:
        changes["ss"] = load(int(Selector(rpl=cpl)), SegmentDescriptor(dpl=cpl))
    # "TF, NT, RF and VM are cleared, and IF too when the gate is an interrupt gate."
    if registers.rflags is not None:
        cleared = TF | NT | RF | VM | (IF if gate.type == INTERRUPT_GATE else 0)
        changes["rflags"] = registers.rflags & ~cleared
    state.registers = registers.replace(**changes)
    this.passed("handler", gate.offset, f"entered in ring {cpl}", "delivered")
