"""Rules about the stacks that the TSS names: are they there, do they have room, does anything else use them."""

from __future__ import annotations

from ..machine.probe import Fault
from ..tables.vectors import labels
from .catalogue import ERROR, NOTE, WARNING, Finding, rule
from .cpu import FRAME, ROOM
from .gates import trap_stacks
from .tables import TOP
from .tss import mildness, same_tss, shifted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Image
    from .cpu import CheckedCpu, UsedStack

DF, UNMASKABLE = 8, {1, 2, 18}


@rule("STK001", ERROR, "a stack in use cannot be pushed to")
def not_writable(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the first push of the frame faults, so that the exception is lost to #PF or #DF, and #DF itself to a shutdown
        (SDM Vol. 3A, "Interrupt Stack Table"; "Determination of Access Rights": supervisor-mode writes). Usual causes:
        the pointer is the stack's lowest address instead of its end, the stack was never mapped on this CPU, or its
        memory was given away. A warning for #DF where #PF has a good stack of its own; a note where only vectors 28 to
        30 use it, which are raised under certain hypervisors only, or #MC with CR4.MCE=0.
    Fix: map the stack writable for ring 0, and write the address of its end (base + size) into the slot.
    Bad: tss.ist1 = stack
    Good: tss.ist1 = stack + sizeof(stack)
    """
    if shifted(cpu):
        return
    for stack in cpu.stacks:
        if refused := stack.refused:
            turned = (
                " (it can be above: is it the stack's lowest address?)" if cpu.physical(stack.top) is not None else ""
            )
            message = f"{stack.names} {stack.top:#x}, {stack.used_by}, cannot be pushed to: {refused.why}{turned}"
            yield Finding("tss", None, stack.fields, message, _severity(cpu, stack))


def _severity(cpu: CheckedCpu, stack: UsedStack) -> str:
    """The severity of a stack that takes no frame, where it is less than an error."""
    return mildness(cpu, stack.slots[0]) if len(stack.slots) == 1 else ""


@rule("STK002", WARNING, "a stack has no guard page below it")
def no_guard(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a handler that needs more stack than there is runs on into whatever lies below, silently: another stack, the
        tables, a page of somebody's data. With a page there that refuses pushes, it ends in a page fault at the place
        of the mistake (SDM Vol. 3A, "Interrupt Stack Table": the processor knows the pointer, not the size of the
        stack). Unmapped or read-only (with CR0.WP=1) is both good.
    Fix: leave the page below each stack unmapped.
    Bad: static uint8_t ist_stacks[7][4096], one behind the other
    Good: a stack of four pages at the top of five, the lowest of which is not mapped
    """
    for stack in cpu.stacks:
        if not stack.usable:
            continue
        below, extent = cpu.below(stack), cpu.extent(stack)
        if below:
            if (stack.top & ~15) - below.end >= ROOM:
                message = f"{stack.names} {stack.top:#x} runs on into {below.name} at {below.end:#x}"
                yield Finding("tss", None, stack.fields, message)
        elif extent.below is None:
            size = (stack.top - extent.bottom) >> 10
            message = f"{stack.names} {stack.top:#x}: {size} KiB and more below it can be written"
            yield Finding("tss", None, stack.fields, message)


@rule("STK003", WARNING, "a stack has no room for a frame and a handler")
def too_small(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor pushes up to 48 bytes, and any handler then saves the 15 general registers and calls something:
        with less room its first pushes fault, or write into the stack that ends just below (SDM Vol. 3A, figure
        "IA-32e Mode Stack Usage After Privilege Level Change"). Where the frame itself breaks off at a page that
        cannot be pushed to, or goes over a table, it is an error. A formatted panic message wants several KiB.
    Fix: 16 KiB for each stack, none inside of another.
    Bad: tss.ist2 = tss.ist1 + 64
    Good: tss.ist2 = tss.ist1 + GUARD + 0x4000
    """
    for stack in cpu.stacks:
        if not stack.usable:
            continue
        room, below, end = cpu.room(stack), cpu.below(stack), cpu.extent(stack).below
        if room < ROOM and (below or isinstance(end, Fault)):
            why = f"before {below.name} begins" if below else f"before a push faults: {end and end.why}"
            lost = room < FRAME and (not below or below.table)
            needs = f"the frame takes {FRAME}" if lost else f"a frame and a handler take {ROOM}"
            message = f"{stack.names} {stack.top:#x}, {stack.used_by}, has {room} bytes {why}; {needs}"
            yield Finding("tss", None, stack.fields, message, _severity(cpu, stack) or ERROR if lost else "")


@rule("STK004", WARNING, "a stack's end is not 16-byte aligned")
def misaligned(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: delivery aligns the new RSP down to 16 bytes, so that up to 15 bytes are lost; that alone does no harm, but a
        pointer like top-1 or top-8 shows that the end of the stack was taken for its last byte or last slot. And
        whoever computes with the pointer, as entry code does, meets a stack aligned otherwise than the compiler
        expects (SDM Vol. 3A, "64-Bit Mode Stack Frame": RSP is aligned on a 16-byte boundary).
    Fix: align the stack, and write the address one past its last byte.
    Bad: tss.ist1 = &stack[sizeof(stack) - 1]
    Good: tss.ist1 = &stack[sizeof(stack)]
    """
    if shifted(cpu):
        return
    for stack in cpu.stacks:
        if stack.top % 16 and not stack.refused and cpu.room(stack) >= ROOM:
            message = f"{stack.names} {stack.top:#x} is aligned down to {stack.top & ~15:#x}"
            yield Finding("tss", None, stack.fields, message)


@rule("STK005", ERROR, "one stack for vectors that can nest")
def nested(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: IST switches to the same address every time. When a second event with the same stack interrupts the handler of
        the first, its frame is written over the first one's, and the first handler returns to a wrong place (SDM
        Vol. 3A, "Interrupt Stack Table"). NMI, #MC and #DB can come at any time: sharing with #DF is an error. Two
        exceptions that only a bug in a handler nests, #PF or #GP with #DF, are a warning; vectors from 32 up a note,
        because they are masked while the handler runs and software may move the pointer. The same holds of a stack
        that is RSP0 too: NMI, #MC and #DB in a system call's or an interrupt's handler begin at its end again.
    Fix: one stack for each of #DF, NMI, #MC and #DB.
    Bad: idt[2] and idt[8] both with ist=1
    Good: idt[8] with ist=1, idt[2] with ist=2, idt[18] with ist=3
    """
    traps = {vector for _, traps, others in trap_stacks(cpu) for vector in (*traps, *others)}
    for stack in cpu.stacks:
        users, from_ring3 = set(stack.vectors), not all(slot.vectors for slot in stack.slots)
        if not users or len(users) + from_ring3 < 2:
            continue
        raised = {vector for vector in users if not cpu.off(vector)}
        if raised & UNMASKABLE and (DF in raised or from_ring3):
            severity = ""
        elif traps >= users:
            continue
        elif len(raised) + from_ring3 < 2:
            severity = NOTE
        else:
            severity = WARNING if from_ring3 or any(vector < 32 for vector in users) else NOTE
        who = labels(users) + (" and of interrupts from ring 3" if from_ring3 else "")
        yield Finding("tss", None, stack.fields, f"{stack.names} {stack.top:#x} is the stack of {who}", severity)


@rule("STK006", ERROR, "two CPUs share a stack")
def shared(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: when both CPUs take such an exception at once, and a panic makes an NMI of it on every CPU, each writes over
        the other's frame: both are lost, and so is the report (each processor switches by its own TSS: SDM Vol. 3A,
        "Interrupt Stack Table"). Stacks for interrupts from ring 3 count only while both CPUs are there.
    Fix: allocate the stacks per CPU, like the TSS.
    Bad: tss[cpu].ist1 = double_fault_stack + SIZE, for every cpu
    Good: tss[cpu].ist1 = double_fault_stack[cpu] + SIZE
    """
    for other in cpu.cpus:
        if other.number >= cpu.number or same_tss(cpu, other):
            continue
        theirs = {place: stack for stack in other.stacks if (place := _place(other, stack)) is not None}
        same = []
        for stack in cpu.stacks:
            place = _place(cpu, stack)
            if place in theirs and (stack.vectors or cpu.registers.cpl == other.registers.cpl == 3):
                same.append(stack)
        if same:
            names = ", ".join(f"{stack.names} {stack.top:#x}" for stack in same)
            fields = tuple(field for stack in same for field in stack.fields)
            yield Finding("tss", None, fields, f"in the memory of a stack of CPU {other.number}: {names}")
            return


def _place(cpu: CheckedCpu, stack: UsedStack) -> int | None:
    """Where the first push of a stack goes, physically."""
    if not stack.usable:
        return None
    return cpu.physical((stack.top & ~15) - 8)


@rule("STK007", ERROR, "ring 3 can reach a stack of ring 0")
def for_users(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a program, or a second thread of it, rewrites the frame while the handler runs: IRETQ then returns to ring 0 at
        an address of its choice (SDM Vol. 3A, "Determination of Access Rights": without SMAP a supervisor may write
        user pages, so that nothing faults and nobody notices).
    Fix: map stacks of ring 0 with U/S=0.
    Bad: map(stack, PRESENT | WRITABLE | USER)
    Good: map(stack, PRESENT | WRITABLE)
    """
    if not cpu.ring3:
        return
    for stack in cpu.stacks:
        if stack.usable and cpu.for_users(((stack.top & ~15) - 8) % TOP):
            message = f"{stack.names} {stack.top:#x}, {stack.used_by}, lies in a user page (U/S=1)"
            yield Finding("tss", None, stack.fields, message)
