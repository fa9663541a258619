"""What tables look like in physical memory, byte by byte: runs of gates, 64-bit code segments, pages like a root.

A table that is found here is a candidate: what else in the image fits it decides.
"""

from __future__ import annotations

import re

from ..machine.memory import PAGE
from ..records import Record

RUN = 4  # present gates in a row that are worth a look
GATE_SIZE = 16


# Of a gate: byte 5 is present, S=0 and type 0xE or 0xF; byte 4 is the IST index below reserved bits
_GATE = bytes(byte & 0x9E == 0x8E for byte in range(256))
# Of a 64-bit code segment of ring 0: byte 5 is present, S=1, code; byte 6 has L=1 and D=0
_CODE = bytes(byte & 0xF8 == 0x98 for byte in range(256))
_LONG = bytes(byte & 0x60 == 0x20 for byte in range(256))
_ZERO = bytes(byte == 0 for byte in range(256))
# Of a top entry: byte 0 is zero, or has P set and PS clear; byte 7 has at most NX
_TOP = bytes(0 if byte == 0 else 1 if byte & 0x81 == 1 else 2 for byte in range(256))
_HIGH = bytes(byte & 0x7F != 0 for byte in range(256))


class Shapes(Record):
    """What one window of memory holds, as offsets in it: (offset, count) of gates in a row; code segments; pages."""

    gates: list[tuple[int, int]]
    codes: list[int]
    roots: list[int]


def shapes(data: bytes, run: int = RUN) -> Shapes:
    """The candidates in `data`, whose first byte lies at the begin of a page; of gates at least `run` in a row."""
    fifth = data[5::8]
    return Shapes(_gates(data, fifth, run), _codes(data, fifth, 0) + _codes(data, data[9::8], 4), _roots(data))


def _gates(data: bytes, fifth: bytes, run: int) -> list[tuple[int, int]]:
    """Runs of present gates, which begin at a multiple of 8."""
    found: list[tuple[int, int]] = []
    several = re.compile(rb"\x01{%d,}" % run)
    for odd in (0, 1):
        for match in several.finditer(fifth[odd::2].translate(_GATE)):
            start, stop = (2 * match.start() + odd) * 8, (2 * match.end() + odd) * 8
            found += whole_gates(data, start, stop, run)
    return found


def is_gate(byte: int) -> bool:
    """Whether this may be byte 5 of a present gate."""
    return _GATE[byte] == 1


def whole_gates(data: bytes, start: int, stop: int, run: int) -> list[tuple[int, int]]:
    """The stretches between `start` and `stop`, of at least `run` gates, that have their reserved bits clear and name a
    selector of the GDT."""
    found = []
    first = None
    for at in range(start, stop + GATE_SIZE, GATE_SIZE):
        good = at < stop and data[at + 12 : at + 16] == b"\0\0\0\0" and data[at + 4] < 8 and not data[at + 2] & 4
        if good and first is None:
            first = at
        elif not good and first is not None:
            if at - first >= run * GATE_SIZE:
                found.append((first, (at - first) // GATE_SIZE))
            first = None
    return found


def _codes(data: bytes, fifth: bytes, shift: int) -> list[int]:
    """64-bit code segments of ring 0 whose base is 0, at `shift` past a multiple of 8."""
    marks = fifth.translate(_CODE)
    if 1 not in marks:
        return []
    count = len(marks)
    both = int.from_bytes(marks, "little") & int.from_bytes(data[6 + shift :: 8][:count].translate(_LONG), "little")
    for byte in (7, 4):
        if not both:
            return []
        both &= int.from_bytes(data[byte + shift :: 8][:count].translate(_ZERO), "little")
    marks = both.to_bytes(count, "little")
    found, at = [], marks.find(1)
    while at >= 0:
        if data[at * 8 + shift + 2 : at * 8 + shift + 4] == b"\0\0":
            found.append(at * 8 + shift)
        at = marks.find(1, at + 1)
    return found


def _roots(data: bytes) -> list[int]:
    """Pages whose entries are all zero or such as a top level may have, one of them at least present."""
    marks = data[::8].translate(_TOP)
    find, step = marks.find, PAGE // 8
    return [
        at * 8
        for at in range(0, len(data) // PAGE * step, step)
        if find(2, at, at + step) < 0 and find(1, at, at + step) >= 0 and top_level(data[at * 8 : at * 8 + PAGE])
    ]


def top_level(page: bytes) -> bool:
    """Whether all entries are zero, or such as a top level may have."""
    if 2 in page[::8].translate(_TOP) or any(page[6::8]) or 1 in page[7::8].translate(_HIGH):
        return False
    # what has its first byte zero is zero
    return all(page[at] or not any(page[at : at + 8]) for at in range(0, PAGE, 8)) and any(page)
