"""Delivery, check by check: the fault that each mutated thing raises, its error code, and what becomes of it."""

from typing import Any

import pytest
from kernels import (
    CODE,
    CONFORMING,
    CS,
    DS,
    GDT,
    GUARD,
    IDT,
    IST,
    LDT,
    MAPPINGS,
    STACK,
    TOP,
    TR,
    TSS,
    UCS,
    UDS,
    USER,
    USER_STACK,
    gate,
    gdt,
    handler,
    idt,
    kernel,
)  # fmt: skip

from x86tables import ErrorFrame, Frame, Gate, Gdt, SegmentDescriptor, Tss
from x86tables.delivery.deliver import deliver
from x86tables.delivery.events import Delivery, Event
from x86tables.delivery.state import CpuState
from x86tables.errors import UsageError
from x86tables.machine.machine import Machine
from x86tables.machine.paging import WRITE
from x86tables.machine.registers import AC, CET, FRED, PAE, SMAP, Registers, Segment, TableRegister
from x86tables.machine.synthetic import Mapping, load

PF, GP, DF, INT = Event.exception(14, 2, 0x1234), Event.exception(13, 0x10), Event.exception(8), Event.software(0x80)
UD, IRQ = Event.exception("#UD"), Event.interrupt(0x20)
UNMAPPED = STACK - 0x8000  # canonical, and nothing is there
OUTSIDE = 0x8000_0000_1000  # not canonical
END = 1 << 64  # the last address is the one before


def chain(delivery: Delivery) -> list[str]:
    """Each fault met, as `#GP(0x82)`, then how it ended: the vector and stack, or the outcome."""
    found = [f"{a.fault.label}({a.fault.error_code:#x})" for a in delivery.attempts if a.fault is not None]
    ended = f"{delivery.vector} on {delivery.stack}" if delivery.outcome == "delivered" else delivery.outcome
    return [*found, ended]


def mappings(name: str, permissions: str) -> tuple[Mapping, ...]:
    """The usual areas, one of them with other permissions."""
    assert name in {mapping.name for mapping in MAPPINGS}
    return tuple(mapping.replace(permissions=permissions) if mapping.name == name else mapping for mapping in MAPPINGS)


# The frame and the registers


def test_frame_with_error_code() -> None:
    delivery = deliver(kernel(), PF)
    assert delivery.pushed == ErrorFrame(ss=DS, rsp=TOP - 0x100, rflags=0x10202, cs=CS, rip=CODE + 0x1800, error_code=2)
    assert delivery.registers.rsp == TOP - 0x100 - 48
    assert delivery.registers.rip == handler(14)
    assert delivery.registers.rflags == 2
    assert (delivery.cr2, delivery.registers.cr2) == (0x1234, 0x1234)
    assert delivery.registers.cs == load(CS, SegmentDescriptor.kernel_code())
    assert deliver(kernel(), Event.exception(14)).pushed == delivery.pushed.replace(error_code=0)


@pytest.mark.parametrize(
    ("event", "cr2"),
    [
        (PF, 0x1234), (Event.exception(14, 2), 0x77), (Event.exception(13, 0, 0x1234), 0x77),
        (Event(14, "interrupt", cr2=0x1234), 0x77), (IRQ, 0x77), (INT, 0x77),
    ],
)  # fmt: skip
def test_cr2_is_loaded_by_page_faults_alone(event: Event, cr2: int) -> None:
    assert deliver(kernel(cr2=0x77), event).registers.cr2 == cr2
    nested = deliver(kernel(cr2=0x77, gates=gate(event.vector, selector=0)), event)
    assert (nested.attempts[0].fault, nested.cr2) == (Event.exception(13, int(event.kind != "int")), cr2)


def test_frame_without_error_code_from_an_unaligned_stack() -> None:
    delivery = deliver(kernel(rsp=TOP - 0x101), IRQ)
    assert delivery.pushed == Frame(ss=DS, rsp=TOP - 0x101, rflags=0x202, cs=CS, rip=CODE + 0x1800)
    assert delivery.registers.rsp == TOP - 0x110 - 40


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (Event.exception(v), v in (8, 10, 11, 12, 13, 14, 17, 21)) for v in range(32)
    ] + [(Event.software(v), False) for v in (8, 13, 14)] + [(Event.interrupt(v), False) for v in (14, 17, 0x80)]
    + [(Event.nmi(), False), (Event.trap(1), False)],
    ids=lambda value: value.label + value.kind if isinstance(value, Event) else "",
)  # fmt: skip
def test_error_codes_are_exceptions_alone(event: Event, code: bool) -> None:
    delivery = deliver(kernel(gates=gate(8, ist=0)), event)
    assert isinstance(delivery.pushed, ErrorFrame if code else Frame)


@pytest.mark.parametrize(("vector", "amd"), [(28, False), (29, True), (30, True), (21, True)])
def test_error_codes_of_amd(vector: int, amd: bool) -> None:
    assert isinstance(deliver(kernel(vendor="amd"), Event.exception(vector)).pushed, ErrorFrame) == amd


