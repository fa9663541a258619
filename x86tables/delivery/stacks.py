"""Stacks: those of the TSS and the one in use, what guards it, and what else lies in it."""

from __future__ import annotations

from ..errors import NotThere
from ..machine.memory import PAGE
from ..machine.paging import PUSH
from ..machine.probe import Fault, Inaccessible, Ok, Unknown
from ..machine.registers import AC
from ..records import Record
from .deliver import PUSHES
from .extent import NEAR, Extent, extent, pages_below
from .occupants import Occupants, TssStack, tss_stacks
from .rings import in_ring0
from .state import TOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.machine import Machine
    from ..machine.probe import FaultKind
    from ..machine.registers import Registers
    from .state import StepBudget

FAR = 1 << 32  # a guard page is looked for so far below a stack pointer, when none is near
STACK_SIZE = 1 << 16  # a guard further away is not taken for that of a stack whose size is not known

GUARDED, SILENT, UNKNOWN, NOT_JUDGED = "guarded", "silent-corruption", "unknown", "not-judged"


class InterruptStack(Record):
    """An interrupt stack (IST1 to IST7) that a gate names or the TSS has, and how deep it can be pushed."""

    pointer: TssStack
    extent: Extent


def interrupt_stacks(machine: Machine, occupants: Occupants | None = None) -> tuple[InterruptStack, ...]:
    """Every interrupt stack that the TSS or a gate names; none when the TSS cannot be read."""
    return tuple(
        InterruptStack(pointer, extent(machine, pointer.top & ~15, occupants=occupants))
        for pointer in tss_stacks(machine)
        if pointer.field.startswith("ist") and (pointer.top or pointer.vectors)
    )


class Guard(Record):
    """The first page below a stack pointer that a push cannot enter: `top` is its end."""

    top: int
    fault: Fault

    @property
    def kind(self) -> FaultKind:
        """Why it refuses the push."""
        return self.fault.kind


def guard_below(
    machine: Machine, registers: Registers, most: int = NEAR, budget: StepBudget | None = None
) -> Guard | None:
    """The first page at or below RSP that a push cannot enter; None when there is none within `most` bytes.

    Raises Inaccessible where this is not known, NoEnd when no steps are left of `budget`.
    """
    access = PUSHES[0][(registers.rflags or 0) & AC != 0]
    start = ((registers.rsp or 0) - 1) % TOP & -PAGE
    for page, answer in pages_below(machine, start + PAGE, access, budget):
        if isinstance(answer, Unknown):
            raise Inaccessible(answer)
        if isinstance(answer, Fault):
            return Guard((page + PAGE) % TOP, answer)
        if page - PAGE <= start - most:
            return None
    raise AssertionError("pages have no end")


def guard_size(machine: Machine, guard: Guard, most: int = NEAR) -> int:
    """How many bytes the guard and the pages below it that refuse a push have; not counted beyond `most`, or 1 MiB."""
    size = PAGE
    while size < min(most, NEAR) and isinstance(machine.probe((guard.top - size - PAGE) % TOP, PUSH), Fault):
        size += PAGE
    return size


class StackInUse(Record):
    """The answer about one stack: `guarded`, `silent-corruption`, `unknown` or `not-judged`, and why.

    `guard` is the nearest page that refuses a push, whether or not it is known to be this stack's; `distance` is from
    RSP down to it. `beyond` says where a frame that jumps over the guard comes down, when one of the size asked about
    can.
    """

    verdict: str
    reason: str
    rsp: int | None = None
    guard: Guard | None = None
    beyond: str | None = None

    @property
    def distance(self) -> int | None:
        """Bytes from RSP down to the guard; 0 when RSP is in it."""
        if self.guard is None or self.rsp is None:
            return None
        distance = (self.rsp - self.guard.top) % TOP
        return distance if distance < TOP // 2 else 0


