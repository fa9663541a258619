"""Rules about the IDT as a table: whether it can be read, its limit, and the gates that a kernel needs."""

from __future__ import annotations

from ..tables import vectors
from ..tables.vectors import labels, ranges
from .catalogue import ERROR, NOTE, WARNING, Finding, rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Snapshot
    from .cpu import CheckedCpu

NMI, DF, GP, PF = 2, 8, 13, 14


def covers(cpu: CheckedCpu, vector: int) -> bool:
    """Whether the limit covers a gate; True where IDTR is not known."""
    table = cpu.table("idt")
    return table is None or table.limit >= vector * 16 + 15


@rule("IDT001", ERROR, "there is no gate for #DF")
def no_double_fault_gate(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: when the kernel's stack overflows, the #PF frame goes to the same bad stack and becomes #DF. If gate 8 is not
        present, delivering #DF raises #NP, and a fault while delivering #DF shuts the processor down: the machine
        resets without any message (SDM Vol. 3A, table "Conditions for Generating a Double Fault" and the text on #DF:
        if another contributory or page fault occurs, shutdown). A warning where #PF has a good stack of its own,
        because a stack overflow is then handled as #PF.
    Fix: set gate 8, with its own IST stack.
    Bad: idt[8] is all zero
    Good: idt[8] = Gate.interrupt(double_fault, KERNEL_CS, ist=1)
    """
    gate = cpu.gates.get(DF)
    if gate is None or gate.p:
        return
    if not any(other.p for other in cpu.gates.values()):
        message = f"none of the {len(cpu.gates)} gates is present: the first exception ends in shutdown"
        yield Finding("idt", None, "", message)
        return
    severity = WARNING if cpu.page_fault_has_stack else ""
    state = "all zero" if not any(gate) else "not present (P=0)"
    end = "a #DF other than from a stack overflow" if severity else "a stack overflow"
    yield Finding("idt", 8, "p", f"gate 8 (#DF) is {state}: {end} ends in shutdown", severity)


@rule("IDT002", WARNING, "there is no gate for #GP or #PF: the fault becomes #DF")
def no_fault_gates(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a fault whose gate is not present raises #NP or #GP, which after #GP or #PF is a double fault: every bad
        pointer is reported as #DF with error code 0, not as the fault it is (SDM Vol. 3A, table "Conditions for
        Generating a Double Fault": contributory or page fault, then contributory).
    Fix: set gates 13 and 14, even if the handlers only print the registers.
    Bad: idt[8] is set, idt[13] and idt[14] are zero
    Good: idt[14] = Gate.interrupt(page_fault, KERNEL_CS)
    """
    gates = cpu.gates
    absent = [vector for vector in (GP, PF) if vector in gates and not gates[vector].p]
    if absent and any(gate.p for gate in gates.values()):
        many = "these gates are" if len(absent) > 1 else "this gate is"
        message = f"{labels(absent)}: {many} not present, so the fault becomes #DF"
        yield Finding("idt", tuple(absent), "p", message)


@rule("IDT003", ERROR, "a present gate has a type that is invalid in 64-bit mode")
def refused_type(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: in 64-bit mode a gate must be an interrupt gate (type 0xe) or a trap gate (0xf) with S=0; anything else, task
        gates included, raises #GP with the vector in its error code (SDM Vol. 3A, "64-Bit Mode IDT", and table
        "System-Segment and Gate-Descriptor Types"). Emulators that check only the type, not S, accept S=1.
    Fix: write 0x8e (interrupt) or 0x8f (trap) into byte 5, 0xee or 0xef for a gate that ring 3 may call.
    Bad: attributes = 0x9e (S=1)
    Good: attributes = 0x8e
    """
    kinds: dict[str, list[int]] = {}
    for vector, gate in cpu.gates.items() if len(cpu.present) < len(cpu.gates) else ():
        if vector not in cpu.present and gate.p:
            kinds.setdefault(f"S={gate.s:d}, type {gate.type:#x}", []).append(vector)
    for kind, found in kinds.items():
        yield Finding("idt", tuple(found), "type", f"{labels(found)}: {kind} is not an interrupt or trap gate: #GP")


@rule("IDT004", ERROR, "the #DF gate has no IST stack")
def double_fault_without_ist(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: on a kernel stack overflow the #PF frame goes to the bad stack, and so does the #DF frame, unless gate 8 has an
        IST stack. The third fault is a shutdown: the machine resets (SDM Vol. 3A, "Interrupt Stack Table": IST gives a
        known good stack for #DF, NMI and #MC). A warning where #PF has a good stack of its own.
    Fix: point an IST field of the TSS at the end of a mapped stack and put its number into gate 8. (Rust's x86_64 crate
        calls IST1 `set_stack_index(0)`.)
    Bad: idt[8] = Gate.interrupt(double_fault, KERNEL_CS)
    Good: idt[8] = Gate.interrupt(double_fault, KERNEL_CS, ist=1)
    """
    gate = cpu.present.get(DF)
    if gate is not None and not gate.ist:
        severity = WARNING if cpu.page_fault_has_stack else ""
        stack = "the stack in use, good or bad" if severity else "the stack that has just failed"
        message = f"gate {cpu.handler(DF)} uses IST 0, {stack}"
        yield Finding("idt", 8, "ist", message, severity)


@rule("IDT010", WARNING, "the IDT limit is not a multiple of 16 minus 1")
def odd_limit(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the limit is the offset of the last valid byte, and a gate has 16 bytes; a gate that is only partly covered is
        beyond the limit. The size instead of size-1, or 8 bytes per gate, is a mistake that may go unnoticed until the
        table grows (SDM Vol. 3A, "Interrupt Descriptor Table (IDT)": one less than a multiple of the gate's size).
        0xffff, as a VM exit leaves it, is fine: the processor never reads past 256 gates.
    Fix: load IDTR with 256 * 16 - 1 = 0xfff.
    Bad: idtr.limit = 0x1000
    Good: idtr.limit = 0xfff
    """
    table = cpu.table("idt")
    if table is not None and (table.limit + 1) % 16 and covers(cpu, PF):
        yield Finding(
            "idtr", None, "limit", f"limit {table.limit:#x}: {table.limit + 1} bytes are not a whole number of gates"
        )


@rule("IDT011", ERROR, "the IDT limit leaves out #DF, #GP or #PF")
def short_limit(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a vector beyond the limit raises #GP; if the #GP gate is beyond the limit too, #DF follows, then shutdown,
        whatever is in memory beyond the limit (SDM Vol. 3A, "Interrupt Descriptor Table (IDT)": a reference beyond the
        limit is #GP). Usual causes: the size of a pointer, a limit for 8-byte gates, an LIDT that was never executed on
        this CPU. A limit of 0 on purpose, so that any exception resets the machine, is accepted with `--ignore IDT011`,
        or with `--baseline FILE` where FILE holds {"accepted": [{"rule": "IDT011", "where": "idtr.limit"}]}; the
        verdict remains `triple-fault`.
    Fix: load IDTR with 256 * 16 - 1 = 0xfff on every CPU.
    Bad: idtr.limit = sizeof(idt_pointer) - 1
    Good: idtr.limit = sizeof(idt) - 1
    """
    table = cpu.table("idt")
    missing = [vector for vector in (DF, GP, PF) if not covers(cpu, vector)]
    if table is not None and missing:
        count = (table.limit + 1) // 16
        yield Finding("idtr", None, "limit", f"limit {table.limit:#x} covers {count} gates, not {labels(missing)}")


@rule("IDT012", ERROR, "a page of the IDT cannot be read")
def unmapped(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor reads a gate as a supervisor, through the page tables, whatever the CPL. Reading a gate from an
        unmapped page raises #PF; if gates 8 and 14 are in it, shutdown follows (SDM Vol. 3A, figure "Relationship of
        the IDTR and IDT": the base is a linear address). Usual causes: a boot loader's IDT, or an address space that
        does not map the IDT.
    Fix: map the IDT in every address space, and reload IDTR before the old table is unmapped.
    Bad: the page tables for user mode do not map the IDT
    Good: all page tables map the IDT, with U/S=0
    """
    table = cpu.table("idt")
    if table is not None:
        pages = [(page, fault.why) for page in cpu.pages(table, 4096) if (fault := cpu.fault(page))]
        if pages:
            bad = [v for v in range(min((table.limit + 1) // 16, 256)) if not table.known(v * 16, v * 16 + 16)]
            text = "; ".join(f"{page:#x}: {why}" for page, why in pages)
            if bad:
                yield Finding("idt", None, "", f"gates {ranges(bad)} cannot be read at {text}")


@rule("IDT013", ERROR, "the IDT is accessible from ring 3")
def for_users(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a ring 3 program that can write the IDT can enter ring 0 at any address. With CR4.SMAP, the processor's own
        reads of a user page fault, and nothing can be delivered (SDM Vol. 3A, "Determination of Access Rights":
        accesses to the descriptor tables are supervisor-mode accesses).
    Fix: map the pages of the IDT with U/S=0, read-only if possible.
    Bad: map(idt_page, PRESENT | WRITABLE | USER)
    Good: map(idt_page, PRESENT)
    """
    table = cpu.table("idt")
    if table is not None and cpu.ring3:
        pages = [page for page in cpu.pages(table, 4096) if cpu.for_users(page)]
        if pages:
            message = f"U/S=1 on the IDT's pages at {', '.join(map(hex, pages))}, and there is ring 3 code"
            yield Finding("idt", None, "", message)


@rule("IDT018", WARNING, "gates differ between CPUs")
def differs(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the same exception is handled differently, or not at all, depending on the CPU. Usually the table was changed
        after the other CPUs had copied it, or one CPU still uses the table of its start-up code (each processor has its
        own IDTR: SDM Vol. 3A, figure "Relationship of the IDTR and IDT").
    Fix: load the same IDT on all CPUs, or fill each from one template.
    Bad: the boot CPU's IDT gets gate 8 after the other CPUs were started
    Good: one IDT for all, complete before the first CPU is started
    """
    common = cpu.cpus.most_common
    if common is None or common is cpu or not cpu.gates:
        return
    mine, theirs = cpu.gates, common.gates
    if mine == theirs:
        return
    different = [v for v in sorted(mine.keys() & theirs.keys()) if mine[v] != theirs[v]]
    if different:
        vector = different[0]
        here, there = (f"{g.selector:#x}:{cpu.named(g.offset)}, IST {g.ist}" for g in (mine[vector], theirs[vector]))
        example = f"{vectors.label(vector)} leads to {here} here, to {there} there"
        yield Finding("idt", tuple(different), "", f"gates differ from those of CPU {common.number}: {example}")
    table = cpu.table("idt")
    cut = [vector for vector in common.present if not covers(cpu, vector)]
    if table is not None and cut and covers(cpu, PF):
        message = f"limit {table.limit:#x} leaves out gates that CPU {common.number} has: {ranges(cut)}"
        yield Finding("idtr", None, "limit", message)


@rule("IDT019", NOTE, "there is no gate for NMI")
def no_nmi_gate(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: an NMI cannot be masked by RFLAGS.IF: a watchdog, a hardware error or another CPU's panic can raise it at any
        time. If gate 2 is not present, delivering it raises #NP with error code 0x13, so the report names the wrong
        event, or #DF where #NP has no gate either (SDM Vol. 3A, "Nonmaskable Interrupt (NMI)", and "64-Bit Mode IDT").
    Fix: set gate 2, with an IST stack of its own if the kernel uses SYSCALL.
    Bad: idt[2] is all zero
    Good: idt[2] = Gate.interrupt(nmi, KERNEL_CS, ist=2)
    """
    gate = cpu.gates.get(NMI)
    if gate is not None and not gate.p and any(other.p for other in cpu.gates.values()):
        yield Finding("idt", NMI, "p", "gate 2 (NMI) is not present: an NMI raises #NP")


@rule("IDT020", ERROR, "the IDT holds 8-byte gates of 32-bit mode")
def narrow_gates(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: in long mode a gate has 16 bytes (SDM Vol. 3A, figure "64-Bit IDT Gate Descriptors"). Of a table of 8-byte
        gates the processor takes two for one, so vector n uses gate 2n and, as bits 63:32 of its handler's address, the
        low half of gate 2n+1: a non-canonical address, #GP, and shutdown at the first exception. Usual causes: LIDT
        before the switch to long mode and none after it, or an IDT built by a structure of 32-bit code. The other rules
        on gates say nothing of such a table.
    Fix: build the table of 16-byte gates, and LIDT in 64-bit mode.
    Bad: struct { u16 offset0, selector; u8 zero, attributes; u16 offset1; } idt[256]
    Good: struct { u16 offset0, selector; u8 ist, attributes; u16 offset1; u32 offset2, reserved; } idt[256]
    """
    table = cpu.table("idt")
    if table is not None and cpu.machine.narrow_idt:
        count = sum(gate.p for gate in cpu.machine.legacy_idt)
        message = f"IDT holds 8-byte gates of 32-bit mode, {count} of them present: long mode reads 16 bytes for a gate"
        yield Finding("idt", None, "", message)


@rule("IDT021", NOTE, "the IDT is at an odd address")
def odd_address(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor reads a table at any address, but no compiler or linker puts one at an odd one: the base was
        worked out wrongly, or the table is a member of a packed structure, and every interrupt may read across two
        cache lines (SDM Vol. 3A, "Interrupt Descriptor Table (IDT)": the base should be aligned on an 8-byte boundary).
    Fix: align the table to 16 bytes.
    Bad: struct { u16 limit; u64 base; u8 flags; struct gate idt[256]; } __attribute__((packed))
    Good: struct gate idt[256] __attribute__((aligned(16)))
    """
    table = cpu.table("idt")
    if table is not None and table.base & 1 and cpu.present:
        yield Finding("idtr", None, "base", f"base {table.base:#x} is odd: 8-byte alignment is expected")
