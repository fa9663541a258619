"""Vectors in places and in sentences."""

from __future__ import annotations

from ..tables import vectors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def runs(numbers: Iterable[int]) -> str:
    """`13,14,32..47`: numbers for a place."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}..{b}" for a, b in parts)


def listed(numbers: Iterable[int]) -> str:
    """`#DF, #GP, 0x20..0x2f`: vectors for a sentence, mnemonics where they have one."""
    rest, parts = [], []
    for number in sorted(numbers):
        if number < 32 and vectors.EXCEPTIONS[number].mnemonic:
            parts.append(vectors.label(number))
        else:
            rest.append(number)
    if len(parts) > 12:
        parts = [f"{parts[0]}..{parts[-1]} ({len(parts)} exceptions)"]
    return ", ".join(parts + [part for part in runs(rest).split(",") if part])
