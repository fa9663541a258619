"""Rules about segment registers and STAR: whether their selectors name the right descriptors in the current GDT; and
about control registers that differ between CPUs."""

from __future__ import annotations

from ..machine.registers import NXE, SMAP, SMEP, UMIP, WP
from ..tables.gdt import LDT, SegmentDescriptor, SystemDescriptor
from ..tables.selector import Star
from ..tables.vectors import ranges
from .catalogue import ERROR, LOADED, WARNING, Finding, rule
from .tables import BEYOND, NO_LDT, NULL, good_code, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine.image import Snapshot
    from ..machine.registers import Segment
    from .cpu import CheckedCpu

# what protects memory, and must be set by each CPU for itself
PROTECTION = {"cr0": {"wp": WP}, "cr4": {"umip": UMIP, "smep": SMEP, "smap": SMAP}, "efer": {"nxe": NXE}}
SYSCALL, SYSRET = "star[47:32]", "star[63:48]"  # the halves of STAR that hold selectors


def mismatch(cpu: CheckedCpu, selector: int, fits: bool) -> str:
    """What a selector names instead of a descriptor that fits; "" where it fits, or where that is not known."""
    if cpu.reported_elsewhere(selector):
        return ""
    code, why = cpu.lookup(selector)
    if why in (NULL, BEYOND, NO_LDT):
        return str(why)
    return "" if code is None or fits else kind_of(code)


@rule("REG001", ERROR, "CS does not name a matching code segment in this GDT")
def stale_cs(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: CS keeps its cached copy of the old descriptor, so nothing happens until the selector is saved in an interrupt
        frame and IRETQ reloads it: #GP, far from the LGDT that caused it (SDM Vol. 3A, figure "Segment Registers":
        visible selector and hidden part; Vol. 2A, IRET: checks of the return code segment). In the kernel's table, the
        boot loader's code selector often names a different descriptor, or even the upper half of the TSS descriptor.
    Fix: reload CS after LGDT, with a far return (RETFQ).
    Bad: lgdt [gdt]
    Good: lgdt [gdt]; push 0x08; lea rax, [next]; push rax; retfq; next:
    """
    cs = cpu.registers.cs
    if cs is None:
        cpu.missing("CS is not known")
        return
    code, _ = cpu.lookup(cs.selector)
    cpl, fits = cs.selector & 3, False
    if isinstance(code, SegmentDescriptor) and code.s and code.code and code.p and not (code.l and code.d_b):
        mode = cs.flags is None or code.l == cs.descriptor.l
        fits = mode and (code.dpl <= cpl if code.conforming else code.dpl == cpl)
    if wrong := mismatch(cpu, cs.selector, fits):
        message = f"CS {cs.selector:#x} is {wrong} in the current GDT: IRETQ to it raises #GP"
        yield Finding("cs", None, "", message)


@rule("REG002", ERROR, "SS does not name a writable data segment in this GDT")
def stale_ss(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: an interrupt in ring 0 saves SS, and IRETQ reloads it: a selector of code, of a TSS or of no descriptor raises
        #GP there, in a handler that did nothing wrong (SDM Vol. 2A, IRET: the stack segment must be writable data with
        the DPL of the new CPL; a null SS is accepted in 64-bit mode below ring 3).
    Fix: reload SS after LGDT with 0 or the kernel's data selector.
    Bad: lgdt [gdt], with the boot loader's 0x10 left in SS, where the new table has its TSS
    Good: lgdt [gdt]; xor eax, eax; mov ss, ax
    """
    ss, cs = cpu.registers.ss, cpu.registers.cs
    if ss is None or cs is None:
        cpu.missing("SS is not known" if ss is None else "CS is not known")
        return
    cpl = cs.selector & 3
    if ss.null and cpl < 3 and cpu.machine.mode == "long64":
        return
    code, _ = cpu.lookup(ss.selector)
    fits = isinstance(code, SegmentDescriptor) and code.s and code.writable and code.p and code.dpl == cpl
    if wrong := mismatch(cpu, ss.selector, fits):
        message = f"SS {ss.selector:#x} is {wrong} in the current GDT: IRETQ to it raises #GP"
        yield Finding("ss", None, "", message)


