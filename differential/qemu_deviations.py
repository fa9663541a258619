"""What QEMU (TCG, 7.2) does otherwise than the manuals, as a delivery of its own: a run that differs must be this one.

Each deviation has a name, the one in docs/deviations.md, and is noted where it is met. Source: target/i386/tcg,
seg_helper.c (`do_interrupt64`, `get_rsp_from_tss`) and sysemu/excp_helper.c.
"""

from __future__ import annotations

from x86tables.delivery.deliver import Checks, check_code_segment, check_gate, commit, read_code_segment
from x86tables.delivery.events import EXCEPTION, GP, INT1, PF, SS, TS, Event
from x86tables.delivery.state import TOP, CpuState
from x86tables.machine.memory import PAGE
from x86tables.machine.paging import READ, WRITE, Access, canonical
from x86tables.machine.probe import PRESENT, RESERVED, Fault, FaultKind, Inaccessible, Unknown
from x86tables.machine.registers import AC, Segment
from x86tables.prove.stimulus import Stimulus, first_event
from x86tables.tables.idt import Gate
from x86tables.tables.selector import Selector
from x86tables.tables.tss import Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from x86tables.machine.machine import Machine

WITH_CODE = (8, *range(10, 15), 17)


class QemuCpuState(CpuState):
    """A state with QEMU's memory accesses; `deviations` are the names of those that were met."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.deviations: set[str] = set()

    def tables(self, access: Access) -> Access:
        """The access that QEMU's own reads and pushes are: a supervisor's, AC counts below ring 3 only."""
        return Access(write=access.write, ac=(self.registers.rflags or 0) & AC != 0 and self.registers.cpl != 3)

    def code(self, error_code: int) -> int:
        """The error code of a page fault: without P when a reserved bit is set."""
        if error_code & RESERVED:
            self.deviations.add("rsvd_no_p")
            return error_code & ~PRESENT
        return error_code

    def translate(self, linear: int, access: Access) -> int:
        """As CpuState's, for the fetch of a handler."""
        try:
            return super().translate(linear, access)
        except Inaccessible as error:
            raise self._refused(
                error.probe, "no_rip_check", "the handler's address is not canonical: #GP at its fetch"
            ) from None

    def write(self, linear: int, data: Sequence[int | None] | None, size: int, access: Access) -> None:
        """As CpuState's, for what a handler pushes."""
        try:
            super().write(linear, data, size, access)
        except Inaccessible as error:
            raise self._refused(error.probe, "noncanon_gp", "a handler pushes where it is not canonical: #GP") from None

    def _refused(self, probe: Fault | Unknown, deviation: str, why: str) -> Inaccessible:
        """QEMU's answer; Unknown, and `why`, where it does what is not followed from here on."""
        if isinstance(probe, Unknown):
            return Inaccessible(probe)
        if probe.kind is FaultKind.NON_CANONICAL:
            self.deviations.add(deviation)
            return Inaccessible(Unknown(why))
        return Inaccessible(probe.replace(error_code=self.code(probe.error_code)))


class QemuChecks(Checks):
    """One event on its way through `do_interrupt64`."""

    __slots__ = ("state",)
    state: QemuCpuState

    def note(self, name: str, is_met: bool = True) -> None:
        """Note a deviation."""
        if is_met:
            self.state.deviations.add(name)

    def read(self, step: str, linear: int, size: int) -> bytes:
        """A table's bytes, by QEMU's accesses: 4 bytes each, the pointers of a TSS 8."""
        access = self.state.tables(READ)
        self.note("smap_ac_cpl0", access.ac and self.state.machine.space.paging.smap)
        wide = 8 if step.startswith("TSS") else 4
        try:
            return b"".join(CpuState.read(self.state, (linear + at) % TOP, wide, access) for at in range(0, size, wide))
        except Inaccessible as error:
            self.stop(step, linear, error.probe)

    def refuse(
        self, step: str, address: int | None, found: str, rule: str, vector: int, code: int, cr2: int | None = None
    ) -> NoReturn:
        super().refuse(step, address, found, rule, vector, self.state.code(code) if vector == PF else code, cr2)

    def gate_code(self) -> int:
        self.note("vec16", self.event.vector != 0)
        self.note("no_ext", self.ext)
        return 16 * self.event.vector + 2

    def selector_code(self, selector: Selector) -> int:
        self.note("no_ext", self.ext)
        return int(selector) & 0xFFFC

    def null_code(self) -> int:
        self.note("no_ext", self.ext)
        return 0


