"""One CPU as the rules look at it: its tables, the stacks that can be reached through its TSS, and the other CPUs."""

from __future__ import annotations

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
    from collections.abc import Iterator

    from ..delivery.occupants import Occupants
    from ..machine.image import Snapshot
    from ..machine.machine import Machine, Table

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

    def __init__(
        self, image: Snapshot, machine: Machine, declared: bool, cpus: list[CheckedCpu], occupants: Occupants
    ) -> None:
        super().__init__(image, machine)
        self.declared, self.cpus, self.occupants = declared, cpus, occupants
        self.number = machine.cpu

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
        for vector in sorted(self.present, key=lambda vector: (self.off(vector), vector != 8)):
            if ist := self.present[vector].ist:
                return f"gate {vectors.label(vector)} asks for IST{ist}"
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
        """Whether #MC may be raised: a CPU that runs with CR4.MCE clear shuts down at a machine check instead."""
        cr4 = self.registers.cr4
        return self.declared or cr4 is None or cr4 & MCE != 0

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
