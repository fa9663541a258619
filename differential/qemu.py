"""Compare our deliveries with QEMU's on many machines: `python -m differential.qemu 5000`.

The machines are those of the comparison with Bochs. Observed are the handlers that are entered, with registers and
frame, how it ends, and the memory after it. Each case has to agree in all of it, or to differ exactly by deviations of
QEMU that are listed in docs/deviations.md.
"""

from __future__ import annotations

import sys
import time

from differential.bochs import Result, Tally, progress
from differential.machines import Case, case
from differential.qemu_cpu import EXIT, Cpu, Prepared, prepare
from differential.qemu_deviations import QemuCpuState, first
from differential.qemu_deviations import enter_handler as enter_as_qemu
from x86tables import budgets
from x86tables.delivery.deliver import Checks, enter_handler
from x86tables.delivery.events import SHUTDOWN
from x86tables.delivery.simulate import LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN, Simulation, simulate
from x86tables.delivery.state import CpuState
from x86tables.machine.paging import canonical
from x86tables.machine.probe import Inaccessible
from x86tables.prove.event_log import ENTERED, GOES_ON, NOTHING, RUNS, EventLog, Observation, changed, differences
from x86tables.prove.stimulus import first_event
from x86tables.tables.vectors import label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from x86tables.delivery.deliver import Enter
    from x86tables.machine.machine import Machine
    from x86tables.machine.paging import Access

MOST = 300  # handlers entered in one case: each costs a round trip
LEFT_OUT = "left out"


class Pushing(CpuState):
    """A state in which a handler's first push is not its first instruction: VMMCALL stands before it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.pushing: int | None = None  # RIP of the handler that has begun to push

    def write(self, linear: int, data: Sequence[int | None] | None, size: int, access: Access) -> None:
        """As State's; a handler's pushes, whose values are not known, are noted."""
        if data is None:
            self.pushing = self.registers.rip
        super().write(linear, data, size, access)


class QemuPushing(Pushing, QemuCpuState):
    """The same with QEMU's deviations."""


def _behind_exit(enter: Enter) -> Enter:
    """A delivery whose saved RIP is that of the push."""

    def entered(this: Checks) -> tuple[str, bytes | None]:
        assert isinstance(this.state, Pushing)
        if this.rip is not None and this.rip == this.state.pushing:
            this.rip += len(EXIT)
        return enter(this)

    return entered


def left_out(case: Case) -> str:
    """Why a case cannot be brought about in QEMU; "" when it can."""
    if case.stimulus.kind == "exception":
        return "an exception that no instruction raises: injected ones count for no double fault"
    r, levels = case.machine.registers, case.machine.space.levels
    if any(table is not None and not canonical(table.base or 0, levels) for table in (r.gdtr, r.idtr, r.tr, r.ldtr)):
        return "a table's base that is not canonical: VMRUN makes it so"
    return ""


def predict(prepared: Prepared, state: Pushing) -> EventLog:
    """What is to be observed: by the manuals, or in a QemuPushing by QEMU's deviations."""
    enter = _behind_exit(enter_as_qemu if isinstance(state, QemuCpuState) else enter_handler)
    try:
        event = (
            first(state, prepared.stimulus)
            if isinstance(state, QemuCpuState)
            else first_event(state, prepared.stimulus)
        )
    except Inaccessible:
        return EventLog((), UNKNOWN)
    if event is None:
        return EventLog((), NOTHING)
    simulation = simulate(state, event, prepared.handler_stack, enter)
    return _event_log(simulation, state)