def enter_handler(outer: Checks) -> tuple[str, bytes | None]:
    """delivery.enter_handler, as QEMU does it."""
    assert isinstance(outer.state, QemuCpuState)
    this = QemuChecks(outer.state, outer.event, outer.ext, outer.rip)
    this.steps = outer.steps
    gate = _read_gate(this)
    check_gate(this, gate)
    _, code = read_code_segment(this, Selector.from_int(gate.selector))
    cpl = check_code_segment(this, Selector.from_int(gate.selector), code)
    stack, rsp = _choose_stack(this, gate.ist, cpl)
    this.note("no_rip_check", not canonical(gate.offset, this.state.machine.space.levels))
    rsp, frame = _push_frame(this, rsp, cpl)
    this.note("no_accessed", not code.accessed)
    ss = this.state.registers.ss
    commit(this, gate, code, cpl, rsp)
    if gate.ist and cpl == this.cpl:
        this.note("ist_null_ss", ss is not None and ss.selector != cpl)
        this.state.registers = this.state.registers.replace(ss=Segment(cpl, flags=cpl << 13))
    return stack, frame


def _read_gate(this: QemuChecks) -> Gate:
    """The first 12 bytes of the gate: its last dword is not read."""
    idtr, offset = this.state.registers.idtr, this.event.vector * Gate.size
    assert idtr is not None
    if offset + Gate.size - 1 > idtr.limit:
        this.refuse("IDT limit", None, f"limit {idtr.limit:#x}", "entry beyond the limit", GP, this.gate_code())
    address = (idtr.base + offset) % TOP
    this.note("idt12", address % PAGE > PAGE - Gate.size)
    return Gate.parse(this.read(f"IDT entry {this.event.vector}", address, 12) + bytes(4))


def _choose_stack(this: QemuChecks, ist: int, cpl: int) -> tuple[str, int]:
    """The stack that the gate or the new privilege level asks for."""
    tr = this.state.registers.tr
    if not ist and cpl >= this.cpl:
        return "current", this.state.registers.rsp or 0
    assert tr is not None
    name = f"IST{ist}" if ist else f"RSP{cpl}"
    offset = Tss.field(name.lower()).offset
    if offset + 7 > tr.limit:
        code = this.selector_code(Selector.from_int(tr.selector))
        this.refuse("TSS limit", None, f"limit {tr.limit:#x}", "pointer beyond the limit", TS, code)
    rsp = int.from_bytes(this.read(f"TSS {name}", (tr.base + offset) % TOP, 8), "little")
    if not canonical(rsp, this.state.machine.space.levels):
        this.refuse(f"TSS {name}", None, f"{rsp:#x}", "not canonical", SS, this.null_code())
    return name, rsp


def _push_frame(this: QemuChecks, rsp: int, cpl: int) -> tuple[int, bytes]:
    """The pushes, which are the supervisor's whatever the new privilege level."""
    state, r = this.state, this.state.registers
    access = state.tables(WRITE)
    smap, ac = state.machine.space.paging.smap, (r.rflags or 0) & AC != 0
    this.note("push_super", cpl == 3)
    this.note("push_ac_cpl3", smap and ac and this.cpl == 3)
    this.note("no_rf")
    values = [r.ss.selector if r.ss else 0, r.rsp or 0, r.rflags or 0, r.cs.selector if r.cs else 0, this.rip or 0]
    if this.event.kind == EXCEPTION and this.event.vector in WITH_CODE:
        values.append(this.event.error_code or 0)
    at, frame = rsp & ~15, b""
    for value in values:
        at, data = (at - 8) % TOP, value.to_bytes(8, "little")
        try:
            CpuState.write(state, at, data, 8, access)
        except Inaccessible as error:
            this.note("noncanon_gp", isinstance(error.probe, Fault) and error.probe.kind is FaultKind.NON_CANONICAL)
            this.stop("push", at, error.probe)
        frame = data + frame
    return at, frame


def first(state: QemuCpuState, stimulus: Stimulus) -> Event | None:
    """The event that a stimulus leads to in QEMU."""
    event = first_event(state, stimulus)
    if event is None or event.kind not in (EXCEPTION, INT1):
        return event
    if event.kind == INT1:
        state.deviations.add("int1_ud")
        return Event.exception("#UD")
    if event.vector in (SS, GP):
        event = _lower_page(state, stimulus) or event
    if event.vector == SS:
        state.deviations.add("noncanon_gp")
        return Event.exception(GP, 0)
    return event.replace(error_code=state.code(event.error_code or 0)) if event.vector == PF else event


def _lower_page(state: QemuCpuState, stimulus: Stimulus) -> Event | None:
    """The page fault of an access whose first bytes are canonical and its last ones not: they are asked one by one."""
    registers, user = state.registers, state.registers.cpl == 3
    ac = (registers.rflags or 0) & AC != 0
    linear = registers.general.get("rax", 0)
    if stimulus.kind in ("push", "call"):
        linear = ((registers.rsp or 0) - 8) % TOP
    elif stimulus.kind not in ("read", "write"):
        return None
    try:
        state.machine.translate(linear, Access(write=stimulus.kind != "read", user=user, ac=ac))
    except Inaccessible as error:
        probe = error.probe
        if isinstance(probe, Unknown):
            raise
        if probe.kind is not FaultKind.NON_CANONICAL:
            state.deviations.add("canonical_by_page")
            return Event(PF, error_code=probe.error_code, cr2=linear)
    return None
