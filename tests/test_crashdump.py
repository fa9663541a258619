"""Windows' crash dumps: the pages and registers that kdmp-parser finds in them, and refusals."""

from pathlib import Path

import kdmp_parser
import pytest
import recast
import specimens
from cli import output, refused

from x86tables.machine.files import load
from x86tables.machine.image import OpenOptions
from x86tables.machine.memory import Memory
from x86tables.readers import crashdump, open_image

KINDS = (1, 5, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_what_kdmp_parser_reads(kind: int, tmp_path: Path) -> None:
    memory, (cpu, *_) = recast.machine("linux", 0xD01, tmp_path / "qemu.core")
    (path := tmp_path / "mem.dmp").write_bytes(recast.crashdump(memory, cpu, kind))
    image, theirs = open_image(str(path)), kdmp_parser.KernelDumpParser(str(path))
    assert image.format == "crashdump" and image.memory.ranges == memory.ranges
    for known in memory.ranges:
        for page in range(known.start, known.stop, 0x1000):
            assert image.memory.read(page, 0x1000) == bytes(theirs.read_physical_page(page) or b"")
    ours = image.machines[0].registers
    assert ours.cr3 == theirs.directory_table_base == cpu.cr3
    for name in ("rip", "rsp"):
        assert getattr(ours, name) == getattr(theirs.context, name.capitalize()) == getattr(cpu, name)
    assert ours.rflags == theirs.context.EFlags and ours.general["r15"] == theirs.context.R15


def test_tables_are_searched(tmp_path: Path) -> None:
    memory, (cpu, *_) = recast.machine("linux", 0xD01, tmp_path / "qemu.core")
    (path := tmp_path / "mem.dmp").write_bytes(recast.crashdump(memory, cpu, 1))
    (found,) = recast.said(path)[0]["cpus"]
    (wanted, _) = recast.said(tmp_path / "qemu.core")[0]["cpus"]
    assert found["idt"]["gates"] == wanted["idt"]["gates"] and found["mode"] == "long64"
    assert found["registers"]["cpl"] == wanted["registers"]["cpl"]
    assert any("found in memory" in said for said in found["assumed"])
    output("extract", path, "-o", tmp_path / "small.core")
    assert recast.said(tmp_path / "small.core")[0]["cpus"][0]["idt"] == found["idt"]


def good(kind: int) -> bytearray:
    memory = Memory([(specimens.FRAME, len(specimens.memory()), specimens.memory(), 0)])
    return bytearray(recast.crashdump(memory, specimens.registers(), kind))


@pytest.mark.parametrize(
    ("kind", "at", "value", "sentence"),
    [
        (1, 0x88, 0x4547_4150, "1162297680 runs of memory: the header has room for 43"),
        (1, 0x88 + 20, 1 << 31, "physical addresses have 52 bits"),
        (1, 0xF98, 4, "a minidump has no memory by physical address"),
        (1, 0xF98, 99, "type 99 is not read"),
        (5, 0x2030, 0x7FFF_FFFF, "a bitmap of 0x7fffffff pages: the file ends at"),
        (8, 0x2018, 0x7FFF_FFFF, "in a file of"),
        (1, 0x88, 0, "no memory in this crash dump"),
    ],
)
def test_damaged(kind: int, at: int, value: int, sentence: str, tmp_path: Path) -> None:
    data = good(kind)
    data[at : at + 4] = value.to_bytes(4, "little")
    (path := tmp_path / "mem.dmp").write_bytes(data)
    assert sentence in refused("dump", path)


def test_cut_off(tmp_path: Path) -> None:
    (path := tmp_path / "mem.dmp").write_bytes(good(1)[:-0x1000])
    image = crashdump.read(str(path), load(str(path)), OpenOptions())
    assert image.remarks[0].endswith(f"its header promises memory from {specimens.END - 0x1000:#x} on")
    path.write_bytes(good(1)[:0x100])
    assert "a crash dump's header has 0x2000 bytes: the file ends at 0x100" in refused("dump", path)


def test_a_context_that_was_never_filled_in(tmp_path: Path) -> None:
    data = good(1)
    data[0x348 : 0x348 + 1232] = b"PAGE" * 308
    (path := tmp_path / "mem.dmp").write_bytes(data)
    (registers,) = crashdump.read(str(path), load(str(path)), OpenOptions()).registers
    assert registers.cr3 == specimens.TABLES and registers.rip is None
