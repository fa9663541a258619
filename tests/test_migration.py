"""QEMU's migration stream: a guest that QEMU runs here gives the answers of the core of the same moment; damaged ones.

`python tests/test_migration.py` writes the stream in tests/images, and what QEMU says of its registers, anew.
"""

import gzip
import json
import lzma
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
import specimens
import zstandard
from cli import IMAGES, call, output, refused

from x86tables import api
from x86tables.machine.image import OpenOptions
from x86tables.machine.memory import Memory
from x86tables.machine.pages import ScatteredPages
from x86tables.machine.registers import Segment
from x86tables.prove.boot_image import boot_image
from x86tables.readers import elfcore, memory_of, migration, open_image, read_registers

EXAMPLES = Path(__file__).parent.parent / "examples"
MIB = 1 << 20


def guest(folder: Path) -> list[str]:
    """QEMU's arguments for a configuration in long mode, with all of its tables loaded."""
    (machine,) = api.open(str(EXAMPLES / "double_fault.toml")).machines
    made = boot_image(machine, machine.registers, 128)
    (kernel := folder / "kernel").write_bytes(made.elf)
    return ["-kernel", str(kernel), "-m", str(made.mebibytes)]


def save(folder: Path, arguments: list[str], seconds: float = 2) -> tuple[Path, Path]:
    """Run a guest for a moment, and save the stream and the core of where it is then."""
    stream, core, place = folder / "guest.migration", folder / "guest.core", folder / "qmp"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-nodefaults", *arguments]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        server.settimeout(30)
        process = subprocess.Popen([*command, "-qmp", f"unix:{place}"])
        try:
            connection = server.accept()[0]
            with connection, connection.makefile("rw") as monitor:

                def execute(name: str, **arguments: object) -> Any:
                    monitor.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                    monitor.flush()
                    while True:
                        answer = json.loads(monitor.readline())
                        assert "error" not in answer
                        if "return" in answer:
                            return answer["return"]

                execute("qmp_capabilities")
                time.sleep(seconds)
                execute("stop")
                said = execute("human-monitor-command", **{"command-line": "info registers -a"})
                (folder / "guest.registers").write_text(said.replace("\r", ""))
                execute("dump-guest-memory", paging=False, protocol=f"file:{core}")
                execute(
                    "dump-guest-memory", paging=False, protocol=f"file:{folder / 'guest.kdump'}", format="kdump-zlib"
                )
                execute("migrate", uri=f"exec:cat>{stream}")
                while execute("query-migrate").get("status") != "completed":
                    time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    return stream, core


def same_as_core(stream: Path, core: Path) -> None:
    """Memory byte by byte, registers, and what is said of them, but for what a core leaves out."""
    ours, theirs = open_image(str(stream)), open_image(str(core))
    assert ours.format == "migration" and not ours.remarks
    assert ours.memory.ranges == theirs.memory.ranges
    for known in theirs.memory.ranges:
        for start in range(known.start, known.stop, MIB):
            size = min(MIB, known.stop - start)
            assert ours.memory.read(start, size) == theirs.memory.read(start, size), hex(start)
    for one, other in zip(ours.machines, theirs.machines, strict=True):
        registers = one.registers
        assert registers.efer is not None and registers.star is not None
        assert registers.replace(efer=None, star=None) == other.registers
    efer, star = (getattr(ours.machines[0].registers, name) for name in ("efer", "star"))
    assert recast.said(stream) == recast.said(core, "--reg", f"efer={efer:#x}", "--reg", f"star={star:#x}")


@pytest.mark.needs("qemu-system-x86_64")
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_guest_in_long_mode(machine: str, tmp_path: Path) -> None:
    stream, core = save(tmp_path, [*guest(tmp_path), "-machine", machine, "-smp", "1"])
    same_as_core(stream, core)
    (cpu,) = open_image(str(stream)).machines
    assert cpu.long_mode and cpu.registers.tr is not None and cpu.registers.tr.selector
    assert not any("EFER" in said for said in recast.said(stream)[0]["cpus"][0]["assumed"])


FLASH = "/usr/share/OVMF/OVMF_CODE.fd"


@pytest.mark.needs("qemu-system-x86_64", FLASH)
@pytest.mark.parametrize(
    "arguments",
    [
        ["-machine", "pc", "-m", "16", "-S"],
        ["-machine", "microvm", "-m", "16"],
        ["-machine", "q35", "-m", "32", "-vga", "std", "-drive", f"if=pflash,format=raw,readonly=on,file={FLASH}"],
    ],
    ids=["pc at reset", "microvm", "q35 with flash and a display"],
)
def test_memory_below_1_mebibyte(arguments: list[str], tmp_path: Path) -> None:
    """RAM or ROM as the PAM registers say, and nothing where the display is: byte by byte as in the core."""
    stream, core = save(tmp_path, arguments, 1)
    (ours, _), (theirs, _) = memory_of(str(stream)), memory_of(str(core))
    low = [range(known.start, min(known.stop, MIB)) for known in theirs.ranges if known.start < MIB]
    assert [range(known.start, min(known.stop, MIB)) for known in ours.ranges if known.start < MIB] == low
    assert low[0].stop == (0xA_0000 if "std" in arguments else MIB)
    for known in low:
        for page in range(known.start, known.stop, 0x1000):
            assert ours.read(page, 0x1000) == theirs.read(page, 0x1000), hex(page)


