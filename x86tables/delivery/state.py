"""CpuState: a CPU during a simulation: its registers now, and what was written since over the memory it had."""

from __future__ import annotations

from ..machine.memory import PAGE
from ..machine.paging import READ
from ..machine.probe import Fault, FaultKind, Inaccessible, Unknown, unbacked
from ..tables.selector import PageFaultErrorCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.machine import Machine
    from ..machine.paging import Access
    from ..machine.registers import Registers

TOP = 1 << 64


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
        self.written: dict[int, int | None] = {}  # physical address -> byte; None is a value that is not known
        self._pages: set[int] = set()

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
        if physical >> 12 not in self._pages:
            return self.machine.memory.read(physical, size)
        return bytes(map(self._byte, range(physical, physical + size)))

    def _byte(self, physical: int) -> int:
        if physical not in self.written:
            return self.machine.memory.read(physical, 1)[0]
        byte = self.written[physical]
        if byte is None:
            needs = f"physical {physical:#x} was overwritten by a handler's stack, with what is not known"
            raise Inaccessible(Unknown(needs))
        return byte

    def write(self, linear: int, data: Iterable[int | None], size: int, access: Access) -> None:
        """Write bytes within one page, None for those that are not known. What the page held need not be known,
        but there has to be memory."""
        physical = self.machine.space.translate(linear, access)
        if not self.machine.memory.backed(physical):
            raise Inaccessible(unbacked(physical))
        self._pages.add(physical >> 12)
        self.written.update(zip(range(physical, physical + size), data, strict=True))
