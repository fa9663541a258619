"""What a kernel's stack overflow and its kin lead to: each scenario tries several ways, and the worst counts."""

from __future__ import annotations

from ..errors import NotThere, UsageError
from ..machine.machine import Machine
from ..machine.memory import PAGE
from ..machine.probe import FaultKind, Inaccessible, Unknown
from ..machine.registers import AC, SCE, Segment
from ..records import Record
from ..tables.gdt import SegmentDescriptor
from .deliver import PUSHES
from .events import NMI, PF, SS, Event
from .rings import in_ring0, in_ring3
from .simulate import HANDLER_STACK, LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN, Simulation, simulate
from .stacks import (
    FAR,
    NEAR,
    NOT_JUDGED,
    InterruptStack,
    StackInUse,
    guard_below,
    interrupt_stacks,
    stack_in_use,
)
from .state import TOP, CpuState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..machine.registers import Registers
    from ..tables.idt import Gate

NOT_APPLICABLE = "not-applicable"
ORDER = (NOT_APPLICABLE, SURVIVES, UNKNOWN, LOOPS, TRIPLE_FAULT)  # the better first


class Options(Record):
    """What a person may say of a scenario: bytes of stack that a handler takes, a stack pointer, a function's frame."""

    handler_stack: int = HANDLER_STACK
    stack: int | None = None
    frame: int = PAGE


class Variant(Record):
    """One way in which it may happen, and how that went; `story` is None when it cannot be told."""

    name: str
    verdict: str
    reason: str
    needs: str | None = None
    simulation: Simulation | None = None