def test_a_stream_of_another_day() -> None:
    """Kept with what `info registers` said of the same moment, EFER too."""
    (machine,) = open_image(str(IMAGES / "guest.migration.xz")).machines
    (said,) = read_registers(str(IMAGES / "guest.registers"))
    registers = machine.registers
    assert registers.efer == said.efer and registers.star == 0
    for name in ("rip", "rsp", "rflags", "cr0", "cr2", "cr3", "cr4", "cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr"):
        found = getattr(registers, name)
        if isinstance(found, Segment):  # the monitor shows none of the base's bits in the attributes
            found = found.replace(flags=(found.flags or 0) & 0x00FF_FF00)
        assert found == getattr(said, name), name
    assert (registers.gdtr, registers.idtr) == (said.gdtr, said.idtr)
    assert all(registers.general[name] == value for name, value in said.general.items())
    assert [gate.p for gate in machine.idt][8] and machine.tss.ist1


RAM = 128 * MIB


def written(path: Path, name: str = "linux", **options: Any) -> tuple[Path, list[Any]]:
    """The stream of a captured system, the rest of whose memory is zeros, and its registers."""
    memory, cpus = recast.machine(name, 0xD01, path.with_suffix(".cut"))
    path.write_bytes(recast.migration(memory, cpus, RAM, **options))
    return path, [memory, cpus]


def test_linux_gives_the_answers_of_its_core(tmp_path: Path) -> None:
    """Two CPUs, with EFER and STAR: what SYS001 to SYS003 need."""
    path, (memory, cpus) = written(tmp_path / "linux.migration")
    full = Memory([(0, RAM, bytes(RAM), 0)])
    for known in memory.ranges:
        full.overlay(known.start, memory.read(known.start, len(known)))
    notes = b"".join(elfcore.cpu_notes(cpu) for cpu in cpus)
    elfcore.write(str(tmp_path / "qemu.core"), full, range(0, RAM, 0x1000), notes)
    said = recast.said(path)
    assert said == recast.said(tmp_path / "qemu.core")
    assert not any(one["rule"].startswith("SYS") for cpu in said[1]["cpus"] for one in cpu["not_checked"])
    output("extract", path, "-o", small := tmp_path / "small.core")
    assert recast.said(small)[0] == said[0]


@pytest.mark.parametrize(
    ("machine", "size", "below"),
    [
        (b"pc-i440fx-7.2", 0xDF00_0000, 0xDF00_0000),
        (b"pc-i440fx-7.2", 0xE000_0000, 0xC000_0000),
        (b"pc-q35-7.2", 0xAF00_0000, 0xAF00_0000),
        (b"pc-q35-7.2", 0xB000_0000, 0x8000_0000),
        (b"microvm", 0xC000_0000, 0xC000_0000),
        (b"microvm", 0xD000_0000, 0xC000_0000),
    ],
)
def test_where_ram_lies(machine: bytes, size: int, below: int, tmp_path: Path) -> None:
    """As `info mtree -f` of QEMU 7.2 shows it."""
    page = b"mark".ljust(0x1000, b".")
    data = recast.migration(Memory([(size - 0x1000, 0x1000, page, 0)]), [specimens.registers()], size, machine)
    (path := tmp_path / "stream").write_bytes(data)
    memory, _ = memory_of(str(path))
    above = [range(1 << 32, (1 << 32) + size - below)] if size > below else []
    low = [range(0xF_0000), range(MIB, below)] if machine == b"microvm" else [range(below)]  # its firmware is not here
    assert memory.ranges == [*low, *above]
    assert memory.read(memory.ranges[-1].stop - 0x1000, 4) == b"mark"


@pytest.mark.parametrize("packed", ["raw", "gzip", "xz", "zstd", "lzop"])
@pytest.mark.parametrize("order", "<>")
def test_saved_by_libvirt(packed: str, order: str, tmp_path: Path) -> None:
    stream, kinds = small(), {"raw": 0, "gzip": 1, "xz": 3, "lzop": 4, "zstd": 5}
    pack: dict[str, Callable[[bytes], bytes]]
    pack = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstandard.compress}
    header = struct.pack(order + "16sIIIII56x", b"LibvirtQemudSave", 2, 20, 1, kinds[packed], 0)
    (path := tmp_path / "saved").write_bytes(header + b"<domain type='kvm'/>" + pack.get(packed, bytes)(stream))
    if packed == "lzop":
        assert refused("dump", path).endswith('(lzop): save it again with save_image_format = "raw" in qemu.conf')
        return
    (path_of_stream := tmp_path / "stream").write_bytes(stream)
    assert recast.said(path) == recast.said(path_of_stream)
    path.write_bytes(header)
    assert "libvirt's header claims 0x14 bytes" in refused("dump", path)
    path.write_bytes(header[:40])
    assert "libvirt's header has 92 bytes" in refused("dump", path)


