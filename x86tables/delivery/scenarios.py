"""What a kernel's stack overflow and related failures lead to: a scenario tries several variants; the worst counts."""

from __future__ import annotations

from functools import cached_property

from ..errors import NotThere, UsageError
from ..machine.machine import Machine
from ..machine.memory import PAGE
from ..machine.probe import FaultKind, Inaccessible, Unknown
from ..machine.registers import AC
from ..records import Record
from .deliver import PUSHES
from .events import NMI, PF, SS, Event
from .extent import NEAR
from .occupants import Occupants
from .rings import in_ring0, in_ring3
from .simulate import HANDLER_STACK, LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN, Simulation, simulate
from .stacks import (
    FAR,
    NOT_JUDGED,
    STACK_SIZE,
    Guard,
    InterruptStack,
    StackInUse,
    guard_below,
    interrupt_stacks,
    stack_in_use,
)
from .state import TOP, CpuState, StepBudget
from .syscall import after_syscall, before_sysret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from ..machine.registers import Registers

    Played: TypeAlias = "tuple[list[Variant], tuple[str, ...]]"
    from ..tables.idt import Gate
    from .syscall import GapEvent

DEFAULT = ("stack-overflow",)  # the default options
NOT_APPLICABLE = "not-applicable"
ORDER = (NOT_APPLICABLE, SURVIVES, UNKNOWN, LOOPS, TRIPLE_FAULT)  # the better first


class ScenarioOptions(Record):
    """The options of a scenario: bytes of stack that a handler takes, a stack pointer, the frame of a
    function, and how large a stack may be whose size is not known."""

    handler_stack: int = HANDLER_STACK
    stack: int | None = None
    frame: int = PAGE
    stack_size: int = STACK_SIZE


class Variant(Record):
    """One variant of a scenario, and how it went; `simulation` is None when it could not be simulated."""

    name: str
    verdict: str
    reason: str
    needs: str | None = None
    simulation: Simulation | None = None


class Scenario(Record):
    """A scenario with all its variants; verdict and reason are those of the `worst`, which is None without any variant
    (and in `current-stack` those of the stack, if no variant is bad).

    `remarks` are sentences for a person.
    """

    name: str
    verdict: str
    reason: str
    variants: tuple[Variant, ...] = ()
    worst: Variant | None = None
    remarks: tuple[str, ...] = ()

    @property
    def needs(self) -> str | None:
        """The missing input, when the verdict is unknown."""
        return None if self.worst is None else self.worst.needs

    @property
    def handled_by(self) -> tuple[int, str] | None:
        """(vector, stack) of the handler that ran in the end."""
        simulation = None if self.worst is None else self.worst.simulation
        if simulation is None or simulation.outcome != SURVIVES or simulation.vector is None:
            return None
        return simulation.vector, simulation.stack or "current"

    @property
    def outline(self) -> tuple[object, ...]:
        """How it went without addresses: the same for scenarios and CPUs that end alike."""
        ends = tuple((variant.name, variant.verdict) for variant in self.variants)
        simulation = None if self.worst is None else self.worst.simulation
        return self.name, self.verdict, ends, None if simulation is None else simulation.outline


