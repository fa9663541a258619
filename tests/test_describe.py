"""Each structure in words, and what is odd about it; facts from published tables where there are some."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x86tables import (
    CallGate,
    ErrorFrame,
    Frame,
    Gate,
    Layout,
    LegacyGate,
    LegacySystemDescriptor,
    PageFaultErrorCode,
    PseudoDescriptor,
    PseudoDescriptor32,
    RealModeVector,
    SegmentDescriptor,
    Selector,
    SelectorErrorCode,
    Star,
    SystemDescriptor,
    Tss,
    Tss32,
)
from x86tables.decode import KINDS
from x86tables.render import describe as words
from x86tables.render.anomalies import anomalies

# Linux, arch/x86/kernel/cpu/common.c: the GDT of every CPU
LINUX = {
    0x00CF9B000000FFFF: "32-bit code, ring 0, readable, accessed",
    0x00AF9B000000FFFF: "64-bit code, ring 0, readable, accessed",
    0x00CF93000000FFFF: "data, ring 0, writable, accessed",
    0x00CFFB000000FFFF: "32-bit code, ring 3, readable, accessed",
    0x00CFF3000000FFFF: "data, ring 3, writable, accessed",
    0x00AFFB000000FFFF: "64-bit code, ring 3, readable, accessed",
}


@pytest.mark.parametrize(("number", "expected"), LINUX.items(), ids=map(hex, LINUX))
def test_segments_of_linux(number: int, expected: str) -> None:
    value = SegmentDescriptor.from_int(number)
    assert words.segment(value) == expected
    assert words.extent(value) == "base 0x0, limit 0xffffffff (4 GiB)"
    assert anomalies(value) == []


SEGMENT = SegmentDescriptor(p=True, s=True)
HANDLER = 0xFFFF_FFFF_8100_0000

MEANINGS: list[tuple[Layout, str]] = [
    (SegmentDescriptor(), "null descriptor (all zero)"),
    (SEGMENT.replace(type=0x0), "data, ring 0, read-only; base 0x0, limit 0x0 (1 byte)"),
    (SEGMENT.replace(type=0x5), "data, ring 0, expand-down, read-only, accessed; base 0x0, limit 0x0 (1 byte)"),
    (SEGMENT.replace(type=0x8), "16-bit code, ring 0, execute-only; base 0x0, limit 0x0 (1 byte)"),
    (
        SEGMENT.replace(type=0xE, dpl=2, limit=0xFFFF, base=0xF0000),
        "16-bit code, ring 2, conforming, readable; base 0xf0000, limit 0xffff (64 KiB)",
    ),
    (
        SegmentDescriptor.kernel_code().replace(p=False),
        "64-bit code, ring 0, readable, accessed, not present; base 0x0, limit 0xffffffff (4 GiB), "
        "both ignored by 64-bit code",
    ),
    (SegmentDescriptor(p=True, type=5), "not a segment (S=0, type 0x5: task gate in protected mode)"),
    (SystemDescriptor.tss(0x3000), "available 64-bit TSS, base 0x3000, limit 0x67 (104 bytes), ring 0"),
    (
        SystemDescriptor.tss(0x3000).replace(type=0xB, dpl=3, p=False),
        "busy 64-bit TSS, base 0x3000, limit 0x67 (104 bytes), ring 3, not present",
    ),
    (SystemDescriptor.ldt(0x3000, 0xFFF), "LDT, base 0x3000, limit 0xfff (4 KiB), ring 0"),
    (CallGate.to(HANDLER, 8, dpl=3), "64-bit call gate -> 0x8:0xffffffff81000000, ring 3"),
    (Gate.interrupt(HANDLER, 8, ist=1), "interrupt gate -> 0x8:0xffffffff81000000, IST1, ring 0"),
    (Gate.trap(HANDLER, 8, dpl=3), "trap gate -> 0x8:0xffffffff81000000, ring 3"),
    (Gate(), "no gate (all zero)"),
    (LegacyGate(), "no gate (all zero)"),
    (Gate(type=0xC, p=True), "not a gate (type 0xc: 64-bit call gate), 0x0:0x0, ring 0"),
    (LegacyGate(type=0xE, p=True, selector=8, offset=0xC0100000), "32-bit interrupt gate -> 0x8:0xc0100000, ring 0"),
    (LegacyGate(type=0x7, p=True, selector=8, offset=0x100), "16-bit trap gate -> 0x8:0x100, ring 0"),
    (LegacyGate(type=0x5, p=True, selector=0x28), "task gate -> TSS 0x28, ring 0"),
    (LegacyGate(type=0xC, p=True, selector=8, count=1), "32-bit call gate -> 0x8:0x0, copies 1 parameter, ring 0"),
    (LegacySystemDescriptor(), "null descriptor (all zero)"),
    (
        LegacySystemDescriptor(type=0xB, p=True, base=0xC1000000, limit=0x67),
        "busy 32-bit TSS, base 0xc1000000, limit 0x67 (104 bytes), ring 0",
    ),
    (Selector.from_int(0x33), "GDT slot 6, ring 3"),
    (Selector.from_int(0x0F), "LDT slot 1, ring 3"),
    (Selector(), "null selector, RPL 0"),
    (Star.from_int(0x23001000000000), "SYSCALL: CS 0x10, SS 0x18; SYSRET: CS 0x33, SS 0x2b"),
    (
        Star(kernel=0x08, user=0x13, eip=0x1000),
        "SYSCALL: CS 0x8, SS 0x10; SYSRET: CS 0x23, SS 0x1b; SYSCALL of 32-bit mode jumps to 0x1000",
    ),
    (SelectorErrorCode.from_int(0x402), "IDT vector 128 (0x80)"),
    (SelectorErrorCode.from_int(0x43), "IDT vector 8 (#DF, double fault), while an external event was delivered (EXT)"),
    (SelectorErrorCode.from_int(0x7A), "IDT vector 15 (reserved)"),
    (SelectorErrorCode.from_int(0x10), "GDT slot 2 (selector 0x10)"),
    (SelectorErrorCode.from_int(0x14), "LDT slot 2 (selector 0x14)"),
    (SelectorErrorCode(), "no descriptor named (null selector, or a fault that names none)"),
    (PageFaultErrorCode.from_int(0x0), "supervisor read, page not present"),
    (PageFaultErrorCode.from_int(0x2), "supervisor write, page not present"),
    (PageFaultErrorCode.from_int(0x15), "user instruction fetch, page present, access refused"),
    (
        PageFaultErrorCode.from_int(0x4B),
        "supervisor shadow-stack write, page present, access refused, reserved bit set in a page-table entry",
    ),
    (
        PseudoDescriptor(base=0xFFFF_FE00_0000_0000, limit=0xFFF),
        "table at 0xfffffe0000000000, limit 0xfff (4 KiB): 512 slots of a GDT or 256 gates of an IDT",
    ),
    (
        PseudoDescriptor32(base=0x1000, limit=0x7FF),
        "table at 0x1000, limit 0x7ff (2 KiB): 256 slots of a GDT or 256 gates of an IDT",
    ),
    (Tss(rsp0=0x1000, ist7=0x2000), "RSP0 0x1000, IST7 0x2000, the other stacks are 0, "
                                    "I/O bitmap at +0x68 if the limit reaches it"),
    (Tss(iopb=0), "every stack is 0, I/O bitmap at +0x0"),
    (Tss32(ss0=0x10, esp0=0xC1000000), "ring 0 stack 0x10:0xc1000000, I/O bitmap at +0x68 if the limit reaches it"),
    (
        Tss32(cs=8, eip=0xC0100000, ss=0x10, esp=0x9000, cr3=0x1000, t=True),
        "task at 0x8:0xc0100000, its stack 0x10:0x9000, CR3 0x1000, I/O bitmap at +0x68 if the limit reaches it, "
        "debug trap on task switch",
    ),
    (
        Frame(cs=0x10, rip=HANDLER, ss=0x18, rsp=0x8000, rflags=0x202),
        "at 0x10:0xffffffff81000000 (ring 0), stack 0x18:0x8000, interrupts on",
    ),
    (
        ErrorFrame(cs=0x33, rip=0x401000, ss=0x2B, rsp=0x8000, rflags=0x2, error_code=0x14),
        "at 0x33:0x401000 (ring 3), stack 0x2b:0x8000, interrupts off, error code 0x14",
    ),
    (RealModeVector(segment=0xF000, offset=0xFF53), "handler at 0xf000:0xff53 (0xfff53)"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), MEANINGS, ids=repr)
def test_meaning(value: Layout, expected: str) -> None:
    assert words.meaning(value) == expected


def test_every_layout_has_an_example() -> None:
    assert {type(value) for value, _ in MEANINGS} == set(KINDS.values())


GOOD: list[Layout] = [
    *(layout() for layout in KINDS.values() if "dpl" in [field.name for field in layout.fields]),
    SegmentDescriptor.kernel_data(),
    SystemDescriptor.tss(0xFFFF_FE00_0000_3000),
    CallGate.to(HANDLER, 8),
    Gate.interrupt(HANDLER, 0x10, ist=3, dpl=3),
    LegacyGate(type=0xE, p=True, selector=8, offset=0xC0100000),
    LegacySystemDescriptor(type=0x9, p=True, base=0xC1000000, limit=0x67),
    Selector(),
    Selector.from_int(0x2B),
    SelectorErrorCode(),
    Star.from_int(0x23001000000000),
    PageFaultErrorCode(),
    PseudoDescriptor(base=0x1000, limit=0x7F),
    Tss(rsp0=0xFFFF_8880_0001_0000),
    Tss32(),
    Frame(cs=0x10, rip=HANDLER, ss=0x18, rsp=0x8000, rflags=0x202),
    RealModeVector(),
]


@pytest.mark.parametrize("value", GOOD, ids=repr)
def test_nothing_odd(value: Layout) -> None:
    assert anomalies(value) == []


GATE = Gate.interrupt(HANDLER, 8)
LEGACY = LegacyGate(type=0xE, p=True, selector=8)
TSS = SystemDescriptor.tss(0x3000)
TSS32 = LegacySystemDescriptor(type=0x9, p=True, base=0x3000, limit=0x67)
FRAME = Frame(cs=0x10, rip=HANDLER, ss=0x18, rsp=0x8000, rflags=0x2)

ODD: list[tuple[Layout, str]] = [
    (SegmentDescriptor(p=True, type=9), "S=0: a system descriptor or a gate, not code or data"),
    (
        SegmentDescriptor.kernel_code().replace(d_b=True),
        "L and D both set: loading it into CS raises #GP in 64-bit mode",
    ),
    (SegmentDescriptor.kernel_data().replace(l=True), "L set in a data segment, where it is reserved"),
    (SegmentDescriptor.kernel_code().replace(base=0x1000), "base 0x1000 has no effect on 64-bit code"),
    (SegmentDescriptor.kernel_code().replace(p=False), "not present, but not all zero"),
    (TSS.replace(g=True), "G set on a TSS: it would have 416 KiB"),
    (TSS.replace(limit=0x2F), "limit 0x2f: this TSS needs at least 0x67"),
    (TSS.replace(base=0), "the base is 0"),
    (TSS.replace(base=1 << 63), "base 0x8000000000000000 is not canonical"),
    (TSS.replace(base=1 << 47), "base 0x800000000000 is canonical with 5-level paging only"),
    (TSS.replace(zero=1), "zero (bits 108:104) is 0x1, expected 0"),
    (TSS.replace(reserved0=2), "reserved0 (bits 54:53) is 0x2, expected 0"),
    (TSS.replace(type=3), "type 0x3 (busy 16-bit TSS in protected mode): 64-bit mode refuses it"),
    (TSS.replace(type=8), "type 0x8 (reserved): 64-bit mode refuses it"),
    (TSS.replace(type=0xC), "type 0xc is a call gate: its base and limit are an offset and a selector"),
    (TSS.replace(s=True), "S=1: a code or data descriptor, which takes 8 bytes"),
    (
        CallGate.to(HANDLER, 8).replace(type=4),
        "not a call gate in 64-bit mode (type 0x4: 16-bit call gate in protected mode)",
    ),
    (CallGate.to(HANDLER, 3), "null selector: using the gate raises #GP"),
    (GATE.replace(s=True), "S=1 in a gate: the CPU answers with #GP"),
    (GATE.replace(type=5), "type 0x5 (task gate in protected mode): 64-bit mode refuses it with #GP"),
    (GATE.replace(type=0xC), "type 0xc (64-bit call gate): 64-bit mode refuses it with #GP"),
    (GATE.replace(type=0xF, ist=2), "trap gate on IST2: interrupts stay on, and a second entry overwrites the first"),
    (GATE.replace(selector=0), "null selector: using the gate raises #GP"),
    (GATE.replace(selector=0xC), "the handler's segment is in the LDT"),
    (GATE.replace(selector=0xB), "the selector's RPL is 3; the CPU ignores it"),
    (GATE.replace(offset=0), "the handler is at address 0"),
    (GATE.replace(offset=1 << 60), "offset 0x1000000000000000 is not canonical"),
    (GATE.replace(reserved0=1), "reserved0 (bits 39:35) is 0x1, expected 0"),
    (GATE.replace(reserved1=0x80), "reserved1 (bits 127:96) is 0x80, expected 0"),
    (GATE.replace(p=False), "not present, but not all zero"),
    (LEGACY.replace(s=True), "S=1 in a gate"),
    (LEGACY.replace(type=9), "type 0x9 (available 32-bit TSS) is not a gate"),
    (LEGACY.replace(type=5, offset=0x10), "a task gate has no offset, yet these bits are 0x10"),
    (LEGACY.replace(type=6, offset=0x10000), "a 16-bit gate has a 16-bit offset, yet the high half is 0x1"),
    (LEGACY.replace(count=3), "bits 36:32 are 0x3, but only a call gate counts parameters"),
    (LEGACY.replace(selector=0), "null selector: using the gate raises a fault"),
    (TSS32.replace(limit=0x2B), "limit 0x2b: this TSS needs at least 0x67"),
    (TSS32.replace(type=0xE), "type 0xe is a gate: its base and limit are an offset and a selector"),
    (TSS32.replace(type=0xD), "type 0xd is reserved"),
    (TSS32.replace(s=True), "S=1: a code or data descriptor"),
    (Selector(rpl=3), "RPL 3 in a null selector"),
    (Star(kernel=0x10, user=0x20), "user 0x20 has RPL 0, expected 3: with AMD, SS keeps it"),
    (Star(kernel=0x13, user=0x23), "kernel 0x13 has RPL 3, expected 0: SS keeps it"),
    (Star(user=0x23), "SYSCALL would load CS with a null selector"),
    (SelectorErrorCode(idt=True, index=300), "vector 300: an IDT ends at 255"),
    (SelectorErrorCode(idt=True, ti=True), "IDT and TI both set"),
    (SelectorErrorCode(reserved=1), "reserved (bits 31:16) is 0x1, expected 0"),
    (PageFaultErrorCode(id=True, wr=True), "an instruction fetch that writes"),
    (PageFaultErrorCode(rsvd=True), "rsvd without p: the CPU sets both"),
    (PageFaultErrorCode(pk=True), "pk without p: the CPU sets both"),
    (PseudoDescriptor(base=0x1000, limit=0x80), "limit 0x80: the size, 129, is not a multiple of 8"),
    (PseudoDescriptor32(limit=0x7F), "the base is 0"),
    (Tss(rsp0=0x1008), "rsp0 0x1008 is not 16-byte aligned: delivery aligns it down"),
    (Tss(ist1=0x1000, ist4=0x1000), "ist4 is the stack of ist1"),
    (Tss(ist7=1 << 63), "ist7 0x8000000000000000 is not canonical"),
    (Tss(iopb=0), "iopb 0x0 lies inside of the TSS: its own bytes count as I/O bitmap"),
    (Tss32(reserved11=1), "reserved11 (bits 815:801) is 0x1, expected 0"),
    (FRAME.replace(rip=1 << 62), "rip 0x4000000000000000 is not canonical"),
    (FRAME.replace(rflags=0), "bit 1 of rflags is 0: the CPU always pushes 1"),
    (FRAME.replace(cs=0), "cs is a null selector"),
    (FRAME.replace(ss=0x2B), "the RPL of ss is 3, that of cs 0"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), ODD, ids=[text for _, text in ODD])
def test_odd_alone(value: Layout, expected: str) -> None:
    assert anomalies(value) == [expected]


@given(st.sampled_from(list(KINDS.values())), st.data())
def test_total(layout: type[Layout], data: st.DataObject) -> None:
    """Every bit pattern has a meaning, in one printable ASCII line."""
    value = layout.parse(data.draw(st.binary(min_size=layout.size, max_size=layout.size)))
    for line in (words.meaning(value), *anomalies(value)):
        assert line.isascii() and line.isprintable() and line == line.strip() != ""


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "1 byte"), (104, "104 bytes"), (1024, "1 KiB"), (1025, "1025 bytes"), (3 << 20, "3 MiB"), (1 << 32, "4 GiB")],
)
def test_size(count: int, expected: str) -> None:
    assert words.size(count) == expected
