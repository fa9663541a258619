"""Registers as text: what QEMU's `info registers` and `-d cpu_reset` print."""

from __future__ import annotations

import re

from .. import budgets
from ..errors import ImageError
from ..machine.registers import Registers, Segment, TableRegister

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CPU = re.compile(r"^[ \t]*(?:CPU#([0-9]{1,9})|CPU Reset \(CPU ([0-9]{1,9})\))(?![0-9])", re.MULTILINE)
_SEGMENT = re.compile(
    r"^[ \t]*(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-fA-F]{4}) ([0-9a-fA-F]{8,16}) ([0-9a-fA-F]{8}) ([0-9a-fA-F]{8})\b",
    re.MULTILINE,
)
_TABLE = re.compile(r"^[ \t]*(GDT|IDT) *= +([0-9a-fA-F]{8,16}) ([0-9a-fA-F]{8})\b", re.MULTILINE)
_VALUE = re.compile(r"\b([A-Z][A-Z0-9]{1,3}) *=([0-9a-fA-F]{8,16})\b")
_NAMES = {"RFL": "rflags", "EFL": "rflags", "EIP": "rip", "ESP": "rsp"}
_PLAIN = {"rip", "rsp", "rflags", "cr0", "cr2", "cr3", "cr4", "efer"}


def parse(text: str, path: str) -> tuple[Registers, ...]:
    """One Registers a CPU, in the order of their numbers; the last block of a CPU counts.

    ImageError when a block has no registers, or has some but no line of a segment or table: the headings, which tell
    the CPUs apart, stand at the beginnings of lines as those do.
    """
    starts = list(_CPU.finditer(text))
    blocks: dict[int, str] = {}
    for start, following in zip(starts, [*starts[1:], None], strict=False):  # a text of one CPU may have no heading
        number = int(start[1] or start[2])
        blocks[number] = text[start.end() : following.start() if following else len(text)]
        if len(blocks) > budgets.CPUS:
            raise ImageError(f"{path}: registers of more than {budgets.CPUS} CPUs are not read")
    found = [_block(blocks[number], path) for number in sorted(blocks)] if blocks else [_block(text, path)]
    return tuple(found)


def _block(text: str, path: str) -> Registers:
    values: dict[str, Any] = {}
    general: dict[str, int] = {}
    for name, number in _VALUE.findall(text):
        lower = _NAMES.get(name, name.lower())
        if lower in _PLAIN:
            values[lower] = int(number, 16)
        elif re.fullmatch(r"[ER][A-D]X|[ER][SD]I|[ER]BP|R\d+", name):
            general["r" + lower[1:]] = int(number, 16)
    if "rsp" in values:
        general["rsp"] = values["rsp"]
    segments, tables = _SEGMENT.findall(text), _TABLE.findall(text)
    if not values and not segments and not tables:
        raise ImageError(f"{path}: no registers: the text of QEMU's `info registers -a` is expected")
    if not segments and not tables:
        raise ImageError(
            f"{path}: registers, but no line begins as `CS =0008 ...` or `GDT= ...`: give the whole text of QEMU's "
            "`info registers -a`, without prefixes that a log put before its lines"
        )
    for name, selector, base, limit, flags in segments:
        register = {"LDT": "ldtr"}.get(name, name.lower())
        values[register] = Segment(int(selector, 16), int(base, 16), int(limit, 16), int(flags, 16))
    for name, base, limit in tables:
        values[name.lower() + "r"] = TableRegister(int(base, 16), int(limit, 16))
    return Registers(**values, general=general)
