"""Long-mode machines around good ones, drawn at random: what the differential tests run on both CPUs.

A good machine has every table, stack and handler that delivery can ask for; a case changes a few things of one, chosen
so that each check of delivery fails in some cases and the combinations are many.
"""

from __future__ import annotations

import random

from ..declared import Area, declare, load
from ..gdt import Gdt, SegmentDescriptor, SystemDescriptor
from ..idt import Gate, Idt
from ..machine import AC, IF, LA57, NT, NXE, RF, SMAP, SMEP, TF, WP, Machine, Registers, Segment
from ..memory import PAGE, Memory
from ..paging import NX, PS, RW, US, P
from ..records import Record
from ..tss import Tss
from .start import CODE, PINS, PUSH_LOOP, Start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..paging import PageEntry

HIGH = 0xFFFF_8000_0000_0000
GDT, IDT, TSS, LDT, CODE_PAGE, DATA = (HIGH + 0x10_0000 + 0x1_0000 * number for number in range(6))
HANDLERS, USER_HANDLERS, NX_HANDLERS = HIGH + 0x20_0000, 0x50_0000, HIGH + 0x21_0000
STACKS = [HIGH + 0x40_0000 + 0x4000 * number for number in range(12)]  # two pages each, a guard below and above
KERNEL, RSP0, RSP1, RSP2, *IST = (base + 2 * PAGE for base in STACKS[:11])  # by their ends
READ_ONLY = STACKS[11] + 2 * PAGE
USER_CODE, USER_STACK = 0x40_0000, 0x60_2000
EDGE = HIGH + 0x70_0000  # two pages in which tables are laid so that they straddle
NON_CANONICAL = 0x0000_8000_0000_0000
EXCEPTIONS = (0, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19)  # that may come out of nowhere; traps are elsewhere

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


class Case(Record):
    """A machine, what happens to it, and the names of what was changed. `handler_stack` as in Runner.run."""

    machine: Machine
    start: Start
    handler_stack: int
    changes: tuple[str, ...]


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
    areas = [
        Area("code", CODE_PAGE, PAGE, "rx", nops),
        Area("data", DATA, PAGE, "rw"),
        Area("handlers", HANDLERS, PAGE, "rx", handlers),
        Area("user handlers", USER_HANDLERS, PAGE, "rxu", handlers),
        Area("handlers not executable", NX_HANDLERS, PAGE, "r", handlers),
        Area("user code", USER_CODE, PAGE, "rxu", nops),
        Area("user stack", USER_STACK - 2 * PAGE, 2 * PAGE, "rwu"),
        Area("read-only", STACKS[11], 2 * PAGE, "r"),
        Area("straddled", EDGE, 2 * PAGE, "rw"),
        *(Area(f"stack {number}", base, 2 * PAGE, "rw") for number, base in enumerate(STACKS[:11])),
    ]
    registers = Registers(rsp=KERNEL, rip=CODE_PAGE, rflags=2 | IF, cr4=0x620 | (LA57 if levels == 5 else 0))
    return declare(
        areas, gdt=(GDT, gdt), idt=(IDT, idt), tss=(TSS, tss), ldt=(LDT, ldt), registers=registers,
        complete=True, maxphyaddr=40,
    )  # fmt: skip


class Sketch:
    """A machine in the making: pages of a good one, copied when they are changed, and registers by name."""

    def __init__(self, rng: random.Random, levels: int, start: Start, cpl: int) -> None:
        if levels not in _GOOD:
            machine = _good(levels)
            whole = {page: machine.memory.read(page, PAGE) for known in machine.memory.ranges for page in known[::PAGE]}
            _GOOD[levels] = machine, whole
        self.rng, self.start, self.cpl = rng, start, cpl
        self.good, pages = _GOOD[levels]
        self.pages: dict[int, bytes | bytearray] = dict(pages)
        self.changes: list[str] = []
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
        if start.code:
            self.put(r["rip"], start.code)

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
        mine = first.get(self.start.kind, self.start.vector)
        return self.rng.choice((mine, mine, mine, 8, 8, 13, 14, 14, 10, 11, 12))


