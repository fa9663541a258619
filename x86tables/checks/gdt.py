"""Rules about the GDT: is it there, does its limit fit, are the descriptors in use what they must be."""

from __future__ import annotations

from ..machine.paging import WRITE
from ..tables.gdt import SegmentDescriptor
from ..tables.vectors import labels
from .catalogue import DECLARED, ERROR, NOTE, WARNING, Finding, rule
from .tables import TOP, good_code, l_and_d

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Image
    from .cpu import CheckedCpu


def pages_in_use(cpu: CheckedCpu) -> dict[int, list[str]]:
    """Linear page -> who needs a descriptor in it."""
    table = cpu.table("gdt")
    found: dict[int, list[str]] = {}
    if table is not None and not any(True for _ in cpu.pages(table, 0)):
        return {}
    for selector, users in cpu.users.items():
        if table is not None and not selector & 4 and selector + 7 <= table.limit:
            found.setdefault((table.base + selector) % TOP & -0x1000, []).append(f"{selector:#x} ({users})")
    return found


@rule("GDT001", ERROR, "a page of the GDT that is in use cannot be read")
def unmapped(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: every interrupt reads the descriptor of its handler's code segment from the GDT, as a supervisor, through the
        page tables. If that page is not mapped, the read raises #PF, whose own delivery reads the same page: #DF, then
        shutdown. The machine resets at its first interrupt after the page went away (SDM Vol. 3A, "Interrupt and
        Exception Handling in 64-bit Mode"; linear base of GDTR: figure "Memory Management Registers"). A common cause
        is a loader's GDT in memory that the kernel has unmapped or given away.
    Fix: keep the GDT in memory that the kernel owns and maps in every address space, and load GDTR again before the
        old one goes.
    Bad: lgdt [loader_gdt]; then the lower half is unmapped
    Good: static GDT: Gdt in the kernel's own .data; lgdt; then unmap
    """
    missing = []
    for page, users in pages_in_use(cpu).items():
        if fault := cpu.fault(page):
            missing.append(f"{page:#x}: {fault.why}; it holds {', '.join(users)}")
    if missing:
        yield Finding("gdt", None, "", f"the GDT cannot be read at {'; at '.join(missing)}")


@rule("GDT002", ERROR, "ring 3 can reach the GDT")
def for_users(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a program at ring 3 that can write the GDT makes itself a ring 0 segment; with CR4.SMAP the processor's own
        implicit reads of a user page fault besides, so that no interrupt is delivered (SDM Vol. 3A, "Determination of
        Access Rights": accesses to the descriptor tables are supervisor-mode accesses).
    Fix: map the pages of the GDT with U/S=0, at one level of the page tables at least.
    Bad: map(gdt_page, PRESENT | WRITABLE | USER)
    Good: map(gdt_page, PRESENT | WRITABLE)
    """
    if cpu.ring3:
        pages = [page for page in pages_in_use(cpu) if cpu.for_users(page)]
        if pages:
            message = f"U/S=1 on the GDT's pages at {', '.join(map(hex, pages))}, and there is ring 3 code"
            yield Finding("gdt", None, "", message)


@rule("GDT003", ERROR, "a read-only GDT holds a descriptor in use that is not marked accessed")
def not_accessed(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor sets the accessed bit (type bit 0) of a descriptor that it loads, a supervisor's write. In a
        read-only page with CR0.WP=1 that write raises #PF, at an interrupt, an IRETQ or a MOV to a segment register
        (SDM Vol. 3A, table "Code- and Data-Segment Types", and the text on the accessed bit above it). Emulators skip
        it, hardware does not.
    Fix: write descriptors with the accessed bit set already, or leave the GDT writable.
    Bad: 0x00af9a000000ffff (type 0xa) in .rodata
    Good: 0x00af9b000000ffff (type 0xb) in .rodata
    """
    table = cpu.table("gdt")
    for selector, users in cpu.users.items():
        code, why = cpu.lookup(selector)
        if table is None or why != "" or selector & 4 or not isinstance(code, SegmentDescriptor):
            continue
        if code.s and code.p and not code.accessed and "gdt" not in cpu.machine.physical:
            fault = cpu.fault(table.base + selector + 5, WRITE)
            if fault and cpu.physical(table.base + selector) is not None:
                message = f"selector {selector:#x} ({users}) has A=0, and it cannot be set: {fault.why}"
                yield Finding("gdt", selector >> 3, "type", message)


@rule("GDT004", ERROR, "LTR cannot mark the TSS busy: the GDT is read-only", DECLARED)
def read_only_at_ltr(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: LTR writes the busy bit into the TSS descriptor. Where the GDT lies in a read-only page with CR0.WP=1, LTR
        raises #PF, at a time when there is no IDT with a TSS yet: the boot ends in a reset (SDM Vol. 2A, LTR: marks the
        TSS descriptor busy). A GDT may be made read-only after LTR.
    Fix: put the GDT into a writable section, and protect it after LTR.
    Bad: gdt in .rodata; lgdt; ltr
    Good: gdt in .data; lgdt; ltr; then protect its page
    """
    table, tr = cpu.table("gdt"), cpu.registers.tr
    if table is not None and tr is not None and cpu.tss_descriptor is not None:
        fault = cpu.fault(table.base + (tr.selector & ~7) + 5, WRITE)
        if fault:
            yield Finding("gdt", tr.selector >> 3, "type", f"LTR with selector {tr.selector:#x} faults: {fault.why}")


@rule("GDT005", WARNING, "the GDT's limit is not a multiple of 8 less one")
def odd_limit(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the limit is the offset of the last valid byte. The size itself instead of size-1 lets the processor take one
        byte of whatever follows for table, and sizeof a pointer (7 or 8) cuts the table off (SDM Vol. 3A, "Segment
        Descriptor Tables": the limit should always be one less than an integral multiple of eight).
    Fix: load GDTR with sizeof(table) - 1, of the table and not of a pointer to it.
    Bad: gdtr.limit = sizeof(gdt)
    Good: gdtr.limit = sizeof(gdt) - 1
    """
    table = cpu.table("gdt")
    if table is not None and (table.limit + 1) % 8 and not cpu.cut_off and not cpu.gdt_lost:
        message = f"limit {table.limit:#x} makes {table.limit + 1} bytes: not whole descriptors"
        yield Finding("gdtr", None, "limit", message)


@rule("GDT006", NOTE, "the GDT's limit is 0xffff")
def full_limit(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: with 0xffff every selector is within the limit, and whatever follows the table counts as descriptors. It is
        rarely meant, but VM exits leave GDTR and IDTR like that (SDM Vol. 3C, "Loading Host Segment and
        Descriptor-Table Registers"), and a hypervisor that does not reload GDTR lives with it.
    Fix: load GDTR with the size of the table less one; in a hypervisor, after each VM exit or not at all.
    Bad: lgdt with limit 0xffff
    Good: lgdt with limit 0x37 for 7 slots
    """
    table = cpu.table("gdt")
    if table is not None and table.limit == 0xFFFF:
        yield Finding("gdtr", None, "limit", "limit 0xffff: all 8192 slots count, whatever is in them")


@rule("GDT007", ERROR, "the GDT's limit leaves out descriptors in use")
def cut_off(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a selector beyond the limit raises #GP with that selector as error code, even though the bytes are right there
        in memory. For a handler's code segment this happens within delivery, of #GP itself too: shutdown (SDM Vol. 3A,
        "Segment Descriptor Tables"). Seen when the limit was computed before the TSS was appended, or is sizeof a
        pointer.
    Fix: compute the limit from the finished table.
    Bad: limit = 5 * 8 - 1; the TSS descriptor is in slots 5 and 6
    Good: limit = 7 * 8 - 1
    """
    if cpu.cut_off and (table := cpu.table("gdt")):
        missing = ", ".join(f"{selector:#x} ({users})" for selector, users in sorted(cpu.cut_off.items()))
        message = f"limit {table.limit:#x} leaves out {missing}, which is in memory behind it"
        yield Finding("gdtr", None, "limit", message)


@rule("GDT008", ERROR, "a code descriptor has both L and D set")
def both_l_and_d(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: with L=1, D must be 0; the combination is reserved, and loading such a segment into CS raises #GP (SDM Vol. 3A,
        "Code-Segment Descriptor in 64-bit mode" and figure "Segment Descriptor"). Some emulators accept it, so that a
        kernel dies on real hardware only.
    Fix: clear D (bit 54) of 64-bit code.
    Bad: 0x00ef9b000000ffff
    Good: 0x00af9b000000ffff
    """
    for selector, code in cpu.descriptors.items():
        if isinstance(code, SegmentDescriptor) and l_and_d(code):
            users = cpu.users.get(selector)
            used = f" ({users})" if users else ""
            yield Finding("gdt", selector >> 3, "d_b", f"selector {selector:#x}{used}: L=1 and D=1 is reserved")


@rule("GDT009", ERROR, "the gates' code segment is not present 64-bit code of ring 0")
def no_kernel_code(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a handler's segment must be present (else #NP), code, with L=1 and D=0, and its DPL not above the CPL (else
        #GP). The nested fault needs the same segment, so that the first interrupt of all ends in shutdown (SDM
        Vol. 3A, "64-Bit Mode IDT" and "Interrupt and Exception Handling in 64-bit Mode": the target must be a 64-bit
        code segment). The running CS has its cached copy and does not notice. S=0 makes it a system descriptor.
    Fix: give ring 0 a descriptor with P=1, S=1, type 0xb, L=1, D=0, DPL 0.
    Bad: 0x00cf9b000000ffff (L=0, D=1: 32-bit code)
    Good: 0x00af9b000000ffff
    """
    for selector in sorted(cpu.broken_code):
        code, _ = cpu.lookup(selector)
        if code is None or (isinstance(code, SegmentDescriptor) and l_and_d(code)) or cpu.gdt_lost:
            continue
        flaws = {
            "nothing in it": not any(bytes(code)),
            "S=0": not code.s,
            "not code": not code.type & 8,
            "P=0": not code.p,
        }
        state = next((flaw for flaw, true in flaws.items() if true), "")
        if isinstance(code, SegmentDescriptor) and not state:
            state = f"DPL {code.dpl}" if good_code(code) else f"L={code.l:d}, D={code.d_b:d}"
        users = labels(cpu.gate_selectors[selector])
        yield Finding("gdt", selector >> 3, "", f"selector {selector:#x}, which the gates {users} name, has {state}")


@rule("GDT010", WARNING, "a descriptor in use differs between CPUs")
def differs(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a thread or a handler that moves from one CPU to another meets a different segment under the same selector. It
        works until the scheduler decides otherwise, and then fails on one CPU only (each processor has a GDTR of its
        own: SDM Vol. 3A, figure "Memory Management Registers"; what the descriptors hold is the system's to keep
        alike).
    Fix: fill the GDT of every CPU from one template; only the TSS descriptor and per-CPU data differ.
    Bad: the boot CPU's GDT is changed after the others copied it
    Good: one function makes the table for each CPU
    """
    others = [other for other in cpu.cpus if other is not cpu and other.number < cpu.number]
    if not others:
        return
    first = others[0]
    for selector in cpu.gate_selectors.keys() | {s & ~3 for s in cpu.star_selectors.values()}:
        here, there = cpu.lookup(selector)[0], first.lookup(selector)[0]
        if isinstance(here, SegmentDescriptor) and isinstance(there, SegmentDescriptor) and not selector & 4:
            one, two = here.replace(type=here.type | here.s), there.replace(type=there.type | there.s)
            if one != two and here.p and there.p and selector not in cpu.broken_code:
                message = (
                    f"selector {selector:#x} is {bytes(here).hex()} here, {bytes(there).hex()} on CPU {first.number}"
                )
                yield Finding("gdt", selector >> 3, "", message)


@rule("GDT011", ERROR, "GDTR points at a table that has none of the descriptors in use")
def lost(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor goes on with the copies in its segment registers until an interrupt, an IRETQ or a load of a
        segment register looks into the table: #GP within delivery, then shutdown (SDM Vol. 3A, figure "Memory
        Management Registers": GDTR holds base and limit of the table). Usual causes: LGDT with the address of the table
        where that of the limit-and-base operand belongs, a table that was cleared or never copied, an LGDT that was
        executed before paging and has a physical address.
    Fix: load GDTR with the linear address of a filled table.
    Bad: lgdt [gdt]
    Good: gdt_pointer: dw gdt_end - gdt - 1; dq gdt / lgdt [gdt_pointer]
    """
    table = cpu.table("gdt")
    if table is not None and cpu.gdt_lost:
        named = "; ".join(f"{selector:#x} ({users})" for selector, users in sorted(cpu.users.items()))
        yield Finding("gdtr", None, "", f"base {table.base:#x}, limit {table.limit:#x}: there is no {named}")
