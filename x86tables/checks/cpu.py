"""One CPU as the rules look at it: its tables, the stacks that can be reached through its TSS, and the other CPUs."""

from __future__ import annotations

from functools import cached_property

from ..delivery.extent import Extent, extent
from ..delivery.simulate import HANDLER_STACK
from ..machine.paging import PUSH
from ..machine.probe import Fault, Ok, Unknown
from ..machine.registers import MCE
from ..records import Record
from ..tables import vectors
from ..tables.gdt import TSS_AVAILABLE, TSS_BUSY, LegacySystemDescriptor, SystemDescriptor
from ..tables.tss import Tss
from ..tables.vectors import labels
from .tables import CheckedTables, memoized

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from ..delivery.occupants import Occupants
    from ..machine.image import Snapshot
    from ..machine.machine import Machine, Table
    from ..tables.idt import Gate
    from .tables import Code

    CpuList: TypeAlias = list["CheckedCpu"]
    Needs: TypeAlias = "dict[CheckedCpu, dict[str, None]]"
else:
    CpuList = list

FRAME = 48  # SS, RSP, RFLAGS, CS, RIP and an error code
ROOM = FRAME + HANDLER_STACK
FULL = Tss.size - 1  # the limit of a TSS without an I/O permission bitmap
MC = 18
FEATURE = (28, 29, 30)  # raised only where a hypervisor's or AMD's feature is on, which no table tells


class Slot(Record):
    """A stack pointer of the TSS that some event uses: `field` of Tss, its value, and the vectors that ask for it."""

    field: str
    top: int
    vectors: tuple[int, ...]
    optional: bool  # only exceptions of features that are off, or may be, use it

    @property
    def name(self) -> str:
        """`IST1`, `RSP0`."""
        return self.field.upper()


