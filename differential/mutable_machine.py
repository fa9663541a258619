"""A good machine that has all that delivery can ask for, and MutableMachine, a copy of it that mutations change."""

from __future__ import annotations

import random

from x86tables.machine.machine import Machine
from x86tables.machine.memory import PAGE, Memory
from x86tables.machine.registers import IF, LA57, Registers
from x86tables.machine.synthetic import Mapping, load, synthetic_machine
from x86tables.prove.stimulus import PUSH_LOOP, Stimulus
from x86tables.tables.gdt import Gdt, SegmentDescriptor, SystemDescriptor
from x86tables.tables.idt import Gate, Idt
from x86tables.tables.tss import Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from x86tables.machine.probe import PageEntry

HIGH = 0xFFFF_8000_0000_0000
GDT, IDT, TSS, LDT, CODE_PAGE, DATA = (HIGH + 0x10_0000 + 0x1_0000 * number for number in range(6))
HANDLERS, USER_HANDLERS, NX_HANDLERS = HIGH + 0x20_0000, 0x50_0000, HIGH + 0x21_0000
STACKS = [HIGH + 0x40_0000 + 0x4000 * number for number in range(12)]  # two pages each, a guard below and above
KERNEL, RSP0, RSP1, RSP2, *IST = (base + 2 * PAGE for base in STACKS[:11])  # by their ends
READ_ONLY = STACKS[11] + 2 * PAGE
USER_CODE, USER_STACK = 0x40_0000, 0x60_2000
EDGE = HIGH + 0x70_0000  # two pages in which tables are laid so that they straddle
NON_CANONICAL = 0x0000_8000_0000_0000

KERNEL_CODE, KERNEL_DATA = SegmentDescriptor.kernel_code(), SegmentDescriptor.kernel_data()
TSS_SELECTOR, LDT_SELECTOR = 0x08, 0x18


def _code(**changes: int) -> SegmentDescriptor:
    return KERNEL_CODE.replace(type=0xB, **changes)


# What a gate's selector can name. From slot 5; the LDT has the same from slot 1.
SEGMENTS = {
    "code": _code(),
    "data": KERNEL_DATA.replace(type=3),
    "user data": KERNEL_DATA.replace(type=3, dpl=3),
    "user code": _code(dpl=3),
    "code of ring 1": _code(dpl=1),
    "code of ring 2": _code(dpl=2),
    "32-bit code": _code(l=False, d_b=True),
    "16-bit code": _code(l=False),
    "code with L and D": _code(d_b=True),
    "conforming code": _code().replace(type=0xF),
    "conforming code of ring 3": _code(dpl=3).replace(type=0xF),
    "conforming code of ring 1": _code(dpl=1).replace(type=0xF),
    "code not present": _code(p=False),
    "32-bit code not present": _code(p=False, l=False, d_b=True),
    "code not accessed": _code().replace(type=0xA),
    "conforming code not accessed": _code().replace(type=0xE),
    "ring 1 code not accessed": _code(dpl=1).replace(type=0xA),
    "system": _code(s=False).replace(type=0xB),
}
SELECTOR = {name: 0x28 + 8 * number for number, name in enumerate(SEGMENTS)}
RING_CODE = {0: "code", 1: "code of ring 1", 2: "code of ring 2", 3: "user code"}
RING_DATA = {0: "data", 1: "data", 2: "data", 3: "user data"}


def _good(levels: int) -> Machine:
    """The machine that all cases begin with."""
    gdt, ldt = Gdt(), Gdt()
    gdt.append(SystemDescriptor.tss(TSS, 0x67).replace(type=0xB))
    gdt.append(SystemDescriptor.ldt(LDT, 8 * len(SEGMENTS) + 7))
    for segment in SEGMENTS.values():
        gdt.append(segment)
        ldt.append(segment)
    idt = Idt()
    for vector in range(256):
        make = Gate.trap if vector % 3 == 2 else Gate.interrupt
        ist = {8: 1, 2: 2, 18: 3}.get(vector, 0)
        dpl = 3 if vector in (3, 4) or (vector % 4 == 0 and vector >= 32) else 0
        idt[vector] = make(HANDLERS + 16 * vector, SELECTOR["code"], ist=ist, dpl=dpl)
    pointers = {f"ist{number}": top for number, top in enumerate(IST, 1)}
    tss = Tss(rsp0=RSP0, rsp1=RSP1, rsp2=RSP2, **pointers)
    handlers = PUSH_LOOP.ljust(16, b"\x90") * 256
    nops = b"\x90" * PAGE
    mappings = [
        Mapping("code", CODE_PAGE, PAGE, "rx", nops),
        Mapping("data", DATA, PAGE, "rw"),
        Mapping("handlers", HANDLERS, PAGE, "rx", handlers),
        Mapping("user handlers", USER_HANDLERS, PAGE, "rxu", handlers),
        Mapping("handlers not executable", NX_HANDLERS, PAGE, "r", handlers),
        Mapping("user code", USER_CODE, PAGE, "rxu", nops),
        Mapping("user stack", USER_STACK - 2 * PAGE, 2 * PAGE, "rwu"),
        Mapping("read-only", STACKS[11], 2 * PAGE, "r"),
        Mapping("straddled", EDGE, 2 * PAGE, "rw"),
        *(Mapping(f"stack {number}", base, 2 * PAGE, "rw") for number, base in enumerate(STACKS[:11])),
    ]
    registers = Registers(rsp=KERNEL, rip=CODE_PAGE, rflags=2 | IF, cr4=0x620 | (LA57 if levels == 5 else 0))
    return synthetic_machine(
        mappings, gdt=(GDT, gdt), idt=(IDT, idt), tss=(TSS, tss), ldt=(LDT, ldt), registers=registers,
        complete=True, maxphyaddr=40,
    )  # fmt: skip


