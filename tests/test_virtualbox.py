"""VirtualBox's ELF core: the memory and registers of the captured systems in it give the answers of QEMU's core."""

import struct
from pathlib import Path

import pytest
import recast
import specimens
from cli import output, refused

from x86tables.machine.memory import Memory
from x86tables.readers import open_image


@pytest.mark.parametrize(("name", "efer"), [("linux", 0xD01), ("cloud", 0xD01), ("ovmf", 0xD00), ("linux32", 0x800)])
def test_the_same_machine_in_both_formats(name: str, efer: int, tmp_path: Path) -> None:
    memory, cpus = recast.machine(name, efer, core := tmp_path / "qemu.core")
    (path := tmp_path / "vm.core").write_bytes(recast.virtualbox(memory, cpus, size=0x2400))
    assert recast.said(path) == recast.said(core)
    output("extract", path, "-o", tmp_path / "small.core")
    assert recast.said(tmp_path / "small.core")[0] == recast.said(path)[0]


def test_a_version_that_is_not_known(tmp_path: Path) -> None:
    memory = Memory([(specimens.FRAME, len(specimens.memory()), specimens.memory(), 0)])
    (path := tmp_path / "vm.core").write_bytes(recast.virtualbox(memory, [specimens.registers()], version=0x2_0000))
    remarks = open_image(str(path)).remarks
    assert len(remarks) == 1 and "version 0x20000" in remarks[0]


def test_a_short_note(tmp_path: Path) -> None:
    memory = Memory([(specimens.FRAME, len(specimens.memory()), specimens.memory(), 0)])
    good, size = recast.virtualbox(memory, [specimens.registers()]), struct.pack("<II", 5, 584)
    assert size in good
    (path := tmp_path / "vm.core").write_bytes(good.replace(size, struct.pack("<II", 5, 80)))
    assert "VirtualBox's note of a CPU has 80 bytes: at least" in refused("dump", path)
