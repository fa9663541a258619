"""A crashed Linux's own /proc/vmcore, and makedumpfile's form of it: the tables that QEMU's monitor named before."""

import lzma
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import recast
from cli import IMAGES, output

from x86tables.elf import NOTE, Elf
from x86tables.machine.registers import TableRegister
from x86tables.readers import elfcore, open_image

# `info registers -a` of the guest before it crashed
GDTR = TableRegister(0xFFFFFE0000001000, 0x7F), TableRegister(0xFFFFFE000003C000, 0x7F)
IDTR = TableRegister(0xFFFFFE0000000000, 0xFFF)
TR = (0x40, 0xFFFFFE0000003000, 0x4087), (0x40, 0xFFFFFE000003E000, 0x4087)
ROOT = 0x1F810000  # init_top_pgt


@pytest.fixture(scope="module")
def vmcore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linux") / "vmcore"
    path.write_bytes(lzma.decompress((IMAGES / "crashed-linux.vmcore.xz").read_bytes()))
    return path


def notes(path: Path) -> tuple[int, bytes]:
    """Where the notes of a core are, and they."""
    (segment,) = (segment for segment in Elf(str(path), path.read_bytes()).segments(NOTE))
    return segment.offset, path.read_bytes()[segment.offset : segment.offset + segment.filesz]


def test_the_tables_of_each_cpu(vmcore: Path) -> None:
    image = open_image(str(vmcore))
    registers = [machine.registers for machine in image.machines]
    assert tuple(known.gdtr for known in registers) == GDTR
    assert [known.idtr for known in registers] == [IDTR, IDTR]
    assert tuple((known.tr.selector, known.tr.base, known.tr.limit) for known in registers if known.tr) == TR
    assert [known.cr3 for known in registers] == [ROOT, ROOT]
    assert image.remarks == ()
    for machine in image.machines:
        assert machine.assumed[:2] == (
            "CR3 (the kernel's own page tables, which VMCOREINFO names)",
            "GDTR, IDTR, TR (found in memory, not given; score 98 of 100)",
        )


def test_registers_are_those_of_the_crash(vmcore: Path) -> None:
    """CPU 0 in the kernel, in the function that crashes it; CPU 1 in a user program. readelf does not show them."""
    first, second = (machine.registers for machine in open_image(str(vmcore)).machines)
    assert first.rip is not None and second.rip is not None
    assert (first.cs.selector, first.ss.selector, hex(first.rip)) == (0x10, 0x18, "0xffffffff831741ba")  # type: ignore[union-attr]
    assert (second.cs.selector, second.ss.selector, second.rip >> 47) == (0x33, 0x2B, 0)  # type: ignore[union-attr]
    assert first.general["rsp"] == first.rsp and len(first.general) == 16


def test_check_judges_it(vmcore: Path) -> None:
    text = output("check", vmcore)
    assert "CPU 0  survives if a guard page is hit; the stack in use is guarded" in text
    assert "CPU 1  survives if a guard page is hit" in text


def test_the_small_image_says_the_same(vmcore: Path, tmp_path: Path) -> None:
    """Its notes are ours: what Linux says of itself in VMCOREINFO is not kept."""
    output("extract", vmcore, "-o", tmp_path / "small.core")
    assert b"OSRELEASE" in vmcore.read_bytes() and b"OSRELEASE" not in (tmp_path / "small.core").read_bytes()
    assert recast.said(tmp_path / "small.core") == recast.said(vmcore)


@pytest.mark.parametrize("packing", recast.PACKERS)
def test_makedumpfile_keeps_the_notes(packing: str, vmcore: Path, tmp_path: Path) -> None:
    data = recast.kdump(open_image(str(vmcore)).memory, notes(vmcore)[1], packing)
    (path := tmp_path / "dump").write_bytes(data)
    assert recast.said(path) == recast.said(vmcore)


def without(name: bytes) -> Callable[[bytes], bytes]:
    return lambda data: re.sub(rb"(?m)^" + re.escape(name) + rb"=", lambda found: b"-" * len(found[0]), data)


@pytest.mark.parametrize(
    "damage",
    [
        without(b"SYMBOL(swapper_pg_dir)"),
        without(b"NUMBER(phys_base)"),
        lambda data: data.replace(b"NUMBER(phys_base)=450887680", b"NUMBER(phys_base)=450887681"),
        lambda data: data.replace(b"NUMBER(phys_base)=450887680", b"NUMBER(phys_base)=-99999999"),
        lambda data: data.replace(b"SYMBOL(swapper_pg_dir)=ffff", b"SYMBOL(swapper_pg_dir)=xxxx"),
    ],
)
def test_a_root_that_is_not_said_is_found(damage: Callable[[bytes], bytes], vmcore: Path, tmp_path: Path) -> None:
    (path := tmp_path / "vmcore").write_bytes(damage(vmcore.read_bytes()))
    assert path.read_bytes() != vmcore.read_bytes()
    (first, second) = open_image(str(path)).machines
    assert "CR3, GDTR, IDTR, TR (found in memory" in first.assumed[0]
    assert (first.registers.cr3, first.registers.gdtr, second.registers.gdtr) == (ROOT, *GDTR)


def test_a_note_that_is_short_is_no_cpu(vmcore: Path, tmp_path: Path) -> None:
    """The second CPU's note becomes one of another kind: one CPU is left."""
    data, (at, content) = bytearray(vmcore.read_bytes()), notes(vmcore)
    second = at + content.index(b"CORE\0", content.index(b"CORE\0") + 1) - 12
    data[second + 8 : second + 12] = struct.pack("<I", 99)
    (path := tmp_path / "vmcore").write_bytes(data)
    assert len(open_image(str(path)).machines) == 1


def test_five_levels_are_said(vmcore: Path, tmp_path: Path) -> None:
    """pgtable_l5_enabled=1: the root is that of five levels, as which these page tables map nothing that is known."""
    name = b"NUMBER(pgtable_l5_enabled)="
    (path := tmp_path / "vmcore").write_bytes(vmcore.read_bytes().replace(name + b"0", name + b"1"))
    assert [levels(given) for given in (vmcore, path)] == ["4-level", "5-level"]


def levels(path: Path) -> str:
    return open_image(str(path)).machines[0].space.paging.mode


def test_cloud_hypervisor(tmp_path: Path) -> None:
    """Its core has QEMU's note, with CR8 where CR1 would be."""
    data = bytearray((IMAGES / "linux.core").read_bytes())
    cr1 = elfcore._STATE.size - 4 * 8
    places = [found.end() + 3 & ~3 for found in re.finditer(rb"QEMU\0", data)]
    assert len(places) == 2
    for place in places:
        assert data[place + cr1 : place + cr1 + 8] == bytes(8)
        data[place + cr1 : place + cr1 + 8] = struct.pack("<Q", 0xF)
    (path := tmp_path / "cloud-hypervisor.core").write_bytes(data)
    assert recast.said(path) == recast.said(IMAGES / "linux.core")
