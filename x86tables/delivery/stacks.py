"""Stacks: how deep one can be pushed, what ends it, what else lies in it, and which ones the TSS names.

The only walk down a stack, and the only list of the stacks of a TSS.
"""

from __future__ import annotations

from ..errors import NotThere
from ..machine.memory import PAGE
from ..machine.paging import PUSH
from ..machine.probe import Fault, Inaccessible, Ok, Unknown
from ..machine.registers import AC, Segment
from ..records import Record
from ..tables.tss import STACKS
from .deliver import PUSHES
from .rings import in_ring0
from .state import TOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.machine import Machine
    from ..machine.paging import Access
    from ..machine.probe import FaultKind, Probe
    from ..machine.registers import Registers

NEAR = 1 << 20  # a guard page is looked for so far below a stack pointer
FAR = 1 << 32  # and so far, when none is near

GUARDED, SILENT, UNKNOWN, NOT_JUDGED = "guarded", "silent-corruption", "unknown", "not-judged"


def pages_below(machine: Machine, top: int, access: Access = PUSH) -> Iterator[tuple[int, Probe]]:
    """The pages from the one with the byte below `top` downwards, without end: (its lowest address, the answer).

    A large page that can be pushed to is one step. Addresses are not wrapped: below 0 they are negative.
    """
    page = top - 1 & -PAGE
    while True:
        answer = machine.probe(page % TOP, access)
        lowest = page
        if isinstance(answer, Ok) and page >= 0:
            lowest = machine.space.page(page).linear
        yield lowest, answer
        page = lowest - PAGE


class Extent(Record):
    """How deep a stack can be pushed: from its end `top` down to `bottom`, the lowest byte that a push reaches.

    `below` is the answer of the page under that, None when the search ended before; `above` that of the page which
    begins at `top`, None when it can be pushed to or `top` lies inside a page.
    """

    top: int
    bottom: int
    below: Fault | Unknown | None = None
    above: Fault | Unknown | None = None

    @property
    def size(self) -> int:
        """How many bytes can be pushed; 0 when the first push faults already."""
        return int(self.top - self.bottom)

    @property
    def known(self) -> bool:
        """Whether it is known what ends the stack, or that nothing does."""
        return not isinstance(self.below, Unknown)


def extent(machine: Machine, top: int, most: int = NEAR) -> Extent:
    """The stack whose end is `top`, followed downwards to the first page that a supervisor's push cannot enter.

    The byte at `top` itself is not part of it. The search ends after `most` bytes.
    """
    above = refusal(machine.probe(top % TOP, PUSH)) if top % PAGE == 0 else None
    bottom = top
    floor = top - most + PAGE - 1 & -PAGE
    for lowest, answer in pages_below(machine, top):
        if not isinstance(answer, Ok):
            return Extent(top, bottom, answer, above)
        bottom = max(lowest, floor)
        if bottom == floor:
            break
    return Extent(top, bottom, None, above)


def refusal(answer: Probe) -> Fault | Unknown | None:
    """The answer where it is not Ok."""
    return None if isinstance(answer, Ok) else answer


class TssStack(Record):
    """A stack pointer of the TSS: its field (`ist1`), its value, and the vectors of the present gates that name it."""

    field: str
    top: int
    vectors: tuple[int, ...]

    @property
    def name(self) -> str:
        """`IST1`, `RSP0`."""
        return self.field.upper()


def tss_stacks(machine: Machine) -> tuple[TssStack, ...]:
    """The stack pointers of a 64-bit TSS that can be read, RSP0 to IST7, null ones too; none without such a TSS."""
    table = machine.table("tss") if machine.wide else None
    if table is None or table.error:
        return ()
    users: dict[str, list[int]] = {}
    try:
        for vector, gate in enumerate(machine.idt):
            if gate.p and gate.ist:
                users.setdefault(f"ist{gate.ist}", []).append(vector)
    except NotThere:
        pass
    tss = machine.tss
    return tuple(
        TssStack(field, getattr(tss, field), tuple(users.get(field, ())))
        for field in STACKS
        if table.has(tss.field(field))
    )


class InterruptStack(Record):
    """An interrupt stack (IST1 to IST7) that a gate names or the TSS has, and how deep it can be pushed."""

    pointer: TssStack
    extent: Extent


