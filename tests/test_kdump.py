"""Compressed dumps and dumps of memory alone: the answers of the ELF core of the same moment; damaged ones."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import recast
from cli import IMAGES, output, refused
from test_migration import guest, save

from x86tables.errors import ImageError
from x86tables.machine.memory import Memory
from x86tables.readers import elfcore, open_image

PAGE = 0x1000


@pytest.mark.needs("qemu-system-x86_64")
def test_what_qemu_writes(tmp_path: Path) -> None:
    """dump-guest-memory -z: the same memory, byte by byte, and the same answers."""
    _, core = save(tmp_path, guest(tmp_path))
    path = tmp_path / "guest.kdump"
    assert path.read_bytes()[:12] == b"makedumpfile"
    ours, theirs = open_image(str(path)), open_image(str(core))
    assert (ours.format, ours.remarks) == ("kdump", ())
    for known in theirs.memory.ranges:
        assert ours.memory.read(known.start, len(known)) == theirs.memory.read(known.start, len(known))
    assert [one.registers for one in ours.machines] == [one.registers for one in theirs.machines]
    assert recast.said(path) == recast.said(core)


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Memory, bytes]:
    """A captured Linux as a core, its memory, and the notes of its CPUs."""
    core = tmp_path_factory.mktemp("linux") / "linux.core"
    memory, cpus = recast.machine("linux", 0xD01, core)
    return core, memory, b"".join(elfcore.cpu_notes(cpu) for cpu in cpus)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("packing", recast.PACKERS)
def test_every_packing(packing: str, flat: bool, linux: tuple[Path, Memory, bytes], tmp_path: Path) -> None:
    core, memory, notes = linux
    data = recast.kdump(memory, notes, packing)
    (path := tmp_path / "linux.kdump").write_bytes(recast.flattened(data) if flat else data)
    assert recast.said(path) == recast.said(core)
    assert open_image(str(path)).memory.ranges == open_image(str(core)).memory.ranges


def test_what_a_level_leaves_out(linux: tuple[Path, Memory, bytes], tmp_path: Path) -> None:
    """Pages of zeros are known when nothing else was left out; with level 31 no page that is missing is."""
    _, memory, notes = linux
    data = bytearray(recast.kdump(memory, notes))
    (one := tmp_path / "1.kdump").write_bytes(data)
    data[PAGE + 8 : PAGE + 12] = struct.pack("<I", 31)
    (all_kinds := tmp_path / "31.kdump").write_bytes(data)
    ranges = [sum(map(len, open_image(str(path)).memory.ranges)) for path in (one, all_kinds)]
    assert ranges[0] > ranges[1]
    assert open_image(str(all_kinds)).remarks == (
        "dumped with level 31: pages of some kinds were left out, and are not known",
    )


def test_extract_cuts_one(linux: tuple[Path, Memory, bytes], tmp_path: Path) -> None:
    core, memory, notes = linux
    (path := tmp_path / "linux.kdump").write_bytes(recast.kdump(memory, notes, "snappy"))
    output("extract", path, "-o", tmp_path / "small.core")
    assert recast.said(tmp_path / "small.core") == recast.said(core)
    path.write_bytes(recast.kdump(memory, notes, "snappy", level=31))
    output("extract", path, "-o", tmp_path / "small.core")
    (remark,) = open_image(str(path)).remarks
    assert remark.startswith("dumped with level 31") and open_image(str(tmp_path / "small.core")).remarks == (remark,)


def changed(at: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + content + data[at + len(content) :]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (changed(428, struct.pack("<I", 0x2000)), "blocks of 0x2000 bytes: 0x1000 expected, the size of a page"),
        (changed(436, struct.pack("<I", 1 << 30)), "bitmaps of 0x40000000000 bytes at 0x2000: the file ends at "),
        (changed(436, bytes(4)), "bitmaps of 0x0 bytes at 0x2000: the file ends at "),
        (lambda data: data[:0x800], "the sub-header at 0x1000 has 104 bytes: the file ends at 0x800"),
        (lambda data: data[:100], "the header at 0x1ac has 20 bytes: the file ends at 0x64"),
        (
            lambda data: recast.flattened(data)[:0x2000],
            "the record at 0x1000 claims 0x1388 bytes: the file ends before",
        ),
        (lambda data: recast.flattened(b"other" + data), "flattened data of another kind than a kdump: b'otherKDU'"),
        (lambda data: data[:0x2000] + bytes(len(data) - 0x2000), "no page was dumped in this file"),
    ],
)
def test_damaged(damage: Callable[[bytes], bytes], sentence: str, tmp_path: Path) -> None:
    memory = Memory([(0x5000, 0x2000, bytes(range(1, 256)) * 40, 0)])
    (path := tmp_path / "damaged").write_bytes(damage(recast.kdump(memory, b"", level=0)))
    assert refused("dump", path).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("packing", [name for name in recast.PACKERS if name != "plain"])
def test_a_damaged_page(packing: str, tmp_path: Path) -> None:
    """Whatever the library says of it; and one that claims to unpack to far more than a page."""
    memory = Memory([(0x5000, 0x1000, bytes(range(1, 256)) * 17, 0)])
    data = recast.kdump(memory, b"", packing)
    at = 4 * PAGE + 24
    for bad in (b"\xff" * 20, b"\xff\xff\xff\xff\x0f" + data[at + 5 : at + 20]):
        (path := tmp_path / "page.kdump").write_bytes(data[:at] + bad + data[at + 20 :])
        with pytest.raises(ImageError, match=r"the page of 0x5000, at offset 0x[0-9a-f]+, is damaged: "):
            open_image(str(path)).memory.read(0x5000, 8)


@pytest.mark.parametrize(("magic", "version"), [(b"EMiL", 1), (b"LMVA", 1), (b"LMVA", 2)])
def test_memory_alone(magic: bytes, version: int, linux: tuple[Path, Memory, bytes], tmp_path: Path) -> None:
    """LiME and AVML: the tables are found as in flat memory."""
    _, memory, _ = linux
    (path := tmp_path / "linux.lime").write_bytes(recast.lime(memory, magic, version))
    image, flat = open_image(str(path)), open_image(str(IMAGES / "linux.core"))
    assert image.format == "lime" and image.memory.ranges == memory.ranges
    for known in memory.ranges:
        assert image.memory.read(known.start, len(known)) == memory.read(known.start, len(known))
    assert [one.registers.idtr for one in image.machines] == [one.registers.idtr for one in flat.machines]
    assert all(any("found in memory" in said for said in one.assumed) for one in image.machines)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (recast.lime(Memory([(0, 0x40, bytes(64), 0)])) + bytes(40), "at 0x60 a range is expected, LiME's or AVML's: "),
        (struct.pack("<4sIQQ8x", b"EMiL", 1, 5, 4), "the range at 0x0 is from 0x5 to 0x4: addresses have 52 bits"),
        (struct.pack("<4sIQQ8x", b"EMiL", 1, 0, 1 << 60), "the range at 0x0 is from 0x0 to 0x1000000000000000: "),
        (b"EMiL\1\0", "no memory in this file: the file is cut off: it ends within the header of a range, at 0x0"),
        (
            struct.pack("<4sIQQ8x", b"LMVA", 2, 0, 0x2000) + b"\x05\0\0\0",
            "a frame of snappy data is expected at 0x20: ",
        ),
        (
            struct.pack("<4sIQQ8x", b"LMVA", 2, 0, 0x2000) + b"\0\x0a\0\0crc.\xff\xff\xff\xff\x0f.",
            "the frame at 0x20 unpacks",
        ),
    ],
)
def test_damaged_ranges(data: bytes, sentence: str, tmp_path: Path) -> None:
    (path := tmp_path / "damaged").write_bytes(data.ljust(16, b"\0") if len(data) > 16 else data)
    assert refused("dump", path).startswith(f"{path}: {sentence}")
