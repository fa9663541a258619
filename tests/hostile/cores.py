"""Hostile cores: LARGE are made when they are tested."""

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


def core(memory: Memory, registers: Registers, pages: set[int]) -> bytes:
    """The file, as `extract` writes one."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core"
        elfcore.write(str(path), memory, pages, elfcore.state_note(registers))
        return path.read_bytes()


LARGE = {"pae-loop.core": pae_loop}
