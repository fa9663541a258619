"""run(machine, event): a delivery and what comes after, until a handler runs, the CPU shuts down, or it loops."""

from __future__ import annotations

from .. import budgets
from ..machine.machine import Machine
from ..machine.memory import PAGE
from ..machine.paging import Access
from ..machine.probe import FETCH, FaultKind, Inaccessible, Unknown
from ..machine.registers import AC
from ..records import Record
from ..tables import vectors
from .deliver import PUSHES, MissingInput, deliver
from .events import PF, SHUTDOWN, SS, Delivery, Event, Step
from .extent import descent
from .state import TOP, CpuState, NoEnd, StepBudget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..machine.probe import Fault
    from ..machine.registers import Registers
    from .deliver import Enter

SURVIVES, TRIPLE_FAULT, LOOPS, UNKNOWN = "survives", "triple-fault", "loops", "unknown"
HANDLER_STACK = 128  # the 15 general registers and a return address
FETCHES = tuple(Access(fetch=True, user=user) for user in (False, True))


class Handler(Record):
    """What a handler met at its start: the steps, and the fault that is the next event; None when it runs."""

    vector: int
    steps: tuple[Step, ...]
    fault: Event | None = None


class Loop(Record):
    """Events that come again and again, round by round: `stride` bytes deeper into the stack each time, or 0.

    `rounds` is how many; None when nothing ends it. Of them the simulation keeps the first and, when the loop ends,
    the last; `at` is how many of its deliveries come before the ones left out.
    """

    vectors: tuple[int, ...]
    stride: int
    rounds: int | None
    at: int

    @property
    def stack_consumed(self) -> int:
        """Bytes of stack that all rounds took (of those that never end: one round)."""
        return self.stride * (1 if self.rounds is None else self.rounds)


class Simulation(Record):
    """How it went: `survives`, `triple-fault`, `loops` or `unknown`, and why.

    There is one Handler for each delivery that entered one. A simulation that survives ends in the handler of
    `vector` on `stack`. It begins with the registers in `start` and ends with those in `registers`.
    """

    deliveries: tuple[Delivery, ...]
    handlers: tuple[Handler, ...]
    outcome: str
    reason: str
    registers: Registers
    needs: str | None = None
    vector: int | None = None
    stack: str | None = None
    loop: Loop | None = None
    start: Registers | None = None

    @property
    def outline(self) -> tuple[object, ...]:
        """The attempts and their steps, without addresses."""
        attempts = (attempt for delivery in self.deliveries for attempt in delivery.attempts)
        ends = ((attempt.event.label, *(step.step for step in attempt.steps)) for attempt in attempts)
        return self.outcome, self.vector, self.stack, tuple(ends)


def simulate(
    at: Machine | CpuState,
    event: Event,
    handler_stack: int = HANDLER_STACK,
    enter: Enter | None = None,
    budget: StepBudget | None = None,
) -> Simulation:
    """Deliver `event`, then each fault that a handler meets before it runs, until one runs or none can.

    A handler runs when its first instruction can be fetched and `handler_stack` bytes below its frame can be pushed to.
    `enter` is passed on to `deliver`. The steps come out of `budget`, which simulations of one CPU share; the first
    delivery is made even when none are left.
    """
    budget = budget or StepBudget()
    state = CpuState(at) if isinstance(at, Machine) else at
    deliveries: list[Delivery] = []
    handlers: list[Handler] = []
    rounds, start = LoopDetector(state, handler_stack, budget), state.registers

    def simulation(outcome: str, reason: str, needs: str | None = None) -> Simulation:
        last = deliveries[-1]
        found = last.vector, last.stack
        loop = rounds.end(deliveries, handlers)
        return Simulation(
            tuple(deliveries), tuple(handlers), outcome, reason, state.registers, needs, *found, loop, start
        )

    while True:
        delivery = deliver(state, event, enter)
        deliveries.append(delivery)
        if delivery.vector is None:
            return simulation(
                TRIPLE_FAULT if delivery.outcome == SHUTDOWN else UNKNOWN, delivery.reason, delivery.needs
            )
        name = vectors.label(delivery.vector)
        try:
            handler = start_handler(state, delivery.vector, handler_stack, budget)
        except (MissingInput, NoEnd) as error:
            handlers.append(Handler(delivery.vector, (Step("handler", None, str(error), "not known"),)))
            return simulation(UNKNOWN, f"whether the {name} handler runs: {error}", str(error))
        handlers.append(handler)
        if handler.fault is None:
            return simulation(SURVIVES, f"the {name} handler runs on {stack_name(deliveries)}")
        event = handler.fault
        try:
            budget.take(sum(len(attempt.steps) for attempt in delivery.attempts))
            why = rounds.loop_reason(event, deliveries)
        except NoEnd as error:
            return simulation(UNKNOWN, str(error), str(error))
        if why:
            return simulation(
                LOOPS, f"{name} is delivered, but its handler cannot run ({handler.steps[-1].found}): {why}"
            )


