"""One CPU's memory and tables as the rules look at them: what is named, what it leads to, what the image leaves open.

Nothing here raises for a missing input: it is noted in `missing_inputs`, and the answer is None or left out. The caller
of a rule reads `missing_inputs` afterwards: the rule is then `not_checked`, whatever else it found.
"""

from __future__ import annotations

from ..machine.memory import PAGE
from ..machine.paging import READ, canonical
from ..machine.probe import Fault, Inaccessible, Ok, Unknown
from ..tables import vectors
from ..tables.gdt import LDT, TSS_AVAILABLE, TSS_BUSY, SegmentDescriptor, SystemDescriptor
from ..tables.idt import INTERRUPT, TRAP, Gate
from ..tables.selector import Selector, Star
from ..tables.vectors import labels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from functools import cached_property
    from typing import Any, TypeAlias

    from ..machine.image import Snapshot
    from ..machine.machine import Machine, Table
    from ..machine.paging import Access
    from ..machine.registers import Segment

    Code: TypeAlias = "SegmentDescriptor | SystemDescriptor"
    memoized = cached_property
else:

    class memoized:  # noqa: N801 - used as a decorator
        """A cached property that notes again, at every use, the inputs that were missing when it was worked out."""

        def __init__(self, work):
            self.work = work

        def __get__(self, cpu, owner):
            return cpu.memoize(self.work.__name__, lambda: self.work(cpu))


TOP = 1 << 64
KEPT_GDTS = 16  # decoded ones that CPUs may share
NULL, BEYOND, UNREADABLE, NO_LDT = "null", "beyond the limit", "not readable", "in an LDT, and LDTR is null"
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
UNKNOWN_TR = 0xFFF8  # what stands for TR's selector when only the address of a TSS was given