def stack_in_use(
    machine: Machine,
    stack: int | None = None,
    frame: int = PAGE,
    size: int = STACK_SIZE,
    occupants: Occupants | None = None,
) -> StackInUse:
    """What is below the stack that RSP is in (RSP0's in user mode), or that `stack` is in.

    `frame` is the size of one function's frame: whether such a one can step over the guard without touching it. A page
    that refuses pushes is this stack's guard when it lies within `size` bytes, or where the stack is known to end.
    """
    if machine.space.paging.mode not in ("4-level", "5-level"):
        return StackInUse(UNKNOWN, "CR3 is not known")
    try:
        registers, _ = in_ring0(machine, stack)
    except NotThere as error:
        return StackInUse(UNKNOWN, str(error))
    rsp = registers.rsp
    if rsp is None:
        return StackInUse(UNKNOWN, "RSP is not known")
    own = machine.known_stack(rsp - 1)
    try:
        guard = guard_below(machine, registers)
    except Inaccessible as error:
        return StackInUse(UNKNOWN, str(error), rsp)
    if stack is None and machine.registers.cpl in (3, None) and _trampoline(machine, rsp):
        return StackInUse(NOT_JUDGED, "RSP0 is an entry trampoline, not the kernel's stack", rsp, guard)
    unprotected = _unprotected(machine, rsp, size)
    end = rsp - NEAR if guard is None else guard.top
    occupants = occupants or Occupants([machine])
    between = occupants.between(machine, max(end, own.start) if own else end, rsp)
    if between:
        names = ", ".join(f"{each.name} at {each.place:#x}" for each in between[:4])
        return StackInUse(SILENT, f"before any page refuses a push, it runs over {names}{unprotected}", rsp, guard)
    if own is not None and (guard is None or guard.top < own.start):
        reason = f"it ends at {own.start:#x}, and the page below can be written{unprotected}"
        return StackInUse(SILENT, reason, rsp, guard)
    if guard is None:
        return StackInUse(SILENT, f"the {NEAR >> 20} MiB below it are writable{unprotected}", rsp)
    if own is None and (rsp - guard.top) % TOP > size and (rsp - guard.top) % TOP < TOP // 2:
        far = f"the nearest page that refuses a push is {rsp - guard.top >> 10} KiB below"
        return StackInUse(UNKNOWN, f"{far}; not known to be this stack's{unprotected}", rsp, guard)
    reason = guard.fault.why
    if stack is None and machine.registers.cpl == 0 and (guard.top - rsp) % TOP < PAGE:
        reason = _overflowed(machine, guard, rsp, size) or reason
    return StackInUse(GUARDED, reason, rsp, guard, _beyond(machine, guard, frame))


def _overflowed(machine: Machine, guard: Guard, rsp: int, size: int) -> str:
    """What RSP in the guard, or at its edge, tells: the push that faulted leaves RSP as it was. "" where no stack lies
    above."""
    above = range(guard.top, min(guard.top + size, TOP), PAGE)
    first = next((page for page in above if isinstance(machine.probe(page, PUSH), Ok)), None)
    if first is None:
        return ""
    faulted = (guard.top - 1 - (machine.registers.cr2 or 0)) % TOP < PAGE
    if first == rsp and not faulted:
        return "this stack is full: the next push overflows it"
    return "this stack has overflowed"


def _unprotected(machine: Machine, rsp: int, size: int) -> str:
    """What to say of a read-only page below a stack where CR0.WP is clear; "" where there is none, or WP is set."""
    if not machine.space.paging.wp:
        for page, answer in pages_below(machine, rsp):
            if page < rsp - size - PAGE or not isinstance(answer, Ok):
                break
            found = machine.space.page(page % TOP)
            if not found.writable:
                end = min(found.linear + found.size, rsp)
                return f"; the read-only page below {end:#x} guards nothing on this CPU: CR0.WP is clear"
    return ""


def _beyond(machine: Machine, guard: Guard, frame: int) -> str | None:
    """Where a frame that steps over the guard comes down; None when it is too small to."""
    size = guard_size(machine, guard, frame)
    if frame <= size:
        return None
    landing = (guard.top - frame) % TOP
    answer = machine.probe(landing & -PAGE, PUSH)
    found = "writable" if isinstance(answer, Ok) else "not writable either"
    if isinstance(answer, Unknown):
        found = f"not known: {answer.needs}"
    return f"a frame of {frame} bytes steps over the guard of {size}: {landing:#x} is {found}"


def _trampoline(machine: Machine, rsp: int) -> bool:
    """Whether RSP0 names an entry trampoline, which code leaves at once for the task's stack: at most a page, right
    beside the TSS. Linux has one for each CPU, with page-table isolation and without."""
    tr = machine.registers.tr
    if tr is None or not -PAGE <= rsp - tr.base <= PAGE + tr.limit:
        return False
    return extent(machine, rsp, 2 * PAGE).size <= PAGE