_GOOD: dict[int, tuple[Machine, dict[int, bytes]]] = {}


def case(seed: int, number: int) -> Case:
    """Case `number` of the series `seed`: always the same."""
    return draw(random.Random(f"{seed}:{number}"))


def draw(rng: random.Random) -> Case:
    """A case drawn with `rng`."""
    start = _start(rng)
    cpl = rng.choice((0, 0, 0, 0, 3, 3, 3, 1, 2))
    sketch = Sketch(rng, 5 if rng.random() < 0.15 else 4, start, cpl)
    _flags(sketch)
    if start.kind in ("push", "call", "read", "write") and rng.random() < 0.8:  # or it would not fault
        sketch.changes.append("rsp" if start.kind in ("push", "call") else "operand")
        (_rsp if start.kind in ("push", "call") else _operand)(sketch)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 7))):
        change = rng.choice(CHANGES)
        label = change(sketch)
        sketch.changes.append(f"{change.__name__.strip('_')}: {label}" if label else change.__name__.strip("_"))
    if start.kind == "step":
        sketch.registers["rflags"] |= TF
    stack = 0 if sketch.wild else rng.choice((0, 0, 8, 64, 128, 128, 0x1F80))
    return Case(sketch.machine(), start, stack, tuple(sketch.changes))


def _start(rng: random.Random) -> Start:
    kind = rng.choice((*CODE, "push", "push", "int", "int", "int", "interrupt", "interrupt", "nmi", "nmi", "exception"))
    if kind == "int":
        return Start(kind, rng.choice((0x80, 0x80, 0x20, 0x21, 255, 3, 8, 13, 14, rng.randrange(256))))
    if kind == "interrupt":
        return Start(kind, rng.choice((0x20, 0x80, 255, 8, 14, 17, rng.randrange(256))))
    if kind == "exception":
        vector = rng.choice((*EXCEPTIONS, 18, 17))
        return Start(kind, vector, rng.choice((0, 0, 0x18)) if vector in (8, 10, 11, 12, 13, 14, 17) else 0)
    return Start(kind)


def _flags(sketch: Sketch) -> None:
    """The bits that change what is allowed, and those that are only carried along."""
    rng, r = sketch.rng, sketch.registers
    for bit, likely in ((SMEP, 0.3), (SMAP, 0.3)):
        if rng.random() < likely:
            r["cr4"] |= bit
    if rng.random() < 0.2:
        r["cr0"] &= ~WP
    if rng.random() < 0.03:
        r["efer"] &= ~NXE
    if sketch.start.kind not in PINS and rng.random() < 0.1:
        r["rflags"] |= RF  # Bochs clears it before the instruction, and so before a pin is looked at
    for bit, likely in ((AC, 0.2), (NT, 0.1), (1 << 10, 0.1), (3 << 12, 0.1), (0x8D5, 0.1), (1 << 21, 0.1)):
        if rng.random() < likely:
            r["rflags"] |= bit


# The changes. Each returns a word on what it did.


