"""From candidates to machines: an IDT, the page tables that its handlers run under, and each CPU's GDT and TSS."""

from __future__ import annotations

from itertools import islice

from .. import budgets
from ..machine.memory import PAGE
from ..machine.paging import PUSH, AddressSpace, Paging
from ..machine.probe import Inaccessible, Ok
from ..machine.registers import Segment, TableRegister, load
from ..records import Record
from ..tables.idt import Gate
from ..tables.tss import Tss
from .aliases import Lister
from .candidates import gdt_at, idts_in, plausible_tss
from .operands import operands
from .roots import Effort, roots_for
from .shapes import RUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.memory import Memory
    from ..tables.gdt import SystemDescriptor
    from .aliases import Alias
    from .candidates import Candidates, GdtCandidate, IdtCandidate
    from .roots import Handlers, Root

TRIED = 8  # sets of page tables, of those that map all handlers, that are compared by what else they map
NULL = Segment(0, 0, 0xFFFF, 0)  # TR after a reset
NEAR = 16 * PAGE  # a CPU's own IDT lies as near to its GDT


class Reason(Record):
    """Why something scores: `what` is a key of render's sentences, `count` of `of` where it is partly so."""

    what: str
    points: int
    count: int = 1
    of: int = 1


class FoundIdt(Record):
    """An IDT: where it is, physically and by which alias, how many gates are present, and the last of them.

    `before` empty slots lie in front of it, one of which it may begin with.
    """

    physical: int
    register: TableRegister
    gates: int
    last: int
    read_only: bool
    before: int


class FoundCpu(Record):
    """One CPU's tables: what GDTR, IDTR and TR hold, and where they are physically; None where none fits. A CPU whose
    GDT describes no TSS has a null TR."""

    idt: FoundIdt | None
    gdtr: TableRegister | None
    gdt_physical: int | None
    tr: Segment | None
    tss_physical: int | None


class FoundMachine(Record):
    """Page tables with an IDT whose handlers they map, and the CPUs that share them, one at least.

    `programs` counts other page tables that map the same handlers, those of programs; `user_root` is what page-table
    isolation uses in ring 3 in place of `root`. Without `root`, the CPU is in protected mode without paging.
    """

    root: Root | None
    cpus: tuple[FoundCpu, ...]
    reasons: tuple[Reason, ...]
    programs: int
    user_root: int | None

    @property
    def score(self) -> int:
        """The points of all reasons; 100 is all that can be asked."""
        return sum(reason.points for reason in self.reasons)


def machines(memory: Memory, found: Candidates, tables: Iterable[int] | None = None) -> tuple[FoundMachine, ...]:
    """The machines of an image, best first. `tables` are the page tables that come into question, all by default."""
    groups: dict[tuple[int, Handlers], list[IdtCandidate]] = {}
    known: set[int] = set()
    longest = sorted(found.gates, key=lambda run: -run[1])
    idts = (idt for start, count in longest for idt in idts_in(memory, start, count, found.run))
    for idt in islice(idts, budgets.CONFIRMED_IDTS):
        if idt.physical not in known:
            known.add(idt.physical)
            groups.setdefault((idt.selector, idt.handlers), []).append(idt)
    effort = Effort()
    tables = found.roots if tables is None else list(tables)
    mapped = [one for idts in groups.values() if (one := _mapped(memory, idts, found, tables, effort)) is not None]
    made: list[FoundMachine] = []
    taken: set[int] = set()
    for one in sorted(mapped, key=lambda one: one.rank):
        # a few gates that stand alone are an IDT only with a GDT that goes with them
        if one.root.physical not in taken and (one.gdts or found.run == RUN):
            taken.add(one.root.physical)
            made.append(one.machine())
    return tuple(sorted(made, key=lambda machine: -machine.score))