@pytest.mark.parametrize(
    ("event", "moved"),
    [(PF, 0), (Event.software(0x80), 2), (Event.int3(), 1), (Event.int1(), 1), (IRQ, 0), (Event.nmi(), 0)],
)
def test_saved_rip(event: Event, moved: int) -> None:
    pushed = deliver(kernel(), event).pushed
    assert pushed is not None
    assert pushed.rip == CODE + 0x1800 + moved
    last = deliver(kernel(rip=END - 1), event).pushed
    assert last is not None and last.rip == (END - 1 + moved) % END


def test_a_fault_while_delivering_int_n_saves_the_int_itself() -> None:
    delivery = deliver(kernel(gates=gate(0x80, p=0)), INT)
    assert delivery.pushed is not None
    assert (delivery.vector, delivery.pushed.rip) == (11, CODE + 0x1800)


@pytest.mark.parametrize(
    ("event", "before", "after"),
    [
        (PF, 0, 1), (UD, 0, 1), (Event.exception(1), 0, 0), (Event.exception(1), 1, 1), (Event.trap(1), 0, 0),
        (INT, 1, 0), (Event.int3(), 1, 0), (Event.int1(), 1, 0), (IRQ, 0, 0), (IRQ, 1, 1), (Event.nmi(), 0, 0),
        (Event.exception("#MC"), 0, 0), (DF, 0, 1), (Event.software(8), 1, 0), (Event.interrupt(8), 0, 0),
        (Event.interrupt(6), 0, 0), (Event.exception(32), 0, 1), (Event.interrupt(33), 0, 0),
    ],
)  # fmt: skip
def test_resume_flag_in_the_image(event: Event, before: int, after: int) -> None:
    pushed = deliver(kernel(rflags=0x202 | before << 16), event).pushed
    assert pushed is not None
    assert pushed.rflags == 0x202 | after << 16


def test_flags_in_the_handler() -> None:
    flags = 0x202 | 0x100 | 0x4000 | 0x10000 | AC | 0xCD5
    trap = deliver(kernel(rflags=flags, gates=gate(0x20, type=0xF)), IRQ)
    assert trap.registers.rflags == 0x202 | AC | 0xCD5
    interrupt = deliver(kernel(rflags=flags), IRQ)
    assert interrupt.registers.rflags == 0x2 | AC | 0xCD5


def test_ring_3_switches_to_rsp0_and_a_null_ss() -> None:
    delivery = deliver(kernel(ring=3), IRQ)
    assert delivery.stack == "RSP0"
    assert delivery.pushed == Frame(ss=UDS, rsp=USER_STACK + 0x1000, rflags=0x202, cs=UCS, rip=USER + 0x10)
    r = delivery.registers
    assert r.cs is not None and r.ss is not None
    assert (r.cs.selector, r.ss.selector, r.cpl, r.rsp) == (CS, 0, 0, TOP - 40)


@pytest.mark.parametrize("ring", [1, 2])
def test_other_rings(ring: int) -> None:
    """To ring 1 or 2: a stack of its own, and SS null with that RPL."""
    code = SegmentDescriptor.kernel_code().replace(dpl=ring)
    tss = Tss(rsp0=UNMAPPED, **{f"rsp{ring}": TOP})
    delivery = deliver(kernel(ring=3, segments=(code,), tss=tss, gates=gate(0x20, selector=0x40)), IRQ)
    r = delivery.registers
    assert r.cs == load(0x40 | ring, code) and r.ss is not None
    assert (delivery.stack, r.ss.selector, r.cpl, r.rsp) == (f"RSP{ring}", ring, ring, TOP - 40)


def test_an_ist_alone_leaves_ss() -> None:
    delivery = deliver(kernel(gates=gate(0x20, ist=1)), IRQ)
    assert delivery.stack == "IST1"
    assert delivery.registers.ss is not None and delivery.registers.ss.selector == DS


def test_conforming_code_runs_at_the_interrupted_privilege() -> None:
    # the frame goes to the program's own stack, pushed as the program would
    delivery = deliver(kernel(ring=3, gates=gate(0x20, selector=CONFORMING)), IRQ)
    assert (delivery.stack, delivery.registers.cpl) == ("current", 3)
    assert delivery.registers.cs is not None and delivery.registers.cs.selector == CONFORMING | 3
    assert delivery.registers.ss is not None and delivery.registers.ss.selector == UDS
    refused = deliver(kernel(ring=3, rsp=TOP, gates=gate(0x20, selector=CONFORMING)), IRQ)
    assert refused.attempts[0].fault == Event.exception(14, 7, TOP - 8)


def test_the_selectors_rpl_is_ignored() -> None:
    delivery = deliver(kernel(gates=gate(0x20, selector=CS | 3)), IRQ)
    assert delivery.registers.cs is not None and delivery.registers.cs.selector == CS


def test_a_descriptor_in_the_ldt() -> None:
    ldt = Gdt(bytes(SegmentDescriptor.kernel_code()) * 2)
    delivery = deliver(kernel(ldt=ldt, gates=gate(0x20, selector=0xC)), IRQ)
    assert chain(delivery) == ["32 on current"]
    assert delivery.registers.cs is not None and delivery.registers.cs.selector == 0xC


# Each check, and its fault. The event is an interrupt (EXT 1) unless told: benign, so that the fault is handled.

