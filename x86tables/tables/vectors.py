"""One row per exception: number, mnemonic, name, class, and whether it pushes an error code."""

from __future__ import annotations

from ..errors import UsageError
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT = "benign", "contributory", "page fault", "double fault"


class Vector(Record):
    """An exception or interrupt vector.

    `kind` is how it reports (fault, trap, fault/trap, abort, interrupt); `intel` and `amd` are its class for the
    double-fault decision. Source: Intel SDM Vol. 3A, tables "Protected-Mode Exceptions and Interrupts" and "Interrupt
    and Exception Classes"; AMD APM Vol. 2, table "Interrupt Vector Source and Cause".
    """

    number: int
    mnemonic: str
    name: str
    kind: str
    intel: str = BENIGN
    amd: str = BENIGN
    error_code: bool = False


def _row(
    number: int, mnemonic: str, name: str, kind: str, intel: str = BENIGN, amd: str = "", code: bool = False
) -> Vector:
    return Vector(number, mnemonic, name, kind, intel, amd or intel, code)


EXCEPTIONS = tuple(
    _row(*row)
    for row in (
        (0, "#DE", "divide error", "fault", CONTRIBUTORY),
        (1, "#DB", "debug exception", "fault/trap"),
        (2, "NMI", "non-maskable interrupt", "interrupt"),
        (3, "#BP", "breakpoint", "trap"),
        (4, "#OF", "overflow", "trap"),
        (5, "#BR", "BOUND range exceeded", "fault"),
        (6, "#UD", "invalid opcode", "fault"),
        (7, "#NM", "device not available", "fault"),
        (8, "#DF", "double fault", "abort", DOUBLE_FAULT, "", True),
        (9, "", "coprocessor segment overrun", "fault"),
        (10, "#TS", "invalid TSS", "fault", CONTRIBUTORY, "", True),
        (11, "#NP", "segment not present", "fault", CONTRIBUTORY, "", True),
        (12, "#SS", "stack-segment fault", "fault", CONTRIBUTORY, "", True),
        (13, "#GP", "general protection", "fault", CONTRIBUTORY, "", True),
        (14, "#PF", "page fault", "fault", PAGE_FAULT, "", True),
        (15, "", "reserved", "fault"),
        (16, "#MF", "x87 floating-point error", "fault"),
        (17, "#AC", "alignment check", "fault", BENIGN, "", True),
        (18, "#MC", "machine check", "abort"),
        (19, "#XM", "SIMD floating-point exception", "fault"),
        (20, "#VE", "virtualization exception", "fault", PAGE_FAULT, BENIGN),
        (21, "#CP", "control protection", "fault", CONTRIBUTORY, "", True),
        (22, "", "reserved", "fault"),
        (23, "", "reserved", "fault"),
        (24, "", "reserved", "fault"),
        (25, "", "reserved", "fault"),
        (26, "", "reserved", "fault"),
        (27, "", "reserved", "fault"),
        (28, "#HV", "hypervisor injection (AMD)", "fault"),
        (29, "#VC", "VMM communication (AMD)", "fault", BENIGN, CONTRIBUTORY, True),
        (30, "#SX", "security exception (AMD)", "fault", BENIGN, CONTRIBUTORY, True),
        (31, "", "reserved", "fault"),
    )
)

BY_MNEMONIC = {vector.mnemonic: vector for vector in EXCEPTIONS if vector.mnemonic}
INTERRUPT = Vector(-1, "", "interrupt", "interrupt")


def number(vector: int | str) -> int:
    """The number of a vector given as 0..255, `"#DF"` or `"NMI"`; UsageError for anything else."""
    if isinstance(vector, str):
        try:
            return BY_MNEMONIC[vector.upper()].number
        except KeyError:
            raise UsageError(f"vector {vector!r}: not a mnemonic; one of {', '.join(BY_MNEMONIC)}") from None
    if not 0 <= vector <= 255:
        raise UsageError(f"vector {vector}: a vector is 0..255")
    return vector


def label(vector: int) -> str:
    """The mnemonic of a vector where it has one, else its number: `#DF`, `0x80`."""
    return EXCEPTIONS[vector].mnemonic or str(vector) if vector < 32 else f"{vector:#x}"


def ranges(numbers: Iterable[int]) -> str:
    """`13,14,32..47`: numbers in order, those that follow one another as ranges."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}..{b}" for a, b in parts)


def labels(numbers: Iterable[int]) -> str:
    """`#DF, #GP, 0x20..0x2f`: vectors in order, by mnemonic where they have one."""
    rest, parts = [], []
    for number in sorted(numbers):
        if number < 32 and EXCEPTIONS[number].mnemonic:
            parts.append(label(number))
        else:
            rest.append(number)
    if len(parts) > 12:
        parts = [f"{parts[0]}..{parts[-1]} ({len(parts)} exceptions)"]
    return ", ".join(parts + [part for part in ranges(rest).split(",") if part])