class UsedStack(Record):
    """A stack by its end: the slots that name it, and the answer to its first push; None when that is not known."""

    top: int
    slots: tuple[Slot, ...]
    first: Ok | Fault | None

    @property
    def refused(self) -> Fault | None:
        """Why its first push faults; None when it does not, or that is not known."""
        return self.first if isinstance(self.first, Fault) else None

    @property
    def usable(self) -> bool:
        """Whether its first push is known to succeed."""
        return isinstance(self.first, Ok)

    @property
    def names(self) -> str:
        """The slots that name it."""
        return " and ".join(slot.name for slot in self.slots)

    @property
    def vectors(self) -> tuple[int, ...]:
        """All vectors that use it."""
        return tuple(sorted({vector for slot in self.slots for vector in slot.vectors}))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the TSS that name it."""
        return tuple(slot.field for slot in self.slots)

    @property
    def used_by(self) -> str:
        """Who uses it, for a message."""
        return f"used by {labels(self.vectors)}" if self.vectors else "used when ring 3 is interrupted"


class CheckedCpu(CheckedTables):
    """What the rules ask of a machine. `cpus` are those of the whole image, this one among them."""

    def __init__(self, image: Snapshot, machine: Machine, declared: bool, cpus: Cpus, occupants: Occupants) -> None:
        super().__init__(image, machine)
        self.declared, self.cpus, self.occupants = declared, cpus, occupants
        self.number, self.whole_idts, self.whole_gdts = machine.cpu, cpus.whole_idts, cpus.whole_gdts

    def missing(self, needs: str) -> None:
        self.cpus.noted[self] = None
        super().missing(needs)

    @property
    def tss_descriptor(self) -> SystemDescriptor | None:
        """The present 64-bit TSS descriptor that TR names in this GDT; None when there is none."""
        tr = self.registers.tr
        if tr is None or tr.null or not self.tr_known:
            if not self.tr_known:
                self.missing("TR is not known" if tr is None else "TR's selector is not known")
            return None
        code, _ = self.lookup(tr.selector)
        fits = isinstance(code, SystemDescriptor) and code.type in (TSS_AVAILABLE, TSS_BUSY) and code.p
        return code if fits and isinstance(code, SystemDescriptor) else None

    @property
    def second_tss(self) -> LegacySystemDescriptor | None:
        """The 8-byte TSS descriptor in the slot that should be the upper half of TR's; None when it is none."""
        code = self.tss_descriptor if self.tr_known else None
        if code is None:
            return None
        upper = LegacySystemDescriptor.parse(bytes(code)[8:])
        return upper if upper.p and not upper.s and upper.type in (TSS_AVAILABLE, TSS_BUSY) else None

    @memoized
    def asks_for_tss(self) -> str:
        """Why a TSS is needed; "" when it is not."""
        asking = sorted(vector for users in self.ist_users.values() for vector in users)
        if asking:
            vector = min(asking, key=lambda vector: (self.off(vector), vector != 8))
            return f"gate {vectors.label(vector)} asks for IST{self.present[vector].ist}"
        return "code at ring 3 needs RSP0 when it is interrupted" if self.ring3 and self.present else ""

    @property
    def tss_for_features(self) -> bool:
        """Whether nothing but exceptions of features that are off, or may be, needs a TSS."""
        return not self.ring3 and all(self.off(vector) for users in self.ist_users.values() for vector in users)

    @memoized
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

    @memoized
    def _target_rings(self) -> set[int]:
        codes = [self.lookup(s)[0] for s in self.gate_selectors.keys() - self.broken_code]
        return {code.dpl for code in codes if code is not None and code.s and code.type & 0xC == 8}

    @property
    def machine_checks(self) -> bool:
        """Whether #MC is known to be raised: with CR4.MCE clear, a CPU shuts down at a machine check instead."""
        cr4 = self.registers.cr4
        return self.declared or (cr4 is not None and cr4 & MCE != 0)

    def off(self, vector: int) -> bool:
        """Whether only a feature that is or may be off raises an exception."""
        return vector in FEATURE or (vector == MC and not self.machine_checks)

    @property
    def tss(self) -> Table | None:
        """The TSS that TR names; None when TR is null or not known."""
        return self.table("tss")

    @memoized
    def slots(self) -> list[Slot]:
        """Every reachable stack pointer that can be read."""
        table = self.tss
        if table is None:
            return []
        found = []
        for field, users in self.reachable():
            start = Tss.field(field).offset
            if start + 7 <= table.limit and self.readable(table, start, 8):
                top = int.from_bytes(table.data[start : start + 8], "little")
                found.append(Slot(field, top, users, bool(users) and all(map(self.off, users))))
        return found

    @memoized
    def stacks(self) -> list[UsedStack]:
        """The stacks that reachable pointers name, without null and non-canonical ones."""
        tops: dict[int, list[Slot]] = {}
        for slot in self.slots:
            if slot.top and self.canonical(slot.top):
                tops.setdefault(slot.top, []).append(slot)
        return [UsedStack(top, tuple(s), self.probe((top & ~15) - 8, PUSH)) for top, s in tops.items()]

    def extent(self, stack: UsedStack) -> Extent:
        """How deep a stack can be pushed before it runs into something or a push faults."""

        def search() -> Extent:
            found = extent(self.machine, stack.top & ~15, occupants=self.occupants)
            if isinstance(found.below, Unknown):
                self.missing(found.below.needs)
            return found

        for cpu in self.cpus if self.occupants.without_tss else ():
            cpu.table("tss")  # notes that TR is not known

        found: Extent = self.memoize(("extent", stack.top), search)
        return found

    def stack_place(self, stack: UsedStack) -> int | None:
        """Where the first push of a stack goes, physically."""
        return self.physical((stack.top & ~15) - 8) if stack.usable else None

    def same_place(self, linear: int, other: CheckedCpu, theirs: int | None = None) -> bool:
        """Whether a linear address is the same memory as another CPU's, at the same address if none is given."""
        here = self.physical(linear)
        return here is not None and here == other.physical(linear if theirs is None else theirs)

    @property
    def page_fault_has_stack(self) -> bool:
        """Whether #PF has a good stack of its own: an overflow is then handled there and never becomes #DF."""
        gate = self.present.get(14)
        if gate is None or not gate.ist:
            return False
        return any(14 in stack.vectors and stack.usable for stack in self.stacks)


