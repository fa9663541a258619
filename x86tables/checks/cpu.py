"""One CPU as the rules look at it: what can be reached, what it leads to, and what the image leaves open.

Nothing here raises for want of an input: it is noted in `lacks`, and the answer is None or left out. Whoever runs a
rule reads `lacks` afterwards: the rule is then `not_checked`, whatever it found besides.
"""

from __future__ import annotations

from .. import vectors
from ..errors import Absent
from ..gdt import LDT, TSS_AVAILABLE, TSS_BUSY, SegmentDescriptor, SystemDescriptor
from ..idt import INTERRUPT, TRAP, Gate
from ..memory import PAGE
from ..paging import PUSH, READ, NonCanonical, PageFault, canonical
from ..records import Record
from ..selector import Selector
from ..story import HANDLER_STACK
from ..tss import Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from functools import cached_property as remembered
    from typing import Any, TypeAlias

    from ..image import Image
    from ..machine import Machine, Segment, Table
    from ..paging import Access

    Code: TypeAlias = "SegmentDescriptor | SystemDescriptor"
else:

    class remembered:  # noqa: N801 - used as a decorator
        """A cached property that notes again, at every use, what was lacking when it was worked out."""

        def __init__(self, work):
            self.work = work

        def __get__(self, cpu, owner):
            return cpu.once(self.work.__name__, lambda: self.work(cpu))


TOP = 1 << 64
FRAME = 48  # SS, RSP, RFLAGS, CS, RIP and an error code
ROOM = FRAME + HANDLER_STACK
GUARD_SEARCH = 1 << 20
FEATURE = (28, 29, 30)  # raised only where a hypervisor's or AMD's feature is on, which no table tells
NULL, BEYOND, UNREADABLE, NO_LDT = "null", "beyond the limit", "not readable", "in an LDT, and LDTR is null"
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
UNKNOWN_TR = 0xFFF8  # what stands for TR's selector when only the address of a TSS was given


class Slot(Record):
    """A stack pointer of the TSS that some event uses: `field` of Tss, its value, and the vectors that ask for it."""

    field: str
    top: int
    vectors: tuple[int, ...]

    @property
    def name(self) -> str:
        """`IST1`, `RSP0`."""
        return self.field.upper()

    @property
    def optional(self) -> bool:
        """Whether only exceptions of features that may be off use it."""
        return bool(self.vectors) and all(vector in FEATURE for vector in self.vectors)


class UsedStack(Record):
    """A stack by its end: the slots that name it, and why its first push fails ("": it does not; None: not known)."""

    top: int
    slots: tuple[Slot, ...]
    first: str | None

    @property
    def names(self) -> str:
        """The slots that name it."""
        return " and ".join(slot.name for slot in self.slots)

    @property
    def vectors(self) -> tuple[int, ...]:
        """All vectors that use it."""
        return tuple(sorted({vector for slot in self.slots for vector in slot.vectors}))

    @property
    def where(self) -> str:
        """The place in the TSS."""
        return "tss." + ",".join(slot.field for slot in self.slots)

    @property
    def used_by(self) -> str:
        """Who uses it, for a message."""
        return f"used by {listed(self.vectors)}" if self.vectors else "used when ring 3 is interrupted"


