"""The Bochs CPU, in this process: one run of a machine from its first event until a handler runs or the CPU shuts down.

Every run has a session of its own: its birth is a hardware reset, which empties the TLB, the decoded instructions and
the memory of earlier events. A shutdown makes this build of Bochs abort, so that it is seen one step before: a fault
while a double fault is being delivered. Bochs does not say that a delivery was completed; registers that are no longer
those from before it do.
"""

from __future__ import annotations

import itertools

import bochscpu

from ..delivery.events import DF, PF, SHUTDOWN
from ..delivery.simulate import UNKNOWN
from ..machine.probe import Absent
from ..machine.registers import LA57, LMA, LME, NXE, SCE, TF, Segment
from ..records import Record
from .bochs_memory import Pages
from .bochs_pins import Pins
from .event_log import ENTERED, GOES_ON, NOTHING, RAISED, RUNS, TAKEN, EventLog, Observation
from .stimulus import PINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..machine.machine import Machine
    from .stimulus import Stimulus

SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "ldtr", "tr")
RESET = {"dr6": 0xFFFF0FF0, "dr7": 0x400, "xcr0": 1, "mxcsr": 0x1F80, "fpcw": 0x37F, "apic_base": 0xFEE00900}
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{number}" for number in range(8, 16)))
FETCH = 2  # a kind of access
P = 0x8000  # in the high dword of a descriptor


class Runner:
    """Runs machines, one after the other, in this process: where it matters that the process lives, in a child."""

    def __init__(self) -> None:
        self.pages, self.pins = Pages(), Pins()

    def run(self, machine: Machine, stimulus: Stimulus, handler_stack: int, most: int) -> EventLog:
        """What Bochs does with `machine` from `stimulus` until a handler has pushed `handler_stack` bytes, or `most`
        handlers were entered. Handlers have to begin with PUSH_LOOP when `handler_stack` is not 0."""
        self.pins.model("intel" if (machine.registers.cr4 or 0) & LA57 else machine.vendor)
        try:
            return _Run(self, machine, stimulus, handler_stack, most).run()
        finally:
            self.pages.clear()


class _Pending(Record):
    """A delivery that may or may not be completed: the registers at its start."""

    vector: int
    double: bool  # that of a #DF, not of INT 8
    registers: tuple[int, int, int, int]


