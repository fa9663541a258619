"""Somebody's own kernel for `qemu -kernel`: what QEMU takes, and a copy as ELF32 where it takes only that."""

from __future__ import annotations

import struct

from ..errors import ImageError, UsageError
from ..machine.files import load

ELF64, CORE = 2, 4  # in the header: the class, a type
# the first serial port is what a kernel is likely to print on, and isa-debug-exit where tests are used to find it
DEVICES = ("-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
MULTIBOOT, SEARCHED, A_OUT = 0x1BADB002, 8192, 1 << 16  # the header's magic, where it is looked for, addresses in it


def arguments(path: str, append: str | None = None, copy: str | None = None) -> list[str]:
    """QEMU's arguments for a kernel; with `copy`, an ELF32 copy is written to that path and run.

    UsageError for a kernel that QEMU refuses, with what to do.
    """
    data = load(path)[:]
    if data[:4] != b"\x7fELF" or len(data) < 64 or int.from_bytes(data[16:18], "little") == CORE:
        raise UsageError(
            f"{path}: --on qemu takes a configuration (*.toml) or a linked ELF kernel; --on bochs a memory dump"
        )
    if copy is not None:
        with open(copy, "wb") as file:
            file.write(elf32(path, data))
        path = copy
    elif data[4] == ELF64 and multiboot(data):
        raise UsageError(
            f"{path}: QEMU refuses an ELF64 file with a multiboot1 header: --as-elf32 runs a copy as ELF32 "
            "(or `objcopy -O elf32-i386 KERNEL COPY`)"
        )
    return ["-kernel", path, *(["-append", append] if append is not None else [])]


def multiboot(data: bytes) -> bool:
    """Whether there is a multiboot1 header that relies on the ELF header for addresses."""
    for at in range(0, min(len(data), SEARCHED) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, at)
        if magic == MULTIBOOT and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return not flags & A_OUT
    return False


def elf32(path: str, data: bytes) -> bytes:
    """An ELF64 file's loadable segments as an ELF32 file, at their physical addresses.

    ImageError when they do not fit there.
    """
    if data[4] != ELF64:
        raise UsageError(f"{path}: it is ELF32 already")
    entry, heads = struct.unpack_from("<QQ", data, 24)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = []
    for number in range(count):
        try:
            kind, flags, offset, _, physical, held, memory, _ = struct.unpack_from(
                "<IIQQQQQQ", data, heads + number * size
            )
        except struct.error:
            raise ImageError(f"{path}: the program header at {heads + number * size:#x} is cut off") from None
        if kind == 1:
            if physical + memory > 1 << 32 or entry >= 1 << 32:
                raise ImageError(
                    f"{path}: {max(physical, entry):#x} does not fit into an ELF32 file: link it below 4 GiB"
                )
            segments.append((flags, physical, data[offset : offset + held], memory))
    # the contents as close to the beginning as in the original: a multiboot header has to lie in the first 8 KiB
    at = 52 + 32 * len(segments)
    made, contents = [], []
    for flags, physical, held, memory in segments:
        made.append(struct.pack("<8I", 1, at, physical, physical, len(held), memory, flags, 1))
        contents.append(held)
        at += len(held)
    ident = b"\x7fELF\x01\x01\x01"
    header = struct.pack("<16sHHIIIIIHHHHHH", ident, 2, 3, 1, entry, 52, 0, 0, 52, 32, len(segments), 0, 0, 0)
    return b"".join([header, *made, *contents])