class Situation:
    """One CPU, and what every scenario on it asks: worked out once."""

    def __init__(
        self,
        machine: Machine,
        options: ScenarioOptions = ScenarioOptions(),  # noqa: B008 - an immutable value
        occupants: Occupants | None = None,
    ) -> None:
        """`occupants` are those of the whole image; without them, those of this CPU count."""
        self.machine, self.options = machine, options
        self.occupants = occupants or Occupants([machine])
        self.budget = StepBudget()
        self._run: dict[str, Scenario] = {}

    def run(self, name: str) -> Scenario:
        """A scenario; UsageError for an unknown name."""
        if name not in SCENARIOS:
            raise UsageError(f"scenario {name!r}: one of {', '.join(SCENARIOS)}")
        if name not in self._run:
            self._run[name] = self._scenario(name)
        return self._run[name]

    def _scenario(self, name: str) -> Scenario:
        if needs := self.machine.mode_needs:
            variant = Variant("any", UNKNOWN, needs, needs)
            return Scenario(name, UNKNOWN, needs, (variant,), variant)
        if not self.machine.wide:
            return Scenario(name, NOT_APPLICABLE, f"the CPU is in {self.machine.mode} mode")
        try:
            _, remark = self.kernel
            if self.registers.rsp is None:
                raise NotThere("RSP is not known")
            if self.machine.space.paging.mode not in ("4-level", "5-level"):
                raise NotThere("CR3 is not known")
            variants, remarks = SCENARIOS[name](self)
        except NotThere as error:
            if name == "stack-overflow" and self.options.stack is None and self._no_stack_known:
                return self._on_any_stack(str(error))
            variant = Variant("any", UNKNOWN, str(error), str(error))
            return Scenario(name, UNKNOWN, variant.reason, (variant,), variant)
        remarks = ((remark,) if remark else ()) + remarks
        if not variants:
            return Scenario(name, NOT_APPLICABLE, remarks[-1] if remarks else "nothing to try", (), None, remarks)
        worst = max(variants, key=lambda variant: ORDER.index(variant.verdict))
        mixed = len({variant.verdict for variant in variants}) > 1
        reason = f"{worst.name}: {worst.reason}" if mixed else worst.reason
        scenario = Scenario(name, worst.verdict, reason, tuple(variants), worst, remarks)
        if name == "current-stack" and worst.verdict == SURVIVES:
            return scenario.replace(verdict=self.stack.verdict, reason=self.stack.reason)
        return scenario

    @property
    def _no_stack_known(self) -> bool:
        """Whether neither RSP nor RSP0 is known, of a CPU that never had a TSS, or has one for its IST stacks alone."""
        tr = self.machine.registers.tr
        if self.machine.registers.rsp is not None or tr is None:
            return False
        table = None if tr.null else self.machine.table("tss")
        return tr.null or (table is not None and table.known(4, 12) and not self.machine.tss.rsp0)

    def _on_any_stack(self, why: str) -> Scenario:
        """The overflow of a stack that ends with the address space: where no stack is known, and no TSS names another,
        one page that cannot be pushed to is like the other."""
        other = Situation(self.machine, self.options.replace(stack=0), self.occupants)
        other.budget = self.budget
        scenario = other.run("stack-overflow")
        return scenario.replace(remarks=(f"{why}: judged on a stack that ends with the address space",))

    @cached_property
    def kernel(self) -> tuple[Registers, str]:
        """The registers of the kernel on this CPU, and a sentence that says so where it was caught elsewhere."""
        return in_ring0(self.machine, self.options.stack)

    @property
    def registers(self) -> Registers:
        """Those of the kernel."""
        return self.kernel[0]

    @cached_property
    def guard(self) -> Guard | None:
        """The page within 1 MiB below RSP that refuses a push."""
        return guard_below(self.machine, self.registers)

    @cached_property
    def far_guard(self) -> Guard | None:
        """The nearest such page within 4 GiB."""
        return self.guard or guard_below(self.machine, self.registers, FAR, self.budget)

    @cached_property
    def stack(self) -> StackInUse:
        """The answer about the stack in use."""
        if not self.machine.wide:
            return StackInUse(NOT_JUDGED, f"the CPU is in {self.machine.mode} mode")
        options = self.options
        return stack_in_use(self.machine, options.stack, options.frame, options.stack_size, self.occupants)

    @cached_property
    def interrupt_stacks(self) -> tuple[InterruptStack, ...]:
        """Every interrupt stack and its extent; none outside of long mode."""
        return interrupt_stacks(self.machine, self.occupants) if self.machine.wide else ()

    def simulate(
        self, name: str, event: Event, registers: Registers | None = None, machine: Machine | None = None
    ) -> Variant:
        """One variant: an event, from the kernel's registers or from others, on this machine or another."""
        start = CpuState(machine or self.machine, registers or self.registers)
        return _variant(name, self.outcome(start, event))

    def outcome(self, state: CpuState, event: Event) -> Simulation:
        """The simulation of an event in a state, its steps taken from what this CPU has left."""
        return simulate(state, event, self.options.handler_stack, budget=self.budget)


def run_scenario(name: str, machine: Machine, options: ScenarioOptions = ScenarioOptions()) -> Scenario:  # noqa: B008
    """One scenario on one CPU; UsageError for an unknown name."""
    return Situation(machine, options).run(name)


def _variant(name: str, simulation: Simulation) -> Variant:
    return Variant(name, simulation.outcome, simulation.reason, simulation.needs, simulation)


def push_fault(state: CpuState) -> Event:
    """The exception that a push at RSP raises. NotThere when the push succeeds, or when that is not known."""
    registers = state.registers
    at = ((registers.rsp or 0) - 8) % TOP
    try:
        # an unaligned push may straddle two pages, and the lower one is the guard
        state.translate(at, PUSHES[registers.cpl == 3][(registers.rflags or 0) & AC != 0])
    except Inaccessible as error:
        if isinstance(error.probe, Unknown):
            raise
        if error.probe.kind is FaultKind.NON_CANONICAL:
            return Event(SS, error_code=0)
        return Event(PF, error_code=error.probe.error_code, cr2=error.probe.address)
    raise NotThere(f"{at:#x} can be pushed to")


# Stack overflow


