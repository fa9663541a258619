"""Rules about single gates: their handlers, their stacks, and their privilege levels."""

from __future__ import annotations

import re

from ..machine.memory import PAGE
from ..machine.paging import Access
from ..tables import vectors
from ..tables.vectors import labels
from .catalogue import ERROR, NOTE, SEVERITIES, WARNING, Finding, rule
from .tables import BEYOND, NO_LDT, NULL, good_code, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Snapshot
    from .cpu import CheckedCpu

FETCH = Access(fetch=True)
# raised by optional features only, or never: a missing handler does no harm for now
UNLIKELY = {9, 15, *range(20, 32)}
# compiled when a name is there to be searched
IRQ = (
    r"(?i)(?:^|[^a-z])(?:irq|timer|pit|rtc|hpet|keyboard|kbd|mouse|ps2|serial|uart|floppy|ata|ide|lapic|ioapic)"
    r"(?:[^a-z]|$)"
)
HUMP = r"(?<=[a-z])(?=[A-Z])"
NO_IRQ = r"(?i)exc|(?<!de)fault|trap"


@rule("IDT005", ERROR, "a gate's selector does not name a 64-bit code segment of ring 0 in this GDT")
def wrong_selector(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the selector in a gate is looked up in the current GDT. A null selector, one beyond the limit, or one of data,
        a TSS or 32-bit code raises #GP; so does a DPL above the interrupted CPL (SDM Vol. 3A, "64-Bit Mode IDT", and
        "Protection of Exception- and Interrupt-Handler Procedures"). Usual causes: the boot loader's selector, read
        from CS before the kernel loaded its own GDT, or a ring 3 segment. A conforming segment would run the handler at
        the privilege level of the interrupted program.
    Fix: put the selector of the kernel's 64-bit code segment into every gate.
    Bad: gate.selector = 0x38 (the firmware's), in a GDT of five slots
    Good: gate.selector = 0x08
    """
    for selector, users in cpu.gate_selectors.items():
        if cpu.reported_elsewhere(selector):
            continue
        code, why = cpu.lookup(selector)
        if why in (NULL, BEYOND, NO_LDT):
            state = str(why)
        elif code is None:
            continue
        elif not good_code(code):
            state = f"{kind_of(code)}, expected present 64-bit code"
        elif code.dpl:
            state = f"code with DPL {code.dpl}: a gate cannot lead from ring 0 to it"
        elif code.type & 4 and cpu.ring3:
            state = "a conforming code segment: an interrupt from ring 3 would be handled in ring 3"
        else:
            continue
        yield Finding("idt", tuple(users), "selector", f"{labels(users)}: selector {selector:#x} is {state}")


@rule("IDT006", ERROR, "a handler's address is not canonical")
def not_canonical(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the upper bits must repeat bit 47 (56 with CR4.LA57), or delivery raises #GP before anything is pushed; after a
        contributory fault or #PF that is a double fault (SDM Vol. 2A, INT n: if the instruction pointer is not
        canonical, #GP). The usual cause is a mistake in splitting the offset into its three parts.
    Fix: split the handler's address into bits 15:0, 31:16 and 63:32 with unsigned 64-bit arithmetic.
    Bad: gate offset 0x0000ffff80001000 (bits 63:48 lost)
    Good: gate offset 0xffffffff80001000
    """
    regions = {gate.offset >> 47 for gate in cpu.present.values()}  # few, of 256 gates
    wrong = {region for region in regions if not cpu.canonical(region << 47)}
    if wrong:
        bad = [vector for vector, gate in cpu.present.items() if gate.offset >> 47 in wrong]
        yield Finding("idt", tuple(bad), "offset", f"not canonical: {_handlers(cpu, bad)}")


@rule("IDT007", ERROR, "a handler cannot be fetched")
def not_executable(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: delivery succeeds, and then the first instruction of the handler raises #PF because its page is not mapped or
        not executable. If that is the #PF handler itself, the fault repeats indefinitely and pushes one frame after
        another (SDM Vol. 3A, text on #DF: faults while prefetching the handler do not count towards a double fault;
        "Determination of Access Rights": fetches). A warning for vectors from 32; a note for 9, 15 and 20 to 31, which
        the processor does not raise unless a feature is on, and for #MC with CR4.MCE=0: kernels leave those gates with
        start-up handlers that have been freed. Handlers in one page are one finding, as severe as the worst of them.
    Fix: keep handlers in memory that is mapped and executable for as long as the IDT names them.
    Bad: idt[14] leads into .init.text, which is freed after boot
    Good: idt[14] leads into .text
    """
    pages: dict[int, list[int]] = {}
    for vector, gate in cpu.present.items():
        pages.setdefault(gate.offset & -PAGE, []).append(vector)
    groups: dict[tuple[str, str], list[int]] = {}
    for page, users in pages.items():
        if fault := cpu.fault(page, FETCH) if cpu.canonical(page) else None:
            worst = min((_concern(cpu, vector) for vector in users), key=SEVERITIES.index)
            groups.setdefault((worst, fault.why), []).extend(users)
    for (severity, why), found in groups.items():
        yield Finding("idt", tuple(sorted(found)), "offset", f"{_handlers(cpu, sorted(found))}: {why}", severity)


def _concern(cpu: CheckedCpu, vector: int) -> str:
    """The severity of a handler that cannot run."""
    if vector in UNLIKELY or cpu.off(vector):
        return NOTE
    return WARNING if vector > 31 else ERROR


def _handlers(cpu: CheckedCpu, found: list[int]) -> str:
    """Up to three handlers, and the number of the others."""
    return ", ".join(cpu.handler(v) for v in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


@rule("IDT008", WARNING, "an exception's gate can be called from ring 3")
def exception_for_users(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: with DPL 3 a program can enter the handler with INT n, which pushes no error code: for exceptions that push
        one, such as #PF and #GP, the frame is off by eight bytes, and the handler takes the return address for the
        error code. INT 8 looks like a double fault (SDM Vol. 3A, "Protection of Exception- and Interrupt-Handler
        Procedures": DPL is checked for INT n only). Only breakpoint (3) and overflow (4) are meant to be called by
        programs.
    Fix: DPL 0 for vectors 0 to 31 except 3 and 4.
    Bad: idt[14] with attributes 0xee
    Good: idt[14] with attributes 0x8e
    """
    bad = [vector for vector, gate in cpu.present.items() if vector < 32 and vector not in (3, 4) and gate.dpl == 3]
    if bad and cpu.ring3:
        yield Finding("idt", tuple(bad), "dpl", f"{labels(bad)}: DPL 3 lets any program enter the handler with INT n")


@rule("IDT009", WARNING, "the breakpoint gate cannot be called from ring 3")
def breakpoint_for_kernel_only(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: INT3 is checked against the gate's DPL like INT n. With DPL 0, a breakpoint that a debugger sets in a program
        raises #GP (error code 0x1a) instead of #BP (SDM Vol. 3A, "Protection of Exception- and Interrupt-Handler
        Procedures").
    Fix: DPL 3 for gate 3.
    Bad: idt[3] with attributes 0x8e
    Good: idt[3] with attributes 0xee
    """
    gate = cpu.present.get(3)
    if gate is not None and gate.dpl < 3 and cpu.ring3:
        yield Finding("idt", 3, "dpl", f"DPL {gate.dpl}: INT3 in a ring 3 program raises #GP, not #BP")


@rule("IDT014", WARNING, "NMI, #MC or #DB runs on the interrupted stack although SYSCALL is in use")
def no_ist_with_syscall(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: SYSCALL enters ring 0 with RSP unchanged. NMI and #MC cannot be masked and may arrive before the kernel has
        switched stacks; a #DB can be delayed until then by a MOV SS or POP SS before SYSCALL. Without IST the frame is
        pushed, with ring 0's access rights, to an address that the program chose (SDM Vol. 2B, SYSCALL: does not save
        or load RSP; Vol. 3A, "Interrupt Stack Table"). Several kernels had this vulnerability (CVE-2018-8897). Until
        SWAPGS the GS base is the program's as well, while CS is the kernel's: a handler that goes by the saved CS uses
        it. The scenario `syscall-gap` shows what each of them leads to. #MC does not count where CR4.MCE=0: a machine
        check is then a shutdown. #DF is for IDT004.
    Fix: give each of vectors 1, 2 and 18 its own IST stack, and let its handler look at the GS base itself.
    Bad: idt[2] = Gate.interrupt(nmi, KERNEL_CS)
    Good: idt[2] = Gate.interrupt(nmi, KERNEL_CS, ist=2)
    """
    gates = {vector: cpu.present[vector] for vector in (1, 2, 18) if vector in cpu.present and not cpu.off(vector)}
    bad = [vector for vector, gate in gates.items() if not gate.ist]
    if not bad:
        return
    syscall = cpu.registers.syscall
    if syscall is None:
        cpu.missing("EFER is not known (bit SCE: is SYSCALL in use)")
    elif syscall:
        yield Finding("idt", tuple(bad), "ist", f"{labels(bad)}: IST 0 with EFER.SCE=1: RSP may still be the program's")


@rule("IDT015", WARNING, "a trap gate shares an IST stack with an interrupt")
def trap_on_ist(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a trap gate leaves RFLAGS.IF unchanged, so an interrupt may arrive while the handler runs. If that interrupt
        uses the same IST stack, its frame is pushed at the same address and overwrites that of the handler, which then
        returns to a wrong address (SDM Vol. 3A, "Interrupt Stack Table": IST switches to the same pointer every time;
        "Flag Usage By Exception- or Interrupt-Handler Procedure": trap gates do not clear IF).
    Fix: use an interrupt gate, or a different stack.
    Bad: idt[3] = Gate.trap(breakpoint, KERNEL_CS, ist=2); idt[32] = Gate.interrupt(timer, KERNEL_CS, ist=2)
    Good: idt[3] = Gate.interrupt(breakpoint, KERNEL_CS, ist=2)
    """
    for slot, traps, others in trap_stacks(cpu):
        message = f"{labels(traps)}: trap gate on {slot}, which is also the stack of {labels(others)}"
        yield Finding("idt", tuple(traps), "type", message)


def trap_stacks(cpu: CheckedCpu) -> Iterator[tuple[str, list[int], list[int]]]:
    """IST stacks that a trap gate and another vector from 32 on share: name, trap gates, interrupts."""
    for ist, users in cpu.ist_users.items():
        traps = [vector for vector in users if cpu.present[vector].kind == "trap"]
        others = [v for v in users if v > 31 and traps not in ([], [v])]
        if traps and others:
            yield f"IST{ist}", traps, others


@rule("IDT016", WARNING, "one handler for vectors with and without an error code")
def mixed_handler(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor pushes an error code for some exceptions only. For a handler of both kinds the frame is off by
        eight bytes for one of them: it prints a wrong RIP, or returns to the wrong address (SDM Vol. 3A, table
        "Protected-Mode Exceptions and Interrupts", column "Error Code"). A note where all vectors of one kind are among
        9, 15 and 20 to 31.
    Fix: one stub per vector, which pushes 0 where the processor pushes no error code.
    Bad: idt[0..31] all lead to `isr_common`
    Good: isr0: push 0; push 0; jmp isr_common / isr14: push 14; jmp isr_common
    """
    coded = (vector for vector in range(32) if vector in cpu.present and pushes_code(cpu, vector))
    with_codes = {cpu.present[vector].offset for vector in coded}
    handlers: dict[int, list[int]] = {}
    for vector, gate in cpu.present.items():
        if gate.offset in with_codes:
            handlers.setdefault(gate.offset, []).append(vector)
    for offset, users in handlers.items():
        with_code = [vector for vector in users if pushes_code(cpu, vector)]
        rest = [vector for vector in users if vector not in with_code]
        if rest:
            severity = NOTE if UNLIKELY.issuperset(with_code) or UNLIKELY.issuperset(rest) else ""
            message = f"{cpu.named(offset)} handles {labels(with_code)} with an error code and {labels(rest)} without"
            yield Finding("idt", tuple(users), "offset", message, severity)


def pushes_code(cpu: CheckedCpu, vector: int) -> bool:
    """Whether the frame of a vector has an error code."""
    code = vector < 32 and vectors.EXCEPTIONS[vector].error_code
    return code and (vector < 28 or cpu.machine.vendor == "amd")


@rule("IDT017", WARNING, "IRQ handler on an exception vector")
def irq_on_exception(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: after reset the PIC raises IRQ 0 as vector 8: the timer looks like a double fault, the keyboard like vector 9.
        The handler is also entered for the real exception, which has a different frame (SDM Vol. 3A, table
        "Protected-Mode Exceptions and Interrupts": vectors 0 to 31 are reserved for exceptions). Judged by symbol
        names.
    Fix: remap the PIC to vectors 32 to 47 and install the handler of IRQ n as vector 32+n.
    Bad: idt[8] = Gate.interrupt(timer_irq, KERNEL_CS)
    Good: idt[32] = Gate.interrupt(timer_irq, KERNEL_CS)
    """
    if not image.symbols:
        if cpu.present:
            cpu.missing("symbols (--symbols FILE)")
        return
    for vector, gate in cpu.present.items():
        name = image.symbols.name(gate.offset) if vector < 32 else None
        own = name and name.rpartition("::")[2]  # not the module that it is in
        if own and "+" not in own and re.search(IRQ, re.sub(HUMP, "_", own)) and not re.search(NO_IRQ, own):
            message = f"{name} looks like an IRQ handler on {labels([vector])}: is the PIC remapped?"
            yield Finding("idt", vector, "offset", message)
