"""A CPU in protected mode without paging, as boot loaders run it: a GDT of 32-bit segments that LGDT has taken."""

from __future__ import annotations

import re

from ..machine.registers import TableRegister
from ..tables.gdt import Gdt, SegmentDescriptor
from .candidates import WINDOW, held
from .machines import NULL, FoundCpu, FoundMachine, Reason
from .operands import operands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.memory import Memory

FIRMWARE = range(0xC_0000, 0x10_0000)  # what it has left there it does not use any more
MOST_SLOTS = 8  # between the null slot and a code segment
_CODE = bytes(SegmentDescriptor.code32().replace(type=0))
_FLAT = re.compile(re.escape(_CODE[:5]) + rb"[\x98-\x9f]" + re.escape(_CODE[6:]))  # any kind of code


def protected(memory: Memory) -> tuple[FoundMachine, ...]:
    """The CPU, if there is a GDT of flat 32-bit segments that an operand of LGDT in memory names."""
    bases: dict[int, int] = {}
    for address, data in memory.windows(WINDOW):
        if address + len(data) > 1 << 32:  # where 32-bit code cannot have a table
            break
        for match in _FLAT.finditer(data):
            code = address + match.start()
            for base in range(code - 8, max(code - 8 * MOST_SLOTS, -1), -8):
                if (
                    base % 4 == 0
                    and code not in FIRMWARE
                    and held(memory, base, 8) == 8
                    and not any(memory.read(base, 8))
                ):
                    bases[base] = max(code, bases.get(base, 0))
                    break
    named = operands(memory, bases, width=4)
    found = []
    for base, limit in named.items():
        entries = (
            [*Gdt.parse(memory.read(base, limit + 1)).entries(wide=False)]
            if held(memory, base, limit + 1) > limit
            else []
        )
        if base + limit > bases[base] and entries and all(entry.kind != "refused" for entry in entries):
            found.append((not any(_loaded(entry.descriptor) for entry in entries), base, limit))
    if not found:
        return ()
    _, base, limit = min(found)
    cpu = FoundCpu(None, TableRegister(base, limit), base, NULL, None)
    return (FoundMachine(None, (cpu,), (Reason("gdt32", 20), Reason("operand", 20)), 0, None),)


def _loaded(descriptor: object) -> bool:
    return isinstance(descriptor, SegmentDescriptor) and descriptor.p and descriptor.s and descriptor.accessed
