"""Image formats: cores with and without -p, kernels as linked, flat memory, registers as text, all of it compressed."""

import gzip
import json
import lzma
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import specimens
import zstandard
from cli import call, dumped, output
from specimens import BASE, EHDR, END, FRAME, IDENT, LIMITS, TABLES, segment

from x86tables import api, commands
from x86tables.errors import ImageError
from x86tables.machine.image import OpenOptions
from x86tables.machine.memory import Memory
from x86tables.machine.registers import Registers, Segment, TableRegister
from x86tables.readers import FORMATS, elfcore, monitor, open_image

zstd = zstandard.ZstdCompressor().compress
LINK = 0xFFFF_FFFF_8000_0000


def tables(path: Path, *more: object) -> dict[str, object]:
    """The tables of an image's only CPU."""
    (cpu,) = dumped(path, *more)["cpus"]
    return {name: cpu[name] for name in ("gdt", "idt", "tss")}


@pytest.fixture
def core(tmp_path: Path) -> Path:
    (path := tmp_path / "vmcore").write_bytes(specimens.core())
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    (path := tmp_path / "memory.bin").write_bytes(specimens.memory())
    return path


# ELF cores


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd])
@pytest.mark.parametrize("make", [specimens.core, specimens.kernel])
def test_compressed_images(pack: Callable[[bytes], bytes], make: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(make())
    (tmp_path / "packed").write_bytes(pack(make()))
    assert tables(tmp_path / "packed") == tables(tmp_path / "plain")


def test_compressed_flat_memory(tmp_path: Path, flat: Path) -> None:
    (tmp_path / "packed").write_bytes(gzip.compress(flat.read_bytes()))
    options = ["--base", FRAME, "--gdt", f"{FRAME:#x},{LIMITS[0]:#x}"]
    assert tables(tmp_path / "packed", *options) == tables(flat, *options)


def paging_core(count: int) -> bytes:
    """A core as `dump-guest-memory -p` writes it: the number of segments in section 0, and p_vaddr that mislead.

    There are `count` segments: small ones that overlap and share bytes, devices without contents at offset -1, and a
    user page whose p_vaddr is that of the GDT.
    """
    said, memory = specimens.notes(), specimens.memory()
    heads = 64 + 56 * count + 64
    place = heads + len(said)

    def load(address: int, linear: int, held: int, size: int, at: int | None = None) -> bytes:
        offset = place + address - FRAME if at is None else at
        return struct.pack("<IIQQQQQQ", 1, 0, offset, linear, address, held, size, 0)

    loads = [
        load(FRAME, BASE, 0x3000, 0x3000),
        load(TABLES, 0x1234_5000, END - TABLES, END - TABLES),
        load(FRAME + 0x1000, BASE, 0x1000, 0x1000),
        load(0xFEE0_0000, 0xFFFF_9000_0000_0000, 0, 0x1000, specimens.NONE),
    ]
    loads += [load(FRAME + 0x1000, 0x40_0000 + n * 0x1000, 0x1000, 0x2000) for n in range(count - 1 - len(loads))]
    section = bytes(44) + count.to_bytes(4, "little") + bytes(16)
    head = EHDR.pack(IDENT, 4, 62, 1, 0, 64, 64 + 56 * count, 0, 64, 56, 0xFFFF, 64, 1, 0)
    return head + segment(4, heads, 0, len(said)) + b"".join(loads) + section + said + memory


@pytest.mark.parametrize("count", [5, 0xFFFE, 70_000])
def test_core_with_paging(count: int, core: Path, tmp_path: Path) -> None:
    (tmp_path / "paging").write_bytes(paging_core(count))
    assert tables(tmp_path / "paging") == tables(core)
    image = open_image(str(tmp_path / "paging"))
    assert image.remarks == () and not image.memory.holds(0xFEE0_0000), "memsz beyond filesz is unknown, not zero"


def test_core_whose_memory_no_segment_describes(core: Path, tmp_path: Path) -> None:
    """A mapping over several blocks of RAM gets the first one's size; nothing tells of the others in the file."""
    with open(tmp_path / "paging", "wb") as file:
        file.write(core.read_bytes())
        file.truncate(4 << 20)
    (remark,) = dumped(tmp_path / "paging")["image"]["remarks"]
    assert remark.startswith("no segment says where the last 0x3f") and remark.endswith("dump again without -p")


def test_core_whose_memory_lies_between_segments(tmp_path: Path) -> None:
    """Of an identity-mapped machine the last pages have a segment, and what no segment describes lies before them."""
    said, memory, gap = specimens.notes(), specimens.memory(), 2 << 20
    place = 64 + 56 * 3 + len(said)
    heads = segment(4, 64 + 56 * 3, 0, len(said)) + segment(1, place, FRAME, END - FRAME)
    heads += segment(1, place + END - FRAME + gap, END + gap, 0x1000)
    with open(tmp_path / "paging", "wb") as file:
        file.write(specimens.header(4, 3) + heads + said + memory)
        file.truncate(place + END - FRAME + gap + 0x1000)
    (remark,) = dumped(tmp_path / "paging")["image"]["remarks"]
    assert remark.startswith(f"no segment says where {gap:#x} bytes of the file belong")
    assert remark.endswith("dump again without -p")


def test_our_own_core_with_very_many_segments(tmp_path: Path) -> None:
    """Every second page of more than 65,535: the writer says the number in section 0, too."""
    data = bytes(0x1000) * 2
    memory = Memory((page * 0x2000, 0x1000, data, 0) for page in range(1 << 16))
    assert elfcore.write(str(tmp_path / "many"), memory, range(0, 1 << 29, 0x2000), specimens.notes()) == 1 << 16
    with open(tmp_path / "many", "rb") as file:
        assert struct.unpack_from("<H", file.read(64), 56) == (0xFFFF,)
    image = open_image(str(tmp_path / "many"))
    assert len(image.memory.ranges) == 1 << 16 and len(image.machines) == 1
    (tmp_path / "many").unlink()


def test_32_bit_core(tmp_path: Path, core: Path) -> None:
    """ELFCLASS32 around the same 64-bit notes."""
    said, memory = specimens.notes(), specimens.memory()
    place = 52 + 2 * 32 + len(said)
    head = b"\x7fELF\1\1\1".ljust(16, b"\0") + struct.pack("<HHIIIIIHHHHHH", 4, 3, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    note = struct.pack("<IIIIIIII", 4, 52 + 64, 0, 0, len(said), len(said), 0, 0)
    load = struct.pack("<IIIIIIII", 1, place, 0, FRAME, len(memory), len(memory), 0, 0)
    (tmp_path / "core32").write_bytes(head + note + load + said + memory)
    assert tables(tmp_path / "core32") == tables(core)


def test_old_and_new_notes_of_qemu(tmp_path: Path, core: Path) -> None:
    """Before QEMU 3 the note ended after CR4; later ones add kernel_gs_base, and more may come."""
    state = elfcore.state_note(specimens.registers())[20:]
    assert len(state) == 432
    for longer in (b"", bytes(8), bytes(64)):
        (tmp_path / "new").write_bytes(specimens.core(said=elfcore.note(b"QEMU", 0, state + longer)))
        assert tables(tmp_path / "new") == tables(core)


def test_registers_survive_the_note(tmp_path: Path) -> None:
    """All of them, what is not known included."""
    general = {name: n for n, name in enumerate(("rax", "rbx", "r15"), 1)}
    registers = specimens.registers().replace(efer=0xD01, star=0x23 << 48, cr2=None, fs=None, general=general)
    memory = Memory([(0, 0x1000, bytes(0x1000), 0)])
    notes = elfcore.cpu_notes(registers)
    elfcore.write(str(tmp_path / "core"), memory, {0}, notes)
    (machine,) = open_image(str(tmp_path / "core")).machines
    assert machine.registers.replace(general={}) == registers.replace(general={})
    assert general.items() <= machine.registers.general.items()


def test_cpus_in_different_modes(tmp_path: Path) -> None:
    """One CPU in 64-bit mode, one not yet started: each is shown in its own terms."""
    real = Registers(
        rip=0, rsp=0, rflags=2, cr0=0x10, cr2=0, cr3=0, cr4=0, cs=Segment(0x9A00, 0x9A000, 0xFFFF, 0x9B00),
        gdtr=TableRegister(0, 0xFFFF), idtr=TableRegister(FRAME, 0x3FF), tr=Segment(0, 0, 0xFFFF, 0x8B00),
    )  # fmt: skip
    (tmp_path / "core").write_bytes(specimens.core(said=specimens.notes() + elfcore.state_note(real)))
    first, second = dumped(tmp_path / "core")["cpus"]
    assert (first["mode"], second["mode"]) == ("long64", "real")
    assert len(second["ivt"]) == 256 and "idt" not in second
    text = output("dump", tmp_path / "core")
    assert "2 CPUs" in text and "CPU 1  real mode" in text


# Registers from elsewhere


def test_a_core_without_notes_of_qemu(tmp_path: Path, core: Path) -> None:
    (tmp_path / "bare").write_bytes(specimens.core(said=elfcore.note(b"CORE", 1, bytes(336))))
    (tmp_path / "registers").write_text(specimens.MONITOR)
    found = tables(tmp_path / "bare", "--registers", tmp_path / "registers")
    assert found == tables(core)


def test_registers_of_several_cpus(tmp_path: Path, core: Path) -> None:
    second = specimens.MONITOR.replace("CPU#0", "CPU#1").replace(
        "IDT=     ffff800000000100", "IDT=     ffff800000000110"
    )
    (tmp_path / "registers").write_text(specimens.MONITOR + "\n" + second)
    first, other = dumped(core, "--registers", tmp_path / "registers")["cpus"]
    assert first["idt"]["gates"][1]["raw"] == other["idt"]["gates"][0]["raw"]
    assert (first["registers"]["efer"], other["cpu"]) == ("0xd01", 1)


def test_the_last_block_of_a_reset_log_counts() -> None:
    early = specimens.MONITOR.replace("CPU#0", "CPU Reset (CPU 0)").replace(
        "RIP=ffff800000001000", "RIP=000000000000fff0"
    )
    (found,) = monitor.parse(early + specimens.MONITOR.replace("CPU#0", "CPU Reset (CPU 0)"), "log")
    assert found.rip == BASE + 0x1000
    assert found.cs == Segment(8, 0, 0xFFFF_FFFF, 0x00AF_9B00)
    assert found.gdtr == TableRegister(BASE, LIMITS[0])
    assert found.general["rbx"] == 1


SEVERAL = specimens.MONITOR + "\r\n" + specimens.MONITOR.replace("CPU#0", "CPU#1").replace("RIP=ffff", "RIP=fffe")


@pytest.mark.parametrize("change", [lambda line: "  " + line, lambda line: "\t" + line, str.upper])
def test_registers_that_were_moved_or_written_large(change: Callable[[str], str]) -> None:
    """Indented as in a report of a bug, or in capitals: the same CPUs with the same registers."""
    changed = "".join(change(line) for line in SEVERAL.splitlines(keepends=True))
    assert monitor.parse(changed, "text") == monitor.parse(SEVERAL, "text")
    assert len(monitor.parse(SEVERAL, "text")) == 2


def test_registers_behind_the_prefix_of_a_log() -> None:
    """The values would be found, but not where a CPU begins."""
    with pytest.raises(ImageError, match=r"text: registers, but no line begins as `CS =0008 \.\.\.`"):
        monitor.parse("".join("[ 1.5] " + line for line in SEVERAL.splitlines(keepends=True)), "text")


def test_single_registers(core: Path) -> None:
    (cpu,) = dumped(core, "--reg", "cr4=0x6b0", "--reg", "cs=0x1b", "--reg", "efer=0xd01")["cpus"]
    assert (cpu["registers"]["cr4"], cpu["registers"]["cs"]["selector"], cpu["registers"]["cpl"]) == ("0x6b0", 0x1B, 3)
    assert cpu["registers"]["cs"]["flags"] == hex(0x00AF_9B00), "what the selector has loaded stays"


# Flat memory


def test_flat_memory_with_a_cr3(flat: Path, core: Path) -> None:
    gdt, idt, tss = LIMITS
    found = tables(
        flat, "--base", FRAME, "--cr3", TABLES, "--gdt", f"{BASE:#x},{gdt:#x}",
        "--idt", f"{BASE + specimens.IDT:#x},{idt:#x}", "--tss", f"{BASE + specimens.TSS:#x},{tss:#x}",
    )  # fmt: skip
    assert found == tables(core)


def test_flat_memory_at_physical_addresses(flat: Path) -> None:
    expected = tables(flat, "--base", FRAME, "--gdt", f"{FRAME:#x},0x37")["gdt"]
    found = tables(flat, "--base", FRAME, "--cr3", TABLES, "--gdt", f"phys:{FRAME:#x},0x37")["gdt"]
    assert found == expected and isinstance(found, dict) and len(found["entries"]) == 6


def test_flat_memory_with_registers(flat: Path, core: Path, tmp_path: Path) -> None:
    (tmp_path / "registers").write_text(specimens.MONITOR)
    assert tables(flat, "--base", FRAME, "--registers", tmp_path / "registers") == tables(core)


def test_a_map_over_the_memory(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "flash").write_bytes(specimens.tables())
    plain = tables(flat, "--base", FRAME, "--gdt", f"{FRAME:#x},0x37")["gdt"]
    options = ["--base", FRAME, "--gdt", "0xfffff000,0x37", "--map", f"{tmp_path / 'flash'}@0xfffff000"]
    found = tables(flat, *options)["gdt"]
    assert isinstance(found, dict) and isinstance(plain, dict)
    assert found["entries"] == plain["entries"]


@pytest.mark.parametrize(
    ("table", "part"), [("gdt", slice(0, 0x38)), ("idt", slice(0x100, 0x180)), ("tss", slice(0xF00, 0xF68))]
)
def test_a_file_that_is_a_table(table: str, part: slice, tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(specimens.tables()[part])
    document = dumped(tmp_path / "table")
    assert document["image"]["remarks"] == [f"the whole file looks like one {table.upper()} and is read as that"]
    assert "error" not in document["cpus"][0][table]
    assert document["cpus"][0][table]["base"] == "0x0"


def test_the_format_can_be_said(core: Path) -> None:
    assert open_image(str(core)).format == "elfcore"
    place = core.read_bytes().index(specimens.tables())
    options = OpenOptions(format="raw", gdt=f"{place},0x37")
    image = open_image(str(core), options)
    assert image.format == "raw" and image.machines[0].gdt[8].kind == "code64"


# Kernels as linked


def test_a_kernel_as_linked(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(specimens.kernel())
    document = dumped(tmp_path / "kernel")
    assert document["image"] == {
        "path": str(tmp_path / "kernel"),
        "format": "elf",
        "remarks": [
            f"GDT at {LINK:#x} (symbol gdt): as linked, not as loaded",
            f"IDT at {LINK + specimens.IDT:#x} (symbol idt_table): as linked, not as loaded",
            f"TSS at {LINK + specimens.TSS:#x} (symbol cpu_tss): as linked, not as loaded",
        ],
    }
    (cpu,) = document["cpus"]
    assert [cpu[name]["limit"] for name in ("gdt", "idt", "tss")] == list(LIMITS)
    assert cpu["tss"]["rsp"][0] == hex(BASE + 0x3000)


def test_a_symbol_gives_its_size_as_the_limit(tmp_path: Path) -> None:
    """`--gdt SYMBOL` in a kernel whose table has a name of its own; what its other tables say of themselves goes."""
    data = specimens.kernel().replace(b"\0gdt\0", b"\0tbl\0")
    (tmp_path / "kernel").write_bytes(data)
    document = dumped(tmp_path / "kernel", "--gdt", "tbl")
    assert document["cpus"][0]["gdt"]["limit"] == LIMITS[0]
    assert dumped(tmp_path / "kernel", "--gdt", "tbl,0x17")["cpus"][0]["gdt"]["limit"] == 0x17
    assert dumped(tmp_path / "kernel", "--gdt", f"{LINK:#x}")["cpus"][0]["gdt"]["limit"] == 0xFFFF
    document = dumped(tmp_path / "kernel", "--idt", f"{LINK + specimens.IDT:#x},0x7f", "--gdt", "tbl")
    assert [remark[:3] for remark in document["image"]["remarks"]] == ["TSS"]


def test_the_size_of_a_symbol_of_another_file(core: Path, tmp_path: Path) -> None:
    """The symbols of a moved kernel name a table in a core; a symbol of 8 bytes is a pointer, no table."""
    (tmp_path / "kernel").write_bytes(specimens.kernel())
    options = ["--symbols", tmp_path / "kernel", "--kaslr-offset", BASE - LINK + (1 << 64) & (1 << 64) - 1]
    assert dumped(core, *options, "--gdt", "gdt")["cpus"][0]["gdt"]["limit"] == LIMITS[0]
    (tmp_path / "kernel").write_bytes(
        specimens.kernel().replace(struct.pack("<Q", LIMITS[0] + 1), struct.pack("<Q", 8))
    )
    assert dumped(core, *options, "--gdt", "gdt")["cpus"][0]["gdt"]["limit"] == 0xFFFF


def test_a_symbol_with_a_size_ends_a_stack(core: Path, tmp_path: Path) -> None:
    """A variable that holds RSP is the stack: what lies below it is somebody else's. It moves with the kernel."""
    before = struct.pack("<QQ", LINK + specimens.TSS, 104)
    for start, size, end in (
        (0x2800, 0x800, f"it ends at {BASE + 0x2800:#x}, and the page below can be written"),
        (0x2D00, 0x300, ""),  # too small for one
    ):
        data = specimens.kernel().replace(before, struct.pack("<QQ", LINK + start, size))
        (tmp_path / "kernel").write_bytes(data)
        image = api.open(str(core), symbols=str(tmp_path / "kernel"), kaslr_offset=BASE - LINK & (1 << 64) - 1)
        stack = image.check()[0].stack
        assert stack.rsp == BASE + 0x2F00
        assert (stack.reason == end) == bool(end)
        if end:
            assert stack.verdict == "silent-corruption"
        assert image.machines[0].stacks == ((range(BASE + start, BASE + start + size),) if end else ())


def test_bss_is_unknown_and_not_zero(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(specimens.kernel())
    options = ["--idt", f"{LINK + 0x1000:#x},0xfff"]
    found = tables(tmp_path / "kernel", *options)["idt"]
    why = f"{LINK + 0x1000:#x} has no contents in the file: filled at run time: take a memory dump"
    assert isinstance(found, dict) and found["error"] == why
    assert f"cannot be read: {why}" in " ".join(output("dump", tmp_path / "kernel", *options).split())


ASSEMBLY = """
    .section .data
    .globl gdt64, idt
gdt64:
    .quad 0
gdt64_code:
    .quad 0x00af9b000000ffff
gdt64_data:
    .quad 0x00cf93000000ffff
gdt64_end:
    .balign 16
    .section .bss
    .balign 4096
idt:
    .skip 4096
idt_end:
    .text
    .globl _start
_start:
    hlt
"""


@pytest.mark.needs("as", "ld")
def test_a_kernel_from_an_assembler(tmp_path: Path) -> None:
    """Labels without sizes: a table goes on to the next label. The IDT is in .bss, where most kernels have it."""
    (tmp_path / "kernel.s").write_text(ASSEMBLY)
    subprocess.run(["as", "-o", tmp_path / "kernel.o", tmp_path / "kernel.s"], check=True)
    subprocess.run(["ld", "-Ttext", "0x100000", "-o", tmp_path / "kernel", tmp_path / "kernel.o"], check=True)
    document = dumped(tmp_path / "kernel")
    (cpu,) = document["cpus"]
    assert [entry["kind"] for entry in cpu["gdt"]["entries"]] == ["null", "code64", "data"]
    assert cpu["gdt"]["limit"] == 23
    assert "filled at run time: take a memory dump" in cpu["idt"]["error"] and cpu["idt"]["limit"] == 0xFFF
    assert cpu["tss"] is None
    (remark, _) = document["image"]["remarks"]
    assert re.fullmatch(r"GDT at 0x\w+ \(symbol gdt64, which ends at gdt64_end\): as linked, not as loaded", remark)


C = """
struct __attribute__((packed)) gate { unsigned char bytes[16]; };
struct gate idt_table[256] = {{{0x20, 0x10, 8, 0, 1, 0x8e, 0, 0x80, 0xff, 0xff, 0xff, 0xff}}};
unsigned long gdt[5] __attribute__((section(".gdt"))) = {0, 0x00af9b000000ffff, 0x00cf93000000ffff};
void _start(void) {}
"""


@pytest.mark.needs("gcc")
def test_a_kernel_from_a_compiler(tmp_path: Path) -> None:
    (tmp_path / "kernel.c").write_text(C)
    flags = ["-nostdlib", "-static", "-no-pie", "-ffreestanding", "-Wl,--build-id=none"]
    subprocess.run(["gcc", *flags, "-o", tmp_path / "kernel", tmp_path / "kernel.c"], check=True)
    (cpu,) = dumped(tmp_path / "kernel")["cpus"]
    gate = cpu["idt"]["gates"][0]
    assert (gate["offset"], gate["selector"], gate["ist"], gate["p"]) == ("0xffffffff80001020", 8, 1, True)
    assert (len(cpu["idt"]["gates"]), cpu["gdt"]["limit"]) == (256, 39)


def test_registers_of_a_cpu_in_compatibility_mode(core: Path, tmp_path: Path) -> None:
    """A 32-bit program on a healthy system: `info registers` leaves out bits 63:32 of the bases of TR and LDTR."""
    text = specimens.MONITOR.replace("TR =0018 ffff800000000f00", "TR =0018 00000f00")
    text = text.replace("LDT=0000 0000000000000000", "LDT=0000 00000000").replace("00af9b00", "00cf9b00")
    (tmp_path / "registers").write_text(text)
    (cpu,) = dumped(core, "--registers", tmp_path / "registers")["cpus"]
    assert (cpu["mode"], cpu["tss"]) == ("compat", dumped(core)["cpus"][0]["tss"])
    assert cpu["assumed"][0] == f"TR base {BASE + specimens.TSS:#x} (bits 63:32 as its descriptor has them)"
    report = call("check", core, "--registers", tmp_path / "registers", "--format", "json")[1]
    rules = [finding["rule"] for finding in json.loads(report)["cpus"][0]["findings"]]
    assert "TSS003" not in rules and "TSS008" not in rules


@pytest.mark.parametrize(("machine", "mode"), [(62, "compat"), (3, "protected32")])
def test_the_machine_in_a_core_tells_of_long_mode(machine: int, mode: str, tmp_path: Path) -> None:
    """QEMU writes e_machine by EFER.LMA of CPU 0; where the page tables are not in the core, that decides."""
    said = specimens.registers().replace(
        cs=Segment(8, 0, 0xFFFF_FFFF, 0x00CF_9B00), gdtr=TableRegister(0x1000, 0x37), idtr=TableRegister(0x2000, 0x7F),
        rip=0x3000, rsp=0x4000, tr=Segment(0), cr3=0x70_0000,
    )  # fmt: skip
    data = bytearray(specimens.core(said=elfcore.state_note(said) * 2))
    data[18:20] = machine.to_bytes(2, "little")
    (tmp_path / "core").write_bytes(data)
    image = open_image(str(tmp_path / "core"))
    assert (image.machines[0].mode, image.machines[0].mode_needs) == (mode, None)
    assert image.machines[1].mode_needs is not None, "it says nothing of the other CPUs"


def test_help_names_the_formats() -> None:
    text = " ".join(commands.parser("dump").format_help().split())
    assert f"one of {', '.join(FORMATS)} (default" in text
