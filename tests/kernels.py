"""Small kernels declared for tests: good ones, of which a test spoils one thing."""

from typing import Any

from x86tables import Gate, Gdt, Idt, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.machine.machine import Machine
from x86tables.machine.registers import Registers, Segment
from x86tables.machine.synthetic import Mapping, load, synthetic_machine

K = 0xFFFF_FFFF_8000_0000
GDT, IDT, TSS, LDT = K, K + 0x1000, K + 0x3000, K + 0x4000  # each in a page of its own
GUARD, STACK, TOP = K + 0x10000, K + 0x11000, K + 0x15000  # 16 KiB above a guard page
IST = K + 0x25000  # the end of a 20 KiB stack
CODE = K + 0x100000
USER, USER_STACK = 0x40_0000, 0x50_0000
CS, DS, UCS, UDS, TR, CONFORMING = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x38
MAPPINGS = (
    Mapping("GDT", GDT, 0x1000),
    Mapping("IDT", IDT, 0x1000),
    Mapping("TSS", TSS, 0x1000),
    Mapping("guard", GUARD, 0x1000, ""),
    Mapping("stack", STACK, 0x4000),
    Mapping("IST1", IST - 0x5000, 0x5000),
    Mapping("code", CODE, 0x2000, "rx"),
    Mapping("program", USER, 0x1000, "rxu"),
    Mapping("its stack", USER_STACK, 0x1000, "rwu"),
)


def handler(vector: int) -> int:
    """Where the handler of a vector is."""
    return CODE + 16 * vector


def gdt(*more: SegmentDescriptor) -> Gdt:
    """Null, kernel code and data, user code and data, the TSS, conforming code, then what is asked for from 0x40 on."""
    table = Gdt()
    table.append(SegmentDescriptor.kernel_code())
    table.append(SegmentDescriptor.kernel_data())
    table.append(SegmentDescriptor.user_code())
    table.append(SegmentDescriptor.user_data())
    table.append(SystemDescriptor.tss(TSS))
    table.append(SegmentDescriptor.kernel_code().replace(type=0xF))
    for descriptor in more:
        table.append(descriptor)
    return table


def idt(**gates: Gate) -> Idt:
    """All 256 gates, vector 8 on IST1, those of 3 and 0x80 for anybody; `g14=...` replaces one."""
    table = Idt()
    for vector in range(256):
        table[vector] = Gate.interrupt(handler(vector), CS, ist=int(vector == 8), dpl=3 if vector in (3, 0x80) else 0)
    for name, gate in gates.items():
        table[int(name[1:])] = gate
    return table


def gate(vector: int, **changes: int) -> dict[str, Gate]:
    """One gate of `idt()` with fields changed, as an argument for it."""
    return {f"g{vector}": idt()[vector].replace(**changes)}


def kernel(
    *,
    mappings: tuple[Mapping, ...] = MAPPINGS,
    ring: int = 0,
    gates: dict[str, Gate] | None = None,
    segments: tuple[SegmentDescriptor, ...] = (),
    tss: Tss | None = None,
    ldt: Gdt | None = None,
    vendor: str = "intel",
    complete: bool = True,
    **registers: Any,
) -> Machine:
    """The Machine in ring 0 on its stack, or in ring 3, with registers changed."""
    chosen = {"rip": CODE + 0x1800, "rsp": TOP - 0x100, "rflags": 0x202}
    if ring == 3:
        chosen = {"rip": USER + 0x10, "rsp": USER_STACK + 0x1000, "rflags": 0x202}
        registers = {"cs": load(UCS, SegmentDescriptor.user_code()), "ss": Segment(UDS), **registers}
    return synthetic_machine(
        mappings,
        gdt=(GDT, gdt(*segments)),
        idt=(IDT, idt(**(gates or {}))),
        tss=(TSS, tss or Tss(rsp0=TOP, ist1=IST)),
        ldt=None if ldt is None else (LDT, ldt),
        registers=Registers(**{**chosen, **registers}),
        vendor=vendor,
        complete=complete,
    )