class _Run:
    """The hooks of one run. A hook must not raise; `session.stop()` in a hook leaves Bochs at once."""

    def __init__(self, runner: Runner, machine: Machine, stimulus: Stimulus, handler_stack: int, most: int) -> None:
        self.pages, self.pins = runner.pages, runner.pins
        self.machine, self.stimulus, self.handler_stack, self.most = machine, stimulus, handler_stack, most
        self.observations: list[Observation] = []
        self.outcome, self.needs = "the emulator returned", ""
        self.pending: _Pending | None = None
        self.pushed: dict[int, int] = {}  # linear -> physical of the 8-byte writes since `pending`
        self.marked = -1  # the byte with the accessed bit that was written since
        self.armed = self.executed = False
        self.entered, self.top = 0, 0
        self.cr2 = machine.registers.cr2  # when a handler is entered; the CPU's may be that of its fetch already
        self.walked: set[int] = set()  # page-table entries that Bochs wrote to

    def run(self) -> EventLog:
        session, hook, cr4 = bochscpu.Session(), bochscpu.Hook(), self.machine.registers.cr4 or 0
        session.missing_page_handler = lambda address: self.pages.fill(address >> 12, self.machine.memory)
        hook.exception, hook.interrupt, hook.hlt = self.on_fault, self.on_delivery, self.on_halt
        hook.before_execution, hook.lin_access, hook.phy_access = self.on_instruction, self.on_access, self.on_walk
        try:
            session.cpu.set_state(_state(self.machine))
            if cr4 & LA57:
                self.pins.widen()
                session.cpu.set_state(_state(self.machine))
            session.run([hook])
        finally:
            # its closure holds the session, and two sessions at a time crash
            session.missing_page_handler = id
        return EventLog(tuple(self.observations), self.outcome, dict(self.pages.changes(self.walked)), needs=self.needs)

    def stop(self, session: Any, outcome: str) -> None:
        self.outcome = outcome
        session.stop()

    def need(self, session: Any, physical: int) -> None:
        """Stop at memory that the image does not hold."""
        self.needs = str(Absent(physical))
        self.stop(session, UNKNOWN)

    # What Bochs calls

    def on_fault(self, session: Any, _: int, vector: int, code: int) -> None:
        """A fault, EXT set and CR2 loaded; RIP, RSP and RF are not yet those of the instruction's start."""
        if (pending := self.pending) is not None:
            if pending.registers != _place(session.cpu):
                if self.enter(session, pending):
                    return None
            elif pending.double:
                self.note_fault(session, vector, code)
                return self.stop(session, SHUTDOWN)
        self.note_fault(session, vector, code)
        return None

    def on_delivery(self, session: Any, _: int, vector: int) -> None:
        """The start of an attempt to deliver something, a fault that was raised just before included."""
        raised = (
            bool(self.observations) and self.observations[-1].what == RAISED and self.observations[-1].vector == vector
        )
        if not raised:
            self.observations.append(Observation(TAKEN, vector))
        self.pending, self.pushed = _Pending(vector, raised and vector == DF, _place(session.cpu)), {}
        self.marked = -1

    def on_instruction(self, session: Any, _: int, __: Any) -> None:
        """An instruction was fetched and is about to run."""
        if self.pending is not None and self.enter(session, self.pending):
            return None
        if self.entered:
            if self.top - session.cpu.rsp >= self.handler_stack:
                return self.stop(session, RUNS)
        elif self.executed or self.stimulus.kind in PINS:
            return self.stop(session, NOTHING)
        self.executed = True
        return None

    def on_access(self, session: Any, _: int, linear: int, physical: int, size: int, __: int, kind: int) -> None:
        """A table was read, or something written."""
        if kind == 1:
            if self.pending is not None and size == 8:
                self.pushed[linear] = physical
            elif self.pending is not None:
                self.marked = physical
        elif kind != FETCH:
            for byte in (physical, physical + size - 1):
                if not self.machine.memory.holds(byte):
                    return self.need(session, byte)
        return None

    def on_walk(self, session: Any, _: int, physical: int, size: int, __: int, kind: int) -> None:
        """A step of a page walk. The first is that of the first fetch: no instruction has begun."""
        if not self.armed:
            self.armed = True
            self.raise_pin(session.cpu)
        elif kind != 0:
            self.walked.add(physical)
        elif not self.machine.memory.holds(physical):
            self.need(session, physical)

    def on_halt(self, session: Any, _: int) -> None:
        self.stop(session, "HLT")

    # What they have in common

    def raise_pin(self, cpu: Any) -> None:
        """Raise the first event, so that it comes before the first instruction, even if that cannot be fetched."""
        stimulus = self.stimulus
        if stimulus.kind not in PINS and not cpu.rflags & TF:
            return
        cpu.set_mode()  # forgets the half-done fetch
        if stimulus.kind == "exception":
            cpu.set_exception(stimulus.vector, stimulus.error_code)
            return
        cpu.rip = cpu.rip  # leaves the CPU loop when the hook returns, and forgets pins and TF: they come after it
        if stimulus.kind == "nmi":
            self.pins.nmi()
        elif stimulus.kind == "interrupt":
            self.pins.interrupt(stimulus.vector)
        cpu.rflags = cpu.rflags

    def note_fault(self, session: Any, vector: int, code: int) -> None:
        if vector == PF:
            self.cr2 = session.cpu.cr2
        self.observations.append(Observation(RAISED, vector, code, self.cr2 if vector == PF else None))

    def enter(self, session: Any, pending: _Pending) -> bool:
        """A delivery is complete: note it. True if this was the end: enough of them, or a frame in no memory."""
        cpu = session.cpu
        rsp = cpu.rsp
        slots = itertools.takewhile(self.pushed.__contains__, itertools.count(rsp, 8))
        places = [self.pushed[slot] for slot in slots]
        elsewhere = next((place for place in places if not self.pages.hold(place)), None)
        if elsewhere is not None:  # the local APIC's page, which Bochs writes to itself
            self.need(session, elsewhere)
            return True
        frame = b"".join(self.pages.read(place, 8) for place in places)
        # a stack over the GDT: what was pushed is no longer known
        overwritten = any(place <= self.marked < place + 8 for place in places)
        cs, ss = cpu.cs.selector, cpu.ss.selector
        self.observations.append(
            Observation(
                ENTERED, pending.vector, 0, self.cr2, cpu.rip, rsp, cpu.rflags, cs, ss, None if overwritten else frame
            )
        )
        self.pending, self.top = None, rsp
        self.entered += 1
        if self.entered >= self.most:
            self.stop(session, GOES_ON)
        return self.entered >= self.most


def _place(cpu: Any) -> tuple[int, int, int, int]:
    return cpu.rip, cpu.rsp, cpu.rflags, cpu.cs.selector


def _state(machine: Machine) -> Any:
    """A machine's registers as Bochs takes them; zero where they are not known."""
    state, r = bochscpu.State(), machine.registers
    inferred = SCE | LME | LMA | (NXE if machine.nxe else 0)
    plain = {name: getattr(r, name) or 0 for name in ("rip", "rsp", "rflags", "cr0", "cr2", "cr3", "cr4", "star")}
    plain |= {"efer": inferred if r.efer is None else r.efer}
    plain |= {name: r.general[name] for name in GENERAL if name in r.general}
    for name, value in (RESET | plain).items():
        setattr(state, name, value)
    for name in SEGMENTS:
        setattr(state, name, _segment(name, getattr(r, name) or Segment(0, 0, 0, 0)))
    for name, register in (("gdtr", r.gdtr), ("idtr", r.idtr)):
        table = bochscpu.GlobalSegment()
        if register is not None:
            table.base, table.limit = register.base, register.limit
        setattr(state, name, table)
    return state


def _segment(name: str, segment: Segment) -> Any:
    """A segment register; its cache is valid but for a null LDTR. A TR that was never loaded is used as it is."""
    made, flags = bochscpu.Segment(), segment.flags or 0
    made.selector, made.base, made.limit = segment.selector, segment.base, segment.limit
    made.attr = flags >> 8 & 0xFFFF
    made.present = name == "tr" or (not segment.null if name == "ldtr" else flags & P != 0)
    return made
