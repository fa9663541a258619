"""Registers as JSON: the `regs.json` that bdump and snapshot write beside a crash dump, for fuzzers such as wtf."""

from __future__ import annotations

from ..errors import ImageError
from ..machine.registers import Registers, Segment, TableRegister, from_rights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLAIN = ("rip", "rsp", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", "star")
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr")
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))
_P = 0x80  # in access rights


def parse(text: str, path: str) -> tuple[Registers, ...]:
    """The registers of the one CPU. ImageError for what is not such a file, with the key that is wrong."""
    import json

    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ImageError(f"{path}: this is not JSON{where}: a regs.json as bdump writes it is expected") from None
    if not isinstance(document, dict) or not document.keys() & {"gdtr", "idtr", "cr3"}:
        raise ImageError(f"{path}: no registers: a regs.json has gdtr, idtr, cr3, ...")
    values: dict[str, Any] = {}
    for name in _PLAIN:
        if name in document:
            values[name] = _number(document, name, 64, path)
    for name in ("gdtr", "idtr"):
        if name in document:
            part = _part(document, name, path)
            values[name] = TableRegister(
                _number(part, "base", 64, path, name), _number(part, "limit", 32, path, name) & 0xFFFF
            )
    for name in _SEGMENTS:
        if document.get(name) is not None:  # bdump writes null for one that WinDbg cannot tell
            values[name] = _segment(_part(document, name, path), name, path)
    general = {name: _number(document, name, 64, path) for name in _GENERAL if name in document}
    return (Registers(**values, general=general),)


def _segment(part: dict[str, Any], name: str, path: str) -> Segment:
    selector, base, limit, rights = (
        _number(part, key, bits, path, name)
        for key, bits in (("selector", 16), ("base", 64), ("limit", 32), ("attr", 32))
    )
    if rights & 0xFF == 0:  # the descriptor's high dword, as QEMU has it
        flags = rights
    else:
        if rights >> 12 == 0:  # as WinDbg's `dg` has them: AVL, L, D/B and G in bits 11:8
            rights = rights & 0xFF | (rights & 0xF00) << 4
        flags = from_rights(selector, base, limit, rights).flags or 0
    if part.get("present") is False:
        flags &= ~(_P << 8)
    return Segment(selector, base, limit, flags)


def _part(document: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    part = document[name]
    if not isinstance(part, dict):
        raise ImageError(f"{path}: {name}: an object with base and limit expected")
    return part


def _number(part: dict[str, Any], key: str, bits: int, path: str, inside: str = "") -> int:
    """A number, which these files write as text: `0x...` or decimal."""
    found = part.get(key)
    where = f"{inside}.{key}" if inside else key
    try:
        if isinstance(found, bool) or not isinstance(found, (str, int)) or len(str(found)) > 24:
            raise ValueError
        value = found if isinstance(found, int) else int(found, 0)
    except ValueError:
        raise ImageError(f'{path}: {where}: {str(found)[:40]!r} is not a number: "0x..." expected') from None
    if not 0 <= value < 1 << bits:
        raise ImageError(f"{path}: {where}: {value:#x} is more than {bits} bits hold")
    return value
