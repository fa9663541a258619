"""Numbers into words: the only place that says in English what a value means; `anomalies` says what is unusual."""

from __future__ import annotations

from ..tables import vectors
from ..tables.gdt import WIDE, CallGate, LegacySystemDescriptor, SegmentDescriptor, SystemDescriptor
from ..tables.idt import INTERRUPT, TRAP, Gate
from ..tables.legacy import GATES, LegacyGate, RealModeVector, Tss32
from ..tables.pseudo import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32
from ..tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode, Star
from ..tables.tss import Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..tables.layout import Layout

NOTHING = "all zero"

# S=0 types: in 64-bit mode (SDM table "System-Segment and Gate-Descriptor Types"), and in protected mode.
TYPES64 = {
    0x2: "LDT", 0x9: "available 64-bit TSS", 0xB: "busy 64-bit TSS", 0xC: "64-bit call gate",
    0xE: "interrupt gate", 0xF: "trap gate",
}  # fmt: skip
TYPES32 = {
    0x1: "available 16-bit TSS", 0x2: "LDT", 0x3: "busy 16-bit TSS", 0x4: "16-bit call gate", 0x5: "task gate",
    0x6: "16-bit interrupt gate", 0x7: "16-bit trap gate", 0x9: "available 32-bit TSS", 0xB: "busy 32-bit TSS",
    0xC: "32-bit call gate", 0xE: "32-bit interrupt gate", 0xF: "32-bit trap gate",
}  # fmt: skip


def meaning(value: Layout) -> str:
    """What a value of any layout means, in one line; for a segment its extent too."""
    return _MEANINGS[type(value)](value)


def segment(value: SegmentDescriptor) -> str:
    """`64-bit code, ring 0, readable, accessed`; base and limit are for `extent`."""
    if not value.s:
        return _not_segment(value.type) if any(bytes(value)) else f"null descriptor ({NOTHING})"
    if value.code:
        names = ["64-bit code" if value.l else "32-bit code" if value.d_b else "16-bit code"]
        traits = ((value.conforming, "conforming"), (True, "readable" if value.readable else "execute-only"))
    else:
        names = ["data"]
        traits = ((value.expand_down, "expand-down"), (True, "writable" if value.writable else "read-only"))
    names.append(f"ring {value.dpl}")
    names += [word for said, word in traits if said]
    return _join(names, (value.accessed, "accessed"), (not value.p, "not present"))


def extent(value: SegmentDescriptor | SystemDescriptor | LegacySystemDescriptor) -> str:
    """`base 0x0, limit 0xffffffff (4 GiB)`: where a segment lies, the limit in bytes."""
    limit = value.effective_limit
    return f"base {value.base:#x}, limit {limit:#x} ({size(limit + 1)})"


def _segment(value: SegmentDescriptor) -> str:
    if not value.s:
        return segment(value)
    return f"{segment(value)}; {extent(value)}{', both ignored by 64-bit code' if value.kind == 'code64' else ''}"


def system(value: SystemDescriptor) -> str:
    """`busy 64-bit TSS, base 0xfffffe0000003000, limit 0x67 (104 bytes), ring 0`."""
    if value.s:
        return f"S=1: {segment(SegmentDescriptor.parse(bytes(value)[:8]))}, which takes 8 bytes"
    name = TYPES64[value.type] if value.type in WIDE else refused(value.type, "system descriptor")
    return _join([name, extent(value), f"ring {value.dpl}"], (not value.p, "not present"))


def call_gate(value: CallGate) -> str:
    """`64-bit call gate -> 0x8:0xffffffff81000000, ring 3`."""
    ok = not value.s and value.type == 0xC
    return _gate(TYPES64[0xC] if ok else not_gate(value.s, value.type, "call gate"), value, "")


def gate(value: Gate) -> str:
    """`interrupt gate -> 0x8:0xffffffff81000000, IST1, ring 0`."""
    if not any(bytes(value)):
        return f"no gate ({NOTHING})"
    ok = not value.s and value.type in (INTERRUPT, TRAP)
    name = TYPES64[value.type] if ok else not_gate(value.s, value.type, "gate")
    return _gate(name, value, f"IST{value.ist}" if value.ist else "")


