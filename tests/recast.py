"""An image as other programs write one: its memory and registers in their formats, byte by byte."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import specimens
from cli import IMAGES, call

from x86tables.machine.memory import Memory
from x86tables.machine.registers import Registers, Segment, TableRegister
from x86tables.readers import elfcore, open_image

PAGE = 0x1000
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


STAR = 0x23_0010_0000_0000


def machine(name: str, efer: int, core: Path) -> tuple[Memory, list[Registers]]:
    """What is held of a captured system, with EFER and STAR; `core` is written with the same in QEMU's format."""
    image = open_image(str(IMAGES / f"{name}.core"))
    cpus = [machine.registers.replace(efer=efer, star=STAR) for machine in image.machines]
    pages = {page for known in image.memory.ranges for page in range(known.start & -PAGE, known.stop, PAGE)}
    notes = b"".join(elfcore.state_note(cpu) + elfcore.extra_note(cpu, {}) for cpu in cpus)
    elfcore.write(str(core), image.memory, pages, notes)
    return image.memory, cpus


def said(path: Path, *options: object) -> list[Any]:
    """What dump and check say of an image as JSON, without its name and format."""
    found = []
    for words in (["dump"], ["check", "--scenario", "stack-overflow"]):
        document = json.loads(call(*words, path, *options, "--format", "json")[1])
        del document["image"]
        found.append(document)
    return found


def pieces(memory: Memory) -> list[tuple[int, bytes]]:
    """Physical address and contents of each stretch of memory."""
    return [(each.start, memory.read(each.start, len(each))) for each in memory.ranges]


def rights(segment: Segment) -> int:
    """The attributes of a segment register as VirtualBox and the fuzzers' state files have them."""
    flags = segment.flags or 0
    return flags >> 8 & 0xF0FF if flags & 0x8000 else 0x1_0000


def table(register: TableRegister | None) -> TableRegister:
    return register or TableRegister(0, 0xFFFF)


def virtualbox(memory: Memory, cpus: Iterable[Registers], version: int = 0x1_0006, size: int = 0) -> bytes:
    """`VBoxManage debugvm VM dumpvmcore`: notes VBCORE and VBCPU aligned to 8 bytes, then the memory."""
    cpus = list(cpus)
    said = note(b"VBCORE", 0xB00, struct.pack("<6I", 0xC01AC0DE, version, 24, 7 << 24, 0, len(cpus)))
    for cpu in cpus:
        said += note(b"VBCPU", 0xB01, virtualbox_cpu(cpu).ljust(size, b"\0"))
    loads = pieces(memory)
    heads = 64 + 56 * (1 + len(loads))
    place, made = heads + len(said), [specimens.segment(4, heads, 0, len(said))]
    for address, content in loads:
        made.append(specimens.PHDR.pack(1, 7, place, 0, address, len(content), len(content), 0))
        place += len(content)
    head = specimens.header(4, 1 + len(loads))
    return head + b"".join(made) + said + b"".join(content for _, content in loads)


def note(name: bytes, kind: int, content: bytes) -> bytes:
    """A note as VirtualBox writes it: the size of the name without its zero byte, all of it in steps of 8 bytes."""
    padded = (name + b"\0").ljust(len(name) + 8 & ~7, b"\0")
    return struct.pack("<III", len(name), len(content) + 7 & ~7, kind) + padded + content.ljust(-(-len(content) // 8) * 8, b"\0")


def virtualbox_cpu(r: Registers) -> bytes:
    """DBGFCORECPU up to the extended state."""

    def selector(segment: Segment | None) -> bytes:
        s = segment or Segment(0, 0, 0, 0)
        return struct.pack("<QIIHHI", s.base, s.limit, rights(s), s.selector, 0, 0)

    said = struct.pack("<14Q", *(r.general.get(name, 0) for name in GENERAL))
    said += struct.pack("<4Q", r.rip or 0, r.rsp or 0, r.general.get("rbp", 0), r.rflags or 0)
    said += b"".join(map(selector, (r.cs, r.ds, r.es, r.fs, r.gs, r.ss)))
    said += struct.pack("<4Q", r.cr0 or 0, r.cr2 or 0, r.cr3 or 0, r.cr4 or 0) + bytes(64)
    said += b"".join(struct.pack("<QII", t.base, t.limit, 0) for t in map(table, (r.gdtr, r.idtr)))
    said += selector(r.ldtr) + selector(r.tr) + bytes(24)
    return said + struct.pack("<9Q", r.efer or 0, r.star or 0, *range(7)) + bytes(24)
