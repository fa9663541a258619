"""What lies where in linear memory that a stack must not run into: tables, code that gates name, other stacks."""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property

from ..errors import NotThere
from ..machine.memory import PAGE
from ..machine.probe import Ok
from ..records import Record
from ..tables.tss import STACKS, Tss
from ..tables.vectors import label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..machine.machine import Machine

TOP = 1 << 64
TABLE, STACK, IN_USE, CODE = "table", "stack", "stack in use", "code"
LARGEST = 0x1_2068  # bytes of a table: a TSS with a whole I/O map


class TssStack(Record):
    """A stack pointer of the TSS: its field (`ist1`), its value, and the vectors of the present gates that name it."""

    field: str
    top: int
    vectors: tuple[int, ...]

    @property
    def name(self) -> str:
        """`IST1`, `RSP0`."""
        return self.field.upper()

    @property
    def used(self) -> bool:
        """Whether some event may switch to it, as far as the TSS and the gates tell. RSP1 and RSP2 are seldom stacks:
        Linux keeps a user's RSP in RSP2."""
        return bool(self.vectors) if self.field.startswith("ist") else self.field == "rsp0" and self.top != 0


def tss_stacks(machine: Machine) -> tuple[TssStack, ...]:
    """The stack pointers of a 64-bit TSS that can be read, RSP0 to IST7, null ones too; none without such a TSS."""
    table = machine.table("tss") if machine.wide else None
    if table is None or table.error:
        return ()
    users: dict[str, list[int]] = {}
    try:
        for vector, gate in enumerate(machine.idt):
            if gate.p and gate.ist:
                users.setdefault(f"ist{gate.ist}", []).append(vector)
    except NotThere:
        pass
    tss = machine.tss
    return tuple(
        TssStack(field, getattr(tss, field), tuple(users.get(field, ())))
        for field in STACKS
        if table.has(tss.field(field))
    )


class Occupant(Record):
    """Something in linear memory: a table from `start` to before `end`, code at `start`, or a stack below `end`, whose
    start is not known (`end` - 1 stands for it)."""

    start: int
    end: int
    name: str
    kind: str
    cpu: int

    @property
    def place(self) -> int:
        """The address that tells where it is: a stack's end, else the start."""
        return self.end if self.kind in (STACK, IN_USE) else self.start

    @property
    def table(self) -> bool:
        """Whether this is a table."""
        return self.kind == TABLE

    @property
    def why(self) -> str:
        """What ends a stack above it, in a few words."""
        return self.name


class Occupants:
    """All that is known to lie in linear memory, of every CPU of an image: found once, asked for by range."""

    def __init__(self, machines: Iterable[Machine]) -> None:
        self.machines = tuple(machine for machine in machines if machine.wide)

    @cached_property
    def _tables_and_stacks(self) -> list[Occupant]:
        return [each for machine in self.machines for each in _of(machine)]

    @cached_property
    def _lasting(self) -> tuple[list[Occupant], list[int]]:
        return _sorted(each for each in self._tables_and_stacks if each.kind != IN_USE)

    @cached_property
    def _all(self) -> tuple[list[Occupant], list[int]]:
        tables = {machine.registers.idtr: machine for machine in reversed(self.machines)}  # code once per IDT
        code = [each for machine in tables.values() for each in _code(machine)]
        return _sorted(self._tables_and_stacks + code)

    @cached_property
    def without_tss(self) -> tuple[int, ...]:
        """The CPUs whose TR is not known: their stacks may lie anywhere."""
        return tuple(machine.cpu for machine in self.machines if machine.registers.tr is None)

    @cached_property
    def _by_cpu(self) -> dict[int, Machine]:
        return {machine.cpu: machine for machine in self.machines}

    def between(self, machine: Machine, low: int, high: int, lasting: bool = False) -> list[Occupant]:
        """What a push on this CPU between two addresses would write over, the nearest to `high` first; when `lasting`,
        tables and stacks of a TSS alone.

        A table that reaches above `high` counts, a stack whose end is `high` does not: it is the same one, as is that
        at this CPU's own RSP. What another CPU has at such an address counts when it is the same memory.
        """
        found, ends = self._lasting if lasting else self._all
        inside = []
        for each in found[bisect_left(ends, low + 1) :]:
            if each.end > high + LARGEST:
                break
            within = each.start < high and (each.kind in (TABLE, CODE) or each.end < high)
            if within and (each.kind != IN_USE if each.cpu == machine.cpu else self._shared(machine, each)):
                inside.append(each if each.cpu == machine.cpu else each.replace(name=_theirs(each)))
        inside.sort(key=lambda each: (-each.end, each.cpu != machine.cpu))
        return list({(each.start, each.end, each.kind): each for each in reversed(inside)}.values())[::-1]

    def _shared(self, machine: Machine, each: Occupant) -> bool:
        """Whether a place of another CPU is the same memory here."""
        here, there = machine.probe(each.start % TOP), self._by_cpu[each.cpu].probe(each.start % TOP)
        return isinstance(here, Ok) and here == there


def _sorted(found: Iterable[Occupant]) -> tuple[list[Occupant], list[int]]:
    """By their ends, and these ends."""
    ordered = sorted(found, key=lambda each: each.end)
    return ordered, [each.end for each in ordered]


def _theirs(each: Occupant) -> str:
    return f"CPU {each.cpu}'s {each.name.removeprefix('the ')}"


def _of(machine: Machine) -> Iterator[Occupant]:
    """What one CPU has: tables, stacks of its TSS that are used, and the stack that it runs on in ring 0."""
    cpu = machine.cpu
    for start, end, name in table_spans(machine):
        yield Occupant(start, end, name, TABLE, cpu)
    for stack in tss_stacks(machine):
        if stack.used:
            top = stack.top & ~15
            yield Occupant((top - 1) % TOP, top, f"the stack of {stack.name}", STACK, cpu)
    r = machine.registers
    if r.cpl == 0 and r.rsp:
        yield Occupant((r.rsp - 1) % TOP, r.rsp, "the stack at RSP", IN_USE, cpu)


def _code(machine: Machine) -> Iterator[Occupant]:
    """Where the handlers of present gates begin."""
    try:
        handlers = {gate.offset: vector for vector, gate in enumerate(machine.idt) if gate.p}
    except NotThere:
        return
    for offset, vector in handlers.items():
        yield Occupant(offset, offset + 1, f"the {label(vector)} handler", CODE, machine.cpu)


def table_spans(machine: Machine) -> Iterator[tuple[int, int, str]]:
    """Where the tables lie: first byte, end and name of each. Of a large GDT or LDT, the pages that are used."""
    for name in ("gdt", "idt", "tss", "ldt"):
        table = machine.table(name)
        if table is None or name in machine.physical:
            continue
        if name in ("gdt", "ldt") and table.limit >= PAGE:
            ti = 4 if name == "ldt" else 0
            pages = {(table.base + (s & ~7)) % TOP & -PAGE for s in machine.live_selectors if s & 4 == ti and s & ~3}
            yield from ((page, page + PAGE, f"the {name.upper()}") for page in sorted(pages))
        else:
            limit = min(table.limit, Tss.size - 1) if name == "tss" else table.limit
            yield table.base, table.base + limit + 1, f"the {name.upper()}"