def legacy_gate(value: LegacyGate) -> str:
    """`32-bit interrupt gate -> 0x8:0xc0100000, ring 0`; a task gate names a TSS alone."""
    if not any(bytes(value)):
        return f"no gate ({NOTHING})"
    if value.s or value.type not in GATES:
        name = "not a gate (S=1: code or data)" if value.s else f"not a gate ({type32(value.type)})"
        return _gate(name, value, "")
    name = TYPES32[value.type]
    if value.type == 0x5:
        return _join([f"{name} -> TSS {value.selector:#x}", f"ring {value.dpl}"], (not value.p, "not present"))
    copies = f"copies {_count(value.count, 'parameter')}" if value.type in (0x4, 0xC) and value.count else ""
    return _gate(name, value, copies)


def legacy_system(value: LegacySystemDescriptor) -> str:
    """`busy 32-bit TSS, base 0xc1000000, limit 0x67 (104 bytes), ring 0`."""
    if not any(bytes(value)):
        return f"null descriptor ({NOTHING})"
    name = "not a system descriptor (S=1: code or data)" if value.s else type32(value.type)
    return _join([name, extent(value), f"ring {value.dpl}"], (not value.p, "not present"))


def selector(value: Selector) -> str:
    """`GDT slot 6, ring 3`, or `null selector`."""
    if value.null:
        return f"null selector, RPL {value.rpl}"
    return f"{'LDT' if value.ti else 'GDT'} slot {value.index}, ring {value.rpl}"


def star(value: Star) -> str:
    """`SYSCALL: CS 0x10, SS 0x18; SYSRET: CS 0x33, SS 0x2b`."""
    text = f"SYSCALL: CS {value.syscall_cs:#x}, SS {value.syscall_ss:#x}; "
    text += f"SYSRET: CS {value.sysret_cs:#x}, SS {value.sysret_ss:#x}"
    return text + (f"; SYSCALL of 32-bit mode jumps to {value.eip:#x}" if value.eip else "")


def selector_error(value: SelectorErrorCode) -> str:
    """`IDT vector 128 (0x80)`, `GDT slot 2 (selector 0x10)`, `no descriptor named`."""
    if value.idt:
        name = f"IDT vector {value.index} ({vector(value.index)})"
    elif value.ti or value.index:
        name = f"{'LDT' if value.ti else 'GDT'} slot {value.index} (selector {value.index << 3 | value.ti << 2:#x})"
    else:
        name = "no descriptor named (null selector, or a fault that names none)"
    return _join([name], (value.ext, "while an external event was delivered (EXT)"))


def page_fault_error(value: PageFaultErrorCode) -> str:
    """`supervisor write, page not present`."""
    access = "instruction fetch" if value.id else "write" if value.wr else "read"
    return _join(
        [
            f"{'user' if value.us else 'supervisor'} {'shadow-stack ' if value.ss else ''}{access}",
            "page present, access refused" if value.p else "page not present",
        ],
        (value.rsvd, "reserved bit set in a page-table entry"),
        (value.pk, "refused by a protection key"),
        (value.hlat, "during a HLAT walk"),
        (value.sgx, "refused by SGX"),
        (value.rmp, "refused by the RMP (AMD SEV-SNP)"),
    )


def pseudo_descriptor(value: PseudoDescriptor | PseudoDescriptor32) -> str:
    """`table at 0x1000, limit 0x7f (128 bytes): 16 slots of a GDT or 8 gates of an IDT`."""
    count, gate_size = value.limit + 1, 16 if value.size == 10 else 8
    held = f"{_count(count // 8, 'slot')} of a GDT or {_count(count // gate_size, 'gate')} of an IDT"
    return f"table at {value.base:#x}, limit {value.limit:#x} ({size(count)}): {held}"


def tss(value: Tss) -> str:
    """`RSP0 0x..., IST1 0x..., the other stacks are 0, I/O bitmap at +0x68 if the limit reaches it`."""
    stacks = [(f"RSP{n}", top) for n, top in enumerate(value.rsp)]
    stacks += [(f"IST{n}", top) for n, top in enumerate(value.ist, 1)]
    names = [f"{name} {top:#x}" for name, top in stacks if top]
    rest = ["the other stacks are 0" if names else "every stack is 0"] if len(names) < len(stacks) else []
    return ", ".join([*names, *rest, _io_map(value.iopb)])