class Cpus(CpuList):
    """All CPUs of an image, in the order of their numbers. What the rules ask of all of them is worked out once.

    A missing input is noted on the CPU that lacks it, and only those CPUs are looked at afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[CheckedCpu, None] = {}  # those with missing inputs
        self.whole_idts: dict[bytes, dict[int, Gate]] = {}  # decoded once for all CPUs that have the same
        self.whole_gdts: dict[object, dict[int, Code]] = {}
        self.bits: dict[tuple[str, int], list[int]] = {}

    def with_bit(self, register: str, mask: int) -> list[int]:
        """The numbers of the CPUs in which a bit of a control register is set."""
        if (register, mask) not in self.bits:
            self.bits[register, mask] = [cpu.number for cpu in self if (getattr(cpu.registers, register) or 0) & mask]
        return self.bits[register, mask]

    def take_notes(self) -> Needs:
        """The inputs that were missing since the last time, by CPU in order."""
        found = {cpu: cpu.missing_inputs for cpu in sorted(self.noted, key=_number)}
        for cpu in self.noted:
            cpu.missing_inputs = {}
        self.noted = {}
        return found

    def _aside(self, work: Callable[[], Any]) -> tuple[Any, Needs]:
        """What `work` finds, and what it notes, which does not count yet."""
        before = self.take_notes()
        found = work()
        needs = self.take_notes()
        self._note(before)
        return found, needs

    @staticmethod
    def _note(needs: Needs) -> None:
        for cpu, each in needs.items():
            for text in each:
                cpu.missing(text)

    # Gates

    @property
    def most_common(self) -> CheckedCpu | None:
        """The first CPU of those with the most common gates; of equally common ones, those with more gates."""
        found, needs = self._most_common
        self._note(needs)
        return found

    @cached_property
    def _most_common(self) -> tuple[CheckedCpu | None, Needs]:
        def work() -> CheckedCpu | None:
            alike: dict[int, list[CheckedCpu]] = {}  # CPUs with like tables have one dictionary of gates
            for cpu in self:
                if cpu.gates:
                    alike.setdefault(id(cpu.gates), []).append(cpu)
            groups: dict[object, list[CheckedCpu]] = {}
            for cpus in alike.values():
                key = tuple(cpus[0].gates.items()) if len(alike) > 1 else None
                groups.setdefault(key, []).extend(cpus)
            return max(groups.values(), key=lambda group: (len(group), len(group[0].gates)))[0] if groups else None

        return self._aside(work)

    # Task state segments

    def same_tss(self, cpu: CheckedCpu, other: CheckedCpu) -> bool:
        """Whether two CPUs have loaded the same TSS."""
        mine, theirs = cpu.tss, other.tss
        if mine is None or theirs is None:
            return False
        if cpu.paged and other.paged and "tss" not in cpu.machine.physical:
            return cpu.same_place(mine.base, other, theirs.base)
        return mine.base == theirs.base

    def first_with_tss(self, cpu: CheckedCpu) -> CheckedCpu | None:
        """The first CPU before this one that has loaded the same TSS."""
        (index, _), needs = self._task_index
        found = min((index[key] for key in self._wanted(cpu) if key in index), key=_number, default=None)
        if found is not None and found.number >= cpu.number:
            found = None
        for other in self._lacking(needs, cpu, found):
            self.same_tss(cpu, other)
        return found

    def _wanted(self, cpu: CheckedCpu) -> list[object]:
        """The keys in the index under which a CPU with the same TSS stands."""
        (index, _), _ = self._task_index
        tss = cpu.tss if cpu is not self[0] else None
        if tss is None:
            return []
        if not cpu.paged or "tss" in cpu.machine.physical:
            return [("base", tss.base)]
        paged = index.get("paged")
        place = cpu.physical(tss.base) if paged is not None and paged.number < cpu.number else None
        return [("unpaged", tss.base), *([("place", place)] if place is not None else [])]

    @cached_property
    def _task_index(self) -> tuple[tuple[dict[object, CheckedCpu], dict[CheckedCpu, object]], Needs]:
        """The first CPU of each key by which a TSS is looked for, and what CPUs with the same TSS have in common."""

        def work() -> tuple[dict[object, CheckedCpu], dict[CheckedCpu, object]]:
            index: dict[object, CheckedCpu] = {}
            common: dict[CheckedCpu, object] = {}
            for cpu in self:
                tss = cpu.tss
                if tss is None:
                    common[cpu] = None
                    continue
                place = cpu.physical(tss.base) if cpu.paged else None
                common[cpu] = cpu.paged, place, tss.base
                index.setdefault(("base", tss.base), cpu)
                index.setdefault("paged" if cpu.paged else ("unpaged", tss.base), cpu)
                if place is not None:
                    index.setdefault(("place", place), cpu)
            return index, common

        return self._aside(work)

    # Stacks

    def same_stacks(self, cpu: CheckedCpu, other: CheckedCpu) -> list[UsedStack]:
        """The stacks of a CPU that are the same memory as one of another's, and may be in use at the same time."""
        if self.same_tss(cpu, other):
            return []
        theirs = {place for stack in other.stacks if (place := other.stack_place(stack)) is not None}
        both = cpu.registers.cpl == other.registers.cpl == 3
        return [stack for stack in cpu.stacks if cpu.stack_place(stack) in theirs and (stack.vectors or both)]

    def first_with_stacks(self, cpu: CheckedCpu) -> CheckedCpu | None:
        """The first CPU before this one with such a stack."""
        (owners, kinds), needs = self._stack_index
        before = [other for other in kinds if other.number < cpu.number]  # one of each kind
        if all(self.same_tss(cpu, other) for other in before):
            return None
        found = None
        for place in {cpu.stack_place(stack) for stack in cpu.stacks}:
            for other in owners.get(place, ()):
                if other.number >= (cpu if found is None else found).number:
                    break
                if self.same_stacks(cpu, other):
                    found = other
        for other in self._lacking(needs, cpu, found):
            self.same_stacks(cpu, other)
        return found

    @cached_property
    def _stack_index(self) -> tuple[tuple[dict[int | None, list[CheckedCpu]], list[CheckedCpu]], Needs]:
        """Who has a stack at a place, and the first CPU with each TSS: of those that are alike, the first."""
        (_, common), _ = self._task_index

        def work() -> tuple[dict[int | None, list[CheckedCpu]], list[CheckedCpu]]:
            owners: dict[int | None, dict[object, CheckedCpu]] = {}
            for cpu in self:
                kind = common[cpu], cpu.registers.cpl == 3
                for stack in cpu.stacks:
                    place = cpu.stack_place(stack)
                    if place is not None:
                        owners.setdefault(place, {}).setdefault(kind, cpu)
            first: dict[object, CheckedCpu] = {}
            for cpu in self:
                first.setdefault(common[cpu], cpu)
            return {place: list(each.values()) for place, each in owners.items()}, list(first.values())

        return self._aside(work)

    @staticmethod
    def _lacking(needs: Needs, cpu: CheckedCpu, found: CheckedCpu | None) -> list[CheckedCpu]:
        """The CPUs with missing inputs among those that are compared with a CPU, up to the one that was found."""
        return [
            other for other in needs if other.number < cpu.number and (found is None or other.number <= found.number)
        ]


def _number(cpu: CheckedCpu) -> int:
    return cpu.number