class MutableMachine:
    """A machine in the making: pages of a good one, copied when they are changed, and registers by name."""

    def __init__(self, rng: random.Random, levels: int, stimulus: Stimulus, cpl: int) -> None:
        if levels not in _GOOD:
            machine = _good(levels)
            whole = {page: machine.memory.read(page, PAGE) for known in machine.memory.ranges for page in known[::PAGE]}
            _GOOD[levels] = machine, whole
        self.rng, self.stimulus, self.cpl = rng, stimulus, cpl
        self.good, pages = _GOOD[levels]
        self.pages: dict[int, bytes | bytearray] = dict(pages)
        self.mutations: list[str] = []
        self.wild = False  # handlers may be where there is no PUSH_LOOP
        r = self.registers = self.good.registers.asdict()
        r["general"] = {"rax": DATA + 0x100, "rcx": 0}
        if cpl:
            r["rip"], r["rsp"] = (USER_CODE, USER_STACK) if cpl == 3 else (CODE_PAGE, KERNEL)
            r["cs"] = load(SELECTOR[RING_CODE[cpl]] | cpl, SEGMENTS[RING_CODE[cpl]])
            r["ss"] = load(SELECTOR[RING_DATA[cpl]] | cpl, SEGMENTS[RING_DATA[cpl]].replace(dpl=cpl))
        else:
            r["cs"] = load(SELECTOR["code"], SEGMENTS["code"])
            r["ss"] = load(SELECTOR["data"], SEGMENTS["data"])
        if stimulus.code:
            self.put(r["rip"], stimulus.code)

    def _page(self, physical: int) -> bytearray:
        page = self.pages[physical & -PAGE]
        if not isinstance(page, bytearray):
            page = self.pages[physical & -PAGE] = bytearray(page)
        return page

    def put(self, linear: int, data: bytes) -> None:
        """Bytes within one page, where the good machine has it."""
        at = self.good.space.page(linear).physical + linear % PAGE
        self._page(at)[at % PAGE : at % PAGE + len(data)] = data

    def get(self, linear: int, size: int) -> bytes:
        """Bytes within one page."""
        at = self.good.space.page(linear).physical + linear % PAGE
        return bytes(self.pages[at & -PAGE][at % PAGE : at % PAGE + size])

    def entries(self, linear: int) -> list[PageEntry]:
        """The entries of the good machine's walk, the leaf last."""
        found: list[PageEntry] = []
        self.good.space.walk(linear, found.append)
        return found

    def change_entry(self, entry: PageEntry, change: Callable[[int], int]) -> None:
        """Change one entry of the page tables."""
        at = entry.address
        page = self._page(at)
        value = change(int.from_bytes(page[at % PAGE : at % PAGE + 8], "little"))
        page[at % PAGE : at % PAGE + 8] = value.to_bytes(8, "little")

    def machine(self) -> Machine:
        """The machine as it is now."""
        memory = Memory((at, PAGE, bytes(page), 0) for at, page in self.pages.items())
        return Machine(Registers(**self.registers), memory, vendor="intel", maxphyaddr=40)

    def vectors(self) -> int:
        """A vector that is likely to matter."""
        first = {
            "int3": 3,
            "int1": 1,
            "step": 1,
            "nmi": 2,
            "ud2": 6,
            "div": 0,
            "push": 14,
            "call": 14,
            "read": 14,
            "write": 14,
        }
        mine = first.get(self.stimulus.kind, self.stimulus.vector)
        return self.rng.choice((mine, mine, mine, 8, 8, 13, 14, 14, 10, 11, 12))


_GOOD: dict[int, tuple[Machine, dict[int, bytes]]] = {}
