"""The shapes of `shapes` found with NumPy: the same ones in a fraction of the time."""

from __future__ import annotations

import numpy as np

from ..machine.memory import PAGE
from .shapes import GATE_SIZE, RUN, Shapes, is_gate, whole_gates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Words = np.ndarray[Any, np.dtype[np.uint64]]

# Of a gate's lower half: P, S and type, reserved bits, TI of the selector
_GATE, _GATE_IS = np.uint64(0x9E_F8_0004_0000), np.uint64(0x8E_00_0000_0000)
# Of a descriptor's upper half: all but limit, AVL, G, and the type's bits conforming, readable, accessed
_CODE, _CODE_IS = np.uint32(0xFF60_F8FF), np.uint32(0x0020_9800)
_NOT_TOP, _P = np.uint64(0x7FFF << 48 | 1 << 7), np.uint64(1)


def shapes(data: bytes, run: int = RUN) -> Shapes:
    """The candidates in `data`, whose first byte lies at the begin of a page; of gates at least `run` in a row."""
    words = np.frombuffer(data, "<u8", len(data) // 8)
    return Shapes(gates(data, words, run), _codes(data), _roots(words))


def gates(data: bytes, words: Words, run: int = RUN) -> list[tuple[int, int]]:
    """Runs of present gates, which begin at a multiple of 8."""
    # In each stride, a run has a gate that begins with the first word or with the second. Both at once are the 16 bytes
    # of a complex number: to gather them takes longer than all that follows.
    stride = run * GATE_SIZE // 8
    pairs = np.frombuffer(data, "c16", len(words) // 2)[:: stride // 2].copy().view("<u8")
    pairs &= _GATE
    found: dict[tuple[int, int], None] = {}
    end = [0, 0]
    for number in np.flatnonzero(pairs == _GATE_IS).tolist():
        odd = number % 2
        start = (number // 2 * stride + odd) * 8
        if start < end[odd]:
            continue
        stop = start + GATE_SIZE
        while start >= GATE_SIZE and is_gate(data[start - GATE_SIZE + 5]):
            start -= GATE_SIZE
        while stop + 5 < len(data) and is_gate(data[stop + 5]):
            stop += GATE_SIZE
        end[odd] = stop
        found |= dict.fromkeys(whole_gates(data, start, stop, run))
    return list(found)


def _codes(data: bytes) -> list[int]:
    """64-bit code segments of ring 0 whose base is 0, at a multiple of 4."""
    halves = np.frombuffer(data, "<u4", len(data) // 4)
    marks = (halves & _CODE) == _CODE_IS
    found = [number * 4 - 4 for number in np.flatnonzero(marks).tolist() if number] if marks.any() else []
    found = [at for at in found if data[at + 2 : at + 4] == b"\0\0"]
    return [at for at in found if at % 8 == 0] + [at for at in found if at % 8]


def _roots(words: Words) -> list[int]:
    """Pages whose entries are all zero or such as a top level may have, one of them at least present."""
    pages = words[: len(words) // (PAGE // 8) * (PAGE // 8)].reshape(-1, PAGE // 8)
    every = np.bitwise_or.reduce(pages, axis=1)
    some = np.flatnonzero(every & (_NOT_TOP | _P) == _P)
    few = pages[some]
    wrong = ((few & _P) == 0) & (few != 0)
    found: list[int] = (some[~wrong.any(axis=1)] * PAGE).tolist()
    return found