CHECKS = {
    "IDT limit": (kernel(idtr=TableRegister(IDT, 0x20 * 16 + 14)), IRQ, ["#GP(0x103)", "13 on current"]),
    "IDT limit, to the byte": (kernel(idtr=TableRegister(IDT, 0x20 * 16 + 15)), IRQ, ["32 on current"]),
    "IDT not canonical": (kernel(idtr=TableRegister(OUTSIDE, 0xFFF)), IRQ, ["#GP(0x1)", "#GP(0x1)", "#GP(0x1)"]),
    "IDT not mapped": (kernel(idtr=TableRegister(UNMAPPED, 0xFFF)), IRQ, ["#PF(0x0)", "#PF(0x0)", "#PF(0x0)"]),
    "16-bit gate": (kernel(gates=gate(0x20, type=6)), IRQ, ["#GP(0x103)", "13 on current"]),
    "task gate": (kernel(gates=gate(0x20, type=5)), IRQ, ["#GP(0x103)", "13 on current"]),
    "call gate": (kernel(gates=gate(0x20, type=0xC)), IRQ, ["#GP(0x103)", "13 on current"]),
    "S in a gate": (kernel(gates=gate(0x20, s=1)), IRQ, ["#GP(0x103)", "13 on current"]),
    "type before P": (kernel(gates=gate(0x20, type=0, p=0)), IRQ, ["#GP(0x103)", "13 on current"]),
    "reserved bits": (kernel(gates=gate(0x20, reserved0=0x1F, reserved1=0xFFFFFFFF)), IRQ, ["32 on current"]),
    "P": (kernel(gates=gate(0x20, p=0)), IRQ, ["#NP(0x103)", "11 on current"]),
    "DPL, ring 3": (kernel(ring=3), Event.software(0x20), ["#GP(0x102)", "13 on RSP0"]),
    "DPL, int3": (kernel(ring=3, gates=gate(3, dpl=0)), Event.int3(), ["#GP(0x1a)", "13 on RSP0"]),
    "DPL, not for INT1": (kernel(ring=3), Event.int1(), ["1 on RSP0"]),
    "DPL, not for interrupts": (kernel(ring=3), IRQ, ["32 on RSP0"]),
    "DPL before P": (kernel(ring=3, gates=gate(0x20, p=0)), Event.software(0x20), ["#GP(0x102)", "13 on RSP0"]),
    "null selector": (kernel(gates=gate(0x20, selector=0)), IRQ, ["#GP(0x1)", "13 on current"]),
    "null selector, RPL 3": (kernel(gates=gate(0x20, selector=3)), IRQ, ["#GP(0x1)", "13 on current"]),
    "null selector, INT n": (kernel(gates=gate(0x80, selector=0)), INT, ["#GP(0x0)", "13 on current"]),
    "GDT limit": (kernel(gates=gate(0x20, selector=0x48)), IRQ, ["#GP(0x49)", "13 on current"]),
    "GDT limit, to the byte": (
        kernel(gates=gate(0x20, selector=0x38), gdtr=TableRegister(GDT, 0x3E)), IRQ, ["#GP(0x39)", "13 on current"],
    ),
    "GDT limit, covered": (
        kernel(gates=gate(0x20, selector=0x38), gdtr=TableRegister(GDT, 0x3F)), IRQ, ["32 on current"],
    ),
    "null LDT, limit and all": (
        kernel(gates=gate(0x20, selector=0xC), ldtr=Segment(0, GDT, 0xFFFF)), IRQ, ["#GP(0xd)", "13 on current"],
    ),
    "LDT limit, to the byte": (
        kernel(gates=gate(0x20, selector=0xC), ldtr=Segment(0x48, GDT, 0xE)), IRQ, ["#GP(0xd)", "13 on current"],
    ),
    "LDT limit, covered": (
        kernel(gates=gate(0x20, selector=0xC), ldtr=Segment(0x48, GDT, 0xF)), IRQ, ["32 on current"],
    ),
    "no LDT": (kernel(gates=gate(0x20, selector=0xC)), IRQ, ["#GP(0xd)", "13 on current"]),
    "LDT limit": (
        kernel(ldt=Gdt(bytes(SegmentDescriptor.kernel_code())), gates=gate(0x20, selector=0xF)), IRQ,
        ["#GP(0xd)", "13 on current"],
    ),
    "data segment": (kernel(gates=gate(0x20, selector=DS)), IRQ, ["#GP(0x11)", "13 on current"]),
    "TSS as code": (kernel(gates=gate(0x20, selector=TR)), IRQ, ["#GP(0x29)", "13 on current"]),
    "ring 3 code": (kernel(gates=gate(0x20, selector=0x18)), IRQ, ["#GP(0x19)", "13 on current"]),
    "conforming ring 3 code": (
        kernel(segments=(SegmentDescriptor.user_code().replace(type=0xF),), gates=gate(0x20, selector=0x40)), IRQ,
        ["#GP(0x41)", "13 on current"],
    ),
    "code not present": (
        kernel(segments=(SegmentDescriptor.kernel_code().replace(p=0),), gates=gate(0x20, selector=0x40)), IRQ,
        ["#NP(0x41)", "11 on current"],
    ),
    "P before L": (
        kernel(segments=(SegmentDescriptor.code32().replace(p=0),), gates=gate(0x20, selector=0x40)), IRQ,
        ["#NP(0x41)", "11 on current"],
    ),
    "32-bit code": (
        kernel(segments=(SegmentDescriptor.code32(),), gates=gate(0x20, selector=0x40)), IRQ,
        ["#GP(0x41)", "13 on current"],
    ),
    "L and D": (
        kernel(segments=(SegmentDescriptor.kernel_code().replace(d_b=1),), gates=gate(0x80, selector=0x43)), INT,
        ["#GP(0x40)", "13 on current"],
    ),
    "base and limit of CS": (
        kernel(segments=(SegmentDescriptor.kernel_code().replace(base=0x123000, limit=0),),
               gates=gate(0x20, selector=0x40)), IRQ, ["32 on current"],
    ),
    "TSS limit, IST1": (
        kernel(gates=gate(0x20, ist=1), tr=Segment(TR, TSS, 0x2A)), IRQ, ["#TS(0x29)", "10 on current"],
    ),
    "TSS limit, IST1 to the byte": (kernel(gates=gate(0x20, ist=1), tr=Segment(TR, TSS, 0x2B)), IRQ, ["32 on IST1"]),
    "TSS limit, IST7": (
        kernel(gates=gate(0x20, ist=7), tr=Segment(TR, TSS, 0x5A)), IRQ, ["#TS(0x29)", "10 on current"],
    ),
    "TSS limit, RSP0": (kernel(ring=3, tr=Segment(TR, TSS, 0xA)), IRQ, ["#TS(0x29)", "#TS(0x29)", "#TS(0x29)"]),
    "TSS limit, RSP0 to the byte": (kernel(ring=3, tr=Segment(TR, TSS, 0xB)), IRQ, ["32 on RSP0"]),
    "TSS not mapped": (
        kernel(gates=gate(0x20, ist=1), tr=Segment(TR, UNMAPPED, 0x67)), IRQ, ["#PF(0x0)", "14 on current"],
    ),
    "TR null, its cache used": (
        kernel(gates=gate(0x20, ist=1), tr=Segment(0, TSS, 0xFFFF)), IRQ, ["32 on IST1"],
    ),
    "IST not canonical": (
        kernel(gates=gate(0x20, ist=1), tss=Tss(rsp0=TOP, ist1=OUTSIDE)), IRQ, ["#SS(0x1)", "12 on current"],
    ),
    "IST of 0": (
        kernel(gates=gate(0x20, ist=2)), IRQ, ["#PF(0x2)", "14 on current"],
    ),
    "IST beats RSP0": (kernel(ring=3, gates=gate(0x20, ist=1)), IRQ, ["32 on IST1"]),
    "handler not canonical": (kernel(gates=gate(0x20, offset=OUTSIDE)), IRQ, ["#GP(0x1)", "13 on current"]),
    "handler not canonical, in #PF": (kernel(gates=gate(14, offset=OUTSIDE)), PF, ["#GP(0x1)", "8 on IST1"]),
    "stack not canonical": (kernel(rsp=OUTSIDE), IRQ, ["#SS(0x1)", "#SS(0x1)", "8 on IST1"]),
    "same stack, pushes count": (  # RSP itself is not canonical, what is pushed to is
        kernel(mappings=(*MAPPINGS, Mapping("edge", 0x7FFF_FFFF_F000, 0x1000)), rsp=0x8000_0000_0008),
        IRQ,
        ["32 on current"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("machine", "event", "expected"), CHECKS.values(), ids=CHECKS)
def test_check(machine: Machine, event: Event, expected: list[str]) -> None:
    if expected[-1].startswith("#"):
        expected = [*expected, "shutdown"]
    assert chain(deliver(machine, event)) == expected


REFUSED = {  # where a check fails: the step, the address that was read, and what was found there
    "IDT limit": ("IDT limit", None, "limit 0x20e, entry 32 ends at 0x20f"),
    "IDT not canonical": ("IDT entry 32", OUTSIDE + 0x200, "not canonical"),
    "16-bit gate": ("gate type", None, "S 0, type 0x6"),
    "type before P": ("gate type", None, "S 0, type 0x0"),
    "DPL, ring 3": ("gate DPL", None, "DPL 0, CPL 3"),
    "P": ("gate P", None, "P 0"),
    "null selector, RPL 3": ("gate selector", None, "0x3"),
    "GDT limit": ("GDT limit", None, "limit 0x3f, selector 0x48"),
    "null LDT, limit and all": ("LDT limit", None, "LDTR is null"),
    "data segment": ("segment type", None, "data"),
    "ring 3 code": ("segment DPL", None, "DPL 3, CPL 0"),
    "code not present": ("segment P", None, "P 0"),
    "32-bit code": ("segment L, D", None, "L 0, D 1"),
    "TSS limit, IST1": ("TSS limit", None, "limit 0x2a, IST1 ends at 0x2b"),
    "TSS limit, RSP0": ("TSS limit", None, "limit 0xa, RSP0 ends at 0xb"),
    "TSS not mapped": ("TSS IST1", UNMAPPED + 0x24, "PTE not present"),
    "IST not canonical": ("TSS IST1", TSS + 0x24, f"{OUTSIDE:#x}"),
    "IST of 0": ("push SS", END - 8, "PDPTE not present"),
    "handler not canonical": ("gate offset", None, f"{OUTSIDE:#x}"),
    "stack not canonical": ("push SS", OUTSIDE - 8, "not canonical"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_a_check_fails(name: str) -> None:
    machine, event, (fault, *_) = CHECKS[name]
    step = deliver(machine, event).attempts[0].steps[-1]
    assert (step.step, step.address, step.found) == REFUSED[name]
    assert step.rule.endswith(fault) and step.rule.startswith(fault) == (step.found == "not canonical" or "PF" in fault)


def test_a_conforming_segment_is_said_to_be_one() -> None:
    found = [deliver(kernel(gates=gate(0x20, selector=selector)), IRQ) for selector in (CS, DS, TR, CONFORMING)]
    read = [step.found for one in found for step in one.attempts[0].steps if step.step.startswith("GDT entry")]
    assert read == ["code64, DPL 0", "data, DPL 0", "system, DPL 0", "code64, conforming, DPL 0"]


def test_all_zero_is_told_from_a_wrong_type() -> None:
    machine = kernel(gates={"g32": Gate()})
    assert deliver(machine, IRQ).attempts[0].steps[-1].found == "all zero"


# Access rights

RIGHTS = {
    "read-only stack": (kernel(mappings=mappings("stack", "r")), IRQ, ["#PF(0x3)", "#PF(0x3)", "8 on IST1"]),
    "read-only stack without WP": (kernel(mappings=mappings("stack", "r"), cr0=0x8000_0001), IRQ, ["32 on current"]),
    "tables of user pages": (kernel(mappings=mappings("IDT", "rwu")), IRQ, ["32 on current"]),
    "SMAP": (kernel(mappings=mappings("IDT", "rwu"), cr4=PAE | SMAP), IRQ, ["#PF(0x1)", "#PF(0x1)", "#PF(0x1)"]),
    "SMAP, ring 3, AC": (
        kernel(ring=3, mappings=mappings("TSS", "rwu"), cr4=PAE | SMAP, rflags=0x202 | AC), IRQ,
        ["#PF(0x1)", "#PF(0x1)", "#PF(0x1)"],
    ),
    "SMAP does not matter in ring 3": (
        kernel(ring=3, gates=gate(0x20, selector=CONFORMING), cr4=PAE | SMAP), IRQ, ["32 on current"],
    ),
    "SMAP stack": (
        kernel(mappings=mappings("stack", "rwu"), cr4=PAE | SMAP), IRQ, ["#PF(0x3)", "#PF(0x3)", "8 on IST1"]
    ),
    "SMAP stack, AC": (
        kernel(mappings=mappings("stack", "rwu"), cr4=PAE | SMAP, rflags=0x202 | AC), IRQ, ["32 on current"],
    ),
    "accessed bit": (
        kernel(segments=(SegmentDescriptor.kernel_code().replace(type=0xA),), gates=gate(0x20, selector=0x40)), IRQ,
        ["32 on current"],
    ),
    "accessed bit, read-only GDT": (
        kernel(mappings=mappings("GDT", "r"), segments=(SegmentDescriptor.kernel_code().replace(type=0xA),),
               gates=gate(0x20, selector=0x40)), IRQ, ["#PF(0x3)", "14 on current"],
    ),
    "accessed already, read-only GDT": (kernel(mappings=mappings("GDT", "r")), IRQ, ["32 on current"]),
    "no-execute does not matter yet": (kernel(mappings=mappings("code", "rw")), IRQ, ["32 on current"]),
}  # fmt: skip


@pytest.mark.parametrize(("machine", "event", "expected"), RIGHTS.values(), ids=RIGHTS)
def test_rights(machine: Machine, event: Event, expected: list[str]) -> None:
    if expected[-1].startswith("#"):
        expected = [*expected, "shutdown"]
    assert chain(deliver(machine, event)) == expected


def test_the_accessed_bit_is_set_in_the_story_alone() -> None:
    machine = kernel(segments=(SegmentDescriptor.kernel_code().replace(type=0xA),), gates=gate(0x20, selector=0x40))
    state = CpuState(machine)
    deliver(state, IRQ)
    assert state.read(GDT + 0x40, 8) == bytes(SegmentDescriptor.kernel_code())
    assert machine.read(GDT + 0x40, 8) == bytes(SegmentDescriptor.kernel_code().replace(type=0xA))


def test_the_accessed_bit_faults_at_its_byte() -> None:
    machine, event, _ = RIGHTS["accessed bit, read-only GDT"]
    attempt = deliver(machine, event).attempts[0]
    assert attempt.fault == Event.exception(14, 3, GDT + 0x45)
    assert (attempt.steps[-1].step, attempt.steps[-1].address) == ("accessed bit", GDT + 0x45)


def put(state: CpuState, linear: int, data: bytes) -> None:
    """Write over memory, across pages and the end of all addresses."""
    for at, byte in enumerate(data):
        state.write((linear + at) % END, [byte], 1, WRITE)


AROUND = (*MAPPINGS, Mapping("first", 0, 0x1000), Mapping("last", END - 0x1000, 0x1000))
CLEAR = SegmentDescriptor.kernel_code().replace(type=0xA)
STRADDLING = {  # a structure over the edge of two pages, or beyond the last address: registers, where it is, its bytes
    "gate": ({"idtr": TableRegister(IDT - 0x208, 0xFFF)}, IDT - 8, bytes(idt()[32])),
    "gate at the end": ({"idtr": TableRegister(END - 0x208, 0xFFF)}, END - 8, bytes(idt()[32])),
    "gate at 0": ({"idtr": TableRegister(END - 0x200, 0xFFF)}, 0, bytes(idt()[32])),
    "descriptor": ({"gdtr": TableRegister(END - 12, 0xF)}, END - 4, bytes(CLEAR)),
    "descriptor at 0": ({"gdtr": TableRegister(END - 8, 0xF)}, 0, bytes(CLEAR)),
    "pointer": ({"tr": Segment(TR, END - 0x28, 0x67)}, END - 4, IST.to_bytes(8, "little")),
    "pointer at 0": ({"tr": Segment(TR, END - 0x24, 0x67)}, 0, IST.to_bytes(8, "little")),
}


@pytest.mark.parametrize(("registers", "place", "data"), STRADDLING.values(), ids=STRADDLING)
def test_addresses_go_on_in_the_next_page_and_at_0(registers: dict[str, Any], place: int, data: bytes) -> None:
    ist = int("tr" in registers)
    state = CpuState(kernel(mappings=AROUND, gates=gate(0x20, ist=ist), **registers))
    put(state, place, data)
    delivery = deliver(state, IRQ)
    assert chain(delivery) == ["32 on IST1" if ist else "32 on current"]
    assert (delivery.registers.rip, delivery.registers.cs) == (
        handler(0x20), load(CS, SegmentDescriptor.kernel_code()),
    )  # fmt: skip
    if data == bytes(CLEAR):
        assert state.read(place, 8) == bytes(SegmentDescriptor.kernel_code())


def test_a_stack_that_ends_with_the_last_address() -> None:
    delivery = deliver(kernel(mappings=AROUND, rsp=0), IRQ)
    assert delivery.pushed is not None and (delivery.pushed.rsp, delivery.registers.rsp) == (0, END - 40)
    assert "RSP 0x0" in [step.found for step in delivery.attempts[0].steps if step.step == "stack"]


def test_an_ist_is_eight_bytes() -> None:
    delivery = deliver(kernel(gates=gate(0x20, ist=1), tss=Tss(ist1=IST, ist2=END - 1)), IRQ)
    assert delivery.registers.rsp == IST - 40


LAST = OUTSIDE - 0x1001  # of the lower canonical addresses; nothing is there


@pytest.mark.parametrize(
    ("registers", "fault"),
    [
        # whether all 8 bytes are canonical is asked before the first is looked for
        ({"tr": Segment(TR, LAST - 7 - 0x24, 0x67)}, Event.exception(14, 0, LAST - 7)),
        ({"tr": Segment(TR, LAST - 6 - 0x24, 0x67)}, Event.exception(13, 1)),
        ({"idtr": TableRegister(LAST - 7 - 0x200, 0xFFF)}, Event.exception(14, 0, LAST - 7)),
        ({"idtr": TableRegister(LAST - 6 - 0x200, 0xFFF)}, Event.exception(13, 1)),
    ],
)
def test_the_edge_of_the_canonical_addresses(registers: dict[str, Any], fault: Event) -> None:
    machine = kernel(gates=gate(0x20, ist=1), **registers)
    assert deliver(machine, IRQ).attempts[0].fault == fault


def test_a_frame_over_two_pages() -> None:
    """Each push lands where its address says, and the pages need not be neighbours in physical memory."""
    edge = IST - 0x1000
    state = CpuState(kernel(gates=gate(14, ist=2), tss=Tss(ist2=edge + 0x18)))
    delivery = deliver(state, PF)
    assert delivery.registers.rsp == edge + 0x10 - 48
    assert delivery.frame == state.read(edge + 0x10 - 48, 48) and delivery.pushed == deliver(kernel(), PF).pushed
    pushes = [(step.address, step.found) for step in delivery.attempts[0].steps if step.step == "push"]
    assert pushes == [(edge, f"16 bytes below {edge + 16:#x}"), (edge - 32, f"32 bytes below {edge:#x}")]


def test_a_frame_that_straddles_pages_is_written_once() -> None:
    """Its upper part on one page, the rest on the page below; nothing beside them."""
    state = CpuState(kernel(rsp=STACK + 0x1010))
    deliver(state, Event.exception("#GP", 0x18))
    written = sorted(state.changes())
    assert len(written) == len(dict(written)) == 48
    assert all(len(data) == len(kinds) == 0x1000 for data, kinds in state.written.values()) and len(state.written) == 2


def test_a_read_that_straddles_pages_names_the_second() -> None:
    whole = (*MAPPINGS[1:3], Mapping("first", GUARD - 0x1000, 0x1000), *MAPPINGS[3:])
    machine = kernel(idtr=TableRegister(GUARD - 0x20 * 16 - 8, 0xFFF), mappings=(MAPPINGS[0], *whole))
    assert deliver(machine, IRQ).attempts[0].fault == Event.exception(14, 0, GUARD)


# Double faults


@pytest.mark.parametrize(
    ("first", "vendor", "mutated", "expected"),
    [
        # second is #NP: contributory
        (UD, "intel", {"p": 0}, ["#NP(0x33)", "11 on current"]),
        (Event.exception("#DE"), "intel", {"p": 0}, ["#NP(0x3)", "8 on IST1"]),
        (GP, "intel", {"p": 0}, ["#NP(0x6b)", "8 on IST1"]),
        (PF, "intel", {"p": 0}, ["#NP(0x73)", "8 on IST1"]),
        (Event.exception(20), "intel", {"p": 0}, ["#NP(0xa3)", "8 on IST1"]),
        (Event.exception(20), "amd", {"p": 0}, ["#NP(0xa3)", "11 on current"]),
        (Event.exception(21), "intel", {"p": 0}, ["#NP(0xab)", "8 on IST1"]),
        (Event.exception(29), "intel", {"p": 0}, ["#NP(0xeb)", "11 on current"]),
        (Event.exception(29), "amd", {"p": 0}, ["#NP(0xeb)", "8 on IST1"]),
        (Event.exception(17), "intel", {"p": 0}, ["#NP(0x8b)", "11 on current"]),
        (Event.exception(18), "intel", {"p": 0}, ["#NP(0x93)", "11 on current"]),
        (Event.software(13), "intel", {"p": 0}, ["#NP(0x6a)", "11 on current"]),
        (Event.software(8), "intel", {"p": 0}, ["#NP(0x42)", "11 on current"]),
        (Event.interrupt(13), "intel", {"p": 0}, ["#NP(0x6b)", "11 on current"]),
        (DF, "intel", {"p": 0}, ["#NP(0x43)", "shutdown"]),
        # second is #PF, for IST2 is 0
        (GP, "intel", {"ist": 2}, ["#PF(0x2)", "14 on current"]),
        (PF, "intel", {"ist": 2}, ["#PF(0x2)", "8 on IST1"]),
        (UD, "intel", {"ist": 2}, ["#PF(0x2)", "14 on current"]),
        (DF, "intel", {"ist": 2}, ["#PF(0x2)", "shutdown"]),
    ],
)
def test_classes(first: Event, vendor: str, mutated: dict[str, int], expected: list[str]) -> None:
    assert chain(deliver(kernel(vendor=vendor, gates=gate(first.vector, **mutated)), first)) == expected


def test_only_the_latest_class_counts() -> None:
    # #GP meets #PF: handled serially; that #PF meets #GP: a double fault, by (page fault, contributory)
    gates = {**gate(13, ist=2), **gate(14, selector=0)}
    delivery = deliver(kernel(gates=gates), GP)
    assert chain(delivery) == ["#PF(0x2)", "#GP(0x1)", "8 on IST1"]
    assert [event.label for event in delivery.events] == ["#GP", "#PF", "#DF"]


def test_a_benign_event_is_lost_and_its_fault_classified_afresh() -> None:
    gates = {**gate(0x20, p=0), **gate(11, p=0)}
    assert chain(deliver(kernel(gates=gates), IRQ)) == ["#NP(0x103)", "#NP(0x5b)", "8 on IST1"]
    assert chain(deliver(kernel(gates=gates), Event.software(0x20))) == ["#NP(0x102)", "#NP(0x5b)", "8 on IST1"]


def test_guard_page_hit() -> None:
    delivery = deliver(kernel(rsp=STACK), Event.exception(14, 2, STACK - 8))
    assert chain(delivery) == ["#PF(0x2)", "8 on IST1"]
    assert delivery.pushed == ErrorFrame(ss=DS, rsp=STACK, rflags=0x10202, cs=CS, rip=CODE + 0x1800, error_code=0)
    assert delivery.cr2 == STACK - 8


def test_a_frame_breaks_off_half_way_and_stays_in_memory() -> None:
    state = CpuState(kernel(rsp=STACK + 0x18))
    delivery = deliver(state, UD)
    assert chain(delivery) == ["#PF(0x2)", "#PF(0x2)", "8 on IST1"]
    assert delivery.cr2 == STACK - 8
    assert [attempt.steps[-1].step for attempt in delivery.attempts[:2]] == ["push RFLAGS"] * 2
    # SS and RSP are above the page's edge; RSP was aligned down first
    assert state.read(STACK, 16) == (STACK + 0x18).to_bytes(8, "little") + DS.to_bytes(8, "little")
    assert state.machine.read(STACK, 16) == bytes(16)


def test_shutdown_changes_cr2_and_nothing_else() -> None:
    machine = kernel(rsp=STACK, gates=gate(8, ist=0))
    delivery = deliver(machine, UD)
    assert chain(delivery) == ["#PF(0x2)", "#PF(0x2)", "#PF(0x2)", "shutdown"]
    assert delivery.cr2 == STACK - 8
    assert (delivery.registers, delivery.vector, delivery.frame) == (machine.registers, None, None)
    assert delivery.reason == (
        f"#DF cannot be delivered: push SS at {STACK - 8:#x} on the same stack (no IST): PTE not present"
    )
    machine = kernel(gates=gate(8, ist=2, p=1))
    assert deliver(machine, DF).reason == (
        f"#DF cannot be delivered: push SS at {END - 8:#x} on IST2: PDPTE not present"
    )
    assert deliver(kernel(gates=gate(8, p=0)), DF).reason == "#DF cannot be delivered: gate P: P 0"


def test_a_frame_over_a_table_is_seen_by_what_follows() -> None:
    # the frame of vector 0x20 goes over the gate of vector 3, the next event
    machine = kernel(gates=gate(0x20, ist=1), tss=Tss(ist1=IDT + 4 * 16))
    state = CpuState(machine)
    assert chain(deliver(state, IRQ)) == ["32 on IST1"]
    assert state.read(IDT + 3 * 16, 16) == (TOP - 0x100).to_bytes(8, "little") + DS.to_bytes(8, "little")
    assert chain(deliver(state, Event.int3()))[0] == "#GP(0x1a)"
    assert machine.idt[3] == idt()[3]


# What is not known


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("idtr", "IDTR is not known"),
        ("gdtr", "GDTR is not known"),
        ("ldtr", "LDTR is not known"),
        ("tr", "TR is not known"),
        ("cs", "CS is not known"),
        ("rsp", "RSP is not known"),
        ("cr3", "CR3 is not known: no page can be judged without it"),
        ("rflags", "RFLAGS is not known, and with CR4.SMAP its AC bit decides about pushes"),
    ],
)
def test_a_register_that_is_not_known(name: str, needs: str) -> None:
    machine = kernel(cr4=PAE | SMAP, gates=gate(0x20, ist=int(name == "tr"), selector=0xC if name == "ldtr" else CS))
    delivery = deliver(machine.replace(machine.registers.replace(**{name: None})), IRQ)
    assert (delivery.outcome, delivery.needs) == ("unknown", needs)
    assert delivery.reason == f"while delivering interrupt 0x20: {needs}"
    assert (len(delivery.attempts), delivery.attempts[0].fault, delivery.vector) == (1, None, None)


def test_a_register_that_does_not_decide_need_not_be_known() -> None:
    machine = kernel()
    without = dict.fromkeys(("tr", "ldtr", "rip", "ss", "rflags", "cr4"))
    delivery = deliver(state := CpuState(machine.replace(machine.registers.replace(**without))), IRQ)
    assert (chain(delivery), delivery.frame, delivery.pushed) == (["32 on current"], None, None)
    for event in (UD, INT):
        assert deliver(machine.replace(machine.registers.replace(**without)), event).vector == event.vector
    frame, known = state.registers.rsp, {8: CS, 24: TOP - 0x100}  # RIP, CS, RFLAGS, RSP, SS
    assert frame == TOP - 0x100 - 40 and state.registers.rflags is None
    for at in range(0, 40, 8):
        if at in known:
            assert int.from_bytes(state.read(frame + at, 8), "little") == known[at]
        else:
            with pytest.raises(LookupError, match="overwritten"):
                state.read(frame + at, 8)


def test_what_is_not_declared() -> None:
    machine = kernel(rsp=UNMAPPED, complete=False)
    delivery = deliver(machine, IRQ)
    assert (delivery.outcome, delivery.needs) == ("unknown", f"the configuration says nothing of {UNMAPPED - 40:#x}")
    assert chain(deliver(kernel(rsp=UNMAPPED), IRQ)) == ["#PF(0x2)", "#PF(0x2)", "8 on IST1"]


@pytest.mark.parametrize(
    ("registers", "word"),
    [
        ({"cr4": PAE | FRED}, "FRED"),
        ({"cr4": PAE | CET, "general": {"s_cet": 1}}, "shadow stacks"),
        # IA32_S_CET.SH_STK_EN is bit 0, and does nothing without CR4.CET; bit 2 is ENDBR_EN
        ({"cr4": PAE | CET, "general": {"s_cet": 4}}, ""),
        ({"cr4": PAE | CET}, ""),
        ({"cr4": PAE, "general": {"s_cet": 1}}, ""),
        ({"cr4": None, "general": {"s_cet": 1}}, ""),
    ],
)
def test_what_is_not_modelled(registers: dict[str, Any], word: str) -> None:
    delivery = deliver(kernel(**registers), IRQ)
    assert delivery.outcome == ("unknown" if word else "delivered")
    assert word in delivery.reason


def test_delivery_is_that_of_long_mode() -> None:
    machine = kernel()
    with pytest.raises(UsageError, match="CPU 0 is in real mode"):
        deliver(machine.replace(machine.registers.replace(cr0=0x10, efer=0)), IRQ)


def test_five_levels() -> None:
    high = 0xFF00_0000_0000_0000
    machine = kernel(
        mappings=(*MAPPINGS, Mapping("far", high, 0x1000)),
        gates=gate(0x20, ist=1),
        tss=Tss(ist1=high + 0x1000),
        cr4=PAE | 1 << 12,
    )
    assert chain(deliver(machine, IRQ)) == ["32 on IST1"]
    assert chain(deliver(machine.replace(machine.registers.replace(cr4=PAE)), IRQ))[-1] != "32 on IST1"


def test_steps_name_what_was_read() -> None:
    steps = deliver(kernel(gates=gate(0x20, ist=1)), IRQ).attempts[0].steps
    assert [(step.step, step.address) for step in steps if step.address is not None] == [
        ("IDT entry 32", IDT + 0x200),
        ("GDT entry 1", GDT + 8),
        ("TSS IST1", TSS + 0x24),
        ("push", IST - 40),
        ("handler", handler(0x20)),
    ]


def test_gate_and_descriptors_are_ours() -> None:
    """The kernels of these tests are what their comments say."""
    assert gdt()[TR].kind == "tss-available" and gdt()[CONFORMING].kind == "code64"
    assert isinstance(idt()[8], Gate) and LDT not in (GDT, IDT, TSS)
    assert kernel().registers.tr == Segment(TR, TSS, 0x67, 0x8900 | TSS & 0xFF000000 | TSS >> 16 & 0xFF)
    assert isinstance(kernel().registers, Registers)
