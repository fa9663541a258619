"""Rules about TR, the TSS descriptor, and what the TSS holds."""

from __future__ import annotations

from ..tables.gdt import TSS_AVAILABLE, TSS_BUSY
from ..tables.tss import Tss
from ..tables.vectors import labels
from .catalogue import DECLARED, ERROR, LOADED, NOTE, WARNING, Finding, rule
from .cpu import FULL
from .tables import BEYOND, TOP, UNREADABLE, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Image
    from .cpu import CheckedCpu, Slot

RING3_STACK = "interrupts from ring 3"


@rule("TSS001", ERROR, "a TSS is needed, and none is loaded")
def never_loaded(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: IST stacks and the stack for interrupts from ring 3 are read through TR. Before LTR its base is 0 and its limit
        0xffff, so that the processor takes whatever lies at linear address 0x24 for IST1, or faults on it: a gate with
        an IST is then worse than one without (SDM Vol. 3A, "Task Register", and "Interrupt Stack Table"). This is the
        commonest boot loop of all. A null TR is fine where no gate uses IST and there is no ring 3, and a note where
        only vectors 28 to 30 do, or #MC with CR4.MCE=0.
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


@rule("TSS002", ERROR, "TR names no 64-bit TSS in this GDT")
def stale_tr(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: LTR keeps a copy of the descriptor, so that all goes well until the next LTR, a VM exit or a suspend reads the
        slot again and finds something else: #GP, or another TSS. It tells that GDTR was loaded again without LTR: TR
        then still names the boot loader's TSS, whose stacks are gone with the loader (SDM Vol. 3A, "Task Register";
        Vol. 2A, LTR: the descriptor must be an available 64-bit TSS).
    Fix: LTR after every LGDT, with the selector of a 64-bit TSS (type 9) in the new table.
    Bad: lgdt [new_gdt]; the TSS is still the loader's
    Good: lgdt [new_gdt]; ltr ax
    """
    tr = cpu.registers.tr
    if cpu.tss_descriptor is not None or tr is None or tr.null or not cpu.tr_known or tr.selector & ~3 in cpu.cut_off:
        return
    if not cpu.asks_for_tss or cpu.gdt_lost:
        return
    code, why = cpu.lookup(tr.selector)
    if tr.selector & 4:
        yield Finding("tr", None, "", f"TR {tr.selector:#x} points into an LDT: a TSS is in the GDT")
    elif why == BEYOND:
        message = f"TR {tr.selector:#x} is beyond the limit of the GDT: it names a TSS of another table"
        yield Finding("tr", None, "", message)
    elif code is not None and why != UNREADABLE:
        message = f"TR {tr.selector:#x} names {kind_of(code)} in the GDT, no present 64-bit TSS (type 9 or 0xb)"
        yield Finding("tr", None, "", message)


@rule("TSS003", ERROR, "TR's copy of base or limit is not what the descriptor says", LOADED)
def changed_descriptor(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: base and limit are read by LTR only. A descriptor that was changed afterwards, or another GDT with a TSS at
        the same selector, leaves the processor with the old TSS: the stacks that a kernel writes into its new one are
        never used (SDM Vol. 3A, figure "Task Register": the visible selector and the invisible copy of the
        descriptor). Equal low halves mean that the upper half of the base was lost on the way: a TSS descriptor has 16
        bytes in 64-bit mode.
    Fix: write the whole descriptor, base bits 63:32 included, then LTR.
    Bad: gdt[5] = low; gdt[6] left 0
    Good: gdt[5] = low; gdt[6] = base >> 32
    """
    tr, code = cpu.registers.tr, cpu.tss_descriptor
    if code is None or tr is None:
        return
    if tr.base != code.base:
        lost = ": bits 63:32 are lost" if (tr.base ^ code.base) << 32 & TOP - 1 == 0 else ""
        yield Finding("tr", None, "base", f"TR has base {tr.base:#x}, its descriptor {code.base:#x}{lost}")
    elif tr.limit != code.effective_limit and not _cut_off(cpu):
        yield Finding("tr", None, "limit", f"TR has limit {tr.limit:#x}, its descriptor {code.effective_limit:#x}")


@rule("TSS004", ERROR, "the TSS is marked busy before LTR", DECLARED)
def busy_before_ltr(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: LTR accepts an available TSS (type 9) only and marks it busy itself; a type of 0xb raises #GP (SDM Vol. 2A,
        LTR; Vol. 3A, table "System-Segment and Gate-Descriptor Types"). What was copied from a
        running system has type 0xb.
    Fix: declare type 9.
    Bad: SystemDescriptor(type=0xb, ...)
    Good: SystemDescriptor.tss(base)
    """
    code, tr = cpu.tss_descriptor, cpu.registers.tr
    if code is not None and tr is not None and code.type == TSS_BUSY:
        yield Finding("gdt", tr.selector >> 3, "type", f"LTR {tr.selector:#x} raises #GP: type 0xb, expected 9")


@rule("TSS005", NOTE, "TR is loaded, but its descriptor is not marked busy", LOADED)
def not_busy(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: LTR turns type 9 into 0xb in memory. A 9 under a loaded TR means that the descriptor was written again after
        LTR, or that this GDT is a copy: harmless, but a hint that somebody builds the table twice (SDM Vol. 3A, "TSS
        Descriptor in 64-bit mode": the busy flag).
    Fix: build the table once, before LTR.
    Bad: ltr ax; init_gdt() once more
    Good: init_gdt(); ltr ax
    """
    code, tr = cpu.tss_descriptor, cpu.registers.tr
    if code is not None and tr is not None and code.type == TSS_AVAILABLE:
        message = f"selector {tr.selector:#x}, which TR holds, has type 9 (available): LTR had made it 0xb"
        yield Finding("gdt", tr.selector >> 3, "type", message)


@rule("TSS006", ERROR, "the TSS limit is too small")
def short_limit(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a stack pointer beyond the TSS limit raises #TS while an exception is delivered; for gate 8 that is a shutdown
        (SDM Vol. 3A, figure "64-Bit TSS Format": IST1 ends at offset 0x2b, IST7 at 0x5b). The whole structure has 104
        bytes, so that the limit is 0x67; less is a warning where no pointer in use is cut off.
    Fix: limit = sizeof(TSS) - 1 = 0x67, of the structure and not of a pointer to it.
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


@rule("TSS007", ERROR, "the TSS descriptor counts its limit in pages")
def granular(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: with G=1 a limit of 0x67 means 416 KiB. Memory behind the TSS then counts as I/O permission bitmap: each zero
        bit in it opens a port to ring 3 (SDM Vol. 3A, figure "Format of TSS and LDT Descriptors in 64-bit Mode", flag
        G; Vol. 1, "I/O Permission Bit Map").
    Fix: clear G in the TSS descriptor.
    Bad: flags = 0x8 in the TSS descriptor
    Good: flags = 0x0
    """
    code, tr = cpu.tss_descriptor, cpu.registers.tr
    if code is not None and tr is not None and code.g:
        message = f"G=1 makes limit {code.limit:#x} a TSS of {code.effective_limit + 1} bytes"
        yield Finding("gdt", tr.selector >> 3, "g", message)


@rule("TSS008", ERROR, "the TSS cannot be read")
def unmapped(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the processor reads stack pointers from the TSS as a supervisor, through the page tables, at the time of the
        exception. A page fault there makes #DF of #PF, and a shutdown of #DF (SDM Vol. 3A, "Interrupt Stack Table").
        A base of 32 bits where the kernel lives in the upper half tells that the upper half of the descriptor was
        never written.
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
            who = labels(users) if users else RING3_STACK
            message = f"the TSS at {table.base:#x} cannot be read for {who}: {fault.why}{_half(cpu, table.base)}"
            yield Finding("tss", None, "", message)
            return


def _half(cpu: CheckedCpu, base: int) -> str:
    """A hint where only the upper half of a base seems to be missing."""
    gdt = cpu.registers.gdtr
    if base >> 32 == 0 and gdt is not None and gdt.base >> 32 and cpu.physical(gdt.base >> 32 << 32 | base) is not None:
        return f"; it is mapped at {gdt.base >> 32 << 32 | base:#x}: bits 63:32 of the base are lost"
    return ""


@rule("TSS009", ERROR, "ring 3 can reach the TSS")
def for_users(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a program that can write the TSS chooses the stack on which ring 0 handles its next interrupt; with CR4.SMAP
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


@rule("TSS010", ERROR, "the I/O permission bitmap begins inside of the TSS")
def bitmap_by_accident(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the base of the bitmap is an offset into the TSS. Left 0, or anything below 0x68, the stack pointers themselves
        are read as the bitmap, and their zero bits open ports to ring 3 (SDM Vol. 3A, figure "64-Bit TSS Format", I/O
        Map Base Address; Vol. 1, "I/O Permission Bit Map": no bitmap where the base is beyond the limit).
    Fix: write 0x68, the size of the TSS, which lies beyond a limit of 0x67.
    Bad: tss = Tss(iopb=0)
    Good: tss = Tss(iopb=0x68)
    """
    base = _bitmap(cpu)
    if base is not None and base < Tss.size:
        message = f"base {base:#x} makes the TSS's own bytes a bitmap: their zero bits open ports to ring 3"
        yield Finding("tss", None, "iopb", message)


@rule("TSS011", WARNING, "the I/O permission bitmap has no final byte of ones")
def bitmap_not_closed(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: for each port the processor reads two bytes of the bitmap, both of which must lie within the limit; the manual
        asks for a last byte of all ones there (SDM Vol. 1, figure "I/O Permission Bit Map"). Without it the last ports
        of the map are refused although their bits are 0: it denies, it does not open.
    Fix: one more byte, 0xff, and a limit that covers it.
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
    """The base of a bitmap that counts; None when there is none, or nobody at ring 3 to use it."""
    table, code, start = cpu.tss, cpu.tss_descriptor, Tss.field("iopb").offset
    if table is None or table.limit < start + 1 or not cpu.ring3 or (code is not None and code.g):
        return None
    if not cpu.readable(table, start, 2):
        return None
    base = int.from_bytes(table.data[start : start + 2], "little")
    return base if base < table.limit else None


@rule("TSS012", ERROR, "two CPUs share one TSS")
def shared(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: both CPUs get their stacks from it. When both take an exception on the same IST stack, or from ring 3, the one
        writes over the other's frame. LTR refuses a TSS that is busy, but not the same one through another descriptor
        or GDT (SDM Vol. 3A, "Task Register": each processor has its own; "Interrupt Stack Table").
    Fix: a TSS, and stacks, for each CPU.
    Bad: static TSS: Tss, loaded by every CPU
    Good: tss[cpu], with a descriptor for each
    """
    for other in cpu.cpus:
        if other.number < cpu.number and same_tss(cpu, other):
            message = f"the TSS at {cpu.registers.tr.base:#x} is CPU {other.number}'s too"  # type: ignore[union-attr]
            yield Finding("tr", None, "base", message)
            return


def same_tss(cpu: CheckedCpu, other: CheckedCpu) -> bool:
    """Whether two CPUs have loaded one TSS."""
    mine, theirs = cpu.tss, other.tss
    if mine is None or theirs is None:
        return False
    if cpu.paged and other.paged and "tss" not in cpu.machine.physical:
        return cpu.same_place(mine.base, other, theirs.base)
    return mine.base == theirs.base


@rule("TSS013", ERROR, "a stack pointer in use is zero")
def zero_pointer(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: zero is a pointer like any other to the processor: the frame goes to 0xfffffffffffffff8 and below, where there
        is nothing, and the page fault on the way makes #DF, then shutdown (SDM Vol. 3A, "Interrupt Stack Table", and
        figure "64-Bit TSS Format"). Often the number is off by one: libraries that count the seven slots from 0 mean
        IST1 by index 0. A warning for #DF where #PF has a good stack of its own, and for RSP0 before ring 3 has run; a
        note where only vectors 28 to 30 use it, or #MC with CR4.MCE=0.
    Fix: fill the slot that the gate names, counted from 1 as the manual does.
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
    """ "did you mean", where the slot before or after is filled and used by nobody."""
    table, number = cpu.tss, int(slot.field[-1])
    if table is None or not slot.vectors:
        return ""
    for other in (number + 1, number - 1):
        if 1 <= other <= 7 and other not in cpu.ist_users:
            start = Tss.field(f"ist{other}").offset
            if start + 7 <= table.limit and table.known(start, start + 8) and any(table.data[start : start + 8]):
                return f", while IST{other} is set and nobody uses it: did you mean IST{other}?"
    return ""


@rule("TSS014", ERROR, "a reserved field of the TSS is not zero: the pointers are misplaced")
def reserved_fields(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: the 64-bit TSS has four reserved bytes before RSP0, eight between RSP2 and IST1, and ten behind IST7. A
        structure that leaves one out, or that a compiler has padded, puts every pointer behind it in the wrong place:
        gate 8's IST1 is then zero or half of something (SDM Vol. 3A, figure "64-Bit TSS Format"). A warning where all
        pointers in use are good none the less.
    Fix: declare the structure packed, with all reserved fields: 104 bytes.
    Bad: struct { u32 _; u64 rsp[3]; u64 ist[7]; ... }
    Good: struct packed { u32 _; u64 rsp[3]; u64 _; u64 ist[7]; u64 _; u16 _; u16 iopb; }
    """
    for name, value in _reserved(cpu):
        field = Tss.field(name)
        message = f"{name} at offset {field.offset:#x} holds {value:#x}, expected 0"
        yield Finding("tss", None, name, message, "" if shifted(cpu) or not cpu.slots else WARNING)
        return


def _reserved(cpu: CheckedCpu) -> Iterator[tuple[str, int]]:
    """Reserved fields of the TSS that hold something."""
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
    """Whether reserved fields hold something and a pointer in use is bad: one mistake, told by TSS014."""
    if not any(True for _ in _reserved(cpu)):
        return False
    bad = any(slot.top == 0 or not cpu.canonical(slot.top) for slot in cpu.slots)
    return bad or any(stack.refused for stack in cpu.stacks)


@rule("TSS015", ERROR, "a stack pointer in use is not canonical")
def not_canonical(image: Image, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: loading a non-canonical pointer from the TSS raises #SS during delivery, which makes #DF of a fault and a
        shutdown of #DF (SDM Vol. 2A, INT n: if the new stack pointer is not canonical, #SS; with CR4.LA57 bits 63:57
        must repeat bit 56). Seen where a physical address was or-ed to a base, or a value was truncated.
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
