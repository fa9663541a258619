"""VMware's state files: the memory and registers of captured systems in them give the answers of QEMU's core."""

import struct
from pathlib import Path

import pytest
import recast
import specimens
from cli import output, refused

from x86tables.machine.memory import Memory
from x86tables.readers import open_image


def write(path: Path, name: str, inside: bool, whole: bool) -> Path:
    memory, cpus = recast.machine(name, 0xD01, path.with_suffix(".core"))
    state, memory_file = recast.vmware(memory, cpus, inside=inside, whole=whole)
    path.write_bytes(state)
    if not inside:
        path.with_suffix(".vmem").write_bytes(memory_file)
    return path


@pytest.mark.parametrize(("inside", "whole"), [(False, False), (True, True)])
@pytest.mark.parametrize("name", ["linux", "cloud", "ovmf"])
def test_the_same_tables_as_in_a_core(name: str, inside: bool, whole: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "vm.vmss", name, inside, whole)
    image, core = open_image(str(path)), open_image(str(tmp_path / "vm.core"))
    assert image.format == "vmware" and image.memory.ranges == core.memory.ranges
    for ours, theirs in zip(image.machines, core.machines, strict=True):
        for register in ("rip", "rsp", "rflags", "cr0", "cr2", "cr3", "cr4", "gdtr", "idtr", "general"):
            assert getattr(ours.registers, register) == getattr(theirs.registers, register)
    found, wanted = recast.said(path)[0]["cpus"], recast.said(tmp_path / "vm.core")[0]["cpus"]
    for one, other in zip(found, wanted, strict=True):
        assert one["idt"] == other["idt"] and one["gdt"] == other["gdt"] and one["mode"] == "long64"
        assert (one["tss"] or {}).get("base") == (other["tss"] or {}).get("base")
    output("extract", path, "-o", tmp_path / "small.core")
    assert [cpu["idt"] for cpu in recast.said(tmp_path / "small.core")[0]["cpus"]] == [cpu["idt"] for cpu in found]


def good() -> tuple[bytearray, bytes]:
    memory = Memory([(specimens.FRAME, len(specimens.memory()), specimens.memory(), 0)])
    state, vmem = recast.vmware(memory, [specimens.registers()])
    return bytearray(state), vmem


def test_without_its_memory(tmp_path: Path) -> None:
    (path := tmp_path / "vm.vmsn").write_bytes(good()[0])
    assert (
        refused("dump", path)
        == f"{path}: the memory is not in this state file, and {tmp_path}/vm.vmem is not beside it"
    )


def test_cut_off(tmp_path: Path) -> None:
    state, vmem = good()
    (path := tmp_path / "vm.vmss").write_bytes(state)
    (tmp_path / "vm.vmem").write_bytes(vmem[:-0x1000])
    assert "vm.vmem is cut off: 0x1000 bytes of memory" in open_image(str(path)).remarks[0]
    path.write_bytes(state[:-60])
    assert "beyond the file's end" in refused("dump", path)
    path.write_bytes(state[:40])
    assert "3 groups of tags in 0x28 bytes" in refused("dump", path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"cpu:numVCPUs\1\0", b"cpu:numVCPUs\0\xff", "65280 CPUs: 1 to 4096 can be read"),
        (b"regionsCount\1\0", b"regionsCount\0\xff", "65280 regions of memory: more than 1024 are not read"),
        (b"regionPPN", b"regionPPX", "of 1 regions of memory, region 0 is not described"),
        (b"memory".ljust(64, b"\0"), b"memorx".ljust(64, b"\0"), "no group 'memory'"),
        (struct.pack("<I", 3), struct.pack("<I", 99), "99 groups of tags in"),
    ],
)
def test_damaged(old: bytes, new: bytes, sentence: str, tmp_path: Path) -> None:
    state, vmem = good()
    assert old in state
    (path := tmp_path / "vm.vmss").write_bytes(state.replace(old, new, 1))
    (tmp_path / "vm.vmem").write_bytes(vmem)
    assert sentence in refused("dump", path)


def test_compressed(tmp_path: Path) -> None:
    memory = Memory([(specimens.FRAME, len(specimens.memory()), specimens.memory(), 0)])
    state, _ = recast.vmware(memory, [specimens.registers()], inside=True)
    packed = state.replace(bytes([63 | 2 << 6, 6]) + b"Memory", bytes([62 | 2 << 6, 6]) + b"Memory")
    assert packed != state
    (path := tmp_path / "vm.vmss").write_bytes(packed)
    assert "is compressed: suspend the machine again" in refused("dump", path)
