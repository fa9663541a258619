"""An image as other programs write one: its memory and registers in their formats, byte by byte."""

import json
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cramjam
import specimens
import zstandard
from cli import IMAGES, call
from lzallright import LZOCompressor

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
    notes = b"".join(elfcore.cpu_notes(cpu) for cpu in cpus)
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
    content = content.ljust(len(content) + 7 & ~7, b"\0")
    return struct.pack("<III", len(name), len(content), kind) + padded + content


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


def tag(name: str, value: bytes, *indices: int, block: bool = False) -> bytes:
    """One of VMware's tags; a block says its size and how it is padded."""
    head = bytes([(63 if block else len(value)) | len(indices) << 6, len(name)]) + name.encode()
    head += struct.pack(f"<{len(indices)}I", *indices)
    return head + (struct.pack("<QQH", len(value), len(value), 3) + b"pad" if block else b"") + value


def vmware(
    memory: Memory, cpus: Iterable[Registers], *, inside: bool = False, whole: bool = False
) -> tuple[bytes, bytes]:
    """A state file and its .vmem, which is empty where the memory is `inside`; `whole` has tables as one value each."""
    cpus = list(cpus)
    said = tag("cpu:numVCPUs", struct.pack("<I", len(cpus))) + tag("unknown", bytes(70), 0, 1, 2, block=True)
    for n, r in enumerate(cpus):
        said += tag("rip", struct.pack("<Q", r.rip or 0), n) + tag("eflags", struct.pack("<I", r.rflags or 0), n)
        for name, value in (r.general | {"rsp": r.rsp or 0}).items():
            said += tag(name, struct.pack("<Q", value), n)
        control = [r.cr0 or 0, 0, r.cr2 or 0, r.cr3 or 0, r.cr4 or 0]
        if whole:
            said += tag("CR64", struct.pack("<5Q", *control), n, block=True)
        else:
            said += b"".join(tag("CR64", struct.pack("<Q", value), n, at) for at, value in enumerate(control))
        for name, register in (("GDTR", r.gdtr), ("IDTR", r.idtr)):
            content = struct.pack("<HQ", table(register).limit, table(register).base)
            if whole:
                said += tag(name, content, n, block=True)
            else:
                parts = content[:2], content[2:6], content[6:]
                said += b"".join(tag(name, part, n, at) for at, part in enumerate(parts))
    described, vmem = tag("regionsCount", struct.pack("<I", len(pieces(memory)))), b""
    for n, (address, content) in enumerate(pieces(memory)):
        place = len(vmem) // PAGE
        for name, number in (
            ("regionPPN", address // PAGE),
            ("regionPageNum", place),
            ("regionSize", len(content) // PAGE),
        ):
            described += tag(name, struct.pack("<I", number), n)
        vmem += content
    if inside:
        described, vmem = described + tag("Memory", vmem, 0, 0, block=True), b""
    groups = {b"Checkpoint": tag("fileversion", b"\x0a\0\0\0"), b"cpu": said, b"memory": described}
    heads, body, start = b"", b"", 12 + 80 * len(groups)
    for group, content in groups.items():
        heads += struct.pack("<64sQQ", group, start + len(body), len(content))
        body += content + b"\0\0"
    return b"\xd2\xbe\xd2\xbe" + struct.pack("<II", 8, len(groups)) + heads + body, vmem


def context(r: Registers) -> bytes:
    """Windows' CONTEXT record up to the floating-point state's MXCSR."""
    selectors = [(segment or Segment(0)).selector for segment in (r.cs, r.ds, r.es, r.fs, r.gs, r.ss)]
    said = bytes(48) + struct.pack("<II6HI", 0x10_001F, 0x1F80, *selectors, r.rflags or 0) + bytes(48)
    order = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
    general = r.general | {"rsp": r.rsp or 0}
    said += struct.pack("<17Q", *(general.get(name, 0) for name in order), r.rip or 0)
    return said + bytes(24) + struct.pack("<II", 0x1F80, 0)


def crashdump(memory: Memory, r: Registers, kind: int) -> bytes:
    """A crash dump of Windows: of type 1 (complete), 5 (a bitmap), or 8 (ranges of the kernel's memory)."""
    page = bytearray(b"PAGE" * 0x800)

    def put(at: int, data: bytes) -> None:
        page[at : at + len(data)] = data

    loads = pieces(memory)
    runs = [(address // PAGE, len(content) // PAGE) for address, content in loads]
    put(0, b"PAGEDU64" + struct.pack("<IIQ", 15, 22621, r.cr3 or 0))
    put(0x30, struct.pack("<II", 0x8664, 1))
    put(0x348, context(r).ljust(3000, b"\0"))
    put(0xF98, struct.pack("<I", kind))
    body = b"".join(content for _, content in loads)
    described = b""
    if kind == 1:
        put(
            0x88,
            struct.pack("<IIQ", len(runs), 0, len(body) // PAGE) + b"".join(struct.pack("<QQ", *run) for run in runs),
        )
    elif kind == 5:
        bitmap = bytearray(runs[-1][0] + runs[-1][1] + 7 >> 3)
        for first, count in runs:
            for number in range(first, first + count):
                bitmap[number >> 3] |= 1 << (number & 7)
        start = 0x2038 + len(bitmap) + PAGE - 1 & -PAGE
        described = b"SDMPDUMP" + bytes(24) + struct.pack("<QQQ", start, len(body) // PAGE, 8 * len(bitmap)) + bitmap
        described = described.ljust(start - 0x2000, b"\0")
    else:
        ranges = b"".join(struct.pack("<QQ", *run) for run in runs) + bytes(16)
        described = struct.pack("<I4s4sIQQ", 0x40, b"RDMP", b"DUMP", 0, len(ranges) + 16, 0x2030 + len(ranges))
        described += bytes(16) + ranges
    return bytes(page) + described + body


SEGMENT = {"vmsd_name": "segment", "version": 1, "fields": [
    {"name": "selector", "type": "uint32", "size": 4}, {"name": "base", "type": "uint64", "size": 8},
    {"name": "limit", "type": "uint32", "size": 4}, {"name": "flags", "type": "uint32", "size": 4},
]}  # fmt: skip


def migration(memory: Memory, cpus: Iterable[Registers], size: int, machine: bytes = b"pc-i440fx-7.2") -> bytes:
    """QEMU's migration stream of a machine with `size` bytes of RAM, of which these pages are not zeros."""

    def name(text: bytes) -> bytes:
        return bytes([len(text)]) + text

    said = b"QEVM\0\0\0\3\7" + struct.pack(">I", len(machine)) + machine
    said += b"\1\0\0\0\2" + name(b"ram") + struct.pack(">II", 0, 4)
    said += struct.pack(">Q", size + PAGE | 4) + name(b"pc.ram") + struct.pack(">Q", size)
    said += name(b"/rom@etc/table-loader") + struct.pack(">Q", PAGE) + struct.pack(">Q", 0x10) + b"\x7e\0\0\0\2"
    said += b"\3\0\0\0\2" + struct.pack(">Q", 2) + name(b"pc.ram") + b"\0"
    said += struct.pack(">Q", 2) + name(b"/rom@etc/table-loader") + b"\xff"
    block = name(b"pc.ram")
    for address, content in pieces(memory):
        for at in range(0, len(content), PAGE):
            said += struct.pack(">Q", address + at | (8 if block else 0x28)) + block + content[at : at + PAGE]
            block = b""
    said += struct.pack(">Q", 0x10) + b"\x7e\0\0\0\2"
    devices: list[Any] = [{"name": "timer", "instance_id": 0, "vmsd_name": "timer", "version": 2, "fields": [
        {"name": "data", "size": 24, "type": "buffer"}]}]  # fmt: skip
    said += b"\4\0\0\0\0" + name(b"timer") + struct.pack(">II", 0, 2) + bytes(24) + b"\x7e\0\0\0\0"
    for n, r in enumerate(cpus):
        described, state = vmstate(r)
        subsection = b"\5" + name(b"cpu/msr_smi_count") + struct.pack(">I", 1) + bytes(8)
        smi = {"vmsd_name": "cpu/msr_smi_count", "version": 1, "fields": [{"name": "env.msr_smi_count", "size": 8}]}
        devices.append({"name": "cpu", "instance_id": n, "fields": described, "subsections": [smi]})
        section = struct.pack(">I", 3 + n)
        said += b"\4" + section + name(b"cpu") + struct.pack(">II", n, 12) + state + subsection + b"\x7e" + section
    text = json.dumps({"page_size": PAGE, "devices": devices}).encode()
    return said + b"\0\6" + struct.pack(">I", len(text)) + text


def vmstate(r: Registers) -> tuple[list[Any], bytes]:
    """The description of a CPU's state, and that state."""
    order = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
    general = r.general | {"rsp": r.rsp or 0}

    def segment(s: Segment | None) -> bytes:
        s = s or Segment(0, 0, 0, 0)
        return struct.pack(">IQII", s.selector, s.base, s.limit, s.flags or 0)

    fields: list[Any] = [{"name": "env.regs", "array_len": 16, "type": "uint64", "size": 8}]
    state = struct.pack(">16Q", *(general.get(each, 0) for each in order))
    for each, value in {"eip": r.rip, "eflags": r.rflags}.items():
        fields.append({"name": f"env.{each}", "type": "uint64", "size": 8})
        state += struct.pack(">Q", value or 0)
    fields.append({"name": "env.hflags", "type": "uint32", "size": 4})
    fields.append({"name": "env.segs", "array_len": 6, "type": "struct", "struct": SEGMENT, "size": 20})
    state += bytes(4) + b"".join(map(segment, (r.es, r.cs, r.ss, r.ds, r.fs, r.gs)))
    tables = [Segment(0, t.base, t.limit, 0) for t in map(table, (r.gdtr, r.idtr))]
    for each, register in zip(("ldt", "tr", "gdt", "idt"), (r.ldtr, r.tr, *tables), strict=True):
        fields.append({"name": f"env.{each}", "type": "struct", "struct": SEGMENT, "size": 20})
        state += segment(register)
    numbers = {"cr[0]": r.cr0, "cr[2]": r.cr2, "cr[3]": r.cr3, "cr[4]": r.cr4, "efer": r.efer, "star": r.star}
    for each, value in numbers.items():
        fields.append({"name": f"env.{each}", "type": "uint64", "size": 8})
        state += struct.pack(">Q", value or 0)
    return fields, state


PACKERS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "plain": (0, bytes),
    "zlib": (1, zlib.compress),
    "lzo": (2, lambda page: bytes(LZOCompressor().compress(page))),
    "snappy": (4, lambda page: bytes(cramjam.snappy.compress_raw(page))),
    "zstd": (0x20, lambda page: zstandard.ZstdCompressor().compress(page)),
}


def kdump(memory: Memory, notes: bytes, packing: str = "zlib", level: int = 1) -> bytes:
    """A kdump of some pages, as makedumpfile writes it; pages of zeros are left out with level 1."""
    flag, pack = PACKERS[packing]
    pages = {at // PAGE: content[n : n + PAGE].ljust(PAGE, b"\0") for address, content in pieces(memory)
             for n in range(0, len(content), PAGE) for at in [address + n]}  # fmt: skip
    count = max(pages) + 1
    size = (count // 8 // PAGE + 1) * PAGE
    maps = [bytearray(size), bytearray(size)]
    dumped = []
    for page, content in sorted(pages.items()):
        maps[0][page // 8] |= 1 << page % 8
        if any(content) or not level & 1:
            maps[1][page // 8] |= 1 << page % 8
            dumped.append(content)
    head = b"KDUMP   " + struct.pack("<I", 6) + bytes(390 + 22)
    blocks = (256 + len(notes) - 1) // PAGE + 1  # of the sub-header, which the notes follow
    head += struct.pack("<10I", 0, PAGE, blocks, 2 * size // PAGE, min(count, 0xFFFF_FFFF), 0, 0, 0, 0, 1)
    sub = struct.pack("<QII11Q", 0, level, 0, 0, 0, 0, 0, PAGE + 256, len(notes), 0, 0, 0, 0, count)
    at = (1 + blocks) * PAGE + 2 * size + 24 * len(dumped)
    descriptors, bodies = b"", b""
    for content in dumped:
        packed = pack(content)
        used = packed if len(packed) < PAGE else content
        descriptors += struct.pack("<QIIQ", at + len(bodies), len(used), flag if used is packed else 0, 0)
        bodies += used
    return (
        head.ljust(PAGE, b"\0")
        + (sub.ljust(256, b"\0") + notes).ljust(blocks * PAGE, b"\0")
        + bytes(maps[0] + maps[1])
        + descriptors
        + bodies
    )


def flattened(data: bytes, step: int = 5000) -> bytes:
    """The same as it is written to a pipe: in pieces, the header last."""
    records = [(at, data[at : at + step]) for at in range(0, len(data), step)]
    said = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    for at, content in records[1:] + records[:1]:
        said = (said.ljust(PAGE, b"\0") if len(said) < PAGE else said) + struct.pack(">qq", at, len(content)) + content
    return said + struct.pack(">qq", -1, -1)


def lime(memory: Memory, magic: bytes = b"EMiL", version: int = 1) -> bytes:
    """LiME's ranges, or AVML's of either version."""
    said = b""
    for address, content in pieces(memory):
        last = address + len(content) - (version == 1)
        said += struct.pack("<4sIQQ8x", magic, version, address, last)
        if version == 2:
            said += bytes(cramjam.snappy.compress(content)) + struct.pack("<Q", len(content))
        else:
            said += content
    return said