def stack_name(deliveries: Sequence[Delivery]) -> str:
    """Where the last of them runs: `IST1`, `RSP0`, or `the current stack`, with its name when one before switched."""
    if (last := deliveries[-1].stack) not in (None, "current"):
        return str(last)
    switched = next((each.stack for each in reversed(deliveries) if each.stack not in (None, "current")), None)
    return "the current stack" + (f" ({switched})" if switched else "")


def start_handler(state: CpuState, vector: int, handler_stack: int, budget: StepBudget) -> Handler:
    """Fetch the handler's first instruction, then touch its stack push by push.

    A fault in either is a new event, not a nested one: SDM Vol. 3A says under #DF that faults of a handler's fetch are
    outside of the table. It is saved with the handler's first address, RSP being that before the push that failed.
    Raises MissingInput where this is not known, NoEnd when the stack has more pages than steps are left.
    """
    registers = state.registers
    rip, user = registers.rip or 0, registers.cpl == 3
    try:
        state.translate(rip, FETCHES[user])
    except Inaccessible as error:
        event = _new_event(state, error.probe, rip)
        return Handler(vector, (_step("fetch", rip, error.probe, event),), event)
    fetched = Step("fetch", rip, "executable", "the first instruction")
    used, rsp = 0, registers.rsp or 0
    access = PUSHES[user][(registers.rflags or 0) & AC != 0]
    while used < handler_stack:
        first = (rsp - used - 8) % TOP
        count = min(-(-(handler_stack - used) // 8) * 8, first % PAGE + 8)
        try:
            state.write((first + 8 - count) % TOP, None, count, access)  # what a handler pushes is not known
        except Inaccessible as error:
            event = _new_event(state, error.probe, first)
            state.registers = registers.replace(rsp=(first + 8) % TOP)
            return Handler(vector, (fetched, _step("handler's stack", first, error.probe, event)), event)
        used += count
        if used < handler_stack:
            budget.take()
    found = f"{handler_stack} bytes below {rsp:#x}"
    return Handler(vector, (fetched, Step("handler's stack", (rsp - used) % TOP, found, "can be pushed to")))


def _new_event(state: CpuState, probe: Fault | Unknown, address: int) -> Event:
    """The event that an access of the handler's own code raises, CR2 loaded; MissingInput when that is not known."""
    if isinstance(probe, Unknown):
        raise MissingInput(probe.needs)
    if probe.kind is FaultKind.NON_CANONICAL:
        return Event(SS, error_code=0)
    state.cr2 = address
    machine = state.machine
    rests_on_nxe = not machine.nxe_known and not machine.space.paging.smep
    return Event(PF, error_code=probe.error_code, cr2=address, assumed=probe.error_code & FETCH if rests_on_nxe else 0)


def _step(name: str, address: int, probe: Fault | Unknown, event: Event) -> Step:
    """The step that ended in a new event."""
    found = "not canonical" if event.vector == SS else probe.why
    without = f", or {event.error_code & ~event.assumed:#x} if EFER.NXE=0" if event.error_code and event.assumed else ""
    return Step(name, address, found, f"a new event: {event.label}({event.error_code:#x}{without})")


class LoopDetector:
    """Detects a loop of events: at the same stack indefinitely, or a little deeper each time."""

    def __init__(self, state: CpuState, handler_stack: int, budget: StepBudget) -> None:
        self.state, self._pushes, self._budget = state, handler_stack, budget
        self._seen: dict[tuple[object, ...], list[tuple[int, int]]] = {}  # what comes -> (deliveries before, RSP)
        self._loop: Loop | None = None
        self._key: tuple[object, ...] | None = None  # what comes again and again, when it goes deeper
        self._expected: int | None = None  # RSP when it comes next, as long as that is on the first stack it consumed
        self._deepest: tuple[int, int]  # its last place there: (deliveries before, RSP)
        self._anchor: tuple[int, tuple[object, ...], dict[int, tuple[bytes, bytes]]] | None = None

    def loop_reason(self, event: Event, deliveries: list[Delivery]) -> str:
        """Why this repeats indefinitely, when it does; "" otherwise. Moves RSP ahead over like rounds."""
        registers, count = self.state.registers, len(deliveries)
        cs, ss, rsp = registers.cs, registers.ss, registers.rsp or 0
        key = (event, registers.rip, cs and cs.selector, ss and ss.selector, registers.rflags, rsp % 16)
        if self._same((*key, rsp), deliveries):
            return "repeats indefinitely"
        places = self._seen.setdefault(key, [])
        places.append((count, rsp))
        if self._loop is not None and self._key == key and self._expected == rsp:
            self._deepest, self._expected = (count, rsp), rsp - self._loop.stride
        if self._key in (None, key) and len(places) >= 3:
            (_, first), (start, second), (_, third) = places[-3:]
            if first - second == second - third > 0:
                if self._loop is None:
                    vectors = tuple(delivery.vector or 0 for delivery in deliveries[start:])
                    self._key, self._loop = key, Loop(vectors, second - third, 0, count)
                    self._deepest, self._expected = (count, rsp), rsp - self._loop.stride
                return self._ahead(self._loop)
        return ""

    def _same(self, now: tuple[object, ...], deliveries: list[Delivery]) -> bool:
        """Whether registers and memory are those of an earlier event: Brent's way of finding a cycle."""
        count = len(deliveries)
        if self._anchor is not None:
            before, then, written = self._anchor
            if now == then and written == self.state.written:
                vectors = tuple(dict.fromkeys(delivery.vector or 0 for delivery in deliveries[before:]))
                self._key, self._loop = None, Loop(vectors, 0, None, min(count, 4))
                return True
        if count & (count - 1) == 0:
            self._anchor = count, now, dict(self.state.written)
        return False

    def _ahead(self, loop: Loop) -> str:
        """Skip the rounds that are certain to be like the last one; real ones are left before anything changes.

        Only where RSP moves further than a handler pushes: the deliveries show by that where some are missing.
        """
        registers = self.state.registers
        rsp, user = registers.rsp or 0, registers.cpl == 3
        free = self._budget.free[user]
        if rsp not in free:
            found = descent(self.state.machine, rsp, PUSHES[user][False], self._budget)
            if found is None:
                self._key, self._loop = None, loop.replace(rounds=None)
                return f"{loop.stride} bytes deeper each time, with no end within {budgets.FARTHEST >> 20} MiB"
            self._budget.free[user] = free = found
        like = (rsp - free.start - loop.stride) // loop.stride * loop.stride
        if like > self._pushes:
            if self._expected == rsp - loop.stride:
                self._expected = rsp - like - loop.stride
            self.state.registers = registers.replace(rsp=rsp - like)
        return ""

    def end(self, deliveries: list[Delivery], handlers: list[Handler]) -> Loop | None:
        """The loop that there was; its equal rounds are taken out of the simulation."""
        loop = self._loop
        if loop is None:
            return None
        if self._key is None:
            del deliveries[loop.at :], handlers[loop.at :]
            return loop
        (_, first), (count, last) = self._seen[self._key][0], self._deepest
        del deliveries[loop.at : count - 1], handlers[loop.at : count - 1]
        return loop.replace(rounds=(first - last) // loop.stride + 1)
