"""Rules about the GDT: whether it can be read, its limit, and the descriptors in use."""

from __future__ import annotations

from ..machine.paging import WRITE
from ..tables.gdt import SegmentDescriptor
from ..tables.vectors import labels
from .catalogue import DECLARED, ERROR, NOTE, WARNING, Finding, rule
from .tables import TOP, good_code, l_and_d

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Snapshot
    from .cpu import CheckedCpu


def pages_in_use(cpu: CheckedCpu) -> dict[int, list[str]]:
    """Linear page -> the descriptors in use that it holds, and their users."""
    table = cpu.table("gdt")
    found: dict[int, list[str]] = {}
    if table is not None and not any(True for _ in cpu.pages(table, 0)):
        return {}
    for selector, users in cpu.users.items():
        if table is not None and not selector & 4 and selector + 7 <= table.limit:
            found.setdefault((table.base + selector) % TOP & -0x1000, []).append(f"{selector:#x} ({users})")
    return found


@rule("GDT001", ERROR, "a page of the GDT that is in use cannot be read")
def unmapped(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: every interrupt reads the descriptor of its handler's code segment from the GDT, as a supervisor, through the
        page tables. If that page is not mapped, the read raises #PF, whose own delivery reads the same page: #DF, then
        shutdown. The machine resets at its first interrupt after the page went away (SDM Vol. 3A, "Interrupt and
        Exception Handling in 64-bit Mode"; linear base of GDTR: figure "Memory Management Registers"). A common cause
        is a boot loader's GDT in memory that the kernel has unmapped or reused.
    Fix: keep the GDT in memory that the kernel owns and maps in every address space, and reload GDTR before the old
        table is unmapped.
    Bad: lgdt [loader_gdt]; then the lower half is unmapped
    Good: static GDT: Gdt in the kernel's own .data; lgdt; then unmap
    """
    missing = []
    for page, users in pages_in_use(cpu).items():
        if fault := cpu.fault(page):
            missing.append(f"{page:#x}: {fault.why}; it holds {', '.join(users)}")
    if missing:
        yield Finding("gdt", None, "", f"the GDT cannot be read at {'; at '.join(missing)}")


@rule("GDT002", ERROR, "the GDT is accessible from ring 3")
def for_users(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a ring 3 program that can write the GDT can give itself a ring 0 segment. With CR4.SMAP, the processor's own
        reads of a user page fault as well, and no interrupt can be delivered (SDM Vol. 3A, "Determination of Access
        Rights": accesses to the descriptor tables are supervisor-mode accesses).
    Fix: map the pages of the GDT with U/S=0 in at least one level of the page tables.
    Bad: map(gdt_page, PRESENT | WRITABLE | USER)
    Good: map(gdt_page, PRESENT | WRITABLE)
    """
    if cpu.ring3:
        pages = [page for page in pages_in_use(cpu) if cpu.for_users(page)]
        if pages:
            message = f"U/S=1 on the GDT's pages at {', '.join(map(hex, pages))}, and there is ring 3 code"
            yield Finding("gdt", None, "", message)


@rule("GDT003", ERROR, "a descriptor in use is not marked accessed, and the GDT is read-only")
def not_accessed(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: when the processor loads a descriptor, it sets the accessed bit (type bit 0) with a supervisor-mode write. In a
        read-only page with CR0.WP=1 that write raises #PF, on an interrupt, an IRETQ or a MOV to a segment register
        (SDM Vol. 3A, table "Code- and Data-Segment Types", and the text on the accessed bit above it). Some emulators
        skip the write, hardware does not.
    Fix: set the accessed bit in the descriptors in advance, or leave the GDT writable.
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
                message = f"selector {selector:#x} ({users}) has A=0, and the processor cannot set it: {fault.why}"
                yield Finding("gdt", selector >> 3, "type", message)


@rule("GDT004", ERROR, "LTR cannot mark the TSS busy: the GDT is read-only", DECLARED)
def read_only_at_ltr(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: LTR sets the busy bit in the TSS descriptor. If the GDT is in a read-only page with CR0.WP=1, LTR raises #PF,
        usually before exceptions can be handled: the boot ends in a reset (SDM Vol. 2A, LTR: marks the TSS descriptor
        busy). The GDT may be made read-only after LTR.
    Fix: put the GDT in a writable section, and write-protect it after LTR.
    Bad: gdt in .rodata; lgdt; ltr
    Good: gdt in .data; lgdt; ltr; then write-protect its page
    """
    table, tr = cpu.table("gdt"), cpu.registers.tr
    if table is not None and tr is not None and cpu.tss_descriptor is not None:
        fault = cpu.fault(table.base + (tr.selector & ~7) + 5, WRITE)
        if fault:
            yield Finding("gdt", tr.selector >> 3, "type", f"LTR with selector {tr.selector:#x} faults: {fault.why}")


@rule("GDT005", WARNING, "the GDT limit is not a multiple of 8 minus 1")
def odd_limit(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the limit is the offset of the last valid byte. With the size instead of size-1, the byte after the table
        counts as part of it; with the size of a pointer (7 or 8), the table is cut off (SDM Vol. 3A, "Segment
        Descriptor Tables": the limit should always be one less than an integral multiple of eight).
    Fix: load GDTR with sizeof(table) - 1, where sizeof is taken of the table and not of a pointer to it.
    Bad: gdtr.limit = sizeof(gdt)
    Good: gdtr.limit = sizeof(gdt) - 1
    """
    table = cpu.table("gdt")
    if table is not None and (table.limit + 1) % 8 and not cpu.cut_off and not cpu.gdt_lost:
        message = f"limit {table.limit:#x}: {table.limit + 1} bytes are not a whole number of descriptors"
        yield Finding("gdtr", None, "limit", message)


@rule("GDT006", NOTE, "the GDT limit is 0xffff")
def full_limit(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: with 0xffff every selector is within the limit, and whatever follows the table counts as descriptors. This is
        rarely intended, but a VM exit leaves the limits of GDTR and IDTR at 0xffff (SDM Vol. 3C, "Loading Host Segment
        and Descriptor-Table Registers"), so it is normal on a host whose hypervisor does not reload GDTR.
    Fix: load GDTR with the size of the table minus 1; a hypervisor may do so after each VM exit, but need not.
    Bad: lgdt with limit 0xffff
    Good: lgdt with limit 0x37 for 7 slots
    """
    table = cpu.table("gdt")
    if table is not None and table.limit == 0xFFFF:
        yield Finding(
            "gdtr",
            None,
            "limit",
            "limit 0xffff, as a VM exit leaves it: all 8192 slots are within the limit, whatever they hold",
        )


@rule("GDT007", ERROR, "the GDT limit leaves out descriptors in use")
def cut_off(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a selector beyond the limit raises #GP with that selector as error code, even if a valid descriptor is there in
        memory. For a handler's code segment this happens during delivery, including that of #GP itself: shutdown (SDM
        Vol. 3A, "Segment Descriptor Tables"). Usual causes: the limit was computed before the TSS descriptor was
        appended, or is the size of a pointer.
    Fix: compute the limit from the finished table.
    Bad: limit = 5 * 8 - 1; the TSS descriptor is in slots 5 and 6
    Good: limit = 7 * 8 - 1
    """
    if cpu.cut_off and (table := cpu.table("gdt")):
        missing = ", ".join(f"{selector:#x} ({users})" for selector, users in sorted(cpu.cut_off.items()))
        message = f"limit {table.limit:#x} leaves out {missing}; the descriptors are in memory beyond it"
        yield Finding("gdtr", None, "limit", message)


@rule("GDT008", ERROR, "a code descriptor has both L and D set")
def both_l_and_d(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: with L=1, D must be 0; the combination is reserved, and loading such a segment into CS raises #GP (SDM Vol. 3A,
        "Code-Segment Descriptor in 64-bit mode" and figure "Segment Descriptor"). Some emulators accept it, so the
        kernel fails only on real hardware.
    Fix: clear D (bit 54) of 64-bit code.
    Bad: 0x00ef9b000000ffff
    Good: 0x00af9b000000ffff
    """
    for selector, code in cpu.descriptors.items():
        if isinstance(code, SegmentDescriptor) and l_and_d(code):
            users = cpu.users.get(selector)
            used = f" ({users})" if users else ""
            yield Finding("gdt", selector >> 3, "d_b", f"selector {selector:#x}{used}: L=1 and D=1 is reserved")


@rule("GDT009", ERROR, "the code segment of the gates is not a present 64-bit code segment of ring 0")
def no_kernel_code(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a handler's segment must be present (else #NP), code, with L=1 and D=0, and its DPL not above the CPL (else
        #GP). The nested fault needs the same segment, so the very first interrupt ends in shutdown (SDM Vol. 3A,
        "64-Bit Mode IDT" and "Interrupt and Exception Handling in 64-bit Mode": the target must be a 64-bit code
        segment). The current CS is a cached copy and is not affected. S=0 makes it a system descriptor.
    Fix: give ring 0 a descriptor with P=1, S=1, type 0xb, L=1, D=0, DPL 0.
    Bad: 0x00cf9b000000ffff (L=0, D=1: 32-bit code)
    Good: 0x00af9b000000ffff
    """
    for selector in sorted(cpu.broken_code):
        code, _ = cpu.lookup(selector)
        if code is None or (isinstance(code, SegmentDescriptor) and l_and_d(code)) or cpu.gdt_lost:
            continue
        flaws = {
            "is an empty slot": not any(bytes(code)),
            "has S=0": not code.s,
            "is not a code segment": not code.type & 8,
            "has P=0": not code.p,
        }
        state = next((flaw for flaw, true in flaws.items() if true), "")
        if isinstance(code, SegmentDescriptor) and not state:
            state = f"has DPL {code.dpl}" if good_code(code) else f"has L={code.l:d}, D={code.d_b:d}"
        users = labels(cpu.gate_selectors[selector])
        yield Finding("gdt", selector >> 3, "", f"selector {selector:#x}, which the gates {users} name, {state}")


@rule("GDT010", WARNING, "a descriptor in use differs between CPUs")
def differs(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a thread that migrates from one CPU to another finds a different segment under the same selector. It works
        until the scheduler moves the thread, and then fails on one CPU only (each processor has its own GDTR: SDM Vol.
        3A, figure "Memory Management Registers"; keeping the tables consistent is up to system software).
    Fix: fill the GDT of every CPU from one template; only the TSS descriptor and per-CPU data differ.
    Bad: the boot CPU's GDT is changed after the other CPUs have copied it
    Good: one function builds the table of each CPU
    """
    first = cpu.cpus[0]
    if first is cpu:
        return
    for selector in cpu.gate_selectors.keys() | {s & ~3 for s in cpu.star_selectors.values()}:
        here, there = cpu.lookup(selector)[0], first.lookup(selector)[0]
        if here == there:
            continue
        if isinstance(here, SegmentDescriptor) and isinstance(there, SegmentDescriptor) and not selector & 4:
            one, two = here.replace(type=here.type | here.s), there.replace(type=there.type | there.s)
            if one != two and here.p and there.p and selector not in cpu.broken_code:
                message = (
                    f"selector {selector:#x} is {bytes(here).hex()} here, {bytes(there).hex()} on CPU {first.number}"
                )
                yield Finding("gdt", selector >> 3, "", message)


@rule("GDT011", ERROR, "GDTR points to a table that has none of the descriptors in use")
def lost(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor continues with the cached copies in its segment registers until an interrupt, an IRETQ or a load
        of a segment register reads the table: #GP during delivery, then shutdown (SDM Vol. 3A, figure "Memory
        Management Registers": GDTR holds base and limit of the table). Usual causes: LGDT with the address of the table
        instead of that of the pseudo-descriptor, a table that was cleared or never copied, an LGDT executed before
        paging with a physical address.
    Fix: load GDTR with the linear address of a filled table.
    Bad: lgdt [gdt]
    Good: gdt_pointer: dw gdt_end - gdt - 1; dq gdt / lgdt [gdt_pointer]
    """
    table = cpu.table("gdt")
    if table is not None and cpu.gdt_lost:
        named = "; ".join(f"{selector:#x} ({users})" for selector, users in sorted(cpu.users.items()))
        yield Finding(
            "gdtr", None, "", f"base {table.base:#x}, limit {table.limit:#x}: no valid descriptor for {named}"
        )


@rule("GDT012", ERROR, "TSS descriptors have 8 bytes, as in 32-bit mode")
def narrow_tss(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: in 64-bit mode a TSS descriptor has 16 bytes, two slots (SDM Vol. 3A, figure "Format of TSS and LDT Descriptors
        in 64-bit Mode"). Where the next CPU's descriptor is in the second one, its low half becomes bits 63:32 of the
        base: LTR loads that, or raises #GP for the bits that must be zero. A CPU whose neighbour was not set up yet
        gets the right base by chance.
    Fix: two slots for each TSS, selectors 0x10 apart, with base bits 63:32 in the second.
    Bad: gdt[5 + cpu] = tss_descriptor(cpu)
    Good: gdt[5 + 2 * cpu] = low; gdt[6 + 2 * cpu] = base >> 32
    """
    code, tr, second = cpu.tss_descriptor, cpu.registers.tr, cpu.second_tss
    if code is None or tr is None or second is None:
        return
    message = (
        f"the slot after the TSS descriptor {tr.selector:#x} is another TSS descriptor, with base {second.base:#x}: "
        f"64-bit mode takes both for one, with base {code.base:#x}"
    )
    yield Finding("gdt", (tr.selector >> 3, (tr.selector >> 3) + 1), "", message)


@rule("GDT013", NOTE, "the GDT is at an odd address")
def odd_address(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor reads a table at any address, but no compiler or linker puts one at an odd one: the base was
        worked out wrongly, or the table is a member of a packed structure. The first looks well as long as the bytes
        fit; the second costs two accesses wherever a descriptor crosses a cache line (SDM Vol. 3A, "Segment Descriptor
        Tables": the base should be aligned on an eight-byte boundary).
    Fix: align the table to 8 bytes.
    Bad: struct { u16 limit; u64 base; u8 flags; u64 gdt[7]; } __attribute__((packed))
    Good: u64 gdt[7] __attribute__((aligned(8)))
    """
    table = cpu.table("gdt")
    if table is not None and table.base & 1 and not cpu.gdt_lost:
        yield Finding("gdtr", None, "base", f"base {table.base:#x} is odd: 8-byte alignment is expected")
