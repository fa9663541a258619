"""`extract`: a small image that shows what the big one shows, and that holds nothing else of the memory."""

import re
import struct
from pathlib import Path

import pytest
import specimens
from cli import IMAGES, dumped, output, refused
from specimens import BASE, FRAME

from x86tables.machine.image import OpenOptions
from x86tables.machine.memory import PAGE, Memory, Recording
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
        for table in ("gdt", "idt", "tss", "ldt"):
            found = machine.table(table)
            assert found is None or not found.gaps or machine.registers.tr is None
    assert all(image.memory.holds(page) for page in recordings[0].pages)


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
    assert "a linked kernel is no memory of a machine" in refused(
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
