"""Rules about TR, the TSS descriptor, and the contents of the TSS."""

from __future__ import annotations

from ..tables.gdt import TSS_AVAILABLE, TSS_BUSY
from ..tables.tss import STACKS, Tss
from ..tables.vectors import labels
from .catalogue import DECLARED, ERROR, LOADED, NOTE, WARNING, Finding, rule
from .cpu import FULL
from .tables import BEYOND, TOP, UNREADABLE, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Snapshot
    from .cpu import CheckedCpu, Slot

RING3_STACK = "interrupts from ring 3"


@rule("TSS001", ERROR, "a TSS is needed, but none is loaded")
def never_loaded(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: IST stacks and the stack for interrupts from ring 3 are read through TR. Before LTR its base is 0 and its limit
        0xffff, so the processor takes whatever is at linear address 0x24 for IST1, or faults on it: a gate with an IST
        is then worse than one without (SDM Vol. 3A, "Task Register", and "Interrupt Stack Table"). This is the most
        common boot loop. A null TR is fine where no gate uses IST and there is no ring 3; it is a note where only
        vectors 28 to 30 use IST, or #MC with CR4.MCE=0.
    Fix: put a TSS descriptor into the GDT, load GDTR, then LTR with its selector, on every CPU.
    Bad: idt[8] = Gate.interrupt(double_fault, KERNEL_CS, ist=1); lidt; no ltr
    Good: lgdt; mov ax, 0x28; ltr ax; lidt
    """
    tr = cpu.registers.tr
    if tr is None:
        if cpu.asks_for_tss:
            cpu.missing("TR is not known")
    elif tr.null and cpu.asks_for_tss:
        severity = NOTE if cpu.tss_for_features else ""
        yield Finding("tr", None, "", f"{cpu.asks_for_tss}, but no TSS is loaded: TR is null", severity)


@rule("TSS002", ERROR, "TR does not name a 64-bit TSS in this GDT")
def stale_tr(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor keeps a cached copy of the TSS descriptor, so nothing happens until the next LTR, a VM exit or a
        resume from suspend reads the slot again and finds something else: #GP, or a different TSS. It shows that GDTR
        was reloaded without LTR: TR may still name the boot loader's TSS, whose stacks no longer exist (SDM Vol. 3A,
        "Task Register"; Vol. 2A, LTR: the descriptor must be an available 64-bit TSS).
    Fix: LTR after every LGDT, with the selector of a 64-bit TSS (type 9) in the new table.
    Bad: lgdt [new_gdt]; the TSS is still the boot loader's
    Good: lgdt [new_gdt]; ltr ax
    """
    tr = cpu.registers.tr
    if cpu.tss_descriptor is not None or tr is None or tr.null or not cpu.tr_known or tr.selector & ~3 in cpu.cut_off:
        return
    if not cpu.asks_for_tss or cpu.gdt_lost:
        return
    code, why = cpu.lookup(tr.selector)
    if tr.selector & 4:
        yield Finding(
            "tr", None, "", f"TR {tr.selector:#x} names a descriptor in an LDT: a TSS descriptor must be in the GDT"
        )
    elif why == BEYOND:
        message = f"TR {tr.selector:#x} is beyond the limit of the GDT: it belongs to a different table"
        yield Finding("tr", None, "", message)
    elif code is not None and why != UNREADABLE:
        message = f"TR {tr.selector:#x} names {kind_of(code)} in the GDT, not a present 64-bit TSS (type 9 or 0xb)"
        yield Finding("tr", None, "", message)


@rule("TSS003", ERROR, "TR's cached base or limit differs from the descriptor's", LOADED)
def changed_descriptor(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: only LTR reads base and limit. If the descriptor is changed afterwards, or another GDT with a TSS at the same
        selector is loaded, the processor continues to use the old TSS: the stacks that the kernel writes into the new
        one are never used (SDM Vol. 3A, figure "Task Register": the visible selector and the invisible copy of the
        descriptor). Equal low halves mean that the upper half of the base was lost: a TSS descriptor has 16 bytes in
        64-bit mode. A note where TR has limit 0x67 and the descriptor a larger one: a VM exit leaves 0x67 in TR (SDM
        Vol. 3C, "Loading Host Segment and Descriptor-Table Registers"), so this is normal on a host that has run a
        virtual machine. All stack pointers are within 0x67; only an I/O permission bitmap is out of reach.
    Fix: write the whole descriptor, base bits 63:32 included, then LTR.
    Bad: gdt[5] = low; gdt[6] left 0
    Good: gdt[5] = low; gdt[6] = base >> 32
    """
    tr, code = cpu.registers.tr, cpu.tss_descriptor
    if code is None or tr is None or cpu.second_tss is not None:
        return
    if tr.base != code.base:
        lost = ": bits 63:32 are lost" if (tr.base ^ code.base) << 32 & TOP - 1 == 0 else ""
        yield Finding("tr", None, "base", f"TR has base {tr.base:#x}, its descriptor {code.base:#x}{lost}")
    elif tr.limit != code.effective_limit and not _cut_off(cpu):
        after_vm_exit = tr.limit == FULL < code.effective_limit
        hint = ": a VM exit leaves 0x67 in TR, which is harmless" if after_vm_exit else ""
        message = f"TR has limit {tr.limit:#x}, its descriptor {code.effective_limit:#x}{hint}"
        yield Finding("tr", None, "limit", message, NOTE if after_vm_exit else "")


@rule("TSS004", ERROR, "the TSS is marked busy before LTR", DECLARED)
def busy_before_ltr(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: LTR accepts only an available TSS (type 9) and marks it busy itself; type 0xb raises #GP (SDM Vol. 2A, LTR;
        Vol. 3A, table "System-Segment and Gate-Descriptor Types"). A descriptor copied from a running system has type
        0xb.
    Fix: declare type 9.
    Bad: SystemDescriptor(type=0xb, ...)
    Good: SystemDescriptor.tss(base)
    """
    code, tr = cpu.tss_descriptor, cpu.registers.tr
    if code is not None and tr is not None and code.type == TSS_BUSY:
        yield Finding("gdt", tr.selector >> 3, "type", f"LTR {tr.selector:#x} raises #GP: type 0xb, expected 9")


@rule("TSS005", NOTE, "TR is loaded, but its descriptor is not marked busy", LOADED)
def not_busy(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: LTR changes type 9 to 0xb in memory. Type 9 while TR is loaded means that the descriptor was rewritten after
        LTR, or that this GDT is a copy: harmless, but a hint that the table is built twice (SDM Vol. 3A, "TSS
        Descriptor in 64-bit mode": the busy flag).
    Fix: build the table once, before LTR.
    Bad: ltr ax; init_gdt() again
    Good: init_gdt(); ltr ax
    """
    code, tr = cpu.tss_descriptor, cpu.registers.tr
    if code is not None and tr is not None and code.type == TSS_AVAILABLE:
        message = f"selector {tr.selector:#x}, which TR holds, has type 9 (available), although LTR sets 0xb"
        yield Finding("gdt", tr.selector >> 3, "type", message)


@rule("TSS006", ERROR, "the TSS limit is too small")
def short_limit(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a stack pointer beyond the TSS limit raises #TS while an exception is delivered; for gate 8 that is a shutdown
        (SDM Vol. 3A, figure "64-Bit TSS Format": IST1 ends at offset 0x2b, IST7 at 0x5b). The whole structure has 104
        bytes, limit 0x67; a smaller limit is a warning where no pointer in use is cut off.
    Fix: limit = sizeof(TSS) - 1 = 0x67, where sizeof is taken of the structure and not of a pointer to it.
    Bad: SystemDescriptor.tss(base, limit=0x2a)
    Good: SystemDescriptor.tss(base, limit=0x67)
    """
    tr, table = cpu.registers.tr, cpu.tss
    if tr is None or table is None or tr.limit >= FULL:
        return
    if cut := _cut_off(cpu):
        code = cpu.tss_descriptor
        said = "" if code is None or code.effective_limit == tr.limit else f", in the GDT {code.effective_limit:#x},"
        names = "; ".join(f"{name.upper()} for {labels(users) if users else RING3_STACK}" for name, users in cut)
        severity = WARNING if all(users and all(map(cpu.off, users)) for _, users in cut) else ""
        yield Finding("tr", None, "limit", f"limit {tr.limit:#x}{said} cuts off {names}: #TS", severity)
    else:
        yield Finding("tr", None, "limit", f"limit {tr.limit:#x}: a 64-bit TSS has 104 bytes, limit 0x67", WARNING)


def _cut_off(cpu: CheckedCpu) -> list[tuple[str, tuple[int, ...]]]:
    """The stack pointers in use that end beyond the limit in TR, with the vectors that ask for them."""
    tr = cpu.registers.tr
    if tr is None or cpu.tss is None:
        return []
    return [(name, users) for name, users in cpu.reachable() if Tss.field(name).offset + 7 > tr.limit]


@rule("TSS007", ERROR, "G=1 in the TSS descriptor")
def granular(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: with G=1 the limit counts pages: 0x67 means 416 KiB. The memory after the TSS is then read as its I/O
        permission bitmap, in which each zero bit opens a port to ring 3 (SDM Vol. 3A, figure "Format of TSS and LDT
        Descriptors in 64-bit Mode", flag G; Vol. 1, "I/O Permission Bit Map"). A note where nothing uses the TSS: no
        gate has an IST and there is no ring 3.
    Fix: clear G in the TSS descriptor.
    Bad: flags = 0x8 in the TSS descriptor
    Good: flags = 0x0
    """
    code, tr = cpu.tss_descriptor, cpu.registers.tr
    if code is not None and tr is not None and code.g:
        message = f"with G=1, limit {code.limit:#x} means a TSS of {code.effective_limit + 1} bytes"
        yield Finding("gdt", tr.selector >> 3, "g", message, NOTE if unused(cpu) else "")


def unused(cpu: CheckedCpu) -> bool:
    """Whether nothing reads the TSS: no present gate has an IST, and no ring 3 code is interrupted or uses ports."""
    return not cpu.asks_for_tss and not cpu.ring3


@rule("TSS008", ERROR, "the TSS cannot be read")
def unmapped(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor reads stack pointers from the TSS as a supervisor, through the page tables, at the time of the
        exception. A page fault there turns #PF into #DF, and #DF into a shutdown (SDM Vol. 3A, "Interrupt Stack
        Table"). A base below 4 GiB in a higher-half kernel suggests that the upper half of the descriptor was never
        written.
    Fix: map the TSS in every address space; write all 64 bits of its base.
    Bad: base = (uint32_t)&tss
    Good: base = (uint64_t)&tss, bits 63:32 in the second slot
    """
    table = cpu.tss
    if table is None or not cpu.asks_for_tss:
        return
    needed = [(name, users) for name, users in cpu.reachable() if Tss.field(name).offset + 7 <= table.limit]
    for name, users in needed:
        address = table.base + Tss.field(name).offset
        if "tss" not in cpu.machine.physical and (fault := cpu.fault(address) or cpu.fault(address + 7)):
            if cpu.second_tss is not None:
                return
            who = labels(users) if users else RING3_STACK
            message = f"the TSS at {table.base:#x} cannot be read for {who}: {fault.why}{_half(cpu, table.base)}"
            yield Finding("tss", None, "", message)
            return


def _half(cpu: CheckedCpu, base: int) -> str:
    """A hint where only the upper half of a base seems to be missing."""
    gdt = cpu.registers.gdtr
    if base >> 32 == 0 and gdt is not None and gdt.base >> 32 and cpu.physical(gdt.base >> 32 << 32 | base) is not None:
        return f"; {gdt.base >> 32 << 32 | base:#x} is mapped: bits 63:32 of the base are lost"
    return ""


@rule("TSS009", ERROR, "the TSS is accessible from ring 3")
def for_users(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a program that can write the TSS chooses the stack on which ring 0 handles its next interrupt. With CR4.SMAP
        the processor's own read of it faults (SDM Vol. 3A, "Determination of Access Rights": accesses to a TSS are
        supervisor-mode accesses).
    Fix: map the page of the TSS with U/S=0.
    Bad: map(tss_page, PRESENT | WRITABLE | USER)
    Good: map(tss_page, PRESENT | WRITABLE)
    """
    table = cpu.tss
    if table is not None and cpu.ring3:
        pages = [page for page in cpu.pages(table, FULL + 1) if cpu.for_users(page)]
        if pages:
            message = f"U/S=1 on the TSS at {', '.join(map(hex, pages))}, and there is ring 3 code"
            yield Finding("tss", None, "", message)


@rule("TSS010", ERROR, "the I/O permission bitmap begins inside the TSS")
def bitmap_by_accident(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the base of the bitmap is an offset into the TSS. With 0, or any offset below 0x68, the stack pointers are read
        as part of the bitmap, and their zero bits open ports to ring 3 (SDM Vol. 3A, figure "64-Bit TSS Format", I/O
        Map Base Address; Vol. 1, "I/O Permission Bit Map": no bitmap where the base is beyond the limit).
    Fix: write 0x68, the size of the TSS, which is beyond a limit of 0x67.
    Bad: tss = Tss(iopb=0)
    Good: tss = Tss(iopb=0x68)
    """
    base = _bitmap(cpu)
    if base is not None and base < Tss.size:
        message = f"base {base:#x}: bytes of the TSS itself are read as the bitmap, and zero bits open ports to ring 3"
        yield Finding("tss", None, "iopb", message + _misplaced(cpu))


def _misplaced(cpu: CheckedCpu) -> str:
    """A hint where 0x68, as a word, is all that a stack pointer has: the base of the bitmap at a wrong offset."""
    table, size = cpu.tss, Tss.size.to_bytes(2, "little")
    for name in STACKS:
        start = Tss.field(name).offset
        if table is None or not table.known(start, start + 8):
            continue
        value = table.data[start : start + 8]
        at = value.find(size)
        if at >= 0 and value.count(0) == 7:
            field = Tss.field("iopb").offset
            return f"; 0x68 is at offset {start + at:#x}, in {name.upper()}: was it meant for offset {field:#x}?"
    return ""


@rule("TSS011", WARNING, "the I/O permission bitmap does not end with 0xff")
def bitmap_not_closed(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: for each port the processor reads two bytes of the bitmap, both of which must be within the limit; the manual
        asks for a final byte of all ones (SDM Vol. 1, figure "I/O Permission Bit Map"). Without it the last ports of
        the map are denied although their bits are 0.
    Fix: add one byte, 0xff, and include it in the limit.
    Bad: limit = 0x67 + 8192
    Good: limit = 0x67 + 8192 + 1, and the last byte is 0xff
    """
    base, table = _bitmap(cpu), cpu.tss
    if base is None or table is None or base < Tss.size:
        return
    stop = min(table.limit + 1, base + 8193)
    if cpu.readable(table, stop - 1, 1) and table.data[stop - 1] != 0xFF:
        message = f"the bitmap at {base:#x} ends with {table.data[stop - 1]:#04x}, expected 0xff"
        yield Finding("tss", None, "iopb", message)


def _bitmap(cpu: CheckedCpu) -> int | None:
    """The base of a bitmap that has an effect; None when there is none, or no ring 3 code to use it."""
    table, code, start = cpu.tss, cpu.tss_descriptor, Tss.field("iopb").offset
    if table is None or table.limit < start + 1 or not cpu.ring3 or (code is not None and code.g):
        return None
    if not cpu.readable(table, start, 2):
        return None
    base = int.from_bytes(table.data[start : start + 2], "little")
    return base if base < table.limit else None


@rule("TSS012", ERROR, "two CPUs share one TSS")
def shared(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: both CPUs get their stacks from it. When both take an exception on the same IST stack, or from ring 3, one
        overwrites the other's frame. LTR rejects a busy TSS, but not the same TSS through another descriptor or GDT
        (SDM Vol. 3A, "Task Register": each processor has its own; "Interrupt Stack Table").
    Fix: one TSS, with its own stacks, for each CPU.
    Bad: static TSS: Tss, loaded by every CPU
    Good: tss[cpu], each with its own descriptor
    """
    if (other := cpu.cpus.first_with_tss(cpu)) is not None:
        message = f"the TSS at {cpu.registers.tr.base:#x} is also that of CPU {other.number}"  # type: ignore[union-attr]
        yield Finding("tr", None, "base", message)


@rule("TSS013", ERROR, "a stack pointer in use is zero")
def zero_pointer(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: to the processor zero is a pointer like any other: the frame is pushed at 0xfffffffffffffff8 and below, which
        is not mapped, and the page fault becomes #DF, then shutdown (SDM Vol. 3A, "Interrupt Stack Table", and figure
        "64-Bit TSS Format"). Often the number is off by one: in libraries that count the seven pointers from 0, index 0
        is IST1. A warning for #DF where #PF has a good stack of its own, and for RSP0 before ring 3 has run; a note
        where only vectors 28 to 30 use it, or #MC with CR4.MCE=0.
    Fix: set the pointer that the gate names, counted from 1 as the manual does.
    Bad: tss.ist1 = top; idt[8] = Gate.interrupt(double_fault, KERNEL_CS, ist=2)
    Good: tss.ist1 = top; idt[8] = Gate.interrupt(double_fault, KERNEL_CS, ist=1)
    """
    if shifted(cpu):
        return
    for slot in cpu.slots:
        if slot.top == 0:
            who = f"used by {labels(slot.vectors)}" if slot.vectors else f"used when {RING3_STACK}"
            yield Finding(
                "tss", None, slot.field, f"{slot.name}, {who}, is zero{_neighbour(cpu, slot)}", mildness(cpu, slot)
            )


def mildness(cpu: CheckedCpu, slot: Slot) -> str:
    """The severity of a bad pointer where it is less than an error."""
    if slot.optional:
        return NOTE
    if not slot.vectors and slot.top == 0:
        return "" if cpu.registers.cpl == 3 else WARNING
    return WARNING if slot.vectors == (8,) and cpu.page_fault_has_stack else ""


def _neighbour(cpu: CheckedCpu, slot: Slot) -> str:
    """ "did you mean", where the pointer before or after is set and not used."""
    table, number = cpu.tss, int(slot.field[-1])
    if table is None or not slot.vectors:
        return ""
    for other in (number + 1, number - 1):
        if 1 <= other <= 7 and other not in cpu.ist_users:
            start = Tss.field(f"ist{other}").offset
            if start + 7 <= table.limit and table.known(start, start + 8) and any(table.data[start : start + 8]):
                return f", while IST{other} is set but not used: did you mean IST{other}?"
    return ""


@rule("TSS014", ERROR, "a reserved field of the TSS is not zero: the pointers may be misplaced")
def reserved_fields(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the 64-bit TSS has four reserved bytes before RSP0, eight between RSP2 and IST1, and ten after IST7. A
        structure that leaves one out, or that a compiler has padded, puts every pointer after it in the wrong place:
        gate 8's IST1 is then zero or half of another pointer (SDM Vol. 3A, figure "64-Bit TSS Format"). A warning where
        all pointers in use are good all the same; a note where nothing uses the TSS.
    Fix: declare the structure packed, with all reserved fields: 104 bytes.
    Bad: struct { u32 _; u64 rsp[3]; u64 ist[7]; ... }
    Good: struct packed { u32 _; u64 rsp[3]; u64 _; u64 ist[7]; u64 _; u16 _; u16 iopb; }
    """
    for name, value in _reserved(cpu):
        field = Tss.field(name)
        message = f"{name} at offset {field.offset:#x} holds {value:#x}, expected 0"
        severity = NOTE if unused(cpu) else "" if shifted(cpu) or not cpu.slots else WARNING
        yield Finding("tss", None, name, message, severity)
        return


def _reserved(cpu: CheckedCpu) -> Iterator[tuple[str, int]]:
    """The reserved fields of the TSS that are not zero, and their values."""
    table = cpu.tss
    if table is None:
        return
    for name in ("reserved0", "reserved1", "reserved2", "reserved3"):
        field = Tss.field(name)
        start, stop = field.offset, field.offset + {"reserved0": 4, "reserved3": 2}.get(name, 8)
        if stop > table.limit + 1 or not cpu.readable(table, start, stop - start):
            continue
        if value := int.from_bytes(table.data[start:stop], "little"):
            yield name, value


def shifted(cpu: CheckedCpu) -> bool:
    """Whether a reserved field is not zero and a pointer in use is bad: one mistake, reported by TSS014."""
    if not any(True for _ in _reserved(cpu)):
        return False
    bad = any(slot.top == 0 or not cpu.canonical(slot.top) for slot in cpu.slots)
    return bad or any(stack.refused for stack in cpu.stacks)


@rule("TSS015", ERROR, "a stack pointer in use is not canonical")
def not_canonical(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: loading a non-canonical pointer from the TSS raises #SS during delivery, which turns a fault into #DF and #DF
        into a shutdown (SDM Vol. 2A, INT n: if the new stack pointer is not canonical, #SS; with CR4.LA57 bits 63:57
        must repeat bit 56). Usual causes: a physical address OR-ed with a base, or a truncated value.
    Fix: write the 64-bit linear address of the end of the stack.
    Bad: tss.ist1 = 0x0000ffff80005000
    Good: tss.ist1 = 0xffffffff80005000
    """
    if shifted(cpu):
        return
    for slot in cpu.slots:
        if not cpu.canonical(slot.top):
            who = f"used by {labels(slot.vectors)}" if slot.vectors else f"used when {RING3_STACK}"
            message = f"{slot.name} {slot.top:#x}, {who}, is not canonical: #SS"
            yield Finding("tss", None, slot.field, message, mildness(cpu, slot))


@rule("TSS016", NOTE, "TR is null where a monitor needs it", LOADED, "vmx-root")
def no_tr_for_a_monitor(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a VM entry fails when the TR selector in the host-state area is 0, and every VM exit loads TR from there (SDM
        Vol. 3C, "Checks on Host Segment and Descriptor-Table Registers": the selectors of CS and TR cannot be 0000H).
        Firmware hands over with a null TR, so a monitor that is started from it and copies the registers that it
        found into the VMCS is refused with a VM-instruction error.
    Fix: before the first VM entry, put a 64-bit TSS into the GDT of each CPU, and LTR.
    Bad: vmwrite(HOST_TR_SELECTOR, str()), TR being as firmware left it
    Good: lgdt; mov ax, 0x28; ltr ax; vmwrite(HOST_TR_SELECTOR, 0x28)
    """
    tr = cpu.registers.tr
    if tr is None:
        cpu.missing("TR is not known")
    elif tr.null:
        yield Finding("tr", None, "", "TR is null: a VM entry with it as the host's TR fails")
