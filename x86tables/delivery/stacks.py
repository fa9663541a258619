"""The stack in use and what is below it, and the room on every stack that a gate can switch to."""

from __future__ import annotations

from ..errors import Absent, NotThere
from ..machine.machine import NOT_KNOWN, Machine
from ..machine.memory import PAGE
from ..machine.paging import NonCanonical, PageFault
from ..machine.registers import AC, Segment
from ..records import Record
from ..tables.gdt import SegmentDescriptor
from ..tables.selector import Selector
from .deliver import PUSHES
from .state import TOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.registers import Registers

NEAR = 1 << 20  # a guard page is looked for so far below a stack pointer
FAR_PAGES = 1 << 20  # how many pages are asked for one that cannot be pushed to, when none is near

REFUSED = "not writable either"  # where a push lands that has jumped over a guard
GUARDED, SILENT, UNKNOWN, NOT_JUDGED = "guarded", "silent-corruption", "unknown", "not-judged"


class Guard(Record):
    """The first page below a stack pointer that a push cannot enter: `top` is its end, `size` that of it and its like
    neighbours below (1 MiB at most). `kind`: `unmapped`, `read-only`, `user page` (SMAP), `reserved bits`."""

    top: int
    size: int
    kind: str
    why: str


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


class Room(Record):
    """How much can be pushed on an interrupt stack: `size` bytes below `top`, then `below` says why no more.

    None for `below`: 1 MiB and more. `vectors` are those whose gates name the stack.
    """

    name: str
    top: int
    size: int
    below: str | None
    vectors: tuple[int, ...]


def in_ring0(machine: Machine, stack: int | None = None) -> tuple[Registers, str]:
    """The registers of the kernel on this CPU: its own, or where it was caught elsewhere, those on RSP0's stack.

    Also a sentence that says so, else "". NotThere when neither RSP nor RSP0 is known.
    """
    r = machine.registers
    if r.cpl == 0:
        return (r if stack is None else r.replace(rsp=stack)), ""
    said = "CS is not known: judged in ring 0"
    if r.cpl is not None:
        said = f"caught in ring {r.cpl}: judged in ring 0, on the page tables that were captured"
    rsp, where = stack, "the stack given"
    if rsp is None:
        rsp, where = (r.rsp, "RSP") if r.cpl is None and r.rsp is not None else (_rsp0(machine), "RSP0")
    cs, rip = _kernel_code(machine)
    code = r.replace(cs=cs, ss=Segment(0, limit=0, flags=0), rsp=rsp, rip=rip, rflags=2)
    return code, f"{said}, from {where} {rsp:#x}"


def _rsp0(machine: Machine) -> int:
    table = machine.table("tss")
    if table is None or not table.known(4, 12):
        raise NotThere("RSP is not known in ring 0, and RSP0 cannot be read from the TSS")
    return machine.tss.rsp0


def _kernel_code(machine: Machine) -> tuple[Segment, int | None]:
    """The code segment and an address in it that the gates name."""
    try:
        for vector in (14, *range(len(machine.idt))):
            if vector in machine.idt and machine.idt[vector].p:
                gate = machine.idt[vector]
                descriptor = machine.gdt[gate.selector]
                if isinstance(descriptor, SegmentDescriptor):
                    selector = int(Selector.from_int(gate.selector).replace(rpl=0))
                    return Segment(selector, flags=_high(descriptor)), gate.offset
    except NotThere:
        pass
    return Segment(8, flags=_high(SegmentDescriptor.kernel_code())), None


def in_ring3(machine: Machine) -> Registers:
    """A program's registers: the CPU's own when it was caught in ring 3, else those of the first user code segment."""
    r = machine.registers
    if r.cpl == 3:
        return r
    selector = next(
        (
            entry.selector
            for entry in machine.gdt.entries()
            if entry.kind == "code64" and entry.descriptor.dpl == 3 and not entry.truncated
        ),
        0x30,
    )
    cs = Segment(int(Selector.from_int(selector).replace(rpl=3)), flags=_high(SegmentDescriptor.user_code()))
    return r.replace(cs=cs, ss=Segment(3, flags=0), rsp=0x7FFF_FFFF_F000, rip=0x40_0000, rflags=0x202)