class Cpu:
    """What the rules ask of a machine. `cpus` are those of the whole image, this one among them."""

    def __init__(self, image: Image, machine: Machine, declared: bool, cpus: list[Cpu]) -> None:
        self.image, self.machine, self.registers = image, machine, machine.registers
        self.declared, self.cpus = declared, cpus
        self.number = machine.cpu
        self.lacks: dict[str, None] = {}  # in order, each once
        self._memory: dict[object, tuple[Any, dict[str, None]]] = {}

    def lack(self, needs: str) -> None:
        """Note an input that is missing."""
        self.lacks[needs] = None

    def once(self, key: object, work: Callable[[], Any]) -> Any:
        """What `work` finds, worked out once; what it lacked is noted at every use."""
        if key not in self._memory:
            before, self.lacks = self.lacks, {}
            found = work()
            self._memory[key] = found, self.lacks
            self.lacks = before
        found, lacks = self._memory[key]
        self.lacks.update(lacks)
        return found

    # Memory

    @property
    def paged(self) -> bool:
        """Whether the page tables are known."""
        return self.machine.space.paging.mode in ("4-level", "5-level")

    @property
    def levels(self) -> int:
        """4, or 5 with LA57."""
        return self.machine.space.levels

    def trouble(self, linear: int, access: Access = READ) -> str | None:
        """Why an access faults, "" when it does not, None when that is not known."""
        if not self.paged:
            self.lack("CR3 is not known")
            return None
        try:
            self.machine.space.translate(linear % TOP, access)
        except PageFault as fault:
            return fault.why
        except NonCanonical as error:
            return str(error)
        except Absent as error:
            self.lack(str(error))
            return None
        return ""

    def physical(self, linear: int) -> int | None:
        """Where a linear address is; None when it is nowhere or that is not known."""
        return None if self.trouble(linear) != "" else self.machine.space.translate(linear % TOP)

    def for_users(self, linear: int) -> bool:
        """Whether ring 3 can reach a page."""
        return self.trouble(linear) == "" and self.machine.space.page(linear % TOP).user

    def canonical(self, linear: int) -> bool:
        """Whether an address is canonical on this CPU."""
        return canonical(linear, self.levels)

    def named(self, address: int) -> str:
        """An address, and its symbol where one is known."""
        name = self.image.symbols.name(address)
        return f"{address:#x}" + (f" ({name})" if name else "")

    # Tables

    def table(self, name: str) -> Table | None:
        """A table that a register names; None when it is null, or not known."""
        register = {"gdt": "gdtr", "idt": "idtr", "tss": "tr", "ldt": "ldtr"}[name]
        if getattr(self.registers, register) is None:
            self.lack(f"{register.upper()} is not known")
            return None
        return self.machine.table(name)

    def readable(self, table: Table, start: int, size: int) -> bool:
        """Whether a part of a table that its limit covers can be read; notes what the image does not hold."""
        if table.known(start, start + size):
            return True
        if table.name in self.machine.physical:
            self.lack(f"the {table.name.upper()} is not all in this image")
            return False
        for offset in (start, start + size - 1):
            linear = (table.base + offset) % TOP
            if self.trouble(linear) == "":
                try:
                    self.machine.read(linear, 1)
                except Absent as error:
                    self.lack(str(error))
        return False

    def pages(self, table: Table, stop: int | None = None) -> Iterator[int]:
        """A linear address in each page of a table up to offset `stop`, whether readable or not."""
        if table.name in self.machine.physical:
            self.lack(f"the linear address of the {table.name.upper()} is not known")
            return
        size = min(stop or table.limit + 1, table.limit + 1)
        yield from (max(page, table.base) for page in range(table.base & -PAGE, table.base + size, PAGE))

    def lookup(self, selector: int) -> tuple[Code | None, str | None]:
        """The descriptor that a selector names, as the CPU reads it; or None and why not (None: not known)."""
        found: tuple[Code | None, str | None] = self.once(selector & ~3, lambda: self._lookup(selector & ~3))
        return found

    def _lookup(self, number: int) -> tuple[Code | None, str | None]:
        selector = Selector.from_int(number)
        if selector.null:
            return None, NULL
        if selector.ti and self.registers.ldtr is not None and self.registers.ldtr.null:
            return None, NO_LDT
        table = self.table("ldt" if selector.ti else "gdt")
        if table is None:
            return None, None
        start = selector.index * 8
        if start + 7 > table.limit:
            return None, BEYOND
        if not self.readable(table, start, 8):
            return None, UNREADABLE
        code = decode(table.data[start : start + 16])
        if isinstance(code, SystemDescriptor) and start + 15 > table.limit:
            return None, BEYOND
        return code, ""

    def behind(self, selector: int) -> Code | None:
        """What the GDT would hold at a selector beyond its limit, were the limit larger."""
        gdt = self.registers.gdtr
        if gdt is None or "gdt" in self.machine.physical:
            return None
        try:
            return decode(self.machine.read((gdt.base + (selector & ~7)) % TOP, 16))
        except (Absent, PageFault, NonCanonical):
            return None

    @remembered
    def descriptors(self) -> dict[int, Code]:
        """The descriptors of the GDT by selector, as far as it can be read."""
        table = self.table("gdt")
        if table is None or table.error:
            return {}
        return {
            entry.selector: entry.descriptor
            for entry in self.machine.gdt.entries()
            if entry.kind != "null" and isinstance(entry.descriptor, SegmentDescriptor | SystemDescriptor)
        }

    @remembered
    def rings(self) -> set[int]:
        """The privilege levels that code may run at: of present code segments, and the one now."""
        found = {code.dpl for code in self.descriptors.values() if code.s and code.type & 8 and code.p}
        return found | ({self.registers.cpl} if self.registers.cpl is not None else set())

    @property
    def ring3(self) -> bool:
        """Whether there is, or may be, code at CPL 3."""
        return 3 in self.rings

    # Gates

    @remembered
    def gates(self) -> dict[int, Gate]:
        """Every gate that the limit covers and that can be read, by vector."""
        table = self.table("idt")
        if table is None:
            return {}
        size = min((table.limit + 1) // Gate.size, 256) * Gate.size
        gates = Gate.parse_table(table.data[:size])
        if not table.holes:
            return dict(enumerate(gates))
        return {v: gate for v, gate in enumerate(gates) if self.readable(table, v * Gate.size, Gate.size)}

    @remembered
    def present(self) -> dict[int, Gate]:
        """The gates that lead somewhere: present interrupt and trap gates."""
        return {v: gate for v, gate in self.gates.items() if gate.p and gate.type in (INTERRUPT, TRAP) and not gate.s}

    @remembered
    def gate_selectors(self) -> dict[int, list[int]]:
        """Selector (RPL 0) -> the vectors of the present gates that name it."""
        found: dict[int, list[int]] = {}
        for vector, gate in self.present.items():
            found.setdefault(gate.selector & ~3, []).append(vector)
        return found

    def handler(self, vector: int) -> str:
        """A vector and where its handler is."""
        return f"{vectors.label(vector)} to {self.named(self.gates[vector].offset)}"

    @remembered
    def users(self) -> dict[int, str]:
        """Selector (RPL 0) -> who names it: gates, segment registers, TR, LDTR, SYSCALL and SYSRET."""
        found: dict[int, list[str]] = {s: [f"gates {listed(v)}"] for s, v in self.gate_selectors.items()}
        for name in (*SEGMENTS, "tr", "ldtr"):
            segment: Segment | None = getattr(self.registers, name)
            if segment is not None and not segment.null and (name != "tr" or self.tr_known):
                found.setdefault(segment.selector & ~3, []).append(name.upper())
        for name, selector in self.star_selectors.items():
            found.setdefault(selector & ~3, []).append(name)
        return {selector: ", ".join(users) for selector, users in found.items() if selector}

    @property
    def star_selectors(self) -> dict[str, int]:
        """What SYSCALL and SYSRET load, by name; nothing when STAR is not known or 0."""
        star = self.registers.star
        if not star:
            return {}
        call, back = star >> 32 & 0xFFFF, star >> 48 & 0xFFFF
        return {"SYSCALL CS": call, "SYSCALL SS": call + 8, "SYSRET CS": back + 16, "SYSRET SS": back + 8}

    # What is wrong with code segments is the descriptor's fault, the limit's or the gate's: decided here, once

    @remembered
    def cut_off(self) -> dict[int, str]:
        """Selectors in use beyond the GDT's limit with the right descriptor in memory: the limit is wrong."""
        found = {}
        for selector, users in self.users.items():
            if self.lookup(selector)[1] == BEYOND:
                code = self.behind(selector)
                if code is not None and _fits(code, users):
                    found[selector] = users
        return found

    @remembered
    def broken_code(self) -> set[int]:
        """Selectors that gates name whose descriptor is not 64-bit code of ring 0, when no other in the GDT is."""
        if any(good_code(code) and not code.dpl for code in self.descriptors.values()):
            both = {s for s, code in self.descriptors.items() if isinstance(code, SegmentDescriptor) and l_and_d(code)}
            return both & self.users.keys()
        found = set()
        for selector in self.gate_selectors:
            code, why = self.lookup(selector)
            if why == "" and code is not None and not selector & 4 and (not good_code(code) or code.dpl):
                found.add(selector)
        return found

    # TR and TSS

    @property
    def tr_known(self) -> bool:
        """Whether TR's selector is known, and not only where a TSS is."""
        tr = self.registers.tr
        return tr is not None and not (tr.selector == UNKNOWN_TR and tr.flags is None)

    @property
    def tss_descriptor(self) -> SystemDescriptor | None:
        """The 64-bit TSS descriptor that TR names in this GDT; None when there is none."""
        tr = self.registers.tr
        if tr is None or tr.null or not self.tr_known:
            if not self.tr_known:
                self.lack("TR is not known" if tr is None else "TR's selector is not known")
            return None
        code, _ = self.lookup(tr.selector)
        return code if isinstance(code, SystemDescriptor) and code.type in (TSS_AVAILABLE, TSS_BUSY) else None

    @remembered
    def asks_for_tss(self) -> str:
        """Why a TSS is needed; "" when it is not."""
        for vector in sorted(self.present, key=lambda vector: vector != 8):
            if ist := self.present[vector].ist:
                return f"gate {vectors.label(vector)} asks for IST{ist}"
        return "code at ring 3 needs RSP0 when it is interrupted" if self.ring3 and self.present else ""

    @remembered
    def ist_users(self) -> dict[int, tuple[int, ...]]:
        """IST number -> vectors of the present gates that use it."""
        found: dict[int, list[int]] = {}
        for vector, gate in self.present.items():
            if gate.ist:
                found.setdefault(gate.ist, []).append(vector)
        return {ist: tuple(found[ist]) for ist in sorted(found)}

    def reachable(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The fields of the TSS that some event may read, with the vectors that ask for them (none for RSPn)."""
        for ring in range(3):
            if any(other > ring for other in self.rings) and ring in self._target_rings:
                yield f"rsp{ring}", ()
        for ist, users in self.ist_users.items():
            yield f"ist{ist}", users

    @remembered
    def _target_rings(self) -> set[int]:
        codes = [self.lookup(s)[0] for s in self.gate_selectors]
        return {code.dpl for code in codes if code is not None and code.s and code.type & 0xC == 8}

    @property
    def tss(self) -> Table | None:
        """The TSS that TR names; None when TR is null or not known."""
        return self.table("tss")

    @remembered
    def slots(self) -> list[Slot]:
        """Every reachable stack pointer that can be read."""
        table = self.tss
        if table is None:
            return []
        found = []
        for field, users in self.reachable():
            start = Tss.field(field).offset
            if start + 7 <= table.limit and self.readable(table, start, 8):
                found.append(Slot(field, int.from_bytes(table.data[start : start + 8], "little"), users))
        return found

    @remembered
    def stacks(self) -> list[UsedStack]:
        """The stacks that reachable pointers name, without null and non-canonical ones."""
        tops: dict[int, list[Slot]] = {}
        for slot in self.slots:
            if slot.top and self.canonical(slot.top):
                tops.setdefault(slot.top, []).append(slot)
        return [UsedStack(top, tuple(s), self.trouble((top & ~15) - 8, PUSH)) for top, s in tops.items()]

    def ground(self, stack: UsedStack) -> tuple[int, str | None]:
        """How deep a stack can be pushed: its lowest byte, and why the page below refuses a push.

        "" when none does within GUARD_SEARCH; None when that is not known.
        """

        def search() -> tuple[int, str | None]:
            start = bottom = stack.top & ~15
            why = self.trouble(start - 8, PUSH)
            while why == "" and start - bottom < GUARD_SEARCH:
                bottom = bottom - 1 & -PAGE
                why = self.trouble(bottom - 8, PUSH)
            return bottom, why

        found: tuple[int, str | None] = self.once(("ground", stack.top), search)
        return found

    def below(self, stack: UsedStack) -> tuple[int, str] | None:
        """The nearest top of another stack in use that lies between a stack's end and its bottom, with its names."""
        bottom = self.ground(stack)[0]
        others = [other for other in self.stacks if bottom < other.top & ~15 < stack.top & ~15]
        nearest = max(others, key=lambda other: other.top, default=None)
        return None if nearest is None else (nearest.top, nearest.names)

    def room(self, stack: UsedStack) -> int:
        """How many bytes a stack has before another one begins or a push faults."""
        below = self.below(stack)
        return (stack.top & ~15) - max(self.ground(stack)[0], below[0] & ~15 if below else 0)

    @property
    def page_fault_has_stack(self) -> bool:
        """Whether #PF has a good stack of its own: an overflow is then handled there and never becomes #DF."""
        gate = self.present.get(14)
        if gate is None or not gate.ist:
            return False
        return any(14 in stack.vectors and stack.first == "" for stack in self.stacks)


def decode(data: bytes) -> Code:
    """A descriptor as the CPU reads it: a segment, or a system descriptor of 16 bytes."""
    segment = SegmentDescriptor.parse(data[:8])
    if segment.s or segment.type not in (LDT, TSS_AVAILABLE, TSS_BUSY):
        return segment
    return SystemDescriptor.parse(data.ljust(16, b"\0"))


def good_code(code: Code) -> bool:
    """Whether a descriptor is present 64-bit code."""
    return isinstance(code, SegmentDescriptor) and code.p and code.kind == "code64" and not code.d_b


def _fits(code: Code, users: str) -> bool:
    """Whether a descriptor is what those who name it need."""
    if "TR" in users:
        return isinstance(code, SystemDescriptor) and code.p and code.type in (TSS_AVAILABLE, TSS_BUSY)
    if "gates" in users or "CS" in users:
        return good_code(code)
    return isinstance(code, SegmentDescriptor) and code.s and code.p


def l_and_d(code: SegmentDescriptor) -> bool:
    """Whether this is code with both L and D, which the manual reserves."""
    return code.s and code.code and code.p and code.l and code.d_b


def runs(numbers: Iterable[int]) -> str:
    """`13,14,32..47`: numbers for a place."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}..{b}" for a, b in parts)


def listed(numbers: Iterable[int]) -> str:
    """`#DF, #GP, 0x20..0x2f`: vectors for a sentence, mnemonics where they have one."""
    rest, parts = [], []
    for number in sorted(numbers):
        if number < 32 and vectors.EXCEPTIONS[number].mnemonic:
            parts.append(vectors.label(number))
        else:
            rest.append(number)
    if len(parts) > 12:
        parts = [f"{parts[0]}..{parts[-1]} ({len(parts)} exceptions)"]
    return ", ".join(parts + [part for part in runs(rest).split(",") if part])
