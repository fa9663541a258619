"""Rules about the stacks that the TSS names: whether they can be pushed to, their size, and what else uses them."""

from __future__ import annotations

from ..delivery.occupants import Occupant
from ..machine.probe import Unknown
from ..tables.vectors import labels
from .catalogue import ERROR, LOADED, NOTE, WARNING, Finding, rule
from .cpu import FRAME, ROOM
from .gates import trap_stacks
from .tables import TOP
from .tss import mildness, shifted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Snapshot
    from .cpu import CheckedCpu, UsedStack

DF, UNMASKABLE = 8, {1, 2, 18}
# options that decide about the red zone, the last one given; the ABI of Windows and UEFI has none
RED_ZONE = {"-mred-zone": True} | dict.fromkeys(
    ("-mno-red-zone", "-mkernel", "-fapple-kext", "-mabi=ms", "-m16", "-m32"), False
)


@rule("STK001", ERROR, "a stack in use cannot be pushed to")
def not_writable(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the first push of the frame faults: the exception becomes #PF or #DF, and #DF becomes a shutdown (SDM Vol. 3A,
        "Interrupt Stack Table"; "Determination of Access Rights": supervisor-mode writes). Usual causes: the pointer is
        the stack's lowest address instead of its end, the stack was never mapped on this CPU, or its memory was freed.
        A warning for #DF where #PF has a good stack of its own; a note where only vectors 28 to 30 use it, which are
        raised only under certain hypervisors, or #MC with CR4.MCE=0.
    Fix: map the stack writable for ring 0, and write the address of its end (base + size) into the TSS.
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
    """The severity of a stack that cannot hold a frame, where it is less than an error."""
    return mildness(cpu, stack.slots[0]) if len(stack.slots) == 1 else ""


