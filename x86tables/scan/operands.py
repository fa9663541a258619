"""Where memory names a table as LGDT and LIDT take it: what was loaded once, kernels and firmware often keep."""

from __future__ import annotations

import re

from ..tables.pseudo import PseudoDescriptor
from .candidates import WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.memory import Memory


def operands(memory: Memory, bases: Iterable[int], entry: int = 8) -> dict[int, int]:
    """For each base that an operand names: the limit beside it, the largest one that covers whole entries.

    An operand that lies across the edge of a window is not seen.
    """
    wanted = {base.to_bytes(8, "little"): base for base in bases if base}
    if not wanted:
        return {}
    pattern = re.compile(b"|".join(map(re.escape, wanted)))
    found: dict[int, int] = {}
    for _, data in memory.windows(WINDOW):
        for match in pattern.finditer(data):
            if match.start() < 2:
                continue
            limit = PseudoDescriptor.parse(data[match.start() - 2 : match.start() + 8]).limit
            if limit % entry == entry - 1:
                base = wanted[match[0]]
                found[base] = max(limit, found.get(base, 0))
    return found