@rule("REG003", WARNING, "DS, ES, FS or GS does not name a data segment in this GDT")
def stale_data(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: in 64-bit mode these selectors have no effect until one is saved and reloaded, by a context switch, a call to
        32-bit code or firmware: MOV to the register then raises #GP (SDM Vol. 2B, MOV: a data or readable code segment
        is required; figure "Segment Registers" in Vol. 3A).
    Fix: load them with 0 after LGDT (FS and GS before their base MSRs are written).
    Bad: lgdt [gdt], with the boot loader's selectors left in DS and ES
    Good: xor eax, eax; mov ds, ax; mov es, ax
    """
    for name in ("ds", "es", "fs", "gs"):
        segment = getattr(cpu.registers, name)
        if segment is None or segment.null:
            continue
        code, _ = cpu.lookup(segment.selector)
        fits = isinstance(code, SegmentDescriptor) and code.s and code.readable and code.p
        if wrong := mismatch(cpu, segment.selector, fits):
            yield Finding(name, None, "", f"{name.upper()} {segment.selector:#x} is {wrong} in the current GDT")


@rule("REG004", WARNING, "a protection bit that other CPUs have set is clear")
def protection_differs(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: each processor has control registers of its own, and what the boot processor sets the others must set, too.
        Where CR0.WP is clear, ring 0 writes through read-only pages: a read-only guard page below a stack guards
        nothing on that CPU. Where SMEP, SMAP or UMIP is clear, code of the same kernel that faults on one CPU goes
        through on another; where EFER.NXE is clear, a page with bit 63 set in its entry is a reserved-bit fault (SDM
        Vol. 3A, "Control Registers", and "Determination of Access Rights"). CPUs in long mode are compared. Usual
        cause: the start-up code of the other processors sets PE, PG and PAE only.
    Fix: load CR0, CR4 and EFER of every CPU with the values that the boot processor ends up with.
    Bad: mov cr0, 0x80000001 on the second CPU, 0x80010001 on the first
    Good: the start-up code of each CPU loads CR0, CR4 and EFER from variables that the first CPU has filled
    """
    if len(cpu.cpus) < 2:
        return
    for name, bits in PROTECTION.items():
        mine = getattr(cpu.registers, name)
        if mine is None:
            cpu.missing(f"{name.upper()} is not known")
            continue
        found = {}
        for bit, mask in bits.items():
            if not mine & mask and (there := cpu.cpus.with_bit(name, mask)):
                found[bit] = f"{name.upper()}.{bit.upper()} is clear, but set on CPU {ranges(there)}"
        if found:
            yield Finding(name, None, tuple(found), "; ".join(found.values()))