class Scenario(Record):
    """A scenario with all its ways; verdict and reason are those of the `worst`, which is None without any way (and in
    `current-stack` those of the stack, if no way is bad).

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
        """What would have to be known for a verdict."""
        return None if self.worst is None else self.worst.needs

    @property
    def handled_by(self) -> tuple[int, str] | None:
        """(vector, stack) of the handler that ran in the end."""
        simulation = None if self.worst is None else self.worst.simulation
        if simulation is None or simulation.outcome != SURVIVES or simulation.vector is None:
            return None
        return simulation.vector, simulation.stack or "current"


class Judgement(Record):
    """What there is to say of one CPU: the verdict of `stack-overflow`, the stack in use, and every scenario asked for.

    `interrupt_stacks` have their extent: that a handler is entered does not mean that it has the stack it needs.
    """

    machine: Machine
    overflow: Scenario
    stack: StackInUse
    scenarios: tuple[Scenario, ...]
    interrupt_stacks: tuple[InterruptStack, ...]

    @property
    def verdict(self) -> str:
        """The answer to: the stack has run into a page that cannot be pushed to, what happens?"""
        return str(self.overflow.verdict)


def judge(machine: Machine, names: tuple[str, ...] = ("stack-overflow",), options: Options = Options()) -> Judgement:  # noqa: B008
    """Judge a CPU by the scenarios in `names`; `stack-overflow` is always among them."""
    overflow = run_scenario("stack-overflow", machine, options)
    others = [overflow if name == "stack-overflow" else run_scenario(name, machine, options) for name in names]
    if not machine.wide:
        return Judgement(machine, overflow, StackInUse(NOT_JUDGED, overflow.reason), tuple(others), ())
    stack = stack_in_use(machine, options.stack, options.frame)
    return Judgement(machine, overflow, stack, tuple(others), interrupt_stacks(machine))


def run_scenario(name: str, machine: Machine, options: Options = Options()) -> Scenario:  # noqa: B008 - an immutable value
    """One scenario on one CPU; UsageError for a name that is none."""
    if name not in SCENARIOS:
        raise UsageError(f"scenario {name!r}: one of {', '.join(SCENARIOS)}")
    if not machine.wide:
        return Scenario(name, NOT_APPLICABLE, f"the CPU is in {machine.mode} mode")
    try:
        registers, remark = in_ring0(machine, options.stack)
        if registers.rsp is None:
            raise NotThere("RSP is not known")
        if machine.space.paging.mode not in ("4-level", "5-level"):
            raise NotThere("CR3 is not known")
        variants, remarks = SCENARIOS[name](machine, registers, options)
    except NotThere as error:
        variant = Variant("any", UNKNOWN, str(error), str(error))
        return Scenario(name, UNKNOWN, variant.reason, (variant,), variant)
    remarks = ((remark,) if remark else ()) + remarks
    if not variants:
        return Scenario(name, NOT_APPLICABLE, remarks[-1] if remarks else "nothing to try", (), None, remarks)
    worst = max(variants, key=lambda variant: ORDER.index(variant.verdict))
    reason = worst.reason if len({variant.verdict for variant in variants}) == 1 else f"{worst.name}: {worst.reason}"
    scenario = Scenario(name, worst.verdict, reason, tuple(variants), worst, remarks)
    if name == "current-stack" and worst.verdict == SURVIVES:
        stack = stack_in_use(machine, options.stack, options.frame)
        return scenario.replace(verdict=stack.verdict, reason=stack.reason)
    return scenario


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


def stack_overflow(machine: Machine, registers: Registers, options: Options) -> tuple[list[Variant], tuple[str, ...]]:
    """The ways in which kernels run off a stack into the page below it, all from ring 0."""
    guard = guard_below(machine, registers)
    remarks: tuple[str, ...] = ()
    if guard is None:
        guard = guard_below(machine, registers, FAR)
        if guard is None:
            raise NotThere("a page below RSP that cannot be pushed to: none was found within 4 GiB")
        nearest = f"the nearest is below {guard.top:#x}" if guard.top else "there is none down to address 0"
        remarks = (f"no page within {NEAR >> 20} MiB below RSP refuses a push: {nearest}",)
    edge = guard.top

    def at(rsp: int, event: Event | None = None) -> Simulation:
        state = CpuState(machine, registers.replace(rsp=rsp % TOP))
        return simulate(state, event or push_fault(state), options.handler_stack)

    push = at(edge)
    variants = [_variant("push at the guard's edge", push), _variant("call at the guard's edge", push)]
    events = [Event.nmi(), Event.exception("#UD")]
    vector = _interrupt(machine)
    if vector is not None:
        events.insert(0, Event.interrupt(vector))
    for event in events:
        for above in (8, 16, 24, 32, 40):
            variants.append(_variant(f"{event.label}, {above} bytes above the guard", at(edge + above, event)))
    for inside in (8, PAGE // 2, PAGE - 8):
        variants.append(_variant(f"push {inside} bytes inside of the guard", at(edge - inside)))
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


def current_stack(machine: Machine, registers: Registers, options: Options) -> tuple[list[Variant], tuple[str, ...]]:
    """An exception, an NMI and an interrupt on the stack as it is. When they fare well, the scenario's verdict is the
    stack's: whether it has a guard page, and what an overflow runs over when it has none."""
    events = [Event.exception("#UD"), Event.nmi()]
    vector = _interrupt(machine)
    if vector is not None:
        events.append(Event.interrupt(vector))
    stack = stack_in_use(machine, options.stack, options.frame)
    remarks = (stack.beyond,) if stack.beyond else ()
    variants = [
        _variant(event.label, simulate(CpuState(machine, registers), event, options.handler_stack)) for event in events
    ]
    return variants, remarks


# The four questions that texts on double faults ask


