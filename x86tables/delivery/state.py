"""CpuState: a CPU during a simulation: its registers now, and what was written since over the memory it had.

StepBudget: how long the simulations of one CPU may go on, all together. Counted in steps, not in time: the same machine
always gets the same answer.
"""

from __future__ import annotations

from .. import budgets
from ..errors import NotThere
from ..machine.memory import PAGE
from ..machine.paging import READ
from ..machine.probe import Fault, FaultKind, Inaccessible, Unknown, unbacked
from ..tables.selector import PageFaultErrorCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..machine.machine import Machine
    from ..machine.paging import Access
    from ..machine.registers import Registers

TOP = 1 << 64
_HELD, _KNOWN, _NOT_KNOWN = range(3)  # a byte as the machine's memory has it, as it was written, or not known
_UNTOUCHED = bytes(PAGE), bytes(PAGE)
_ALL_UNKNOWN = bytes(PAGE), bytes([_NOT_KNOWN]) * PAGE


class CpuState:
    """Registers and memory of a machine as a simulation changes them; the machine itself stays as it is.

    Translations are the machine's throughout: a stack that runs over the page tables does not change them here, as it
    would not while the TLB has them.
    """

    def __init__(
        self, machine: Machine, registers: Registers | None = None, missing: frozenset[int] = frozenset()
    ) -> None:
        """The machine as loaded, or with other registers; fetches from the addresses in `missing` fault as if the
        code there were swapped out."""
        self.machine, self.missing = machine, missing
        self.registers = registers or machine.registers
        self.cr2 = self.registers.cr2
        # Pages that were written to, by their number: the bytes, and what each of them is. Never changed, but replaced:
        # a copy of this dictionary is a copy of the memory.
        self.written: dict[int, tuple[bytes, bytes]] = {}

    def translate(self, linear: int, access: Access) -> int:
        """The physical address of a linear one; Inaccessible when there is none."""
        if access.fetch and linear in self.missing:
            paging = self.machine.space.paging
            code = PageFaultErrorCode(us=access.user, id=paging.nxe or paging.smep)
            raise Inaccessible(Fault(FaultKind.SWAPPED_OUT, linear, int(code)))
        return self.machine.space.translate(linear, access)

    def read(self, linear: int, size: int, access: Access = READ) -> bytes:
        """`size` bytes at a linear address; Inaccessible where there are none."""
        room = PAGE - linear % PAGE
        if size > room:
            return self.read(linear, room, access) + self.read((linear + room) % TOP, size - room, access)
        physical = self.machine.space.translate(linear, access)
        if physical >> 12 not in self.written:
            return self.machine.memory.read(physical, size)
        return bytes(map(self._byte, range(physical, physical + size)))

    def _byte(self, physical: int) -> int:
        number, at = divmod(physical, PAGE)
        data, kinds = self.written[number]
        if kinds[at] == _HELD:
            return self.machine.memory.read(physical, 1)[0]
        if kinds[at] == _NOT_KNOWN:
            needs = f"physical {physical:#x} was overwritten by a handler's stack, with what is not known"
            raise Inaccessible(Unknown(needs))
        return data[at]

    def write(self, linear: int, data: Sequence[int | None] | None, size: int, access: Access) -> None:
        """Write bytes within one page, None for those that are not known, or for all. What the page held need not be
        known, but there has to be memory."""
        physical = self.machine.space.translate(linear, access)
        if not self.machine.memory.backed(physical):
            raise Inaccessible(unbacked(physical))
        number, at = divmod(physical, PAGE)
        if data is None:
            if size == PAGE:
                self.written[number] = _ALL_UNKNOWN
                return
            new, marks = bytes(size), bytes([_NOT_KNOWN]) * size
        elif isinstance(data, bytes):
            new, marks = data, bytes([_KNOWN]) * size
        else:
            new = bytes(byte or 0 for byte in data)
            marks = bytes(_NOT_KNOWN if byte is None else _KNOWN for byte in data)
        held, kinds = self.written.get(number, _UNTOUCHED)
        self.written[number] = held[:at] + new + held[at + size :], kinds[:at] + marks + kinds[at + size :]

    def changes(self) -> Iterator[tuple[int, int | None]]:
        """Every byte that was written: its physical address, and its value; None for one that is not known."""
        for number, (data, kinds) in self.written.items():
            for at, kind in enumerate(kinds):
                if kind != _HELD:
                    yield number * PAGE + at, data[at] if kind == _KNOWN else None


class NoEnd(NotThere):
    """The steps are used up."""


class StepBudget:
    """The steps that are left: a check of a delivery is one, and a page that is looked at on the way down a stack.

    `free` is the stretch of memory in which a stack was last found to be consumed without meeting anything, by whether
    a user's pushes are meant.
    """

    def __init__(self, steps: int | None = None) -> None:
        self.steps = self.left = budgets.STEPS if steps is None else steps
        self.free = {False: range(0), True: range(0)}

    def take(self, steps: int = 1) -> None:
        """Take so many. NoEnd when none are left."""
        self.left -= steps
        if self.left < 0:
            raise NoEnd(f"no end within {self.steps} steps")