def interrupt_stacks(machine: Machine) -> tuple[InterruptStack, ...]:
    """Every interrupt stack that the TSS or a gate names; none when the TSS cannot be read."""
    return tuple(
        InterruptStack(pointer, extent(machine, pointer.top & ~15))
        for pointer in tss_stacks(machine)
        if pointer.field.startswith("ist") and (pointer.top or pointer.vectors)
    )


class Guard(Record):
    """The first page below a stack pointer that a push cannot enter: `top` is its end, `size` that of it and its like
    neighbours below (1 MiB at most)."""

    top: int
    size: int
    fault: Fault

    @property
    def kind(self) -> FaultKind:
        """Why it refuses the push."""
        return self.fault.kind


def guard_below(machine: Machine, registers: Registers, most: int = NEAR) -> Guard | None:
    """The first page at or below RSP that a push cannot enter; None when there is none within `most` bytes.

    Raises Inaccessible where this is not known.
    """
    access = PUSHES[0][(registers.rflags or 0) & AC != 0]
    start = ((registers.rsp or 0) - 1) % TOP & -PAGE
    for page, answer in pages_below(machine, start + PAGE, access):
        if isinstance(answer, Unknown):
            raise Inaccessible(answer)
        if isinstance(answer, Fault):
            if page <= start - most:
                return None
            top, size = (page + PAGE) % TOP, PAGE
            while size < NEAR and isinstance(machine.probe((page - size) % TOP, PUSH), Fault):
                size += PAGE
            return Guard(top, size, answer)
        if page - PAGE <= start - most:
            return None
    raise AssertionError("pages have no end")


class StackInUse(Record):
    """The answer about one stack: `guarded`, `silent-corruption`, `unknown` or `not-judged`, and why.

    `distance` is from RSP down to the guard. `beyond` says where a frame that jumps over the guard comes down, when one
    of the size asked about can.
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


def stack_in_use(machine: Machine, stack: int | None = None, frame: int = PAGE) -> StackInUse:
    """What is below the stack that RSP is in (RSP0's in user mode), or that `stack` is in.

    `frame` is the size of one function's frame: whether such a one can step over the guard without touching it.
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
    try:
        guard = guard_below(machine, registers)
    except Inaccessible as error:
        return StackInUse(UNKNOWN, str(error), rsp)
    if stack is None and guard is not None and _isolated(machine, (rsp - guard.top) % TOP):
        return StackInUse(
            NOT_JUDGED, "page-table isolation: RSP0 is an entry trampoline, not the kernel's stack", rsp, guard
        )
    between = _overlaps(machine, rsp - NEAR if guard is None else guard.top, rsp)
    if guard is None:
        return StackInUse(SILENT, f"the {NEAR >> 20} MiB below it are writable{between and ': '}{between}", rsp)
    if between:
        return StackInUse(SILENT, f"before the guard, it runs over {between}", rsp, guard)
    beyond = None
    if frame > guard.size:
        landing = (guard.top - frame) % TOP
        answer = machine.probe(landing & -PAGE, PUSH)
        found = "writable" if isinstance(answer, Ok) else "not writable either"
        if isinstance(answer, Unknown):
            found = f"not known: {answer.needs}"
        beyond = f"a frame of {frame} bytes steps over the guard of {guard.size}: {landing:#x} is {found}"
    return StackInUse(GUARDED, guard.fault.why, rsp, guard, beyond)


def _isolated(machine: Machine, size: int) -> bool:
    """Whether the CPU was caught on page tables made for user mode: Linux keeps those in the odd page of a pair."""
    registers = machine.registers
    return registers.cpl == 3 and (registers.cr3 or 0) & PAGE != 0 and size <= PAGE


def _overlaps(machine: Machine, start: int, rsp: int) -> str:
    """The tables and interrupt stacks between two addresses that an overflow would write over, nearest first."""
    r = machine.registers
    found = [
        (table.base, name)
        for name, table in (("the GDT", r.gdtr), ("the IDT", r.idtr), ("the TSS", r.tr), ("the LDT", r.ldtr))
        if table is not None and not (isinstance(table, Segment) and table.null) and start <= table.base < rsp
    ]
    tops = [(stack.pointer.top, stack.pointer.name) for stack in interrupt_stacks(machine)]
    found += [(top, f"the stack of {name}") for top, name in tops if start < top < rsp]
    return ", ".join(f"{name} at {at:#x}" for at, name in sorted(found, reverse=True))
