"""Damaged, hostile and nonsensical input: one sentence and status 2, or a table with the reason; never a traceback."""

import gzip
import lzma
import os
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import specimens
import zstandard
from specimens import BASE, END, FRAME, NONE, TABLES, core, header, kernel, segment
from work import Work

from x86tables import budgets
from x86tables.commands import main
from x86tables.machine.registers import Segment, TableRegister
from x86tables.readers import elfcore

Run = Callable[..., tuple[int, str, str]]
MIB = 1 << 20
MOST_CALLS = 2_000_000  # of functions, ours and Python's own: twice what any of these takes, about two seconds
NOBODY = 65534


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command: (status, standard output, standard error); whatever it is, it is little work."""

    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with Work() as work:
            status = main(argv)
        assert work.calls < MOST_CALLS
        out, err = capsys.readouterr()
        assert status in (0, 2)
        assert err == "" if status == 0 else sentence(err)
        return status, out, err

    return call


def sentence(text: str) -> bool:
    """One line of a person's length that begins with the program's name and shows nothing of Python."""
    assert text.startswith("x86tables: ") and text.endswith("\n") and text.count("\n") == 1, text
    assert len(text) < 600 and not any(word in text for word in ("Traceback", "Error:", "object at", "None")), text
    return True


@pytest.fixture
def image(tmp_path: Path) -> Callable[[bytes], str]:
    def write(data: bytes) -> str:
        (tmp_path / "image").write_bytes(data)
        return str(tmp_path / "image")

    return write


def refused(result: tuple[int, str, str], *words: str) -> None:
    """The command said what is wrong and all these words with it."""
    status, _, err = result
    assert status == 2
    for word in words:
        assert word in err, err


# Files that are none, or hold nothing


def test_no_such_file(run: Run, tmp_path: Path) -> None:
    refused(run("dump", str(tmp_path / "none")), "none: there is no such file")


def test_directory(run: Run, tmp_path: Path) -> None:
    refused(run("dump", str(tmp_path)), f"{tmp_path}: not a file")


def test_empty(run: Run, image: Callable[[bytes], str]) -> None:
    refused(run("dump", path := image(b"")), f"{path}: the file is empty")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full"])
def test_device(run: Run, device: str) -> None:
    refused(run("dump", device), f"{device}: not a file")


def test_fifo_does_not_hang(run: Run, tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    refused(run("dump", str(fifo)), "fifo: not a file")
    refused(run("dump", str(fifo), "--gdt", "0,7"), "fifo: not a file")


@pytest.mark.parametrize("closed", ["file", "directory"])
def test_unreadable(run: Run, closed: str) -> None:
    """As a user who is not root: root reads any file."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        (path := Path(directory) / "image").write_bytes(core())
        assert run("dump", str(path))[0] == 0
        os.chmod(path if closed == "file" else directory, 0)
        if root:
            os.seteuid(NOBODY)
        try:
            refused(run("dump", str(path)), f"{path}: Permission denied")
        finally:
            if root:
                os.seteuid(0)
            os.chmod(directory, 0o755)


def test_name_with_null_byte(run: Run) -> None:
    refused(run("dump", "a\0b"), "a\\x00b")


def test_very_long_name(run: Run) -> None:
    refused(run("dump", "a" * 300), "aaa")


@pytest.mark.parametrize("size", [1, 7, 8, 100, 4096, 70000])
def test_random_bytes(run: Run, image: Callable[[bytes], str], size: int) -> None:
    path = image(bytes(n * 73 + 41 & 255 for n in range(size)))
    refused(run("dump", path), path, "--gdt ADDR,LIMIT")


def test_huge_sparse_file(run: Run, tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 42)
    refused(run("dump", str(tmp_path / "huge")), "huge", "--gdt ADDR,LIMIT")
    refused(run("dump", str(tmp_path / "huge"), "--base", hex((1 << 64) - MIB)), "beyond 64 bits")
    status, out, _ = run("dump", str(tmp_path / "huge"), "--idt", hex((1 << 42) - 16) + ",0xf")
    assert status == 0 and "1 absent gate" in out


