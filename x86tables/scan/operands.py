"""Where memory names a table as LGDT and LIDT take it: what was loaded once, kernels and firmware often keep."""

from __future__ import annotations

import re

from ..tables.pseudo import PseudoDescriptor32
from .candidates import WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.memory import Memory


def operands(memory: Memory, bases: Iterable[int], width: int = 8) -> dict[int, int]:
    """For each base that an operand names: the limit beside it, the largest one that covers whole slots of a GDT.

    A base has `width` bytes: 8, or 4 in an operand of 32-bit code. An operand that lies across the edge of a window is
    not seen.
    """
    wanted = {base.to_bytes(width, "little"): base for base in bases if base}
    if not wanted:
        return {}
    low = width // 4  # bytes in which bases near each other differ: the others are looked for
    pattern = re.compile(b"|".join({re.escape(base[low:]): None for base in wanted}))
    found: dict[int, int] = {}
    for _, data in memory.windows(WINDOW):
        for match in pattern.finditer(data):
            at = match.start() - low
            base = wanted.get(data[at : match.end()]) if at >= 2 else None
            if base is None:
                continue
            # the limit stands where it does in an operand of 64-bit code
            limit = PseudoDescriptor32.parse(data[at - 2 : at + 4]).limit
            if limit % 8 == 7:
                found[base] = max(limit, found.get(base, 0))
    return found