def _high(descriptor: SegmentDescriptor) -> int:
    """What a segment register keeps of a descriptor beside base and limit."""
    return int.from_bytes(bytes(descriptor)[4:8], "little")


def guard_below(machine: Machine, registers: Registers, pages: int = NEAR // PAGE) -> Guard | None:
    """The first page at or below RSP that a push cannot enter; None when there is none within so many pages.

    Raises Absent where this is not known.
    """
    access = PUSHES[0][(registers.rflags or 0) & AC != 0]
    rsp = registers.rsp or 0
    page = (rsp - 1) % TOP & -PAGE
    lowest = page - pages * PAGE
    while page > lowest:
        try:
            machine.translate(page % TOP, access)
        except (PageFault, NonCanonical) as error:
            top, size = (page + PAGE) % TOP, PAGE
            while size < NEAR and _landing(machine, (page - size) % TOP) == REFUSED:
                size += PAGE
            return Guard(top, size, _kind(error), _why(error))
        page -= PAGE if page < 0 else PAGE + page - machine.space.page(page).linear
    return None


def _landing(machine: Machine, page: int) -> str:
    """What a page is for a push, in words."""
    why = machine.push_trouble(page)
    return "writable" if why is None else why if why.startswith(NOT_KNOWN) else REFUSED


def _why(error: PageFault | NonCanonical) -> str:
    return error.why if isinstance(error, PageFault) else str(error)


def _kind(error: PageFault | NonCanonical) -> str:
    if isinstance(error, NonCanonical):
        return "not canonical"
    if "read-only" in error.why:
        return "read-only"
    if "user page" in error.why:
        return "user page"
    return "reserved bits" if "reserved" in error.why else "unmapped"


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
    except Absent as error:
        return StackInUse(UNKNOWN, str(error), rsp)
    if stack is None and guard is not None and _isolated(machine, (rsp - guard.top) % TOP):
        return StackInUse(
            NOT_JUDGED, "page-table isolation: RSP0 is an entry trampoline, not the kernel's stack", rsp, guard
        )
    between = _in_the_way(machine, rsp - NEAR if guard is None else guard.top, rsp)
    if guard is None:
        return StackInUse(SILENT, f"the {NEAR >> 20} MiB below it are writable{between and ': '}{between}", rsp)
    if between:
        return StackInUse(SILENT, f"before the guard, it runs over {between}", rsp, guard)
    beyond = None
    if frame > guard.size:
        landing = (guard.top - frame) % TOP
        found = _landing(machine, landing & -PAGE)
        beyond = f"a frame of {frame} bytes steps over the guard of {guard.size}: {landing:#x} is {found}"
    return StackInUse(GUARDED, guard.why, rsp, guard, beyond)


def _isolated(machine: Machine, size: int) -> bool:
    """Whether the CPU was caught on page tables made for user mode: Linux keeps those in the odd page of a pair."""
    registers = machine.registers
    return registers.cpl == 3 and (registers.cr3 or 0) & PAGE != 0 and size <= PAGE


def _in_the_way(machine: Machine, start: int, rsp: int) -> str:
    """The tables and interrupt stacks between two addresses that an overflow would write over, nearest first."""
    r = machine.registers
    found = [
        (table.base, name)
        for name, table in (("the GDT", r.gdtr), ("the IDT", r.idtr), ("the TSS", r.tr), ("the LDT", r.ldtr))
        if table is not None and not (isinstance(table, Segment) and table.null) and start <= table.base < rsp
    ]
    found += [(room.top, f"the stack of {room.name}") for room in rooms(machine) if start < room.top < rsp]
    return ", ".join(f"{name} at {at:#x}" for at, name in sorted(found, reverse=True))


def rooms(machine: Machine) -> tuple[Room, ...]:
    """Every interrupt stack that the TSS or a gate names. Nothing when the TSS cannot be read."""
    try:
        tss = machine.tss
    except NotThere:
        return ()
    try:
        gates = [(vector, gate.ist) for vector, gate in enumerate(machine.idt) if gate.p]
    except NotThere:
        gates = []
    found = []
    for number, top in enumerate(tss.ist, 1):
        vectors = tuple(vector for vector, ist in gates if ist == number)
        if top or vectors:
            stack = machine.stack(top & ~15)
            found.append(Room(f"IST{number}", top, stack.size, stack.below, vectors))
    return tuple(found)