# Compressed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("name", PACKERS)
def test_compressed_and_cut(run: Run, image: Callable[[bytes], str], name: str) -> None:
    packed = PACKERS[name](core())
    assert run("dump", image(packed))[0] == 0
    for size in (6, 12, len(packed) // 2, len(packed) - 1):
        refused(run("dump", path := image(packed[:size])), path, name, "damaged or cut off")


@pytest.mark.parametrize("name", PACKERS)
def test_compressed_and_damaged(run: Run, image: Callable[[bytes], str], name: str) -> None:
    packed = bytearray(PACKERS[name](core()))
    packed[20:60] = bytes(40)
    refused(run("dump", path := image(bytes(packed))), path, name, "damaged or cut off")


@pytest.mark.parametrize("name", PACKERS)
def test_compressed_nothing(run: Run, image: Callable[[bytes], str], name: str) -> None:
    refused(run("dump", path := image(PACKERS[name](b""))), path, "empty")


@pytest.mark.parametrize("name", PACKERS)
def test_decompression_bomb(tmp_path: Path, name: str) -> None:
    """What is unpacked goes to a file, zeros to its holes; memory stays small."""
    (path := tmp_path / "bomb").write_bytes(PACKERS[name](bytes(128 * MIB)))
    status, err, _, resident = measured("dump", str(path))
    assert status == 2 and "bomb" in err and resident < 130 * MIB


@pytest.mark.parametrize("name", PACKERS)
def test_bomb_of_other_than_zeros(
    run: Run, image: Callable[[bytes], str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that repeats for ever is refused in time, a file of mostly zeros with something in each MiB is not."""
    monkeypatch.setattr(budgets, "FILE_UNPACKED", MIB)
    monkeypatch.setattr(budgets, "FILE_RATIO", 32)
    refused(run("dump", path := image(PACKERS[name](b"\xaa" * 16 * MIB))), path, name, "other than zeros")
    sparse = PACKERS[name]((b"\xaa" + bytes(MIB - 1)) * 64)
    assert len(sparse) * 32 < 32 * MIB
    assert run("dump", image(sparse), "--gdt=0,7")[0] == 0


@pytest.mark.parametrize("name", PACKERS)
def test_no_room_for_what_is_unpacked(run: Run, image: Callable[[bytes], str], name: str) -> None:
    path = image(PACKERS[name](core()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        result = run("dump", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result, f"{path}: the {name} data", f"into {tempfile.gettempdir()}: File too large", "set TMPDIR")


def test_compressed_with_too_large_a_dictionary(run: Run, image: Callable[[bytes], str]) -> None:
    """An xz stream may ask for 4 GiB; it is refused before that is filled."""
    packed = bytearray(lzma.compress(core(), preset=0))
    assert packed[16] == 12  # 256 KiB, in the header of the first block
    packed[16] = 39
    struct.pack_into("<I", packed, 20, zlib.crc32(packed[12:20]))
    refused(run("dump", path := image(bytes(packed))), path, "xz", "dictionary", "128 MiB")


@pytest.mark.parametrize("name", PACKERS)
def test_compressed_in_several_pieces(run: Run, image: Callable[[bytes], str], name: str) -> None:
    whole = core()
    packed = PACKERS[name](whole[:5000]) + PACKERS[name](whole[5000:])
    assert run("dump", image(packed))[0] == 0
    refused(run("dump", image(packed + b"rest")), name, "damaged or cut off")


# ELF cores


def boundaries() -> Iterator[int]:
    """Where a structure of the core begins or ends, one byte before and behind it."""
    notes = len(specimens.notes())
    place = 64 + 2 * 56
    note = 12 + 8 + 336
    ends = [4, 5, 16, 18, 24, 32, 54, 58, 64, 64 + 56, place, place + 12, place + 20, place + note]
    ends += [place + note + 12, place + note + 20, place + note + 20 + 432, place + notes]
    ends += [place + notes + offset for offset in range(0, END - FRAME + 1, 0x1000)]
    for end in ends:
        yield from (end - 1, end, end + 1)


@pytest.mark.parametrize("size", sorted(set(boundaries())))
def test_core_cut_off(run: Run, image: Callable[[bytes], str], size: int) -> None:
    whole = core()
    status, out, err = run("dump", image(whole[:size]))
    if size >= len(whole):
        assert status == 0 and "cut off" not in out
    elif status == 0:
        assert "cut off" in out
    elif size >= 20:
        assert "cut off" in out + err or "beyond its segment" in err, err


def test_whole_core_is_quiet(run: Run, image: Callable[[bytes], str]) -> None:
    status, out, _ = run("dump", image(core()))
    assert status == 0 and "note:" not in out and "IST1  0xffff800000002000: 4248 bytes" in out


@pytest.mark.parametrize(
    "load",
    [
        (0, FRAME, 1 << 63),
        (0, FRAME, NONE),
        (1 << 40, FRAME, 0x1000),
        (1 << 63, FRAME, 0x1000),
        (NONE - 0x2000, FRAME, 0x1000),
        (0, NONE - 0xFFF, 0x8000),
        (0, NONE, 0x8000),
    ],
)
def test_segments_beyond_everything(run: Run, image: Callable[[bytes], str], load: tuple[int, int, int]) -> None:
    """Alone such a segment leaves the tables unknown; beside a good one it does no harm."""
    status, out, err = run("dump", image(core([load])))
    assert "cut off or damaged" in out + err or "not in this image" in out + err
    status, out, _ = run("dump", image(core([(0, FRAME, END - FRAME), load])))
    assert status == 0 and "IST1  0xffff800000002000: 4248 bytes" in out


def test_overlapping_segments(run: Run, image: Callable[[bytes], str]) -> None:
    size = END - FRAME
    loads = [(0, FRAME, size), (0, FRAME, size), (0x1000, FRAME + 0x1000, 0x2000), (0x3000, FRAME + 0x800, 0x2000)]
    status, out, _ = run("dump", image(core(loads)))
    assert status == 0 and "IST1  0xffff800000002000: 4248 bytes" in out


@pytest.mark.parametrize("count", [0, 1])
def test_core_without_memory(run: Run, image: Callable[[bytes], str], count: int) -> None:
    refused(run("dump", path := image(header(4, count) + segment(4, 120, 0, 0) + specimens.notes())), path)


@pytest.mark.parametrize("entry", [0, 1, 55, 57, 0xFFFF])
def test_core_with_odd_program_headers(run: Run, image: Callable[[bytes], str], entry: int) -> None:
    refused(run("dump", path := image(header(4, 2, entry=entry) + core()[64:])), path, f"{entry} bytes", "56 bytes")


@pytest.mark.parametrize("width", [0, 3, 255])
def test_core_of_no_class(run: Run, image: Callable[[bytes], str], width: int) -> None:
    data = bytearray(core())
    data[4] = width
    refused(run("dump", path := image(bytes(data))), path, "offset 0x4", str(width))


def test_big_endian_core(run: Run, image: Callable[[bytes], str]) -> None:
    data = bytearray(core())
    data[5] = 2
    refused(run("dump", path := image(bytes(data))), path, "offset 0x5")


@pytest.mark.parametrize("machine", [3, 8, 183])
def test_core_of_another_machine(run: Run, image: Callable[[bytes], str], machine: int) -> None:
    status, _, err = run("dump", image(header(4, 2, machine=machine) + core()[64:]))
    assert status == 0 if machine == 3 else status == 2 and str(machine) in err and "offset 0x12" in err


def many(count: int, one: bytes, said: int | None = None) -> bytes:
    """A core with so many program headers behind a good one, the number in sh_info of section 0."""
    notes = specimens.notes()
    place = 64 + 64
    notes_at = place + 56 * (count + 2)
    heads = segment(4, notes_at, 0, len(notes)) + segment(1, notes_at + len(notes), FRAME, END - FRAME)
    top = specimens.EHDR.pack(specimens.IDENT, 4, 62, 1, 0, place, 64, 0, 64, 56, 0xFFFF, 64, 1, 0)
    section = bytes(44) + struct.pack("<I", count + 2 if said is None else said) + bytes(16)
    return top + section + heads + one * count + notes + specimens.memory()


@pytest.mark.parametrize("count, together", [(65533, 0), (65535, 0), (1_000_000, 0), (1_000_000, 1)])
def test_very_many_program_headers(tmp_path: Path, count: int, together: bool) -> None:
    """All neighbours, as an image with `-p` has them, or each a page of its own, of which a million are refused."""
    one, step = segment(1, 0, 0, 0x1000), 0x1000 if together else 0x2000
    heads = array("Q", one * count)
    heads[1::7] = array("Q", range(0, count * 0x1000, 0x1000) if together else [0] * count)
    heads[3::7] = array("Q", range(1 << 33, (1 << 33) + count * step, step))
    data = many(count, one).replace(one * count, heads.tobytes())
    (path := tmp_path / "many").write_bytes(data)
    status, err, seconds, resident = measured("dump", str(path))
    if together or count < 100_000:
        assert status == 0 and not err
    else:
        assert status == 2 and f"{count + 2} segments" in err
    assert seconds < 2 and resident < 200 * MIB


@pytest.mark.parametrize("said", [0, 1, 1 << 20, (1 << 20) + 1, 0xFFFFFFFF])
def test_number_of_program_headers_in_a_section(run: Run, image: Callable[[bytes], str], said: int) -> None:
    status, out, err = run("dump", image(many(0, b"", said)))
    assert "cut off" in out if status == 0 else "segments" in err or "no memory" in err


@pytest.mark.parametrize("place", [1 << 40, NONE, 1 << 63])
def test_number_of_program_headers_beyond_the_end(run: Run, image: Callable[[bytes], str], place: int) -> None:
    data = header(4, 0xFFFF, sections=place) + core()[64:]
    refused(run("dump", path := image(data)), path, f"{place + 44:#x}", "beyond the end")


@pytest.mark.parametrize("place", [NONE, 1 << 63, 1 << 40])
def test_program_headers_beyond_the_end(run: Run, image: Callable[[bytes], str], place: int) -> None:
    data = bytearray(core())
    struct.pack_into("<Q", data, 32, place)
    refused(run("dump", path := image(bytes(data))), path)


@pytest.mark.parametrize("name, size", [(5, 0xFFFFFFF0), (0xFFFFFFFF, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0, 4096)])
def test_note_that_claims_too_much(run: Run, image: Callable[[bytes], str], name: int, size: int) -> None:
    good = elfcore.state_note(specimens.registers())
    bad = struct.pack("<III", name, size, 0) + b"QEMU\0\0\0\0" + bytes(64)
    status, out, _ = run("dump", image(core(said=good + bad)))
    assert status == 0 and f"offset {64 + 112 + len(good):#x}" in out
    refused(run("dump", path := image(core(said=bad + good))), path, f"offset {64 + 112:#x}")


@pytest.mark.parametrize("content", [b"", bytes(8), bytes(439), bytes(440), b"\2" + bytes(439), bytes(4096)])
def test_note_of_another_shape(run: Run, image: Callable[[bytes], str], content: bytes) -> None:
    refused(run("dump", path := image(core(said=elfcore.note(b"QEMU", 0, content)))), path, "QEMU's note")


def test_notes_of_4_gib(tmp_path: Path) -> None:
    """A PT_NOTE segment over a whole sparse file, and over it again: not read as a whole, not for ever."""
    good = core()
    heads = segment(4, len(good), 0, 1 << 32) * 20
    data = core(more=heads)
    with open(path := tmp_path / "notes", "wb") as file:
        file.write(data)
        file.truncate(5 << 30)
    status, err, seconds, resident = measured("dump", str(path))
    assert status == 0 and not err and seconds < 2 and resident < 200 * MIB


def test_very_many_small_notes(tmp_path: Path) -> None:
    small = elfcore.note(b"X", 1, b"") * MIB
    (path := tmp_path / "notes").write_bytes(core(said=specimens.notes() + small))
    status, err, seconds, resident = measured("dump", str(path))
    assert status == 0 and not err and seconds < 2 and resident < 200 * MIB


def test_very_many_cpus(tmp_path: Path) -> None:
    (path := tmp_path / "cpus").write_bytes(core(said=specimens.notes(30000)))
    _, _, seconds, resident = measured("dump", str(path))
    assert seconds < 2 and resident < 200 * MIB


@pytest.mark.parametrize(
    "said", [b"maxphyaddr=x", b"maxphyaddr=99999999999", b"efer=zz star", b"unknown=nothing,gdtr", b"=", b"\xff=\xff"]
)
def test_nonsense_in_our_own_note(run: Run, image: Callable[[bytes], str], said: bytes) -> None:
    path = image(core(said=specimens.notes() + elfcore.note(b"x86tables", 0, said)))
    status, out, _ = run("dump", path)
    assert status == 0 and ("damaged and not used" in out) == (said[:1] in b"meu")


# Registers and page tables that lead nowhere


def with_registers(**changes: object) -> bytes:
    return core(said=elfcore.state_note(specimens.registers().replace(**changes)))


def test_page_table_that_points_at_itself(run: Run, image: Callable[[bytes], str]) -> None:
    """Every entry of every level is the root itself: each address is mapped, to the same page."""
    data = bytearray(core())
    at = len(data) - (END - TABLES)
    data[at : at + 0x1000] = struct.pack("<Q", TABLES | 7) * 512
    for form in ("text", "json"):
        status, out, _ = run("dump", image(bytes(data)), "--format", form)
        assert status == 0 and out


@pytest.mark.parametrize("cr3", [0, 0xFFF, 1 << 51, NONE, END, END - 1, FRAME + 8])
def test_page_tables_elsewhere(run: Run, image: Callable[[bytes], str], cr3: int) -> None:
    status, out, err = run("dump", path := image(with_registers(cr3=cr3)))
    refused((status, out, err), path)
    assert "cannot be read" in out


@pytest.mark.parametrize("base", [1 << 47, 0x8000_0000_0000_0000, NONE - (1 << 50), 0xFFFF_7FFF_FFFF_F000])
def test_gdt_base_that_is_not_canonical(run: Run, image: Callable[[bytes], str], base: int) -> None:
    status, out, _ = run("dump", image(with_registers(gdtr=TableRegister(base, 0xFFFF))))
    assert status == 0 and f"{base:#x} is not canonical" in out and "IST1  0xffff800000002000: 4248 bytes" in out


@pytest.mark.parametrize("limit", [0, 1, 6, 7, 8, 0xFFFF, 0x10000, 0xFFFFFFFF])
@pytest.mark.parametrize("table", ["gdtr", "idtr", "tr", "ldtr"])
@pytest.mark.parametrize("base", [BASE, BASE + 0x2FF9, NONE, 0])
def test_limits(run: Run, image: Callable[[bytes], str], table: str, limit: int, base: int) -> None:
    register = TableRegister(base, limit)
    value = register if table in ("gdtr", "idtr") else Segment(0x18, base, limit, 0x8B00)
    for form in ("text", "json"):
        assert run("dump", image(with_registers(**{table: value})), "--format", form)[0] == 0


def test_overlapping_tables(run: Run, image: Callable[[bytes], str]) -> None:
    path = image(specimens.memory())
    where = ["--base", hex(FRAME)]
    for name in ("gdt", "idt", "tss"):
        where += [f"--{name}", f"{FRAME:#x},0xfff"]
    status, out, _ = run("dump", path, *where)
    assert status == 0 and "limit 0xfff: 512 slots" in out and "limit 0xfff: 256 gates" in out


@pytest.mark.parametrize("bits", [0, 1, 0x11, 0x8000_0011, 0x8000_0000, NONE])
@pytest.mark.parametrize("cr4", [0, 0x20, 0x10, 0x1020, NONE])
def test_modes_that_make_no_sense(run: Run, image: Callable[[bytes], str], bits: int, cr4: int) -> None:
    for form in ("text", "json"):
        run("dump", image(with_registers(cr0=bits, cr4=cr4)), "--format", form)


# Linked kernels


@pytest.mark.parametrize("size", [*range(4, 200, 7), *range(200, len(kernel()), 61)])
def test_kernel_cut_off(run: Run, image: Callable[[bytes], str], size: int) -> None:
    refused(run("dump", path := image(kernel()[:size])), path)


@pytest.mark.parametrize("value", [0, 1, 0x7F, 0xFFFF, 0xFFFFFFFF, 1 << 63, NONE])
@pytest.mark.parametrize("where", ["header", "segment", "sections", "symbols"])
def test_kernel_with_damaged_fields(run: Run, image: Callable[[bytes], str], where: str, value: int) -> None:
    whole = kernel()
    end = len(whole)
    places = {
        "header": range(16, 64, 2),
        "segment": range(64, 120, 8),
        "sections": range(end - 256, end, 8),
        "symbols": range(120 + 0x1000, 120 + 0x1000 + 96, 8),
    }
    for at in places[where]:
        for width in (4, 8):
            data = bytearray(whole)
            data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
            run("dump", image(bytes(data[:end])))


def test_kernel_whose_tables_are_filled_later(run: Run, image: Callable[[bytes], str]) -> None:
    data = bytearray(kernel())
    struct.pack_into("<Q", data, 64 + 32, 0)  # p_filesz
    refused(run("dump", path := image(bytes(data))), path, "filled at run time")


def test_kernel_for_another_machine(run: Run, image: Callable[[bytes], str]) -> None:
    data = bytearray(kernel())
    data[18] = 183
    refused(run("dump", path := image(bytes(data))), path, "the machine at offset 0x12 is 183")


# Options

NONSENSE = ["", " ", "x", "0x", "0x1g", "1 2", "--", "-1", "1e3", "0b1", "0x1_0", "9" * 5000, "\N{SNOWMAN}"]
NONSENSE += ["\N{FULLWIDTH DIGIT ONE}", "\N{SUPERSCRIPT TWO}"]


@pytest.mark.parametrize("literal", NONSENSE)
@pytest.mark.parametrize("option", ["--gdt", "--idt", "--tss", "--base", "--cr3", "--maxphyaddr", "--cpu"])
def test_nonsense_where_a_number_belongs(run: Run, image: Callable[[bytes], str], option: str, literal: str) -> None:
    refused(run("dump", image(specimens.memory()), "--gdt=0,7", f"{option}={literal}"), option)


@pytest.mark.parametrize(
    "value", ["1,", "1,,", ",", ",7", "0,x", "0,-1", "phys:", "phys:phys:0", "0,0x10000000000000000", f"{1 << 64}"]
)
@pytest.mark.parametrize("option", ["--gdt", "--idt", "--tss"])
def test_nonsense_tables(run: Run, image: Callable[[bytes], str], option: str, value: str) -> None:
    refused(run("dump", image(specimens.memory()), f"{option}={value}"), option)


@pytest.mark.parametrize("option, least, most", [("--base", 0, NONE), ("--cr3", 0, NONE), ("--maxphyaddr", 32, 52)])
def test_numbers_out_of_range(run: Run, image: Callable[[bytes], str], option: str, least: int, most: int) -> None:
    for value in (least - 1, most + 1, 1 << 100):
        refused(run("dump", image(specimens.memory()), "--gdt=0,7", f"{option}={value}"), option)


@pytest.mark.parametrize(
    "value", ["", "rip", "=", "rip=", "=1", "rip=x", "nothing=1", "gdtr=1", "general=1", "cr3=-1", f"cr3={1 << 64}"]
)
def test_nonsense_registers(run: Run, image: Callable[[bytes], str], value: str) -> None:
    refused(run("dump", image(core()), f"--reg={value}"), "--reg")


@pytest.mark.parametrize("name", ["cs", "ss", "ds", "es", "fs", "gs"])
def test_selectors_that_are_too_wide(run: Run, image: Callable[[bytes], str], name: str) -> None:
    path = image(core())
    assert run("dump", path, "--reg", f"{name}=0xffff")[0] == 0
    refused(run("dump", path, "--reg", f"{name}=0x10000"), f"--reg {name}=0x10000: 16 bits hold 0..0xffff")


@pytest.mark.parametrize("value", ["", "@", "@0", "image", "image@", "none@0", "/@0", "@@", "image@x", "image@-1"])
def test_nonsense_maps(
    run: Run, image: Callable[[bytes], str], value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("dump", image(core()), f"--map={value}"))


def test_map_beyond_64_bits(run: Run, image: Callable[[bytes], str]) -> None:
    refused(run("dump", path := image(core()), f"--map={path}@{NONE:#x}"), "--map", "64 bits")


@pytest.mark.parametrize(
    "argv",
    [
        ("--image-format=", "--image-format"),
        ("--image-format=ELF", "--image-format"),
        ("--format=xml", "--format"),
        ("--vendor=via", "--vendor"),
        ("--table=", "--table"),
        ("--table=gdt,", "--table"),
        ("--table=ivt", "--table"),
        ("--cpu=1", "--cpu"),
        ("--kaslr-offset=x", "--kaslr-offset"),
        ("--nothing", "--nothing"),
        ("--registers=none", "none"),
        ("--symbols=none", "none"),
        ("--registers=/", "/"),
        ("--symbols=/dev/null", "/dev/null"),
    ],
)
def test_nonsense_options(run: Run, image: Callable[[bytes], str], argv: tuple[str, str]) -> None:
    refused(run("dump", image(core()), argv[0]), argv[1])


@pytest.mark.parametrize("argv", [(), ("dump",), ("dump", "a", "b"), ("nothing",), ("extract",), ("_image",)])
def test_nonsense_command_lines(run: Run, argv: tuple[str, ...]) -> None:
    status = main(argv) if not argv else run(*argv)[0]
    assert status == 2


@pytest.mark.parametrize("form", ["elfcore", "elf"])
@pytest.mark.parametrize("data", [b"x", b"\x7fELF", bytes(100), specimens.memory()])
def test_format_that_the_file_has_not(run: Run, image: Callable[[bytes], str], form: str, data: bytes) -> None:
    refused(run("dump", path := image(data), f"--image-format={form}"), path)


def test_core_taken_as_kernel_and_kernel_as_core(run: Run, image: Callable[[bytes], str]) -> None:
    refused(run("dump", image(core()), "--image-format=elf"), "image")
    refused(run("dump", image(kernel()), "--image-format=elfcore"), "image")


@pytest.mark.parametrize("option", ["--gdt", "--idt", "--tss"])
@pytest.mark.parametrize("address", [END - FRAME, 1 << 40, NONE - 7])
def test_addresses_past_the_end(run: Run, image: Callable[[bytes], str], option: str, address: int) -> None:
    path = image(specimens.memory())
    refused(run("dump", path, option, f"{address:#x},7"), path, f"{address & -0x1000:#x} is not in this image")


# Registers and symbols from other files


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nothing",
        b"CPU#0\n",
        b"CPU#99999999999999999999\n",
        b"CPU#" + b"9" * 5000,
        b"CR3=00000000\n",
        b"\n" * (1 << 20),
        b" " * (1 << 20),
        b"\xff\xfe\0\0",
        b"GDT=     ffffffffffffffffffff 0000\n",
        b"CS =0008 " + b"f" * 40 + b" ffffffff 00af9b00\n",
        b"CR0=\nCR3=zz\n",
        b"CPU#0\n" * 10000,
        bytes(1 << 20),
        b" =" * (1 << 20),
        b"A" * (1 << 20),
    ],
)
def test_nonsense_registers_file(run: Run, image: Callable[[bytes], str], tmp_path: Path, text: bytes) -> None:
    (path := tmp_path / "registers").write_bytes(text)
    refused(run("dump", image(specimens.memory()), "--base", hex(FRAME), f"--registers={path}"), "registers")


def test_registers_file_that_is_huge(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(specimens.memory())
    with open(path := tmp_path / "registers", "wb") as file:
        file.truncate(1 << 40)
    status, err, seconds, resident = measured("dump", str(tmp_path / "image"), f"--registers={path}")
    assert status == 2 and "registers" in err and seconds < 2 and resident < 200 * MIB


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nothing",
        b"\xff" * 4096,
        b"0 T",
        b"ffffffff8",
        b"\x7fELF",
        b"\x7fELF" + bytes(60),
        kernel()[:500],
        bytes(MIB),
    ],
)
def test_nonsense_symbols_file(run: Run, image: Callable[[bytes], str], tmp_path: Path, text: bytes) -> None:
    (path := tmp_path / "symbols").write_bytes(text)
    refused(run("dump", image(core()), f"--symbols={path}"), str(path))


def test_symbols_file_that_is_huge(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(core())
    with open(path := tmp_path / "symbols", "wb") as file:
        file.truncate(1 << 32)
    status, err, _, resident = measured("dump", str(tmp_path / "image"), f"--symbols={path}")
    assert status == 2 and "symbols" in err and resident < 200 * MIB


def test_symbols_that_fit_too_often(run: Run, image: Callable[[bytes], str], tmp_path: Path) -> None:
    """The search for the offset of a kernel ends soon even when every page has the same symbols."""
    lines = (f"{0xFFFF_FFFF_8000_0000 + 16 * n:016x} T same\n" for n in range(100_000))
    (path := tmp_path / "symbols").write_text("".join(lines))
    assert run("dump", image(core()), f"--symbols={path}")[0] == 0


# What extract writes


def test_extract_over_the_image(run: Run, image: Callable[[bytes], str], tmp_path: Path) -> None:
    path = image(core())
    os.symlink(path, tmp_path / "link")
    os.link(path, tmp_path / "hard")
    for output in (path, str(tmp_path / "link"), str(tmp_path / "hard")):
        refused(run("extract", path, "-o", output), f"-o {output}", "the image itself")
    assert Path(path).read_bytes() == core()


def test_extract_over_a_file_that_it_reads(run: Run, image: Callable[[bytes], str], tmp_path: Path) -> None:
    path = image(core())
    (other := tmp_path / "other").write_bytes(bytes(0x1000))
    (text := tmp_path / "text").write_text(specimens.MONITOR)
    refused(run("extract", path, "--map", f"{other}@0", "-o", str(other)), f"-o {other}")
    refused(run("extract", path, "--registers", str(text), "-o", str(text)), f"-o {text}")
    assert text.read_text() == specimens.MONITOR


@pytest.mark.parametrize("output", ["", "/", "/nowhere/at/all", "/dev/full", "a\0b", "a" * 300])
def test_extract_to_nowhere(run: Run, image: Callable[[bytes], str], output: str) -> None:
    refused(run("extract", image(core()), "-o", output))


def test_extract_of_nothing_writes_nothing(run: Run, image: Callable[[bytes], str], tmp_path: Path) -> None:
    output = tmp_path / "small"
    refused(run("extract", image(b""), "-o", str(output)))
    refused(run("extract", image(kernel()), "-o", str(output)), "take a memory dump")
    assert not output.exists()


def test_extract_when_no_page_of_the_tables_is_held(run: Run, image: Callable[[bytes], str], tmp_path: Path) -> None:
    path = image(with_registers(cr3=1 << 40))
    refused(run("extract", path, "-o", str(tmp_path / "small")), path, "no page that the tables need is in this image")
    assert os.listdir(tmp_path) == ["image"]


def test_extract_to_what_is_no_file(run: Run, image: Callable[[bytes], str], tmp_path: Path) -> None:
    os.mkfifo(fifo := str(tmp_path / "fifo"))
    for output in (fifo, "/dev/null", str(tmp_path)):
        refused(run("extract", image(core()), "-o", output), f"-o {output}: not a file")


def test_extract_to_standard_output(image: Callable[[bytes], str], tmp_path: Path) -> None:
    """The report would be written over the head of the core."""
    command = [sys.executable, "-m", "x86tables", "extract", image(core()), "-o", "/dev/stdout"]
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and sentence(done.stderr) and "this is standard output" in done.stderr
    assert not (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("there", [False, True])
def test_extract_that_cannot_be_finished(run: Run, image: Callable[[bytes], str], tmp_path: Path, there: bool) -> None:
    """Half of an image is not left behind, and what had the name stays as it was."""
    path, output = image(core()), tmp_path / "small"
    if there:
        output.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        result = run("extract", path, "-o", str(output))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result, f"-o {output}: cannot be written: File too large")
    assert sorted(os.listdir(tmp_path)) == ["image", "small"][: 1 + there]
    assert not there or output.read_bytes() == b"before"


# In a process of its own, with the memory that it took

# VmHWM, for a process begins with the ru_maxrss of the one that started it
MEASURE = """
import sys, time
from x86tables.commands import main
status = main(sys.argv[1:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(status, time.process_time(), peak)
"""


def measured(*argv: str) -> tuple[int, str, float, int]:
    """Status, standard error, seconds, and the most memory that was resident, in bytes."""
    command = [sys.executable, "-c", MEASURE, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert done.stdout, done.stderr
    status, seconds, resident = done.stdout.splitlines()[-1].split()
    assert not done.stderr or sentence(done.stderr)
    return int(status), done.stderr, float(seconds), int(resident) * 1024


def limit() -> None:
    """No process may take the machine with it: 8 GiB of addresses (files are mapped) and a minute."""
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
