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
    patterns = _upper_parts(wanted)
    found: dict[int, int] = {}
    for _, data in memory.windows(WINDOW) if wanted else ():
        for pattern in patterns:
            for match in pattern.finditer(data):
                at = match.end() - width
                base = wanted.get(data[at : match.end()]) if at >= 2 else None
                if base is None:
                    continue
                # the limit stands where it does in an operand of 64-bit code
                limit = PseudoDescriptor32.parse(data[at - 2 : at + 4]).limit
                if limit % 8 == 7:
                    found[base] = max(limit, found.get(base, 0))
    return found


def _upper_parts(bases: Iterable[bytes]) -> list[re.Pattern[bytes]]:
    """What bases end with: each of them alone, because `re` looks for one literal ten times as fast as for either."""
    second: dict[bytes, set[int]] = {}  # the upper bytes of bases within 64 KiB -> the byte before them
    for base in bases:
        second.setdefault(base[2:], set()).add(base[1])
    return [
        # memory is full of zeros, and has runs of ones
        re.compile((b"[%b]" % re.escape(bytes(sorted(before))) if len(set(upper)) == 1 else b"") + re.escape(upper))
        for upper, before in second.items()
    ]
