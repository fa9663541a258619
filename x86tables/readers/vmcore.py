"""What a crashed Linux says of itself in /proc/vmcore, and makedumpfile with it: each CPU's registers and its page
tables.

The registers are `struct elf_prstatus` (linux/elfcore.h); the page tables' root is known by VMCOREINFO, which
Documentation/admin-guide/kdump/vmcoreinfo.rst describes. GDTR, IDTR and TR are in neither.
"""

from __future__ import annotations

import re
import struct

from ..machine.registers import Registers, Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_REGISTERS = struct.Struct("<112x27Q")  # signal, process and times; then `struct user_regs_struct`
_NAMES = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_KERNEL = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map
_VALUE = re.compile(rb"^(SYMBOL\(swapper_pg_dir\)|NUMBER\((?:phys_base|pgtable_l5_enabled)\))=([0-9a-fx-]+)$", re.M)


def registers(notes: Iterable[bytes], root: int | None) -> tuple[Registers, ...]:
    """The registers of each CPU with a PRSTATUS note, `root` as CR3; what descriptors say of segments is not known."""
    return tuple(_registers(note).replace(cr3=root) for note in notes if len(note) >= _REGISTERS.size)


def _registers(prstatus: bytes) -> Registers:
    values = dict(zip(_NAMES, _REGISTERS.unpack_from(prstatus), strict=True))
    del values["orig_rax"]
    bases = {"fs": values.pop("fs_base"), "gs": values.pop("gs_base")}
    segments: dict[str, Any] = {name: Segment(values.pop(name) & 0xFFFF, bases.get(name, 0)) for name in _SEGMENTS}
    rip, rflags = values.pop("rip"), values.pop("rflags")
    return Registers(rip=rip, rsp=values["rsp"], rflags=rflags, **segments, general=values)


def page_tables(vmcoreinfo: bytes) -> tuple[int | None, int]:
    """The physical address of the kernel's own page tables, None where that is not said, and their levels."""
    said = dict(_VALUE.findall(vmcoreinfo))
    levels = 5 if said.get(b"NUMBER(pgtable_l5_enabled)") == b"1" else 4
    try:
        linear = int(said[b"SYMBOL(swapper_pg_dir)"], 16)
        root = linear - _KERNEL + int(said[b"NUMBER(phys_base)"])
    except (KeyError, ValueError):
        return None, levels
    return (root if 0 <= root < 1 << 52 and not root % 0x1000 else None), levels
