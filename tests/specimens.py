"""Small whole images, made here: a core, a linked kernel, flat memory, registers as text, symbols. To be damaged."""

import struct
from collections.abc import Iterable

from x86tables import Gate, Gdt, Idt, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.machine.mappings import build
from x86tables.machine.paging import Page
from x86tables.machine.registers import Registers, Segment, TableRegister
from x86tables.readers import elfcore

BASE = 0xFFFF_8000_0000_0000  # linear
FRAME = 0x10_0000  # physical: GDT, IDT and TSS, a stack, and from TABLES on the page tables
STACK, TABLES, END = FRAME + 0x1000, FRAME + 0x4000, FRAME + 0x8000
IDT, TSS, LIMITS = 0x100, 0xF00, (0x37, 0x7F, 0x67)

EHDR, PHDR, SHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), struct.Struct("<IIQQQQIIQQ")
IDENT = b"\x7fELF\2\1\1".ljust(16, b"\0")
NONE = (1 << 64) - 1


def tables() -> bytes:
    """One page: a GDT, an IDT of eight gates with IST1 for two of them, and a TSS."""
    gdt = Gdt()
    code = gdt.append(SegmentDescriptor.kernel_code())
    gdt.append(SegmentDescriptor.kernel_data())
    gdt.append(SystemDescriptor.tss(BASE + TSS))
    idt = Idt(8)
    for vector in range(8):
        idt[vector] = Gate.interrupt(BASE + 0x1000 + 16 * vector, code, ist=vector % 2)
    tss = Tss(rsp0=BASE + 0x3000, ist1=BASE + 0x2000)
    page = bytearray(0x1000)
    page[: len(bytes(gdt))] = bytes(gdt)
    page[IDT : IDT + 128] = bytes(idt)[:128]
    page[TSS : TSS + 104] = bytes(tss)
    return bytes(page)


def memory() -> bytes:
    """Physical memory from FRAME to END: the tables, three pages of stack and code, page tables that map them."""
    root, pages = build([Page(BASE, FRAME, 0x3000), Page(BASE + 0x4000, FRAME, 0x1000)], TABLES)
    assert root == TABLES and max(pages) < END
    content = bytearray(END - FRAME)
    content[:0x1000] = tables()
    for address, page in pages.items():
        content[address - FRAME : address - FRAME + 0x1000] = page
    return bytes(content)


def whole_memory() -> bytes:
    """The same from address 0 on, with code in it: what a search finds without registers."""
    content = bytearray(END)
    content[FRAME:] = memory()
    content[FRAME + 0x1000 : FRAME + 0x1080] = b"\x90" * 0x80
    return bytes(content)


def registers() -> Registers:
    """A CPU in 64-bit mode with all tables loaded."""
    gdt, idt, tss = LIMITS
    return Registers(
        rip=BASE + 0x1000, rsp=BASE + 0x2F00, rflags=2, cr0=0x8005_0033, cr2=0, cr3=TABLES, cr4=0x6F0,
        cs=Segment(8, 0, 0xFFFF_FFFF, 0x00AF_9B00), ss=Segment(0x10, 0, 0xFFFF_FFFF, 0x00CF_9300),
        ds=Segment(0), es=Segment(0), fs=Segment(0), gs=Segment(0),
        gdtr=TableRegister(BASE, gdt), idtr=TableRegister(BASE + IDT, idt),
        tr=Segment(0x18, BASE + TSS, tss, 0x8B00), ldtr=Segment(0),
    )  # fmt: skip


def notes(cpus: int = 1) -> bytes:
    """The notes of a core: CORE and QEMU, as QEMU orders them."""
    return elfcore.note(b"CORE", 1, bytes(336)) * cpus + elfcore.state_note(registers()) * cpus


def header(kind: int, count: int, *, machine: int = 62, sections: int = 0, entry: int = 56, shnum: int = 0) -> bytes:
    """An ELF header with the program headers right behind it."""
    return EHDR.pack(IDENT, kind, machine, 1, 0, 64, sections, 0, 64, entry, count, 64, shnum, 0)


def segment(kind: int, offset: int, address: int, size: int, held: int | None = None) -> bytes:
    """A program header: PT_LOAD is 1, PT_NOTE is 4."""
    return PHDR.pack(kind, 0, offset, address, address, size if held is None else held, size, 0)


def core(
    loads: Iterable[tuple[int, int, int]] | None = None, *, said: bytes | None = None, more: bytes = b"", shift: int = 0
) -> bytes:
    """A core of one CPU: the notes, then the memory.

    `loads` (offset, address, size) stand for the segment of the memory, offsets from its place in the file; `said` for
    the notes. `more` are program headers behind the others, `shift` moves what the notes' header says of their place.
    """
    said = notes() if said is None else said
    count = 1 if loads is None else len(loads := list(loads))
    heads = 64 + 56 * (count + 1) + len(more)
    place = heads + len(said)
    made = [segment(4, heads + shift, 0, len(said))]
    made += [segment(1, place + at & NONE, where, size) for at, where, size in loads or [(0, FRAME, END - FRAME)]]
    return header(4, count + 1 + len(more) // 56) + b"".join(made) + more + said + memory()


def kernel() -> bytes:
    """A linked kernel: one segment with more memory than contents, symbols `gdt`, `idt` and `tss`, three sections."""
    content = tables()
    names = b"\0gdt\0idt_table\0cpu_tss\0.data\0.symtab\0.strtab\0"
    base, place = 0xFFFF_FFFF_8000_0000, 64 + 56

    def symbol(name: bytes, address: int, size: int) -> bytes:
        return struct.pack("<IBBHQQ", names.index(b"\0" + name + b"\0") + 1, 1, 0, 1, address, size)

    entries = bytes(24) + symbol(b"gdt", base, LIMITS[0] + 1)
    entries += symbol(b"idt_table", base + IDT, LIMITS[1] + 1) + symbol(b"cpu_tss", base + TSS, 104)
    at = place + len(content)

    def section(name: bytes, kind: int, address: int, offset: int, size: int, link: int = 0, entry: int = 0) -> bytes:
        index = names.index(b"\0" + name + b"\0") + 1
        return SHDR.pack(index, kind, 3 if address else 0, address, offset, size, link, 1, 8, entry)

    sections = bytes(64) + section(b".data", 1, base, place, len(content))
    sections += section(b".symtab", 2, 0, at, len(entries), 3, 24)
    sections += section(b".strtab", 3, 0, at + len(entries), len(names))
    end = at + len(entries) + len(names)
    head = EHDR.pack(IDENT, 2, 62, 1, base, 64, end, 0, 64, 56, 1, 64, 4, 3)
    return head + segment(1, place, base, 0x3000, len(content)) + content + entries + names + sections


MONITOR = """CPU#0
RAX=0000000000000000 RBX=0000000000000001 RCX=0000000000000002 RDX=0000000000000003
RIP=ffff800000001000 RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1
RSP=ffff800000002f00
ES =0000 0000000000000000 00000000 00000000
CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0010 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0018 ffff800000000f00 00000067 00008b00 DPL=0 TSS64-busy
GDT=     ffff800000000000 00000037
IDT=     ffff800000000100 0000007f
CR0=80050033 CR2=0000000000000000 CR3=0000000000104000 CR4=000006f0
EFER=0000000000000d01
"""

SYSTEM_MAP = b"""ffff800000001000 T divide_error
ffff800000001010 T debug
ffff800000001020 t nmi
ffff800000001030 T int3
ffff800000000000 D gdt
ffff800000000100 D idt_table
"""