def stack_overflow(on: Situation) -> Played:
    """The variants in which kernels run off a stack into the page below it, all from ring 0."""
    guard, remarks = on.guard, tuple[str, ...]()
    if guard is None:
        guard = on.far_guard
        if guard is None:
            raise NotThere("a page below RSP that cannot be pushed to: none was found within 4 GiB")
        nearest = f"the nearest is below {guard.top:#x}" if guard.top else "there is none down to address 0"
        remarks = (f"no page within {NEAR >> 20} MiB below RSP refuses a push: {nearest}",)
    edge = guard.top

    def at(name: str, rsp: int, event: Event | None = None) -> Variant:
        registers = on.registers.replace(rsp=rsp % TOP)
        return on.simulate(name, event or push_fault(CpuState(on.machine, registers)), registers)

    push = at("push at the guard's edge", edge)
    variants = [push, push.replace(name="call at the guard's edge")]
    events = [Event.nmi(), Event.exception("#UD")]
    vector = _interrupt(on.machine)
    if vector is not None:
        events.insert(0, Event.interrupt(vector))
    for event in events:
        for above in (8, 16, 24, 32, 40):
            variants.append(at(f"{event.label}, {above} bytes above the guard", edge + above, event))
    for inside in (8, PAGE // 2, PAGE - 8):
        variants.append(at(f"push {inside} bytes inside of the guard", edge - inside))
    return variants, remarks


def _gates(machine: Machine) -> Sequence[Gate]:
    """The gates of the IDT; none where it cannot be read, of which delivery says why."""
    try:
        return [*machine.idt]
    except NotThere:
        return ()


def _interrupt(machine: Machine) -> int | None:
    """The first vector from 32 on whose gate is there and stays on the current stack."""
    gates = _gates(machine)
    return next((v for v in range(32, len(gates)) if gates[v].p and gates[v].ist == 0), None)


def current_stack(on: Situation) -> Played:
    """An exception, an NMI and an interrupt on the stack as it is. When they end well, the scenario's verdict is the
    stack's: whether it has a guard page, and what an overflow runs over when it has none."""
    events = [Event.exception("#UD"), Event.nmi()]
    vector = _interrupt(on.machine)
    if vector is not None:
        events.append(Event.interrupt(vector))
    remarks = (on.stack.beyond,) if on.stack.beyond else ()
    return [on.simulate(event.label, event) for event in events], remarks


# The four questions that texts on double faults ask


def double_fault_questions(on: Situation) -> Played:
    """A handler is swapped out when it is needed: what follows? And the guard page once more."""

    def after(name: str, missing: str, *events: Event) -> Variant:
        number, gates = {"#BP": 3, "#PF": 14}[missing], _gates(on.machine)
        gone = frozenset({gates[number].offset}) if number < len(gates) else frozenset()
        state = CpuState(on.machine, on.registers, gone)
        simulation = on.outcome(state, events[0])
        for event in events[1:]:
            if simulation.outcome == SURVIVES:
                simulation = on.outcome(state, event)
        return _variant(name, simulation)

    page_fault = Event.exception("#PF", 0, 0)
    overflow = on.run("stack-overflow").variants[0]
    if overflow.simulation is None:
        raise NotThere(overflow.reason)
    return [
        after("a breakpoint, its handler swapped out", "#BP", Event.int3()),
        after("a page fault, its handler swapped out", "#PF", page_fault),
        after(
            "the divide error handler hits a breakpoint, whose handler is swapped out",
            "#BP",
            Event.exception("#DE"),
            Event.int3(),
        ),
        overflow.replace(name="the stack overflows, and the guard page is hit"),
    ], ()


# The gaps beside SYSCALL and SYSRET


def syscall_gap(on: Situation) -> Played:
    """NMI, #MC and #DB right after SYSCALL: ring 0 code runs on whatever RSP the program has left there."""
    return _on_users_stack(on, after_syscall(on.machine, on.registers))


def sysret(on: Situation) -> Played:
    """NMI and #MC right before SYSRET, and its own #GP where RCX is not canonical: in ring 0 on the program's stack
    with Intel, in ring 3 with AMD."""
    return _on_users_stack(on, before_sysret(on.machine, on.registers))


def _on_users_stack(on: Situation, cases: list[GapEvent]) -> Played:
    variants = []
    for case in cases:
        variant = on.simulate(case.name, case.event, case.registers, case.machine)
        simulation = variant.simulation
        if simulation and simulation.outcome == SURVIVES and simulation.stack == "current":
            reason = f"{variant.reason}, which user code chose: it can make ring 0 write anywhere"
            variant = variant.replace(reason=reason)
        variants.append(variant)
    return variants, () if cases else ("SYSCALL is off (EFER.SCE)",)


# Every vector


def survival_matrix(on: Situation) -> Played:
    """Every vector, from ring 0 on a good stack, from ring 0 with RSP at the guard, and from ring 3."""
    starts = [("ring 0", on.registers), ("ring 3", in_ring3(on.machine))]
    if on.far_guard is not None:
        starts.insert(1, ("ring 0 at the guard", on.registers.replace(rsp=on.far_guard.top)))
    events = map(_natural, range(256))
    return [on.simulate(f"{event.label} from {name}", event, start) for event in events for name, start in starts], ()


def _natural(vector: int) -> Event:
    """The event that a vector stands for."""
    if vector == 2:
        return Event(2, NMI)
    return Event.int3() if vector == 3 else Event.exception(vector) if vector < 32 else Event.interrupt(vector)


SCENARIOS: dict[str, Callable[[Situation], Played]] = {
    "stack-overflow": stack_overflow,
    "current-stack": current_stack,
    "double-fault-questions": double_fault_questions,
    "syscall-gap": syscall_gap,
    "sysret": sysret,
    "survival-matrix": survival_matrix,
}
