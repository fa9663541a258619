"""What a CPU did, event by event: as observed on an independent CPU model, and as we predict it, in the same words."""

from __future__ import annotations

from itertools import pairwise

from .. import budgets
from ..delivery.events import DELIVERED, DF, EXCEPTION, PF, SHUTDOWN, TRAP
from ..delivery.simulate import LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN, simulate
from ..machine.memory import PAGE
from ..machine.probe import Absent, Inaccessible
from ..records import Record
from ..tables.vectors import label
from .stimulus import first_event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..delivery.deliver import Enter
    from ..delivery.events import Delivery, Event
    from ..delivery.simulate import Simulation
    from ..delivery.state import CpuState
    from .stimulus import Stimulus

RAISED, TAKEN, ENTERED = "raised", "taken", "entered"
RUNS, GOES_ON, NOTHING = "runs", "goes on", "nothing"  # besides SHUTDOWN


class Observation(Record):
    """One thing that a CPU did.

    `raised`: it met a fault, before it decides about a double fault (the #DF that comes of it is another `raised`);
    `cr2` if it is a page fault. `taken`: an INT n, an interrupt or an NMI is on its way. `entered`: a handler was, with
    the registers at its first instruction, and the frame. None is not known.
    """

    what: str
    vector: int
    error_code: int = 0
    cr2: int | None = None
    rip: int | None = None
    rsp: int | None = None
    rflags: int | None = None
    cs: int | None = None
    ss: int | None = None
    frame: bytes | None = None
    check: str = ""  # which one raised it, in a prediction

    def __str__(self) -> str:
        if self.what == ENTERED:
            return f"handler of {label(self.vector)} entered at {_hex(self.rip)}, RSP {_hex(self.rsp)}"
        if self.what == TAKEN:
            return f"vector {self.vector:#x} taken"
        where = f" at {_hex(self.cr2)}" if self.vector == PF else ""
        return f"{label(self.vector)}({self.error_code:#x}){where}"


COMPARED = ("what", "vector", "error_code", "cr2", "rip", "rsp", "rflags", "cs", "ss", "frame")


class EventLog(Record):
    """What was observed, in order, and how it ended: `runs`, `shutdown`, `goes on` (when watching stopped), `nothing`
    (no event), `unknown`, or in other words, for a person.

    `memory` is what changed: physical address -> byte, None for one that is not known; None for all of it. A prediction
    may leave out iterations of a loop: they belong before `observations[gap]`. `most` is after how many
    handlers to stop watching. `needs` is what an `unknown` end needs and the image does not hold.
    """

    observations: tuple[Observation, ...]
    outcome: str
    memory: dict[int, int | None] | None = None
    gap: int | None = None
    most: int = 1
    needs: str = ""


def _hex(value: int | None) -> str:
    return "?" if value is None else f"{value:#x}"


def predict(state: CpuState, stimulus: Stimulus, handler_stack: int, enter: Enter | None = None) -> EventLog:
    """What a CPU should do in `state` from `stimulus`; `enter` as in `deliver`."""
    try:
        event = first_event(state, stimulus)
    except Inaccessible:
        return EventLog((), UNKNOWN)
    if event is None:
        return EventLog((), NOTHING)
    return _of_simulation(simulate(state, event, handler_stack, enter), state, handler_stack)


def _of_simulation(simulation: Simulation, state: CpuState, handler_stack: int) -> EventLog:
    """The event log of a simulation that ran in `state`."""
    parts = [_of(delivery) for delivery in simulation.deliveries]
    ends = {SURVIVES: RUNS, TRIPLE_FAULT: SHUTDOWN, LOOPS: GOES_ON}
    outcome, loop = ends.get(simulation.outcome, simulation.outcome), simulation.loop
    if loop is None:
        memory = None if outcome == UNKNOWN else changed(state)
        return EventLog(_joined(parts), outcome, memory, None, len(parts) + 1)
    breaks = _breaks(simulation, handler_stack) or [len(parts)]
    before = _joined(parts[: breaks[0]])
    if outcome == GOES_ON:
        return EventLog(before, outcome, None, len(before), breaks[0] + budgets.LOOP_EVENTS)
    return EventLog(before + _joined(parts[breaks[-1] :]), outcome, None, len(before), budgets.DEEPENING_EVENTS)


def _joined(parts: list[list[Observation]]) -> tuple[Observation, ...]:
    return tuple(one for part in parts for one in part)


