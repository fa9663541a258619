"""Hostile cores: LARGE are made when they are tested."""

from x86tables import Gate, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.machine.memory import Memory
from x86tables.machine.registers import Registers, Segment, TableRegister
from x86tables.readers import elfcore

PAGE = 0x1000


def pae_loop() -> bytes:
    """A 32-bit CPU whose four top-level entries name the page that they stand in as a directory."""
    page = (0x1000 | 1).to_bytes(8, "little") * 4
    memory = Memory([(0x1000, PAGE, page.ljust(PAGE, b"\0"), 0)])
    registers = Registers(
        rip=0x1000, rsp=0x1800, rflags=2, cs=Segment(8, 0, 0xFFFFFFFF, 0x00CF9B00), ss=Segment(16), cr0=0x8000_0011,
        cr2=0, cr3=0x1000, cr4=0x20, gdtr=TableRegister(0x1000, 0x1F), idtr=TableRegister(0x40_0000, 0x7FF),
        tr=Segment(0), ldtr=Segment(0),
    )  # fmt: skip
    return core(memory, registers, {0x1000})


TABLES, STACK, GONE = 0x10_0000, 0x8000_0000, 0xC000_0000  # linear: tables and code, the end of a stack, nothing


def long_mode(root: int, pages: dict[int, bytes]) -> bytes:
    """A 64-bit CPU with these page tables: handlers at GONE, RSP below STACK; GDT, IDT and TSS at TABLES, where linear
    and physical addresses are the same."""
    gates = [Gate.interrupt(GONE, 8, ist=int(vector == 8)) for vector in range(256)]
    tss = SystemDescriptor.tss(TABLES + 0x2000).replace(type=0xB)
    gdt = b"".join(map(bytes, (SegmentDescriptor(), SegmentDescriptor.kernel_code(), tss)))
    pages |= {TABLES: gdt, TABLES + 0x1000: Gate.build_table(gates), TABLES + 0x2000: bytes(Tss(ist1=TABLES + 0x4000))}
    pages |= {TABLES + 0x3000: b"", TABLES + 0x4000: b""}
    registers = Registers(
        rip=TABLES, rsp=STACK - 0x100, rflags=2, cs=Segment(8, 0, 0xFFFFFFFF, 0x00AF9B00), ss=Segment(0),
        cr0=0x8005_0033, cr2=0, cr3=root, cr4=0x20, gdtr=TableRegister(TABLES, len(gdt) - 1),
        idtr=TableRegister(TABLES + 0x1000, 0xFFF), tr=Segment(16, TABLES + 0x2000, 0x67, 0x8B00), ldtr=Segment(0),
    )  # fmt: skip
    memory = Memory([(address, PAGE, data.ljust(PAGE, b"\0"), 0) for address, data in pages.items()])
    return core(memory, registers, set(pages))


def entries(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def self_mapped() -> bytes:
    """Every entry of the PML4 names the PML4: all of memory is that page, read as a stack, as code and as tables."""
    return long_mode(0x1000, {0x1000: entries(0x1003) * 512})


def long_stack() -> bytes:
    """A stack of 1 GiB in pages of 4 KiB, all of them the same one, and handlers that are not mapped."""
    large = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000  # PML4, PDPT, PD of what is at TABLES, PD, PT, page
    root, pointers, tables, directory, table, page = large
    return long_mode(root, {
        root: entries(pointers | 3), pointers: entries(tables | 3, directory | 3), tables: entries(0x83),
        directory: entries(table | 3) * 512, table: entries(page | 3) * 512, page: b"",
    })  # fmt: skip


def pdpte_loop() -> bytes:
    """A PDPTE that names its own PDPT: a page table where each entry but the first is a page directory."""
    root, pointers, tables, page = 0x1000, 0x2000, 0x3000, 0x4000
    own = [tables | 3, pointers | 3] + [page | 3] * 510
    return long_mode(root, {root: entries(pointers | 3), pointers: entries(*own), tables: entries(0x83), page: b""})


def core(memory: Memory, registers: Registers, pages: set[int]) -> bytes:
    """The file, as `extract` writes one."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core"
        elfcore.write(str(path), memory, pages, elfcore.state_note(registers))
        return path.read_bytes()


LARGE = {
    "pae-loop.core": pae_loop,
    "self-mapped.core": self_mapped,
    "long-stack.core": long_stack,
    "pdpte-loop.core": pdpte_loop,
}
