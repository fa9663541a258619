"""`extract`: a small image that shows what the big one shows, and that holds nothing else of the memory."""

import random
import re
import stat
import struct
from pathlib import Path

import pytest
import specimens
from cli import IMAGES, answers, call, dumped, output, refused
from damage import damaged
from specimens import BASE, FRAME

from x86tables import budgets
from x86tables.machine.image import OpenOptions
from x86tables.machine.memory import PAGE, Memory, Recording
from x86tables.machine.registers import Segment, TableRegister
from x86tables.readers import elfcore, open_image

NAMES = sorted(path.stem for path in IMAGES.glob("*.core"))
SECRET = b"nothing of this may leave the machine. "


def text(path: Path) -> str:
    """What dump prints, but for the first line, which names the file."""
    return output("dump", path).split("\n", 1)[1]


def tables(path: Path) -> object:
    return dumped(path)["cpus"]


def pages(path: Path) -> set[int]:
    ranges = open_image(str(path)).memory.ranges
    return {page for known in ranges for page in range(known.start, known.stop, PAGE)}


def filled(small: Path, big: Path) -> None:
    """The machine of `small` with all of its other memory full of secrets."""
    image = open_image(str(small))
    stop = image.memory.ranges[-1].stop + 16 * PAGE
    secret = (SECRET * (stop // len(SECRET) + 1))[:stop]
    memory = Memory([(0, stop, secret, 0)])
    for known in image.memory.ranges:
        memory.overlay(known.start, image.memory.read(known.start, len(known)))
    elfcore.write(str(big), memory, range(0, stop, PAGE), image.notes)


@pytest.mark.parametrize("name", NAMES)
def test_extracting_again_changes_nothing(name: str, tmp_path: Path) -> None:
    small = tmp_path / "small.core"
    output("extract", IMAGES / f"{name}.core", "-o", small)
    assert pages(small) <= pages(IMAGES / f"{name}.core")
    assert tables(small) == tables(IMAGES / f"{name}.core")
    assert text(small) == text(IMAGES / f"{name}.core")


@pytest.mark.parametrize("name", ["ovmf", "grub", "seabios"])
def test_the_rest_of_the_memory_stays_where_it_is(name: str, tmp_path: Path) -> None:
    """What dump reads and one page to each side; and dump shows the same."""
    big, small = tmp_path / "big.core", tmp_path / "small.core"
    filled(IMAGES / f"{name}.core", big)
    said = output("extract", big, "-o", small)
    assert tables(small) == tables(big) == tables(IMAGES / f"{name}.core")
    assert text(small) == text(big)
    reported = {
        page
        for start, last in re.findall(r"^    0x([0-9a-f]+)\.\.0x([0-9a-f]+)$", said, re.M)
        for page in range(int(start, 16), int(last, 16), PAGE)
    }
    near = {page + step for page in reported for step in (-PAGE, 0, PAGE)} & pages(big)
    assert pages(small) == near and len(near) < 64
    assert f"{len(reported)} pages that were read, {len(near - reported)} neighbours" in said
    memory, original = open_image(str(small)).memory, open_image(str(big)).memory
    for page in near:
        assert memory.read(page, PAGE) == original.read(page, PAGE)
    secret = {page for page in near if SECRET in memory.read(page, PAGE)}
    assert secret <= near - reported, "only as a neighbour"
    assert small.stat().st_size < (len(near) + 2) * PAGE, "headers, notes and pages are all of the file"


class Reading(Recording):
    """A recording of what is read, without what is only asked for."""

    holds = Memory.holds


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_was_read_is_there(name: str) -> None:
    """Each page that dump reads of the small image is in it: no table of it ends early."""
    recordings: list[Recording] = []

    def record(memory: Memory) -> Memory:
        recordings.append(Reading(memory))
        return recordings[-1]

    image = open_image(str(IMAGES / f"{name}.core"), OpenOptions(memory=record))
    for machine in image.machines:
        r = machine.registers
        loaded = {"gdt": r.gdtr, "idt": r.idtr, "tss": None if r.tr and r.tr.null else r.tr}
        loaded["ldt"] = None if r.ldtr and r.ldtr.null else r.ldtr
        for table, register in loaded.items():
            found = machine.table(table)
            assert (found is None) == (register is None), table
            if found is not None and register is not None:
                assert (found.gaps, len(found.data)) == ((), register.limit + 1), table
    assert recordings[0].pages and all(image.memory.holds(page) for page in recordings[0].pages)


def test_page_tables_of_walks_that_failed_are_kept(tmp_path: Path) -> None:
    """The stack's guard is known to be a guard in the small image too, not just absent."""
    (tmp_path / "big.core").write_bytes(specimens.core())
    output("extract", tmp_path / "big.core", "-o", tmp_path / "small.core")
    (cpu,) = dumped(tmp_path / "small.core")["cpus"]
    assert [stack["above"] for stack in cpu["tss"]["stacks"]] == ["PTE not present", None]


def test_zero_pages_that_were_read_are_known(tmp_path: Path) -> None:
    data = bytearray(specimens.memory())
    data[:PAGE] = bytes(PAGE)
    path = tmp_path / "big.core"
    memory = Memory([(FRAME, len(data), bytes(data), 0)])
    elfcore.write(str(path), memory, range(FRAME, specimens.END, PAGE), specimens.notes())
    output("extract", path, "-o", tmp_path / "small.core")
    assert tables(tmp_path / "small.core") == tables(path)
    assert open_image(str(tmp_path / "small.core")).memory.read(FRAME, PAGE) == bytes(PAGE)


def test_notes_are_kept_byte_by_byte(tmp_path: Path) -> None:
    """CORE's and QEMU's, and where there is memory; not what Linux says of itself in VMCOREINFO."""
    vmcoreinfo = elfcore.note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\nSECRET=1\n")
    (tmp_path / "big.core").write_bytes(specimens.core(said=specimens.notes(2) + vmcoreinfo))
    ram = elfcore.note(b"x86tables", 0, f"ram={FRAME:#x}-{specimens.END:#x}".encode())
    output("extract", tmp_path / "big.core", "-o", tmp_path / "small.core")
    content, small = (tmp_path / "small.core").read_bytes(), open_image(str(tmp_path / "small.core"))
    assert content.count(specimens.notes(2) + ram) == 1 and b"OSRELEASE" not in content
    assert (small.notes, small.memory.ram) == (specimens.notes(2), (range(FRAME, specimens.END),))


@pytest.mark.parametrize(("name", "count"), [("specimen", 150), ("grub", 20), ("ovmf", 10), ("memtest", 10)])
def test_a_damaged_core_is_judged_alike_when_it_is_cut(name: str, count: int, tmp_path: Path) -> None:
    """All that dump and check say, remarks on the damage included; what cannot be read cannot be cut either."""
    good = specimens.core() if name == "specimen" else (IMAGES / f"{name}.core").read_bytes()
    big, small = tmp_path / "big.core", tmp_path / "small.core"
    cut = 0
    for number in range(count):
        big.write_bytes(damaged(good, random.Random(f"{name} {number}")))
        if call("extract", big, "-o", small)[0] == 0:
            assert answers(small) == answers(big), number
            cut += 1
    assert cut > count // 4


def core_of(tmp_path: Path, loads: list[tuple[int, int, int]], said: bytes | None = None) -> tuple[Path, Path]:
    """A core of these segments, and the small image that is cut from it."""
    big, small = tmp_path / "big.core", tmp_path / "small.core"
    big.write_bytes(specimens.core(loads, said=said))
    output("extract", big, "-o", small)
    return big, small


def test_pages_held_in_part_stay_so(tmp_path: Path) -> None:
    """The last page table ends in the middle of its page, and the page of the tables begins in the middle."""
    begin, end = 0x80, specimens.END - FRAME - 0x800
    big, small = core_of(tmp_path, [(begin, FRAME + begin, end - begin)])
    assert answers(small) == answers(big)
    first, last = open_image(str(small)).memory.ranges[0].start, open_image(str(small)).memory.ranges[-1].stop
    assert (first, last) == (FRAME + begin, FRAME + end)


def test_memory_in_very_many_pieces(tmp_path: Path) -> None:
    """More than the note on memory can name: where is memory is known all the same."""
    apart = [(0, FRAME * 2 + 2 * PAGE * n, PAGE) for n in range(budgets.RANGES + 1)]
    big, small = core_of(tmp_path, [(0, FRAME, specimens.END - FRAME), *apart])
    assert answers(small) == answers(big)
    assert open_image(str(small)).memory.ram == () and len(pages(small)) < 16


def test_pages_that_decide_about_long_mode_are_kept(tmp_path: Path) -> None:
    """Three levels lead to memory that is there, four to a page that is not: that decides, and neither is read."""
    root, directory, table, high = (specimens.TABLES + PAGE * n for n in range(4))
    data = bytearray(specimens.memory())
    data[specimens.TABLES - FRAME :] = bytes(specimens.END - specimens.TABLES)
    entries = {root: directory | 1, directory: table | 3, table + 8: specimens.STACK | 3}  # PAE: 0x1000
    entries |= {root + 4 * 8: high | 3, high: 0x4000_0000 | 0x83}  # four levels: the first address of PML4E 4
    for address, value in entries.items():
        data[address - FRAME : address - FRAME + 8] = value.to_bytes(8, "little")
    registers = specimens.registers().replace(
        cs=Segment(8, 0, 0xFFFF_FFFF, 0x00CF_9B00), cr4=0x20, rip=0x1000, rsp=0x5000,
        gdtr=TableRegister(0x5000, 0x37), idtr=TableRegister(0x6000, 0x7F), tr=Segment(0x18, 4 << 39, 0x67, 0x8B00),
    )  # fmt: skip
    big, small = tmp_path / "big.core", tmp_path / "small.core"
    memory = Memory([(FRAME, len(data), bytes(data), 0)])
    elfcore.write(str(big), memory, range(FRAME, specimens.END, PAGE), elfcore.state_note(registers))
    output("extract", big, "-o", small)
    assert answers(small) == answers(big)
    assert "EFER.LME=0 (the page tables are PAE's)" in open_image(str(big)).machines[0].assumed


def test_remarks_go_along(tmp_path: Path) -> None:
    """Those on the file itself, once, and none that would move the terminal's cursor."""
    big, small, again = (tmp_path / f"{name}.core" for name in ("big", "small", "again"))
    big.write_bytes(specimens.core()[:-0x10])
    output("extract", big, "-o", small)
    output("extract", small, "-o", again)
    (remark,) = dumped(big)["image"]["remarks"]
    assert "0x10 bytes that its headers promise" in remark
    assert dumped(small)["image"]["remarks"] == dumped(again)["image"]["remarks"] == [remark]
    assert small.read_bytes() == again.read_bytes()
    told = specimens.notes() + elfcore.remarks_note(["\x1b[2J", "plain"])
    big.write_bytes(specimens.core(said=told))
    assert dumped(big)["image"]["remarks"] == ["plain"]
    output("extract", big, "--reg", "rip=0x1000", "-o", small)
    assert dumped(small)["image"]["remarks"] == ["plain"]


def test_what_notes_say_of_the_processor_outlives_registers_given(tmp_path: Path) -> None:
    said = specimens.notes() + elfcore.extra_note(specimens.registers(), {"vendor": "amd", "maxphyaddr": "48"})
    (tmp_path / "big.core").write_bytes(specimens.core(said=said))
    output("extract", tmp_path / "big.core", "--reg", "rip=0x1000", "-o", tmp_path / "small.core")
    (machine,) = open_image(str(tmp_path / "small.core")).machines
    assert (machine.vendor, machine.maxphyaddr, machine.registers.rip) == ("amd", 48, 0x1000)


@pytest.mark.parametrize(("name", "machine"), [("linux", 62), ("linux32", 3)])
def test_the_machine_says_whether_it_is_long_mode(name: str, machine: int, tmp_path: Path) -> None:
    """e_machine as QEMU writes it, by EFER.LMA of CPU 0."""
    output("extract", IMAGES / f"{name}.core", "-o", tmp_path / "small")
    assert int.from_bytes((tmp_path / "small").read_bytes()[18:20], "little") == machine


def test_what_the_command_line_said_is_kept(tmp_path: Path) -> None:
    """Flat memory becomes a core that needs no options, EFER and all."""
    (tmp_path / "flat").write_bytes(specimens.memory())
    (tmp_path / "registers").write_text(specimens.MONITOR)
    options = ["--base", FRAME, "--registers", tmp_path / "registers", "--vendor", "amd", "--maxphyaddr", 48]
    output("extract", tmp_path / "flat", *options, "-o", tmp_path / "small.core")
    expected = dumped(tmp_path / "flat", *options)["cpus"]
    assert tables(tmp_path / "small.core") == expected
    assert expected[0]["registers"]["efer"] == "0xd01" and expected[0]["idt"]["gates"]
    (machine,) = open_image(str(tmp_path / "small.core")).machines
    assert (machine.vendor, machine.maxphyaddr) == ("amd", 48)


def test_tables_at_physical_addresses_stay_so(tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(specimens.memory())
    gdt, idt, _ = specimens.LIMITS
    options = ["--base", FRAME, "--gdt", f"phys:{FRAME:#x},{gdt:#x}", "--cr3", specimens.TABLES]
    options += ["--idt", f"{BASE + specimens.IDT:#x},{idt:#x}"]
    output("extract", tmp_path / "flat", *options, "-o", tmp_path / "small.core")
    assert tables(tmp_path / "small.core") == dumped(tmp_path / "flat", *options)["cpus"]


def test_what_extract_refuses(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(specimens.kernel())
    assert "a linked kernel is not a machine's memory" in refused(
        "extract", tmp_path / "kernel", "-o", tmp_path / "small.core"
    )
    core = IMAGES / "grub.core"
    assert refused("extract", core, "-o", core) == f"-o {core}: this is the image itself"
    assert not (tmp_path / "small.core").exists()


def test_a_file_that_has_the_name_gives_its_mode(tmp_path: Path) -> None:
    """Memory may be secret: what only its owner could read stays so, also behind a link."""
    (tmp_path / "core").write_bytes(specimens.core())
    (small := tmp_path / "small.core").touch(0o600)
    (link := tmp_path / "link").symlink_to("small.core")
    output("extract", tmp_path / "core", "-o", link)
    assert link.is_symlink() and small.stat().st_mode & 0o777 == 0o600
    assert tables(small) == tables(tmp_path / "core")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["core", "link", "small.core"]


@pytest.mark.parametrize(
    ("image", "laid_over", "before", "after"),
    [
        (0o600, 0o644, None, 0o600),
        (0o644, 0o640, None, 0o640),
        (0o400, 0o444, None, 0o600),
        (0o600, 0o644, 0o664, 0o600),
        (0o644, 0o644, None, 0o644),
    ],
)
def test_nobody_may_read_more_than_before(
    image: int, laid_over: int, before: int | None, after: int, tmp_path: Path
) -> None:
    core, flash, small = (tmp_path / name for name in ("core", "flash", "small"))
    core.write_bytes(specimens.core())
    flash.write_bytes(bytes(PAGE))
    core.chmod(image)
    flash.chmod(laid_over)
    if before is not None:
        small.touch()
        small.chmod(before)
    output("extract", core, "--map", f"{flash}@0xf0000", "-o", small)
    assert stat.S_IMODE(small.stat().st_mode) == after


def test_the_small_image_is_an_elf_core_for_others_too(tmp_path: Path) -> None:
    """Read with the standard's layout and nothing of ours."""
    path = tmp_path / "small.core"
    output("extract", IMAGES / "linux.core", "-o", path)
    data = path.read_bytes()
    assert struct.unpack_from("<4sBBB", data) == (b"\x7fELF", 2, 1, 1)
    kind, machine, _, _, offset, _, _, size, entry, count = struct.unpack_from("<HHIQQQIHHH", data, 16)
    assert (kind, machine, size, entry) == (4, 62, 64, 56)
    end = 0
    for number in range(count):
        what, _, start, _, place, held, memory, _ = struct.unpack_from("<IIQQQQQQ", data, offset + number * entry)
        assert what == (4 if number == 0 else 1) and held == memory and start + held <= len(data)
        assert place >= end
        end = place + held