@rule("REG005", WARNING, "a segment register's cached copy differs from its descriptor", LOADED)
def stale_copy(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: a descriptor is read when its selector is loaded, and never again: CS, SS and LDTR go on with what it was then,
        until an IRETQ, a task switch or an LLDT reads what it is now (SDM Vol. 3A, figure "Segment Registers": visible
        selector and hidden part). The table was changed or replaced after the load. Not reported,
        because harmless: the accessed bit, AVL and G; in 64-bit mode the base and limit of CS and SS, whether CS can be
        read, and all of SS but what REG002 looks at, since SYSCALL, SYSRET and VM exits load fixed attributes. TR is
        TSS003's.
    Fix: load the selector again after its descriptor was changed.
    Bad: gdt[6] = SystemDescriptor.ldt(new_ldt, size - 1), and no LLDT
    Good: gdt[6] = SystemDescriptor.ldt(new_ldt, size - 1); lldt 0x30
    """
    for name in ("cs", "ss", "ldtr"):
        held = getattr(cpu.registers, name)
        if held is None or held.null:
            continue
        if held.flags is None:
            cpu.missing(f"what {name.upper()} has cached is not known")
            continue
        code, _ = cpu.lookup(held.selector)
        if name == "ldtr":
            fits = isinstance(code, SystemDescriptor) and code.p and code.type == LDT and not code.s
            if wrong := mismatch(cpu, held.selector, fits):
                yield Finding("ldtr", None, "", f"LDTR {held.selector:#x} is {wrong} in the current GDT")
                continue
        if code is not None and (changed := _changed(held, code, cpu.machine.mode == "long64")):
            message = ", ".join(f"{field} {here} here, {there} in the GDT" for field, here, there in changed)
            yield Finding(name, None, tuple(field for field, _, _ in changed), f"{name.upper()}: {message}")


def _changed(held: Segment, code: SegmentDescriptor | SystemDescriptor, wide: bool) -> list[tuple[str, str, str]]:
    """What matters of a segment register and is not so in its descriptor: field, value here, value there."""
    cached, pairs = held.descriptor, list[tuple[str, int, int]]()
    if cached.s != code.s or not code.p:  # for REG001 and REG002
        return []
    if isinstance(code, SystemDescriptor) or not wide:
        pairs = [("base", held.base, code.base), ("limit", held.limit, code.effective_limit)]
    if isinstance(code, SegmentDescriptor):
        if cached.code != code.code or cached.l != code.l:
            return []
        if code.code:
            pairs.append(("conforming", cached.conforming, code.conforming))
        if not wide:
            pairs.append(("d_b", cached.d_b, code.d_b))
    return [(field, f"{here + 0:#x}", f"{there + 0:#x}") for field, here, there in pairs if here != there]


def star(cpu: CheckedCpu) -> Star | None:
    """STAR where SYSCALL is in use; notes missing inputs."""
    value = _star(cpu)
    return None if value is None else Star.from_int(value)


def _star(cpu: CheckedCpu) -> int | None:
    efer, value = cpu.registers.efer, cpu.registers.star
    if value is None:
        if efer is None or efer & 1:
            cpu.missing("STAR is not known" if efer is not None else "STAR and EFER are not known")
        return None
    if efer is None:
        cpu.missing("EFER is not known (bit SCE: is SYSCALL in use)")
        return value or None
    return value if efer & 1 else None


@rule("SYS001", ERROR, "SYSCALL loads selectors that do not fit the GDT")
def syscall_segments(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: SYSCALL does not read the GDT: CS becomes STAR[47:32] and SS that plus 8, with fixed attributes. The first
        interrupt during the system call saves these selectors, and its IRETQ looks them up: #GP (SDM Vol. 2B, SYSCALL:
        the operating system must make the descriptors fit; Vol. 3A, figure "MSRs Used by SYSCALL and SYSRET").
    Fix: kernel code and kernel data next to each other, in this order, and STAR[47:32] = the code selector.
    Bad: gdt = null, kernel data, kernel code, ...; STAR[47:32] = 0x10
    Good: gdt = null, kernel code, kernel data, ...; STAR[47:32] = 0x08
    """
    value = star(cpu)
    if value is not None and not any(value) and cpu.ring3:
        yield Finding(SYSCALL, None, "", "SYSCALL is on (EFER.SCE=1), but STAR is 0: CS would be null")
    if value is not None and any(value):
        yield from _pair(cpu, "SYSCALL", SYSCALL, value.syscall_cs, value.syscall_ss, 0)


@rule("SYS002", ERROR, "SYSRET loads selectors that do not fit the GDT")
def sysret_segments(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: SYSRET to 64-bit code loads SS with STAR[63:48]+8 and CS with STAR[63:48]+16 without reading the GDT: user data
        must come *before* user code. With user code first, the program runs until an interrupt saves the selectors and
        IRETQ finds a data segment for CS: #GP (SDM Vol. 2B, SYSRET; Vol. 3A, figure "MSRs Used by SYSCALL and SYSRET").
    Fix: (32-bit user code or a gap), user data, user 64-bit code; STAR[63:48] = the first of the three with RPL 3.
    Bad: gdt = ..., user code 0x18, user data 0x20; STAR[63:48] = 0x0b
    Good: gdt = ..., user data 0x18, user code 0x20; STAR[63:48] = 0x13
    """
    value = star(cpu)
    if value is not None and any(value):  # 0 is SYS001's
        yield from _pair(cpu, "SYSRET", SYSRET, value.sysret_cs, value.sysret_ss, 3)


def _pair(cpu: CheckedCpu, name: str, selectors: str, cs: int, ss: int, ring: int) -> Iterator[Finding]:
    """A finding where CS is not 64-bit code, or SS not writable data, of this ring."""
    cs, ss = cs & ~3, ss & ~3
    code, data = cpu.lookup(cs)[0], cpu.lookup(ss)[0]
    code_fits = code is not None and good_code(code) and code.dpl == ring
    data_fits = isinstance(data, SegmentDescriptor) and data.s and data.writable and data.p and data.dpl == ring
    # what CS and SS hold now is for REG001 and REG002
    now = [s.selector & ~3 for s in (cpu.registers.cs, cpu.registers.ss) if s is not None and ring == cpu.registers.cpl]
    wrong = []
    if cs not in now and (why := mismatch(cpu, cs, code_fits)):
        wrong.append(f"CS {cs | ring:#x} is {why}, expected 64-bit code of ring {ring}")
    if ss not in now and (why := mismatch(cpu, ss, data_fits)):
        wrong.append(f"SS {ss | ring:#x} is {why}, expected writable data of ring {ring}")
    if wrong:
        yield Finding(selectors, None, "", f"{name}: {'; '.join(wrong)}")


@rule("SYS003", ERROR, "a selector in STAR has the wrong RPL")
def star_rpl(image: Snapshot, cpu: CheckedCpu) -> Iterator[Finding]:
    """
    Why: SYSCALL clears the RPL of CS, but SS is STAR[47:32]+8 unchanged: with RPL 3 the kernel runs with an SS that
        IRETQ rejects. SYSRET sets RPL 3 in both on Intel; on AMD SS is STAR[63:48]+8 unchanged, so with RPL 0 in STAR a
        program is interrupted with RPL 0 in SS, and IRETQ to it raises #GP (SDM Vol. 2B, SYSCALL and SYSRET, operation;
        APM Vol. 3, SYSRET). For SYSRET a warning where the vendor is Intel.
    Fix: RPL 0 in STAR[47:32], RPL 3 in STAR[63:48].
    Bad: STAR = 0x0010_0008 << 32
    Good: STAR = 0x0013_0008 << 32
    """
    value = star(cpu)
    if value is None or not any(value):  # 0 is SYS001's
        return
    if rpl := value.kernel & 3:
        yield Finding(SYSCALL, None, "", f"SYSCALL loads SS {value.syscall_ss:#x} with RPL {rpl}, expected 0")
    if (rpl := value.user & 3) != 3:
        severity = "" if cpu.machine.vendor == "amd" else WARNING
        yield Finding(SYSRET, None, "", f"{value.user:#x} has RPL {rpl}, expected 3", severity)
