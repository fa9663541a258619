"""What may be wrong with a machine: each mutation is drawn at random, made, and named."""

from __future__ import annotations

from differential.mutable_machine import (
    CODE_PAGE,
    EDGE,
    GDT,
    HANDLERS,
    HIGH,
    IDT,
    IST,
    KERNEL,
    LDT,
    NON_CANONICAL,
    NX_HANDLERS,
    READ_ONLY,
    RSP0,
    SEGMENTS,
    SELECTOR,
    STACKS,
    TSS,
    TSS_SELECTOR,
    USER_CODE,
    USER_HANDLERS,
    USER_STACK,
    MutableMachine,
)
from x86tables.machine.memory import PAGE
from x86tables.machine.paging import NX, PS, RW, US, P
from x86tables.machine.registers import Segment
from x86tables.tables.idt import Gate
from x86tables.tables.tss import Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _pointer(mutable: MutableMachine, top: int) -> tuple[str, int]:
    """Somewhere that a stack pointer should not, or may just, point to; `top` is the good one."""
    rng = mutable.rng
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


def rsp(mutable: MutableMachine) -> str:
    """Move the stack pointer."""
    label, value = _pointer(mutable, mutable.registers["rsp"])
    mutable.registers["rsp"] = value % (1 << 64)
    return label


def _tss_pointer(mutable: MutableMachine) -> str:
    name = mutable.rng.choice(("rsp0", "rsp0", "rsp1", "rsp2", "ist1", "ist1", "ist1", "ist2", "ist3", "ist7"))
    field = Tss.field(name)
    old = int.from_bytes(mutable.get(TSS + field.offset, 8), "little")
    label, value = _pointer(mutable, old)
    mutable.put(TSS + field.offset, (value % (1 << 64)).to_bytes(8, "little"))
    return label


def _change_gate(mutable: MutableMachine, **changes: int) -> None:
    at = IDT + 16 * mutable.vectors()
    mutable.put(at, bytes(Gate.parse(mutable.get(at, 16)).replace(**changes)))


def _gate_absent(mutable: MutableMachine) -> str:
    if mutable.rng.random() < 0.3:
        mutable.put(IDT + 16 * mutable.vectors(), bytes(16))
        return "all zero"
    _change_gate(mutable, p=False)
    return "P 0"


def _gate_type(mutable: MutableMachine) -> str:
    if mutable.rng.random() < 0.2:
        _change_gate(mutable, s=True)
        return "S 1"
    _change_gate(mutable, type=mutable.rng.randrange(16))
    return ""


def _gate_dpl(mutable: MutableMachine) -> str:
    _change_gate(mutable, dpl=mutable.rng.randrange(4))
    return ""


def _gate_ist(mutable: MutableMachine) -> str:
    _change_gate(mutable, ist=mutable.rng.randrange(8))
    return ""


def _gate_selector(mutable: MutableMachine) -> str:
    rng = mutable.rng
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
    _change_gate(mutable, selector=selector)
    return name


def _gate_offset(mutable: MutableMachine) -> str:
    choices = {
        "unmapped": HIGH + 0x30_0000,
        "not executable": NX_HANDLERS,
        "user": USER_HANDLERS,
        "not canonical": NON_CANONICAL + mutable.rng.choice((0, 0x1000)),
        "in the stack's guard": STACKS[0],
    }
    label = mutable.rng.choice(list(choices))
    _change_gate(mutable, offset=choices[label])
    return label


def _gate_reserved(mutable: MutableMachine) -> str:
    if mutable.rng.random() < 0.5:
        _change_gate(mutable, reserved1=1 << mutable.rng.randrange(32))
        return "last dword"
    _change_gate(mutable, reserved0=mutable.rng.randrange(32))
    return "above IST"


def _gate_bits(mutable: MutableMachine) -> str:
    """Flip bits anywhere in a gate but in the lowest 16 of its offset."""
    at = IDT + 16 * mutable.vectors()
    value = int.from_bytes(mutable.get(at, 16), "little") ^ 1 << mutable.rng.randrange(16, 128)
    mutable.put(at, value.to_bytes(16, "little"))
    mutable.wild = True
    return ""


def _descriptor_bits(mutable: MutableMachine) -> str:
    """Flip bits anywhere in the code segment that most handlers use."""
    at = GDT + SELECTOR["code"]
    value = int.from_bytes(mutable.get(at, 8), "little") ^ 1 << mutable.rng.randrange(64)
    mutable.put(at, value.to_bytes(8, "little"))
    return ""


def _descriptor_kind(mutable: MutableMachine) -> str:
    """Put another kind of segment where most handlers have theirs."""
    name = mutable.rng.choice(list(SEGMENTS))
    mutable.put(GDT + SELECTOR["code"], bytes(SEGMENTS[name]))
    return name


def _not_accessed(mutable: MutableMachine) -> str:
    """The accessed bit has to be set in a table whose page may refuse that."""
    mutable.put(GDT + SELECTOR["code"], bytes(SEGMENTS["code not accessed"]))
    if mutable.rng.random() < 0.3:
        return "writable"
    mutable.change_entry(mutable.entries(GDT)[-1], lambda value: value & ~RW)
    return "read-only"


TABLES = {"gdtr": GDT, "idtr": IDT, "tr": TSS, "ldtr": LDT}