class CheckedTables:
    """What the rules ask of a machine's memory, its GDT and its IDT."""

    def __init__(self, image: Snapshot, machine: Machine) -> None:
        self.image, self.machine, self.registers = image, machine, machine.registers
        self.missing_inputs: dict[str, None] = {}  # in order, each once
        self.whole_idts: dict[bytes, dict[int, Gate]] = {}  # decoded, by their bytes
        self.whole_gdts: dict[object, dict[int, Code]] = {}  # and by which of them are
        self._memoized: dict[object, tuple[Any, dict[str, None]]] = {}

    def missing(self, needs: str) -> None:
        """Note a missing input."""
        self.missing_inputs[needs] = None

    def memoize(self, key: object, work: Callable[[], Any]) -> Any:
        """What `work` finds, worked out once; its missing inputs are noted at every use."""
        if key not in self._memoized:
            before, self.missing_inputs = self.missing_inputs, {}
            found = work()
            self._memoized[key] = found, self.missing_inputs
            self.missing_inputs = before
        found, missing = self._memoized[key]
        for needs in missing:
            self.missing(needs)
        return found

    def forget(self) -> None:
        """Leave the largest of what was worked out, when this CPU's rules have been run."""
        self._memoized.pop("descriptors", None)
        if len(self.whole_gdts) > KEPT_GDTS:
            self.whole_gdts.clear()

    # Memory

    @property
    def paged(self) -> bool:
        """Whether the page tables are known."""
        return self.machine.space.paging.mode in ("4-level", "5-level")

    @property
    def levels(self) -> int:
        """4, or 5 with LA57."""
        return self.machine.space.levels

    def probe(self, linear: int, access: Access = READ) -> Ok | Fault | None:
        """Whether an access is allowed; None when that is not known, which is noted."""
        if not self.paged:
            self.missing("CR3 is not known")
            return None
        answer = self.machine.probe(linear % TOP, access)
        if isinstance(answer, Unknown):
            self.missing(answer.needs)
            return None
        return answer

    def fault(self, linear: int, access: Access = READ) -> Fault | None:
        """Why an access faults; None when it does not, or that is not known."""
        answer = self.probe(linear, access)
        return answer if isinstance(answer, Fault) else None

    def physical(self, linear: int) -> int | None:
        """Where a linear address is; None when it is nowhere or that is not known."""
        answer = self.probe(linear)
        return answer.physical if isinstance(answer, Ok) else None

    def for_users(self, linear: int) -> bool:
        """Whether ring 3 can reach a page."""
        return isinstance(self.probe(linear), Ok) and self.machine.space.page(linear % TOP).user

    def canonical(self, linear: int) -> bool:
        """Whether an address is canonical on this CPU."""
        return canonical(linear, self.levels)

    def named(self, address: int) -> str:
        """An address, and its symbol and source line where they are known."""
        name = self.image.symbols.place(address)
        return f"{address:#x}" + (f" ({name})" if name else "")

    # Tables

    def table(self, name: str) -> Table | None:
        """A table that a register names; None when it is null, or not known."""
        register = {"gdt": "gdtr", "idt": "idtr", "tss": "tr", "ldt": "ldtr"}[name]
        if getattr(self.registers, register) is None:
            self.missing(f"{register.upper()} is not known")
            return None
        return self.machine.table(name)

    def readable(self, table: Table, start: int, size: int) -> bool:
        """Whether a part of a table that its limit covers can be read; notes what the image does not hold."""
        if table.known(start, start + size):
            return True
        if table.name in self.machine.physical:
            self.missing(f"the {table.name.upper()} is not all in this image")
            return False
        for offset in (start, start + size - 1):
            linear = (table.base + offset) % TOP
            if isinstance(self.probe(linear), Ok):
                try:
                    self.machine.read(linear, 1)
                except Inaccessible as error:
                    self.missing(str(error))
        return False

    def pages(self, table: Table, stop: int | None = None) -> Iterator[int]:
        """A linear address in each page of a table up to offset `stop`, whether readable or not."""
        if table.name in self.machine.physical:
            self.missing(f"the linear address of the {table.name.upper()} is not known")
            return
        size = min(stop or table.limit + 1, table.limit + 1)
        yield from (max(page, table.base) for page in range(table.base & -PAGE, table.base + size, PAGE))

    def lookup(self, selector: int) -> tuple[Code | None, str | None]:
        """The descriptor that a selector names, as the CPU reads it; or None and why not (None: not known)."""
        found: tuple[Code | None, str | None] = self.memoize(selector & ~3, lambda: self._lookup(selector & ~3))
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
        except Inaccessible:
            return None

    @memoized
    def descriptors(self) -> dict[int, Code]:
        """The descriptors of the GDT by selector, as far as it can be read.

        Of a large one only the pages in use: Xen's base lies 14 pages below its first descriptor, and the pages between
        hold a guest's table, or no table at all.
        """
        table = self.table("gdt")
        if table is None or table.error:
            return {}
        offsets = sorted((page - table.base + PAGE) % TOP - PAGE for page in self.named_pages(table))
        used = None if table.limit < PAGE else tuple(range(max(0, offset), offset + PAGE) for offset in offsets)
        key = table.data, used
        if key not in self.whole_gdts:
            self.whole_gdts[key] = {
                entry.selector: entry.descriptor
                for entry in self.machine.gdt.entries(within=used)
                if entry.kind != "null" and isinstance(entry.descriptor, SegmentDescriptor | SystemDescriptor)
            }
        return self.whole_gdts[key]

    def named_pages(self, table: Table) -> set[int]:
        """The pages of the GDT or LDT that hold a descriptor in use."""
        ti = 4 if table.name == "ldt" else 0
        return {(table.base + (s & ~7)) % TOP & -PAGE for s in self.users if s & 4 == ti}

    @memoized
    def rings(self) -> set[int]:
        """The privilege levels that code may run at: of present code segments, and the one now."""
        found = {code.dpl for code in self.descriptors.values() if code.s and code.type & 8 and code.p}
        return found | ({self.registers.cpl} if self.registers.cpl is not None else set())

    @property
    def ring3(self) -> bool:
        """Whether there is, or may be, code at CPL 3."""
        return 3 in self.rings

    # Gates

    @memoized
    def gates(self) -> dict[int, Gate]:
        """Every gate that the limit covers and that can be read, by vector; none of a table of 8-byte gates."""
        table = self.table("idt")
        if table is None or self.machine.narrow_idt:
            return {}
        size = min((table.limit + 1) // Gate.size, 256) * Gate.size
        data = table.data[:size]
        if not table.gaps:
            if data not in self.whole_idts:
                self.whole_idts[data] = dict(enumerate(Gate.parse_table(data)))
            return self.whole_idts[data]
        return {
            v: gate for v, gate in enumerate(Gate.parse_table(data)) if self.readable(table, v * Gate.size, Gate.size)
        }

    @memoized
    def present(self) -> dict[int, Gate]:
        """The present interrupt and trap gates."""
        return {v: gate for v, gate in self.gates.items() if gate.p and gate.type in (INTERRUPT, TRAP) and not gate.s}

    @memoized
    def gate_selectors(self) -> dict[int, list[int]]:
        """Selector (RPL 0) -> the vectors of the present gates that name it."""
        found: dict[int, list[int]] = {}
        for vector, gate in self.present.items():
            found.setdefault(gate.selector & ~3, []).append(vector)
        return found

    def handler(self, vector: int) -> str:
        """A vector and where its handler is."""
        return f"{vectors.label(vector)} to {self.named(self.gates[vector].offset)}"

    @property
    def tr_known(self) -> bool:
        """Whether TR's selector is known, and not only where a TSS is."""
        tr = self.registers.tr
        return tr is not None and not (tr.selector == UNKNOWN_TR and tr.flags is None)

    @memoized
    def users(self) -> dict[int, str]:
        """Selector (RPL 0) -> who names it: gates, segment registers, TR, LDTR, SYSCALL and SYSRET."""
        found: dict[int, list[str]] = {s: [f"gates {labels(v)}"] for s, v in self.gate_selectors.items()}
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
        if not self.registers.star:
            return {}
        star = Star.from_int(self.registers.star)
        return {
            "SYSCALL CS": star.syscall_cs,
            "SYSCALL SS": star.syscall_ss,
            "SYSRET CS": star.sysret_cs,
            "SYSRET SS": star.sysret_ss,
        }

    # What is wrong with code segments is the descriptor's fault, the limit's or the gate's: decided here, once

    @memoized
    def cut_off(self) -> dict[int, str]:
        """Selectors in use beyond the GDT's limit with the right descriptor in memory: the limit is wrong."""
        found = {}
        for selector, users in self.users.items():
            if self.lookup(selector)[1] == BEYOND:
                code = self.behind(selector)
                if code is not None and _fits(code, users):
                    found[selector] = users
        return found

    @memoized
    def gdt_lost(self) -> bool:
        """Whether the GDT can be read, or is too short, and has not one of at least three descriptors in use."""
        users = {selector: users for selector, users in self.users.items() if not selector & 4}
        if len(users) < 3 or self.cut_off:
            return False
        for selector, names in users.items():
            code, why = self.lookup(selector)
            if why != BEYOND and (code is None or _fits(code, names)):
                return False
        return True

    @memoized
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

    def reported_elsewhere(self, selector: int) -> bool:
        """Whether a rule on the GDT reports already what is wrong with this selector's descriptor."""
        return selector & ~3 in self.cut_off or selector & ~3 in self.broken_code or self.gdt_lost


def kind_of(code: Code) -> str:
    """A descriptor in words, for what was found."""
    if not any(bytes(code)):
        return "an empty slot"
    absent = "" if code.p else ", not present"
    if not isinstance(code, SegmentDescriptor) or not code.s:
        names = {LDT: "an LDT", TSS_AVAILABLE: "a TSS", TSS_BUSY: "a TSS"}
        return names.get(code.type, f"a system descriptor of type {code.type:#x}") + absent
    kind = "read-only data" if code.kind == "data" and not code.writable else code.kind
    return f"{kind}, DPL {code.dpl}{absent}"


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