def tss32(value: Tss32) -> str:
    """`ring 0 stack 0x10:0xc1000000, task at 0x8:0xc0100000, stack ..., CR3 0x1000, ...`."""
    rings = ((0, value.ss0, value.esp0), (1, value.ss1, value.esp1), (2, value.ss2, value.esp2))
    names = [f"ring {ring} stack {ss:#x}:{esp:#x}" for ring, ss, esp in rings if ss or esp]
    if value.eip or value.cs:
        names += [f"task at {value.cs:#x}:{value.eip:#x}", f"its stack {value.ss:#x}:{value.esp:#x}"]
    if value.cr3:
        names.append(f"CR3 {value.cr3:#x}")
    return _join([*(names or ["no stack and no task"]), _io_map(value.iopb)], (value.t, "debug trap on task switch"))


def frame(value: Frame | ErrorFrame) -> str:
    """`at 0x10:0xffffffff81000000 (ring 0), stack 0x18:0xffff888000010000, interrupts on`, and the error code."""
    names = [
        f"at {value.cs:#x}:{value.rip:#x} (ring {value.cs & 3})",
        f"stack {value.ss:#x}:{value.rsp:#x}",
        f"interrupts {'on' if value.rflags & 0x200 else 'off'}",
    ]
    return _join(names, (isinstance(value, ErrorFrame), f"error code {getattr(value, 'error_code', 0):#x}"))


def real_mode_vector(value: RealModeVector) -> str:
    """`handler at 0xf000:0xff53 (0xfff53)`."""
    return f"handler at {value.segment:#x}:{value.offset:#x} ({value.address:#x})"


def vector(number: int) -> str:
    """`#DF, double fault` for an exception, `0x80` for the rest."""
    if number >= len(vectors.EXCEPTIONS):
        return f"{number:#x}"
    row = vectors.EXCEPTIONS[number]
    return f"{row.mnemonic}, {row.name}" if row.mnemonic else row.name


def size(count: int) -> str:
    """`104 bytes`, `64 KiB`, `4 GiB`: exact, in the largest unit that keeps it whole."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << shift and not count % (1 << shift):
            return f"{count >> shift} {unit}"
    return _count(count, "byte")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _join(names: list[str], *said: tuple[bool, str]) -> str:
    return ", ".join(names + [word for true, word in said if true])


def _gate(name: str, value: Gate | CallGate | LegacyGate, extra: str) -> str:
    arrow = "," if name.startswith("not ") else " ->"
    target = f"{name}{arrow} {value.selector:#x}:{value.offset:#x}"
    return _join([target, *([extra] if extra else []), f"ring {value.dpl}"], (not value.p, "not present"))


def type32(number: int) -> str:
    return TYPES32.get(number, f"reserved type {number:#x}")


def refused(number: int, expected: str) -> str:
    """A type in the place of another: what 64-bit mode, else protected mode, calls it."""
    if number in TYPES64:
        return f"not a {expected} (type {number:#x}: {TYPES64[number]})"
    if number in TYPES32:
        return f"not a {expected} in 64-bit mode (type {number:#x}: {TYPES32[number]} in protected mode)"
    return f"not a {expected} (type {number:#x} is reserved)"


def not_gate(s: bool, number: int, expected: str) -> str:
    return f"not a {expected} (S=1: code or data)" if s else refused(number, expected)


def _not_segment(number: int) -> str:
    return f"not a segment (S=0, type {number:#x}: {TYPES64.get(number) or protected(number)})"


def protected(number: int) -> str:
    return f"{TYPES32[number]} in protected mode" if number in TYPES32 else "reserved"


def _io_map(iopb: int) -> str:
    return f"I/O bitmap at +{iopb:#x}" + (" if the limit reaches it" if iopb >= Tss.size else "")


_MEANINGS: dict[type, Callable[[Any], str]] = {
    SegmentDescriptor: _segment, SystemDescriptor: system, CallGate: call_gate, Gate: gate,
    LegacyGate: legacy_gate, LegacySystemDescriptor: legacy_system, RealModeVector: real_mode_vector,
    Selector: selector, SelectorErrorCode: selector_error, PageFaultErrorCode: page_fault_error,
    PseudoDescriptor: pseudo_descriptor, PseudoDescriptor32: pseudo_descriptor, Star: star,
    Tss: tss, Tss32: tss32, Frame: frame, ErrorFrame: frame,
}  # fmt: skip