def _breaks(simulation: Simulation, handler_stack: int) -> list[int]:
    """The deliveries before which like ones were left out: by the loop, or going by RSP, which is further down."""
    found = {simulation.loop.at} if simulation.loop is not None and simulation.loop.rounds is not None else set[int]()
    for number, (one, other) in enumerate(pairwise(simulation.deliveries), 1):
        pushed, rsp = other.pushed, one.registers.rsp
        if pushed is not None and rsp is not None and (rsp - pushed.rsp) % (1 << 64) > handler_stack:
            found.add(number)
    return sorted(number for number in found if number < len(simulation.deliveries))


def changed(state: CpuState) -> dict[int, int | None]:
    """The bytes that differ from what the machine's memory held, or may."""
    before: dict[int, bytes | None] = {}
    changed: dict[int, int | None] = {}
    for address, byte in state.changes():
        number = address // PAGE
        if number not in before:
            try:
                before[number] = state.machine.memory.read(number * PAGE, PAGE)
            except Absent:
                before[number] = None
        page = before[number]
        if page is None or byte is None:
            changed[address] = None
        elif page[address % PAGE] != byte:
            changed[address] = byte
    return changed


def _of(delivery: Delivery) -> list[Observation]:
    first = delivery.attempts[0].event
    observed = [_raised(first) if first.kind in (EXCEPTION, TRAP) else Observation(TAKEN, first.vector)]
    for attempt, following in zip(delivery.attempts, (*delivery.attempts[1:], None), strict=True):
        if attempt.fault is not None:
            observed.append(_raised(attempt.fault).replace(check=attempt.steps[-1].step if attempt.steps else ""))
            if following is not None and following.event.vector == DF:
                observed.append(Observation(RAISED, DF))
    if delivery.outcome == DELIVERED:
        r = delivery.registers
        cs, ss = (segment.selector if segment is not None else None for segment in (r.cs, r.ss))
        observed.append(
            Observation(ENTERED, delivery.vector or 0, 0, delivery.cr2, r.rip, r.rsp, r.rflags, cs, ss, delivery.frame)
        )
    return observed


def _raised(event: Event) -> Observation:
    cr2 = event.cr2 if event.vector == PF else None
    return Observation(RAISED, event.vector, event.error_code or 0, cr2)


def differences(ours: EventLog, theirs: EventLog) -> list[str]:
    """Where two event logs differ, in words; empty when they agree. What is not known is not compared."""
    if ours.outcome == UNKNOWN:  # as far as we know, and to where iterations are left out
        ours = ours.replace(observations=ours.observations[: ours.gap])
        theirs = theirs.replace(observations=theirs.observations[: len(ours.observations)], outcome=UNKNOWN)
    elif ours.gap is not None:
        left_out = max(0, len(theirs.observations) - len(ours.observations))
        theirs = theirs.replace(
            observations=theirs.observations[: ours.gap] + theirs.observations[ours.gap + left_out :]
        )
    found = []
    for number, (one, other) in enumerate(zip(ours.observations, theirs.observations, strict=False)):
        for name in COMPARED:
            mine, its = one[name], other[name]
            if mine is not None and mine != its and (name != "frame" or its is not None):
                found.append(f"{number}: {name}: {_shown(mine)} predicted, {_shown(its)} seen ({one}; {other})")
        if found:
            return found
    if len(ours.observations) != len(theirs.observations) or ours.outcome != theirs.outcome:
        common = min(len(ours.observations), len(theirs.observations))
        ends = (str((*event_log.observations, event_log.outcome)[common]) for event_log in (ours, theirs))
        return ["{}: {} predicted, {} seen".format(common, *ends)]
    if ours.memory is None or theirs.memory is None:
        return []
    for address in sorted(ours.memory.keys() | theirs.memory.keys()):
        mine, its = ours.memory.get(address, -1), theirs.memory.get(address, -1)
        if mine is not None and mine != its:
            return [f"memory at {address:#x}: {_byte(mine)} predicted, {_byte(its or 0)} seen"]
    return []


def _byte(value: int) -> str:
    return "no change" if value < 0 else f"{value:#x}"


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return " ".join(f"{int.from_bytes(value[at : at + 8], 'little'):#x}" for at in range(0, len(value), 8))
    return f"{value:#x}" if isinstance(value, int) else str(value)