@rule("STK002", WARNING, "a stack has no guard page below it")
def no_guard(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a handler that needs more stack than there is overwrites whatever is below: another stack, the tables, other
        data. With a guard page there, it ends in a page fault where the overflow happens (SDM Vol. 3A, "Interrupt Stack
        Table": the processor knows the pointer, not the size of the stack). The page may be unmapped, or read-only with
        CR0.WP=1.
    Fix: leave the page below each stack unmapped.
    Bad: static uint8_t ist_stacks[7][4096], one after another
    Good: five pages, the lowest of which is not mapped, for a stack of four
    """
    for stack in cpu.stacks:
        if not stack.usable:
            continue
        extent = cpu.extent(stack)
        if isinstance(extent.below, Occupant):
            if extent.size >= ROOM:
                message = f"{stack.names} {stack.top:#x} runs on into {extent.below.name} at {extent.below.end:#x}"
                yield Finding("tss", None, stack.fields, message)
        elif extent.below is None:
            size = (stack.top - extent.bottom) >> 10
            message = f"{stack.names} {stack.top:#x}: {size} KiB and more below it can be written"
            yield Finding("tss", None, stack.fields, message)


@rule("STK003", WARNING, "a stack is too small for a frame and a handler")
def too_small(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor pushes up to 48 bytes, and a handler then saves the 15 general registers and makes a call: in a
        smaller stack its first pushes fault, or overwrite the stack just below (SDM Vol. 3A, figure "IA-32e Mode Stack
        Usage After Privilege Level Change"). It is an error where the frame itself runs into a page that cannot be
        pushed to, or overwrites a table. Formatting a panic message takes several KiB.
    Fix: 16 KiB for each stack, without overlap.
    Bad: tss.ist2 = tss.ist1 + 64
    Good: tss.ist2 = tss.ist1 + GUARD + 0x4000
    """
    for stack in cpu.stacks:
        if not stack.usable:
            continue
        extent = cpu.extent(stack)
        room, below = extent.size, extent.below
        if room >= ROOM or below is None or isinstance(below, Unknown):
            continue
        why = f"before {below.name} begins" if isinstance(below, Occupant) else f"before a push faults: {below.why}"
        # the double-fault handler that cannot push has no other to report it
        faulting = room < FRAME or DF in stack.vectors
        lost = room < FRAME and below.table if isinstance(below, Occupant) else faulting
        needs = f"the frame takes {FRAME}" if room < FRAME else f"a frame and a handler take {ROOM}"
        message = f"{stack.names} {stack.top:#x}, {stack.used_by}, has {room} bytes {why}; {needs}"
        yield Finding("tss", None, stack.fields, message, _severity(cpu, stack) or ERROR if lost else "")


@rule("STK004", WARNING, "the end of a stack is not 16-byte aligned")
def misaligned(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: delivery aligns the new RSP down to 16 bytes, so up to 15 bytes are lost. That alone does no harm, but a
        pointer like top-1 or top-8 shows that the last byte or quadword of the stack was taken for its end, and entry
        code that loads the pointer itself gets a stack that is not aligned as the compiler expects (SDM Vol. 3A,
        "64-Bit Mode Stack Frame": RSP is aligned on a 16-byte boundary).
    Fix: align the stack, and write the address just past its last byte.
    Bad: tss.ist1 = &stack[sizeof(stack) - 1]
    Good: tss.ist1 = &stack[sizeof(stack)]
    """
    if shifted(cpu):
        return
    for stack in cpu.stacks:
        if stack.top % 16 and not stack.refused and cpu.extent(stack).size >= ROOM:
            message = f"{stack.names} {stack.top:#x} is aligned down to {stack.top & ~15:#x}"
            yield Finding("tss", None, stack.fields, message)


@rule("STK005", ERROR, "one stack for vectors that can nest")
def nested(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: IST switches to the same address every time. When a second event with the same stack interrupts the handler of
        the first, its frame overwrites that of the first, whose handler then returns to a wrong address (SDM Vol. 3A,
        "Interrupt Stack Table"). NMI, #MC and #DB can arrive at any time: sharing with #DF is an error. Exceptions that
        nest only through a bug in a handler, such as #PF or #GP with #DF, are a warning; vectors from 32 up a note,
        because they are masked while the handler runs, and software may move the pointer. The same applies to a stack
        that is also RSP0: NMI, #MC and #DB during a system call or an interrupt from ring 3 start at its end again.
    Fix: a separate stack for each of #DF, NMI, #MC and #DB.
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
        who = labels(users) + (" and interrupts from ring 3" if from_ring3 else "")
        yield Finding("tss", None, stack.fields, f"{stack.names} {stack.top:#x} is shared by {who}", severity)


@rule("STK006", ERROR, "two CPUs share a stack")
def shared(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: when both CPUs take such an exception at the same time, as with the NMIs that a panic sends to all CPUs, each
        overwrites the other's frame, and both handlers fail (each processor switches stacks through its own TSS: SDM
        Vol. 3A, "Interrupt Stack Table"). Stacks for interrupts from ring 3 count only while both CPUs are in ring 3.
    Fix: allocate the stacks per CPU, like the TSS.
    Bad: tss[cpu].ist1 = double_fault_stack + SIZE, for every cpu
    Good: tss[cpu].ist1 = double_fault_stack[cpu] + SIZE
    """
    if (other := cpu.cpus.first_with_stacks(cpu)) is not None:
        same = cpu.cpus.same_stacks(cpu, other)
        names = ", ".join(f"{stack.names} {stack.top:#x}" for stack in same)
        fields = tuple(field for stack in same for field in stack.fields)
        yield Finding("tss", None, fields, f"{names}: the same memory as a stack of CPU {other.number}")


@rule("STK007", ERROR, "a ring 0 stack is accessible from ring 3")
def for_users(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: another thread of the program can rewrite the frame while the handler runs: IRETQ then returns to ring 0 at an
        address of the program's choice (SDM Vol. 3A, "Determination of Access Rights": without SMAP, supervisor-mode
        code may write user pages, so nothing faults).
    Fix: map ring 0 stacks with U/S=0.
    Bad: map(stack, PRESENT | WRITABLE | USER)
    Good: map(stack, PRESENT | WRITABLE)
    """
    if not cpu.ring3:
        return
    for stack in cpu.stacks:
        if stack.usable and cpu.for_users(((stack.top & ~15) - 8) % TOP):
            message = f"{stack.names} {stack.top:#x}, {stack.used_by}, is in a user page (U/S=1)"
            yield Finding("tss", None, stack.fields, message)


@rule("STK008", ERROR, "code of the kernel is compiled with a red zone", LOADED)
def red_zone(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the System V ABI lets a leaf function keep data in the 128 bytes below RSP without moving RSP. In ring 0 an
        interrupt whose gate has no IST pushes its frame right there (SDM Vol. 3A, "64-Bit Mode Stack Frame"): local
        variables change between two instructions, now and then, and nowhere else than where an interrupt has hit.
        Judged by the options that GCC records in DW_AT_producer, and Clang with -grecord-command-line, of the file
        given as --symbols. rustc records none: there a function that stores to [RSP - N] tells, which takes the package
        iced-x86 (the extra `redzone`); without such a function it is not known.
    Fix: compile everything that is linked into the kernel, libgcc too, with -mno-red-zone; in Rust, use the target
        x86_64-unknown-none, or "disable-redzone": true in a target of your own.
    Bad: gcc -ffreestanding -mcmodel=kernel -c kernel.c
    Good: gcc -ffreestanding -mcmodel=kernel -mno-red-zone -c kernel.c
    """
    gates = [gate for gate in cpu.present.values() if not gate.ist]
    if not gates:
        return
    files = image.symbols.compiled(has_red_zone)
    functions = image.symbols.below_rsp() if files is None else ()
    if files is None and not functions:
        cpu.missing("the options that the kernel was compiled with (--symbols ELF, with debugging information)")
    elif (files or functions) and any(image.symbols.name(gate.offset) for gate in gates):
        how = "functions keep data below RSP" if functions else "compiled without -mno-red-zone"
        yield Finding("rsp", None, "", f"{how}: {', '.join(files or functions)}")


def has_red_zone(producer: str) -> bool:
    """Whether options made a compiler emit 64-bit code with a red zone; False where it shows no options."""
    words = producer.split()
    told = [RED_ZONE[word] for word in words if word in RED_ZONE]
    windows = any(name in word for word in words for name in ("-windows", "-uefi", "-win32", "-mingw"))
    return " -" in producer and not windows and (told or [True])[-1]