def small() -> bytes:
    memory = Memory([(specimens.FRAME, len(specimens.memory()), specimens.memory(), 0)])
    return recast.migration(memory, [specimens.registers().replace(efer=0xD01, star=0)], specimens.END)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"QEVM\0\0\0\3", b"QEVM\0\0\0\2", "a migration stream of version 2: QEVM and 3 expected"),
        (b"\x06pc.ram", b"\x06pc.rom", "a page of the block 'pc.ram', which it does not have"),
        (b"\x03ram", b"\x03vga", "section 'vga' at 0x2b of this migration stream is not of RAM"),
        (b"pc-i440fx", b"pc-i440f\xff", ""),
        (struct.pack(">Q", specimens.END), struct.pack(">Q", 1 << 62), "the block 'pc.ram' has 0x4000000000000000"),
        (struct.pack(">Q", specimens.FRAME | 8), struct.pack(">Q", 1 << 40 | 8), "a page at 0x10000000000 of a block"),
        (struct.pack(">Q", specimens.FRAME | 8), struct.pack(">Q", 0x48), "migrate_set_capability xbzrle off"),
        (struct.pack(">Q", specimens.FRAME | 8), struct.pack(">Q", 0xC00), "a page with the flags 0xc00"),
        (b"\4\0\0\0\3\3cpu", b"\4\0\0\0\3\3cpv", "section 'cpv' is not the next that the description names"),
        (b"\4\0\0\0\3\3cpu", b"\x33\0\0\0\3\3cpu", "0x33 begins no section"),
        (b"\x7e\0\0\0\3", b"\x7e\0\0\0\4", "the end of another section"),
        (b'"size": 24', b'"size": -4', 'is damaged: "a field\'s size is not a number"'),
        (b'"size": 24', b'"size": 9e', "is damaged: "),
        (b'"array_len": 16', b'"array_len": 1' + b"0" * 300, ""),
        (b'"page_size"', b'"page_sizes"', ""),
    ],
)
def test_damaged(old: bytes, new: bytes, sentence: str, tmp_path: Path) -> None:
    data = small()
    assert old in data
    (path := tmp_path / "stream").write_bytes(data.replace(old, new, 1))
    status, out, err = call("dump", path)
    assert (status, out) == (2, "") if sentence else status in (0, 2)
    assert sentence in err and str(path) in out + err


def test_cut_off(tmp_path: Path) -> None:
    """At any place: what is left is read, or refused in a sentence that names the place."""
    data = small()
    path = tmp_path / "stream"
    for size in [*range(4, 200), *range(200, len(data), 997)]:
        path.write_bytes(data[:size])
        assert f"{path}: " in refused("dump", path, "--image-format", "migration")
    end = data.index(b"\4\0\0\0\3\3cpu")
    contents = migration.read(str(path), data[: end + 30], OpenOptions())
    assert not contents.registers and "without a description" in contents.remarks[0]
    assert contents.memory.read(specimens.FRAME, 0x4000) == specimens.memory()[:0x4000]


@pytest.mark.parametrize("capability", [b"mapped-ram", b"x-ignore-shared"])
def test_capabilities_that_are_not_read(capability: bytes, tmp_path: Path) -> None:
    name = b"configuration/capabilities"
    said = b"\5" + bytes([len(name)]) + name + struct.pack(">II", 1, 1) + bytes([len(capability)]) + capability
    (path := tmp_path / "stream").write_bytes(small().replace(b"7.2", b"7.2" + said, 1))
    assert f"with the capability {capability.decode()}, which is not read" in refused("dump", path)


def test_pages() -> None:
    """Bytes as a file has them, and which of them are no hole."""
    data = bytes(range(256)) * 32
    pages = ScatteredPages(data, 0x40_0000 + 100)
    pages.put(0, 16)
    pages.fill(1, 0x90)
    pages.put(1024, 0x1000 - 50)
    pages.put(3, 7)
    pages.fill(3, 0)
    assert len(pages) == 0x40_0064 and pages[: 1 << 40][0x40_0000:] == data[0x1000 - 50 :][:100]
    assert pages[0xFFE:0x1002] == data[16 + 0xFFE : 16 + 0x1000] + b"\x90\x90" and pages[
        0x1FFF:0x3001
    ] == b"\x90" + bytes(0x1001)
    assert pages[5:5] == b"" and pages[9:5] == b""
    assert [*pages.extents(0x10, 1 << 40)] == [range(0x10, 0x2000), range(0x40_0000, 0x40_0064)]
    assert [*pages.extents(0x1000, 0x1800)] == [range(0x1000, 0x1800)] and not [*pages.extents(0x2000, 0x40_0000)]


def main() -> None:
    """Write the kept stream anew."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*guest(Path(folder)), "-machine", "pc", "-bios", "qboot.rom", "-vga", "none"]
        stream, _ = save(Path(folder), arguments)
        (IMAGES / "guest.migration.xz").write_bytes(lzma.compress(stream.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
        shutil.copy(Path(folder) / "guest.registers", IMAGES / "guest.registers")


if __name__ == "__main__":
    main()
