"""What VirtualBox's ELF core (`VBoxManage debugvm VM dumpvmcore`) says of each CPU, in notes of its own.

The layout is that of VirtualBox's dbgfcorefmt.h.
"""

from __future__ import annotations

import struct

from ..machine.registers import Registers, TableRegister, from_rights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CORE_NOTE = b"VBCORE"
_CORE = struct.Struct("<II")  # magic, version of the format
_MAGIC, _FIRST, _NEXT = 0xC01AC0DE, 0x1_0004, 0x2_0000  # versions from the first on, before the next
_SELECTOR = "QIIHHI"  # base, limit, access rights, selector, reserved
# general registers, six segments, cr0 cr2 cr3 cr4, eight debug registers, GDTR, IDTR, LDTR, TR, SYSENTER, MSRs
_CPU = struct.Struct("<18Q" + _SELECTOR * 6 + "12Q" + "QII" * 2 + _SELECTOR * 2 + "3Q2Q")
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip", "rsp", "rbp", "rflags")
_SEGMENTS = {name: 18 + 6 * n for n, name in enumerate(("cs", "ds", "es", "fs", "gs", "ss"))}
_CONTROL = 18 + 6 * 6
_TABLES = {"gdtr": _CONTROL + 12, "idtr": _CONTROL + 15}
_SYSTEM = {"ldtr": _CONTROL + 18, "tr": _CONTROL + 24}
_EFER = _CONTROL + 30 + 3


def registers(name: bytes, note: bytes, remarks: list[str]) -> Registers | None:
    """The registers of one CPU; None for the note that begins such a core, and with a remark for a damaged one."""
    if name == CORE_NOTE:
        magic, version = _CORE.unpack_from(note.ljust(_CORE.size, b"\0"))
        if magic != _MAGIC or not _FIRST <= version < _NEXT:
            remarks.append(
                f"VirtualBox's note has magic {magic:#x} and version {version:#x}: {_MAGIC:#x} and a version from "
                f"{_FIRST:#x} on expected: its registers may be misread"
            )
        return None
    if len(note) < _CPU.size:
        remarks.append(f"VirtualBox's note of a CPU has {len(note)} bytes: at least {_CPU.size} expected")
        return None
    values = _CPU.unpack_from(note)
    general = dict(zip(_GENERAL, values, strict=False))
    segments: dict[str, Any] = {}
    for register, at in (_SEGMENTS | _SYSTEM).items():
        base, limit, rights, selector = values[at : at + 4]
        segments[register] = from_rights(selector, base, limit, rights)
    for register, at in _TABLES.items():
        segments[register] = TableRegister(values[at], values[at + 1] & 0xFFFF)
    cr0, cr2, cr3, cr4 = values[_CONTROL : _CONTROL + 4]
    efer, star = values[_EFER : _EFER + 2]
    rip, rflags = general.pop("rip"), general.pop("rflags")
    return Registers(
        rip=rip, rsp=general["rsp"], rflags=rflags, cr0=cr0, cr2=cr2, cr3=cr3, cr4=cr4, efer=efer, star=star,
        **segments, general=general,
    )  # fmt: skip