def _event_log(simulation: Simulation, state: CpuState) -> EventLog:
    """The handlers whose first instruction is fetched."""
    observations: list[Observation] = []
    gap = None
    for number, (delivery, handler) in enumerate(zip(simulation.deliveries, simulation.handlers, strict=False)):
        if simulation.loop is not None and number == simulation.loop.at:
            gap = len(observations)
        if len(handler.steps) > 1:  # behind its fetch, it touches its stack
            r = delivery.registers
            cs, ss = (segment.selector if segment is not None else None for segment in (r.cs, r.ss))
            observations.append(
                Observation(ENTERED, 0, 0, delivery.cr2, r.rip, r.rsp, r.rflags, cs, ss, delivery.frame)
            )
    outcome = {SURVIVES: RUNS, TRIPLE_FAULT: SHUTDOWN, LOOPS: GOES_ON}.get(simulation.outcome, simulation.outcome)
    if simulation.loop is None:
        return EventLog(
            tuple(observations), outcome, None if outcome == UNKNOWN else changed(state), None, len(observations) + 1
        )
    if gap is None:
        gap = len(observations)
    rounds = (
        budgets.LOOP_EVENTS if simulation.loop.rounds is None else simulation.loop.rounds * len(simulation.loop.vectors)
    )
    return EventLog(tuple(observations), outcome, None, gap, len(observations) + rounds + (outcome != GOES_ON))


def compare(number: int, case: Case, cpu: Cpu) -> Result:
    """Run one case on both."""
    kinds = tuple(mutation.split(":")[0] for mutation in case.mutations)
    nothing = Result(number, LEFT_OUT, (), (), (), case.stimulus.kind, kinds)
    if left_out(case):
        return nothing
    prepared = prepare(case.machine, case.stimulus, case.handler_stack)
    ours = predict(prepared, Pushing(prepared.machine))
    there = QemuPushing(prepared.machine)
    likely = predict(prepared, there)
    if max(ours.most, likely.most) > MOST:
        return nothing
    found, deviations = _differences(ours, likely, there, cpu.run(prepared, likely.most))
    if found and case.stimulus.kind == "interrupt":
        found, deviations = _differences(ours, likely, there, cpu.run(prepared, likely.most))
        deviations.append("injected_twice")
    entered = tuple(label((one.rip or 0) >> 4 & 0xFF) for one in ours.observations)
    return Result(number, ours.outcome, (), (), entered, case.stimulus.kind, kinds, tuple(deviations), "; ".join(found))


def _differences(
    ours: EventLog, likely: EventLog, there: QemuCpuState, theirs: EventLog
) -> tuple[list[str], list[str]]:
    """Where QEMU goes another way, and the deviations that explain it when they do."""
    if not apart(ours, theirs):
        return [], []
    found = apart(likely, theirs)
    return found, [] if found else sorted(there.deviations)


def apart(ours: EventLog, theirs: EventLog) -> list[str]:
    """As `differences`; the frame is as long as predicted, RSP having been compared."""
    observations = list(theirs.observations)
    for number, one in enumerate(ours.observations[: len(observations)]):
        if ours.gap is None or number < ours.gap:
            observations[number] = _cut(observations[number], one)
    if ours.gap is not None:
        for number in range(1, len(ours.observations) - ours.gap + 1):
            if number <= len(observations):
                observations[-number] = _cut(observations[-number], ours.observations[-number])
    return differences(ours, theirs.replace(observations=tuple(observations)))


def _cut(theirs: Observation, ours: Observation) -> Observation:
    return theirs.replace(frame=theirs.frame[: len(ours.frame)] if theirs.frame and ours.frame else theirs.frame)


def main(arguments: Sequence[str]) -> int:
    """Compare; 1 when anything differs that is not explained."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m differential.qemu", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=5000, help="how many cases")
    parser.add_argument("--seed", type=int, default=1, help="of the series")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args(arguments)
    tally, began = Tally(), time.monotonic()
    with Cpu() as cpu:
        for number in range(args.first, args.first + args.count):
            tally.add(number, compare(number, case(args.seed, number), cpu))
            if tally.total % 50 == 0 or tally.total == args.count:
                progress(tally.total, args.count, time.monotonic() - began, len(tally.differ))
    print(*tally.lines(), sep="\n")
    return 1 if tally.differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
