"""What Bochs does otherwise than the manuals, as a delivery of its own: a run that differs must be exactly this.

Each deviation has a name, the one in docs/deviations.md, and is noted where it is met.
"""

from __future__ import annotations

from ..delivery.deliver import (
    Checks,
    NestedFault,
    check_code_segment,
    check_gate,
    check_offset,
    choose_stack,
    commit,
    mark_accessed,
    push_frame,
    read_code_segment,
    read_gate,
)
from ..delivery.events import GP, NMI, SS, Event
from ..delivery.state import CpuState
from ..machine.paging import READ, WRITE, Access, canonical
from ..machine.registers import AC
from ..tables.selector import Selector, SelectorErrorCode
from .event_log import EventLog, predict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..machine.machine import Machine
    from ..tables.gdt import SegmentDescriptor
    from ..tables.idt import Gate
    from .stimulus import Stimulus

_LIFTED = {READ: Access(ac=True), WRITE: Access(write=True, ac=True)}


class BochsState(CpuState):
    """A state with Bochs' memory accesses; `deviations` are the names of those that were met."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.deviations: set[str] = set()
        self.interrupted: int | None = None  # RIP at an NMI that was delivered just now

    def read(self, linear: int, size: int, access: Access = READ) -> bytes:
        """As CpuState's, but RFLAGS.AC lifts SMAP from the tables too."""
        return super().read(linear, size, self._lifted(access))

    def write(self, linear: int, data: Sequence[int | None] | None, size: int, access: Access) -> None:
        """As CpuState's, but RFLAGS.AC lifts SMAP from the tables too."""
        super().write(linear, data, size, self._lifted(access))

    def _lifted(self, access: Access) -> Access:
        ac = (self.registers.rflags or 0) & AC
        if not (access.implicit and ac and self.machine.space.paging.smap):
            return access
        self.deviations.add("smap_ac_cpl3" if self.registers.cpl == 3 else "smap_ac_cpl0")
        return _LIFTED[access]


def predict_bochs(machine: Machine, stimulus: Stimulus, handler_stack: int) -> tuple[EventLog, set[str]]:
    """What Bochs should do, and the deviations that are met on the way."""
    state = BochsState(machine)
    return predict(state, stimulus, handler_stack, enter_handler), state.deviations


def enter_handler(this: Checks) -> tuple[str, bytes | None]:
    """delivery.enter_handler, as Bochs 2.7 does it: exception.cc, `long_mode_int`."""
    state = this.state
    assert isinstance(state, BochsState)
    if state.interrupted is not None and this.rip == state.registers.rip:
        state.deviations.add("nmi_fetch_rip")
        this.rip = state.interrupted
    gate = read_gate(this)
    _check_dword3(this, state, gate)
    check_gate(this, gate)
    selector = Selector.from_int(gate.selector)
    place, code = read_code_segment(this, selector)
    _check_width_first(this, state, selector, code)
    cpl = check_code_segment(this, selector, code)
    stack, rsp = _choose_stack(this, state, gate.ist, cpl)
    pusher = cpl
    if code.conforming and code.dpl != cpl:
        state.deviations.add("conf_push_dpl")
        pusher = code.dpl
    if not canonical(gate.offset, state.machine.space.levels):
        state.deviations.add("rip_check_after_push")
    rsp, frame = push_frame(this, rsp, pusher)
    check_offset(this, gate.offset)
    code = mark_accessed(this, place, code)
    state.interrupted = state.registers.rip if this.event.kind == NMI else None
    commit(this, gate, code, cpl, rsp)
    return stack, frame


def _check_dword3(this: Checks, state: BochsState, gate: Gate) -> None:
    if gate.reserved1 >> 8 & 0x1F:
        state.deviations.add("dword3_type")
        raise NestedFault(Event(GP, error_code=this.gate_code()), "gate's last dword")


def _check_width_first(this: Checks, state: BochsState, selector: Selector, code: SegmentDescriptor) -> None:
    enterable = code.s and code.code and code.dpl <= this.cpl
    if enterable and not code.p and (not code.l or code.d_b):
        state.deviations.add("ld_before_p")
        raise NestedFault(Event(GP, error_code=this.selector_code(selector)), "segment L, D")


def _choose_stack(this: Checks, state: BochsState, ist: int, cpl: int) -> tuple[str, int]:
    try:
        return choose_stack(this, ist, cpl)
    except NestedFault as fault:
        if fault.event.vector != SS:
            raise
        state.deviations.add("ss_err_old_ss")
        old = Selector.from_int(state.registers.ss.selector if state.registers.ss else 0)
        code = int(SelectorErrorCode(index=old.index, ti=old.ti, ext=this.ext))
        raise NestedFault(Event(SS, error_code=code), fault.why) from None