def double_fault_questions(
    machine: Machine, registers: Registers, options: Options
) -> tuple[list[Variant], tuple[str, ...]]:
    """A handler is swapped out when it is needed: what comes of it? And the guard page once more."""

    def after(missing: str, *events: Event) -> Simulation:
        number, gates = {"#BP": 3, "#PF": 14}[missing], _gates(machine)
        gone = frozenset({gates[number].offset}) if number < len(gates) else frozenset()
        state = CpuState(machine, registers, gone)
        simulation = simulate(state, events[0], options.handler_stack)
        for event in events[1:]:
            if simulation.outcome == SURVIVES:
                simulation = simulate(state, event, options.handler_stack)
        return simulation

    page_fault = Event.exception("#PF", 0, 0)
    overflow = stack_overflow(machine, registers, options)[0][0]
    return [
        _variant("a breakpoint, its handler swapped out", after("#BP", Event.int3())),
        _variant("a page fault, its handler swapped out", after("#PF", page_fault)),
        _variant(
            "the divide error handler hits a breakpoint, whose handler is swapped out",
            after("#BP", Event.exception("#DE"), Event.int3()),
        ),
        overflow.replace(name="the stack overflows, and the guard page is hit"),
    ], ()


# The gap after SYSCALL


def syscall_gap(machine: Machine, registers: Registers, options: Options) -> tuple[list[Variant], tuple[str, ...]]:
    """NMI and #MC right after SYSCALL: ring 0 code runs on whatever RSP the program has left there."""
    r = machine.registers
    if r.efer is not None and not r.efer & SCE:
        return [], ("SYSCALL is off (EFER.SCE)",)
    kernel = registers.replace(rflags=2)
    if r.star is not None:
        kernel = kernel.replace(cs=_syscall_cs(r.star), ss=Segment(((r.star >> 32) & 0xFFFC) + 8))
    outside = (1 << machine.space.levels * 9 + 11) + PAGE  # above the lower canonical half
    pointers = [("a pointer that is not canonical", outside)]
    if r.cpl == 3 and r.rsp is not None:
        pointers.insert(0, ("the program's stack", r.rsp))
    variants = []
    for event in (Event.nmi(), Event.exception("#MC")):
        for name, rsp in pointers:
            simulation = simulate(CpuState(machine, kernel.replace(rsp=rsp)), event, options.handler_stack)
            variant = _variant(f"{event.label} on {name}", simulation)
            if simulation.outcome == SURVIVES and simulation.stack == "current":
                variant = variant.replace(
                    reason=f"{variant.reason}, which user code chose: it can make ring 0 write anywhere"
                )
            variants.append(variant)
    return variants, ()


def _syscall_cs(star: int) -> Segment:
    """What SYSCALL loads into CS: fixed attributes, whatever the descriptor says."""
    flags = int.from_bytes(bytes(SegmentDescriptor.kernel_code())[4:8], "little")
    return Segment((star >> 32) & 0xFFFC, flags=flags)


# Every vector


def survival_matrix(machine: Machine, registers: Registers, options: Options) -> tuple[list[Variant], tuple[str, ...]]:
    """Every vector, from ring 0 on a good stack, from ring 0 with RSP at the guard, and from ring 3."""
    guard = guard_below(machine, registers) or guard_below(machine, registers, FAR)
    starts = [("ring 0", registers), ("ring 3", in_ring3(machine))]
    if guard is not None:
        starts.insert(1, ("ring 0 at the guard", registers.replace(rsp=guard.top)))
    variants = []
    for vector in range(256):
        event = _natural(vector)
        for name, start in starts:
            variants.append(
                _variant(f"{event.label} from {name}", simulate(CpuState(machine, start), event, options.handler_stack))
            )
    return variants, ()


def _natural(vector: int) -> Event:
    """The event that a vector stands for."""
    if vector == 2:
        return Event(2, NMI)
    return Event.int3() if vector == 3 else Event.exception(vector) if vector < 32 else Event.interrupt(vector)


SCENARIOS: dict[str, Callable[[Machine, Registers, Options], tuple[list[Variant], tuple[str, ...]]]] = {
    "stack-overflow": stack_overflow,
    "current-stack": current_stack,
    "double-fault-questions": double_fault_questions,
    "syscall-gap": syscall_gap,
    "survival-matrix": survival_matrix,
}