def _table_limit(mutable: MutableMachine) -> str:
    rng, name = mutable.rng, mutable.rng.choice(("gdtr", "idtr", "idtr", "tr", "tr", "ldtr"))
    ends = {
        "gdtr": (SELECTOR["code"], SELECTOR["code"] + 8, rng.randrange(0xC0), SELECTOR["user code"] + 8),
        "idtr": (16 * mutable.vectors(), 16 * mutable.vectors() + 16, 0x8F, 0x80, 0xE0, 0xF0, rng.randrange(0x1000)),
        "tr": (0x0C, 0x14, 0x1C, 0x2C, 0x34, 0x3C, 0x5C, 4, rng.randrange(0x68)),
        "ldtr": (0x10, 0x18, rng.randrange(0xC0)),
    }[name]
    limit = max(0, rng.choice(ends) + rng.choice((-1, -1, -2, 0)))
    mutable.registers[name] = mutable.registers[name].replace(limit=limit)
    return name


def _table_page(mutable: MutableMachine) -> str:
    name = mutable.rng.choice(list(TABLES))
    return f"{name} {_change_page(mutable, TABLES[name])}"


def _table_place(mutable: MutableMachine) -> str:
    """Lay a table where its entries straddle two pages, one of which may be missing; or point the register astray."""
    rng, name = mutable.rng, mutable.rng.choice(list(TABLES))
    old = mutable.registers[name]
    if rng.random() < 0.3:
        bases = (
            NON_CANONICAL,
            NON_CANONICAL - rng.randrange(0x180),
            HIGH + 0x30_0000,
            0,
            (1 << 64) - rng.randrange(0x180),
        )
        mutable.registers[name] = old.replace(base=rng.choice(bases) % (1 << 64))
        return f"{name} astray"
    before = rng.choice((rng.randrange(1, 0x68), 16 * mutable.vectors() + rng.randrange(16), rng.randrange(1, 0x180)))
    data = mutable.get(TABLES[name], min(PAGE - before, 0x400))
    data = mutable.get(TABLES[name], min(PAGE, before + 0x400)) if before < PAGE else data
    start = EDGE + PAGE - before
    mutable.put(start, data[:before])
    mutable.put(EDGE + PAGE, data[before:])
    mutable.registers[name] = old.replace(base=start)
    if rng.random() < 0.6:
        return f"{name} straddles, {_change_page(mutable, EDGE + rng.choice((0, PAGE)))}"
    return f"{name} straddles"


def _table_null(mutable: MutableMachine) -> str:
    if mutable.rng.random() < 0.5:
        mutable.registers["ldtr"] = Segment(mutable.rng.randrange(4), 0, 0xFFFF, 0)
        return "ldtr"
    mutable.registers["tr"] = Segment(0, 0, 0xFFFF, 0x8B00)
    return "tr"


def _change_page(mutable: MutableMachine, linear: int) -> str:
    """Change the entry of a page, or one above it."""
    rng = mutable.rng
    entries = mutable.entries(linear)
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
    mutable.change_entry(level, changes[label])
    return label if level is entries[-1] else f"{level.name} {label}"


def _stack_page(mutable: MutableMachine) -> str:
    tops = (mutable.registers["rsp"], RSP0, RSP0, IST[0], IST[0], *IST[1:3])
    top = mutable.rng.choice(tops) - mutable.rng.choice((8, 8, PAGE + 8))
    if not any(base <= top < base + 2 * PAGE for base in (*STACKS, USER_STACK - 2 * PAGE)):
        return "none"
    return _change_page(mutable, top)


def _code_page(mutable: MutableMachine) -> str:
    return _change_page(mutable, mutable.rng.choice((HANDLERS, HANDLERS, CODE_PAGE, USER_CODE, USER_HANDLERS)))


def _alias(mutable: MutableMachine) -> str:
    """Two linear pages on one physical: a stack that is a table."""
    rng = mutable.rng
    name = rng.choice(list(TABLES))
    physical = mutable.good.space.page(TABLES[name]).physical
    stack = rng.choice((KERNEL, RSP0, IST[0])) - rng.choice((8, PAGE + 8))
    mutable.change_entry(mutable.entries(stack)[-1], lambda value: value & ~0x000F_FFFF_FFFF_F000 | physical)
    return f"stack is the {name}'s page"


def operand(mutable: MutableMachine) -> str:
    """What `read` and `write` touch."""
    choices = {
        "not canonical": NON_CANONICAL, "unmapped": HIGH, "read-only": READ_ONLY - 8, "user": USER_STACK - 8,
        "straddles into nothing": STACKS[0] + 2 * PAGE - 2, "kernel": IDT,
    }  # fmt: skip
    label = mutable.rng.choice(list(choices))
    mutable.registers["general"] = {**mutable.registers["general"], "rax": choices[label]}
    return label


MUTATIONS: tuple[Callable[[MutableMachine], str], ...] = (
    *(rsp, _tss_pointer, _stack_page) * 3,
    *(_gate_ist, _gate_selector, _gate_offset, _table_limit, _table_page, _table_place) * 2,
    *(_gate_absent, _gate_type, _gate_dpl, _gate_reserved, _gate_bits),
    *(_descriptor_bits, _descriptor_kind, _not_accessed, _table_null, _code_page, _alias, operand),
)
