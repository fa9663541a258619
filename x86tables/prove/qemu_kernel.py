"""Somebody's own kernel for `qemu -kernel`: what QEMU takes, and what to do where it does not."""

from __future__ import annotations

import struct

from ..elf import CORE, Elf, is_elf
from ..errors import UsageError
from ..machine.files import load

# the first serial port is what a kernel is likely to print on, and isa-debug-exit where tests are used to find it
DEVICES = ("-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
MULTIBOOT, SEARCHED, A_OUT = 0x1BADB002, 8192, 1 << 16  # the header's magic, where it is looked for, addresses in it


def arguments(path: str, append: str | None = None) -> list[str]:
    """QEMU's arguments for a kernel. UsageError for one that QEMU refuses, with what to do."""
    data = load(path)
    if not is_elf(data) or (elf := Elf(path, data)).type == CORE:
        raise UsageError(
            f"{path}: --on qemu takes a configuration (*.toml) or a linked ELF kernel; --on bochs a memory dump"
        )
    if elf.bits == 64 and multiboot(data[:SEARCHED]):
        raise UsageError(
            f"{path}: QEMU refuses an ELF64 file with a multiboot1 header: run a copy as ELF32, "
            "`objcopy -O elf32-i386 KERNEL COPY`"
        )
    return ["-kernel", path, *(["-append", append] if append is not None else [])]


def multiboot(data: bytes) -> bool:
    """Whether the beginning of a file has a multiboot1 header that relies on the ELF header for addresses."""
    for at in range(0, len(data) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, at)
        if magic == MULTIBOOT and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return not flags & A_OUT
    return False