def _mapped(
    memory: Memory, idts: list[IdtCandidate], found: Candidates, tables: Iterable[int], effort: Effort
) -> _Mapped | None:
    """These IDTs, which have the same handlers, and the GDTs that fit them, in the page tables that show most of it."""
    roots = roots_for(memory, idts[0].handlers, tables, effort)
    gdts = [gdt for code in found.codes if (gdt := gdt_at(memory, code, idts[0].selector)) is not None]
    pages = [idt.physical for idt in idts] + [gdt.code for gdt in gdts]
    best: _Mapped | None = None
    for root in roots[:TRIED]:
        if root.mapped < roots[0].mapped:
            break
        one = _Mapped(
            memory, root, roots, idts, gdts, Lister(memory, root.physical, root.mode, pages, effort).aliases()
        )
        if one.idts and (best is None or one.count > best.count):
            best = one
    return best


class _Mapped:
    """The tables as one set of page tables maps them."""

    def __init__(
        self,
        memory: Memory,
        root: Root,
        roots: list[Root],
        idts: list[IdtCandidate],
        gdts: list[GdtCandidate],
        aliases: dict[int, list[Alias]],
    ) -> None:
        self.memory, self.root, self.roots = memory, root, roots
        self.space = AddressSpace(memory, Paging(root.mode, root.physical))
        self.selector = idts[0].selector
        tasks = {base for gdt in gdts for base in self._tasks(gdt)}
        # a table is loaded by an address near that of a TSS, which its descriptor has, or else in the kernel's image
        anchors = tasks or {next(iter(idts[0].gates.values())).offset}
        self.idts = [
            FoundIdt(
                idt.physical, TableRegister(linear, idt.limit), len(idt.gates), max(idt.gates), read_only, idt.before
            )
            for idt in idts
            for linear, read_only in _loaded(aliases, idt.physical, anchors)
        ]
        if any(idt.read_only for idt in self.idts):  # what is writable is a copy
            self.idts = [idt for idt in self.idts if idt.read_only]
        self.gdts = [(gdt, *place) for gdt in gdts for place in _loaded(aliases, gdt.code, anchors)]
        self.tasks: dict[int, tuple[GdtCandidate, int, bool, int, SystemDescriptor]] = {}
        for one in sorted(self.gdts, key=lambda one: (one[2], one[0].loaded, -one[0].physical)):  # the best one last
            for base, task in self._tasks(one[0]).items():
                self.tasks[base] = (*one, *task)

    @property
    def count(self) -> tuple[int, int, int]:
        """How much of what was found is mapped."""
        return len(self.idts), len(self.tasks), len(self.gdts)

    @property
    def rank(self) -> tuple[int, bool, int, int]:
        """Better ones first: with a TSS, more gates, more of everything."""
        return -len(self.tasks), not self.gdts, -max(idt.gates for idt in self.idts), -self.root.mapped

    def _tasks(self, gdt: GdtCandidate) -> dict[int, tuple[int, SystemDescriptor]]:
        """By the base of its TSS: the selectors and descriptors that name one with a stack that can be pushed to."""
        return {
            descriptor.base: (selector, descriptor)
            for selector, descriptor in gdt.tss.items()
            if self._tss(descriptor.base)
        }

    def _tss(self, base: int) -> bool:
        try:
            data = self.space.read(base, Tss.size)
        except Inaccessible:
            return False
        if not plausible_tss(data):
            return False
        tss = Tss.parse(data)
        tops = [top - 8 & (1 << 64) - 1 for top in (tss.rsp0, *tss.ist) if top]
        return any(isinstance(self.space.probe(top, PUSH), Ok) for top in tops)

    def machine(self) -> FoundMachine:
        """The machine, with its score."""
        idts = self._with_limits()
        cpus = [self._cpu(idts, *task) for task in self.tasks.values()] or self._without_tss(idts)
        cpus.sort(key=lambda cpu: cpu.gdtr.base if cpu.gdtr is not None else 0)
        mapped, of = self.root.mapped, self.root.of
        reasons = [Reason("handlers", 40 * mapped // of * min(of, RUN) // RUN, mapped, of)]  # a few say less
        unknown = idts[0].before and idts[0].register.base % PAGE
        reasons.append(Reason("first-vector", -20) if unknown else Reason("idt-mapped", 10))
        if self.idts[0].read_only:
            reasons.append(Reason("idt-read-only", 10))
        if self.gdts:
            reasons.append(Reason("gdt", 20))
        if self.tasks:
            reasons.append(Reason("tss", 20, len(self.tasks), len(self.tasks)))
        users = {one.physical for one in self.roots if one.upper < self.root.upper}
        user_root = self.root.physical | PAGE  # the pair that Linux and those who have followed it allot together
        programs = sum(one.mapped == self.root.mapped for one in self.roots) - 1
        return FoundMachine(self.root, tuple(cpus), tuple(reasons), programs, user_root if user_root in users else None)

    def _with_limits(self) -> list[FoundIdt]:
        """The IDTs; where one begins or ends whose first or last gates are empty, an operand of LIDT in memory says."""
        open_ = [
            idt.register.base - Gate.size * earlier
            for idt in self.idts
            if idt.before or idt.register.limit > idt.last * Gate.size + Gate.size - 1
            for earlier in range(idt.before + 1)
        ]
        named = operands(self.memory, open_) if open_ else {}
        return [_as_named(idt, named) for idt in self.idts]

    def _without_tss(self, idts: list[FoundIdt]) -> list[FoundCpu]:
        """One CPU with the GDT that an operand of LGDT names, else with a likely one."""
        bases = {self._base(linear): gdt for gdt, linear, _ in self.gdts}
        named = operands(self.memory, [*bases, *(idt.register.base for idt in idts)])
        idts = sorted(idts, key=lambda idt: -named.get(idt.register.base, 0))
        fits = {base: limit for base, limit in named.items() if base in bases and limit >= self.selector + 7}

        def likely(one: tuple[GdtCandidate, int, bool]) -> tuple[bool, bool, bool, int, int]:
            gdt, linear, read_only = one
            distance = abs(linear - idts[0].register.base)
            return self._base(linear) in fits, read_only, gdt.loaded > 0, -distance, gdt.physical

        if not self.gdts:
            return [FoundCpu(idts[0], None, None, None, None)]
        gdt, linear, read_only = max(self.gdts, key=likely)
        gdt = gdt.replace(limit=fits.get(self._base(linear), gdt.limit))
        return [self._cpu(idts, gdt, linear, read_only, None, None)]

    def _base(self, code: int) -> int:
        """The base of the GDT whose code segment is at a linear address."""
        return code - self.selector & (1 << 64) - 1

    def _cpu(
        self,
        idts: list[FoundIdt],
        gdt: GdtCandidate,
        linear: int,
        read_only: bool,
        selector: int | None,
        descriptor: SystemDescriptor | None,
    ) -> FoundCpu:
        tr, tss = None if gdt.tss else NULL, None
        if selector is not None and descriptor is not None:
            tr, tss = load(selector, descriptor), self.space.translate(descriptor.base)
        idt = min(idts, key=lambda idt: abs(idt.physical - gdt.code))
        if abs(idt.physical - gdt.code) > NEAR:
            idt = idts[0]
        return FoundCpu(idt, TableRegister(self._base(linear), gdt.limit), gdt.physical, tr, tss)


def _as_named(idt: FoundIdt, named: dict[int, int]) -> FoundIdt:
    """An IDT with base and limit of the operand that names it, or an empty slot in front of it; else as it is."""
    for earlier in range(idt.before + 1):
        base, last = idt.register.base - Gate.size * earlier, idt.last + earlier
        if (limit := named.get(base, 0)) >= last * Gate.size + Gate.size - 1:
            physical = idt.physical - Gate.size * earlier
            return idt.replace(physical=physical, register=TableRegister(base, limit), last=last, before=0)
    return idt


def _loaded(aliases: dict[int, list[Alias]], physical: int, anchors: Iterable[int]) -> list[tuple[int, bool]]:
    """The linear address by which a table was probably loaded, and whether it is read-only there; none where it is
    not mapped. Kernels that have a read-only alias load that one; of several, it is the one nearest to an anchor."""
    known = [alias for alias in aliases.get(physical & -PAGE, ()) if not alias.user]
    if not known:
        return []
    alias = min(
        known, key=lambda alias: (alias.writable, min(abs(alias.linear - anchor) for anchor in anchors), alias.linear)
    )
    return [(alias.linear + physical % PAGE, not alias.writable)]