def _pointer(sketch: Sketch, top: int) -> tuple[str, int]:
    """Somewhere that a stack pointer should not, or may just, point to; `top` is the good one."""
    rng = sketch.rng
    base = top - 2 * PAGE
    choices: list[tuple[str, int]] = [
        ("unmapped", top + 3 * PAGE // 2),
        ("guard's edge", base),
        ("breaks off", base + rng.randrange(1, 0x40)),
        ("room for little more than the frame", base + rng.randrange(0x28, 0x100)),
        ("page edge", top - PAGE + rng.randrange(-0x30, 0x40)),
        ("misaligned", top - rng.randrange(1, 64)),
        ("last bytes of a page", top + PAGE - rng.randrange(1, 17)),
        ("read-only", READ_ONLY - rng.choice((0, 0, PAGE, 8))),
        ("user", USER_STACK - rng.choice((0, 0, 0x18))),
        ("0", 0),
        ("tiny", rng.randrange(1, 0x40)),
        ("not canonical", NON_CANONICAL + rng.choice((0x10, 0x1000, 0x5000_0000_0000))),
        ("edge of canonical", NON_CANONICAL + rng.randrange(-0x20, 0x30)),
        ("lowest of the upper half", HIGH + rng.randrange(-0x20, 0x30)),
        ("in the GDT", GDT + rng.randrange(0x40, 0x100, 8)),
        ("in the IDT", IDT + rng.randrange(0x30, 0x180, 8)),
        ("in the TSS", TSS + rng.choice((0x30, 0x40, 0x60, 0x98, 0x100))),
        ("another stack", rng.choice((KERNEL, RSP0, *IST)) - rng.choice((0, 8, PAGE))),
    ]
    return rng.choice(choices)


def _rsp(sketch: Sketch) -> str:
    label, value = _pointer(sketch, sketch.registers["rsp"])
    sketch.registers["rsp"] = value % (1 << 64)
    return label


def _tss_pointer(sketch: Sketch) -> str:
    name = sketch.rng.choice(("rsp0", "rsp0", "rsp1", "rsp2", "ist1", "ist1", "ist1", "ist2", "ist3", "ist7"))
    field = Tss.field(name)
    old = int.from_bytes(sketch.get(TSS + field.offset, 8), "little")
    label, value = _pointer(sketch, old)
    sketch.put(TSS + field.offset, (value % (1 << 64)).to_bytes(8, "little"))
    return label


def _change_gate(sketch: Sketch, **changes: int) -> None:
    at = IDT + 16 * sketch.vectors()
    sketch.put(at, bytes(Gate.parse(sketch.get(at, 16)).replace(**changes)))


def _gate_absent(sketch: Sketch) -> str:
    if sketch.rng.random() < 0.3:
        sketch.put(IDT + 16 * sketch.vectors(), bytes(16))
        return "all zero"
    _change_gate(sketch, p=False)
    return "P 0"


def _gate_type(sketch: Sketch) -> str:
    if sketch.rng.random() < 0.2:
        _change_gate(sketch, s=True)
        return "S 1"
    _change_gate(sketch, type=sketch.rng.randrange(16))
    return ""


def _gate_dpl(sketch: Sketch) -> str:
    _change_gate(sketch, dpl=sketch.rng.randrange(4))
    return ""


def _gate_ist(sketch: Sketch) -> str:
    _change_gate(sketch, ist=sketch.rng.randrange(8))
    return ""


def _gate_selector(sketch: Sketch) -> str:
    rng = sketch.rng
    name = rng.choice((*SELECTOR, "null", "beyond", "LDT", "LDT", "LDT", "TSS's upper half", "another RPL"))
    if name == "LDT":
        inner = rng.choice((*SELECTOR, "code", "code", "code not accessed"))
        selector, name = SELECTOR[inner] - 0x20 | 4 | rng.randrange(4), f"LDT's {inner}"
    else:
        special = {
            "null": rng.randrange(4), "beyond": rng.randrange(0x0C0, 0xFFFF), "TSS's upper half": TSS_SELECTOR + 8,
            "another RPL": SELECTOR["code"] | rng.randrange(4),
        }  # fmt: skip
        selector = special[name] if name in special else SELECTOR[name] | rng.choice((0, 0, 0, 1, 2, 3))
    _change_gate(sketch, selector=selector)
    return name


def _gate_offset(sketch: Sketch) -> str:
    choices = {
        "unmapped": HIGH + 0x30_0000,
        "not executable": NX_HANDLERS,
        "user": USER_HANDLERS,
        "not canonical": NON_CANONICAL + sketch.rng.choice((0, 0x1000)),
        "in the stack's guard": STACKS[0],
    }
    label = sketch.rng.choice(list(choices))
    _change_gate(sketch, offset=choices[label])
    return label


def _gate_reserved(sketch: Sketch) -> str:
    if sketch.rng.random() < 0.5:
        _change_gate(sketch, reserved1=1 << sketch.rng.randrange(32))
        return "last dword"
    _change_gate(sketch, reserved0=sketch.rng.randrange(32))
    return "above IST"


def _gate_bits(sketch: Sketch) -> str:
    """Flip bits anywhere in a gate but in the lowest 16 of its offset."""
    at = IDT + 16 * sketch.vectors()
    value = int.from_bytes(sketch.get(at, 16), "little") ^ 1 << sketch.rng.randrange(16, 128)
    sketch.put(at, value.to_bytes(16, "little"))
    sketch.wild = True
    return ""


def _descriptor_bits(sketch: Sketch) -> str:
    """Flip bits anywhere in the code segment that most handlers use."""
    at = GDT + SELECTOR["code"]
    value = int.from_bytes(sketch.get(at, 8), "little") ^ 1 << sketch.rng.randrange(64)
    sketch.put(at, value.to_bytes(8, "little"))
    return ""


def _descriptor_kind(sketch: Sketch) -> str:
    """Put another kind of segment where most handlers have theirs."""
    name = sketch.rng.choice(list(SEGMENTS))
    sketch.put(GDT + SELECTOR["code"], bytes(SEGMENTS[name]))
    return name


def _not_accessed(sketch: Sketch) -> str:
    """The accessed bit has to be set in a table whose page may refuse that."""
    sketch.put(GDT + SELECTOR["code"], bytes(SEGMENTS["code not accessed"]))
    if sketch.rng.random() < 0.3:
        return "writable"
    sketch.change_entry(sketch.entries(GDT)[-1], lambda value: value & ~RW)
    return "read-only"


TABLES = {"gdtr": GDT, "idtr": IDT, "tr": TSS, "ldtr": LDT}


def _table_limit(sketch: Sketch) -> str:
    rng, name = sketch.rng, sketch.rng.choice(("gdtr", "idtr", "idtr", "tr", "tr", "ldtr"))
    ends = {
        "gdtr": (SELECTOR["code"], SELECTOR["code"] + 8, rng.randrange(0xC0), SELECTOR["user code"] + 8),
        "idtr": (16 * sketch.vectors(), 16 * sketch.vectors() + 16, 0x8F, 0x80, 0xE0, 0xF0, rng.randrange(0x1000)),
        "tr": (0x0C, 0x14, 0x1C, 0x2C, 0x34, 0x3C, 0x5C, 4, rng.randrange(0x68)),
        "ldtr": (0x10, 0x18, rng.randrange(0xC0)),
    }[name]
    limit = max(0, rng.choice(ends) + rng.choice((-1, -1, -2, 0)))
    sketch.registers[name] = sketch.registers[name].replace(limit=limit)
    return name


def _table_page(sketch: Sketch) -> str:
    name = sketch.rng.choice(list(TABLES))
    return f"{name} {_change_page(sketch, TABLES[name])}"


def _table_place(sketch: Sketch) -> str:
    """Lay a table where its entries straddle two pages, one of which may be missing; or point the register astray."""
    rng, name = sketch.rng, sketch.rng.choice(list(TABLES))
    old = sketch.registers[name]
    if rng.random() < 0.3:
        bases = (
            NON_CANONICAL,
            NON_CANONICAL - rng.randrange(0x180),
            HIGH + 0x30_0000,
            0,
            (1 << 64) - rng.randrange(0x180),
        )
        sketch.registers[name] = old.replace(base=rng.choice(bases) % (1 << 64))
        return f"{name} astray"
    before = rng.choice((rng.randrange(1, 0x68), 16 * sketch.vectors() + rng.randrange(16), rng.randrange(1, 0x180)))
    data = sketch.get(TABLES[name], min(PAGE - before, 0x400))
    data = sketch.get(TABLES[name], min(PAGE, before + 0x400)) if before < PAGE else data
    start = EDGE + PAGE - before
    sketch.put(start, data[:before])
    sketch.put(EDGE + PAGE, data[before:])
    sketch.registers[name] = old.replace(base=start)
    if rng.random() < 0.6:
        return f"{name} straddles, {_change_page(sketch, EDGE + rng.choice((0, PAGE)))}"
    return f"{name} straddles"


def _table_null(sketch: Sketch) -> str:
    if sketch.rng.random() < 0.5:
        sketch.registers["ldtr"] = Segment(sketch.rng.randrange(4), 0, 0xFFFF, 0)
        return "ldtr"
    sketch.registers["tr"] = Segment(0, 0, 0xFFFF, 0x8B00)
    return "tr"


def _change_page(sketch: Sketch, linear: int) -> str:
    """Change the entry of a page, or one above it."""
    rng = sketch.rng
    entries = sketch.entries(linear)
    changes: dict[str, Callable[[int], int]] = {
        "not present": lambda value: value & ~P,
        "read-only": lambda value: value & ~RW,
        "user": lambda value: value | US,
        "supervisor": lambda value: value & ~US,
        "not executable": lambda value: value | NX,
        "reserved bit": lambda value: value | 1 << rng.randrange(40, 52),
        "ignored bit": lambda value: value | 1 << rng.choice((9, 10, 11, 52, 58, 62, 5, 6, 3, 4, 8)),
        "PS": lambda value: value | PS,
    }
    label = rng.choice(list(changes))
    level = entries[-1] if rng.random() < 0.8 else rng.choice(entries)
    sketch.change_entry(level, changes[label])
    return label if level is entries[-1] else f"{level.name} {label}"


def _stack_page(sketch: Sketch) -> str:
    tops = (sketch.registers["rsp"], RSP0, RSP0, IST[0], IST[0], *IST[1:3])
    top = sketch.rng.choice(tops) - sketch.rng.choice((8, 8, PAGE + 8))
    if not any(base <= top < base + 2 * PAGE for base in (*STACKS, USER_STACK - 2 * PAGE)):
        return "none"
    return _change_page(sketch, top)


def _code_page(sketch: Sketch) -> str:
    return _change_page(sketch, sketch.rng.choice((HANDLERS, HANDLERS, CODE_PAGE, USER_CODE, USER_HANDLERS)))


def _alias(sketch: Sketch) -> str:
    """Two linear pages on one physical: a stack that is a table."""
    rng = sketch.rng
    name = rng.choice(list(TABLES))
    physical = sketch.good.space.page(TABLES[name]).physical
    stack = rng.choice((KERNEL, RSP0, IST[0])) - rng.choice((8, PAGE + 8))
    sketch.change_entry(sketch.entries(stack)[-1], lambda value: value & ~0x000F_FFFF_FFFF_F000 | physical)
    return f"stack is the {name}'s page"


def _operand(sketch: Sketch) -> str:
    """What `read` and `write` touch."""
    choices = {
        "not canonical": NON_CANONICAL, "unmapped": HIGH, "read-only": READ_ONLY - 8, "user": USER_STACK - 8,
        "straddles into nothing": STACKS[0] + 2 * PAGE - 2, "kernel": IDT,
    }  # fmt: skip
    label = sketch.rng.choice(list(choices))
    sketch.registers["general"] = {**sketch.registers["general"], "rax": choices[label]}
    return label


CHANGES: tuple[Callable[[Sketch], str], ...] = (
    *(_rsp, _tss_pointer, _stack_page) * 3,
    *(_gate_ist, _gate_selector, _gate_offset, _table_limit, _table_page, _table_place) * 2,
    *(_gate_absent, _gate_type, _gate_dpl, _gate_reserved, _gate_bits),
    *(_descriptor_bits, _descriptor_kind, _not_accessed, _table_null, _code_page, _alias, _operand),
)
