"""Tables found without a register: in captured systems as their cores have them, and in memory made for the purpose."""

import fcntl
import json
import lzma
import os
import pty
import random
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import IMAGES, answers, call, dumped, fitting, output, refused

from x86tables import Gate, Gdt, Idt, PseudoDescriptor, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.machine.mappings import build
from x86tables.machine.memory import PAGE, Memory
from x86tables.machine.paging import AddressSpace, Page
from x86tables.machine.probe import Ok
from x86tables.machine.registers import FRED, Registers, TableRegister, load
from x86tables.readers import open_image
from x86tables.readers.searched import search
from x86tables.scan import fill, scan, vectors
from x86tables.scan.candidates import best_look, idts_in
from x86tables.scan.operands import operands
from x86tables.scan.protected import protected
from x86tables.scan.shapes import shapes

KERNEL, RAM = 0xFFFF_FFFF_8000_0000, 0xFFFF_8880_0000_0000


def raw(path: Path, name: str) -> Path:
    """The memory of a captured system as a flat dump: its small image and all its page tables; zeros elsewhere.

    A small image has no code: where the gates lead, there is some.
    """
    with open(path, "wb") as out:
        for core in (f"{name}.core", f"{name}-tables.core.xz"):
            memory = open_image(str(IMAGES / core)).memory
            for held in memory.ranges:
                if held.stop < 0xF000_0000:
                    out.seek(held.start)
                    out.write(memory.read(held.start, len(held)))
        image = open_image(str(IMAGES / f"{name}-tables.core.xz"))
        for machine in open_image(str(IMAGES / f"{name}.core")).machines:
            space = AddressSpace(image.memory, image.machines[machine.cpu].space.paging)
            for gate in machine.idt:
                if isinstance(answer := space.probe(gate.offset), Ok):
                    out.seek(answer.physical)
                    out.write(b"\x90" * 4)
    return path


def tables(cpu: dict[str, Any]) -> dict[str, Any]:
    """What dump says of the tables of one CPU, but for what comes from registers that a raw dump does not have."""
    kept = {name: cpu[name] for name in ("gdt", "idt", "tss")}
    # what a program has left in RSP2 leads to memory of that program or nowhere
    if "stacks" in kept["tss"]:
        kept["tss"]["stacks"] = [stack for stack in kept["tss"]["stacks"] if stack["name"] != "RSP2"]
    return kept


@pytest.fixture(scope="module", params=["linux", "cloud", "xen", "ovmf", "memtest"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A captured system and its memory as a raw dump: that of the small image, and all of its page tables."""
    name = str(request.param)
    path = tmp_path_factory.mktemp(name) / f"{name}.raw"
    return name, raw(path, name)


def test_a_raw_dump_has_the_tables_of_the_core(system: tuple[str, Path]) -> None:
    name, path = system
    found, known = dumped(path)["cpus"], dumped(IMAGES / f"{name}.core")["cpus"]
    if name == "memtest":  # both of its CPUs use the same tables, which says nothing of their number
        assert tables(known[0])["idt"] == tables(known[1])["idt"]
        known = known[:1]
    assert len(found) == len(known)
    for one, other in zip(found, known, strict=True):
        mine, theirs = tables(one), tables(other)
        assert mine["idt"] == theirs["idt"] and mine["tss"] == theirs["tss"]
        if name == "xen":  # a guest's slots come first, in its page tables only; Xen's own page is the last one
            assert mine["gdt"]["limit"] == theirs["gdt"]["limit"]
            for gdt in (mine["gdt"], theirs["gdt"]):
                gdt["entries"] = [entry for entry in gdt["entries"] if entry["index"] >= 0xE000 // 8]
            assert mine["gdt"]["entries"] == theirs["gdt"]["entries"]
        else:
            assert mine["gdt"]["entries"] == theirs["gdt"]["entries"][: len(mine["gdt"]["entries"])]
            assert mine["gdt"]["base"] == theirs["gdt"]["base"]
            assert not any(entry["raw"].strip("0") for entry in theirs["gdt"]["entries"][len(mine["gdt"]["entries"]) :])
        assert any("found in memory, not given" in text for text in one["assumed"])


def test_a_raw_dump_has_the_verdict_of_the_core(system: tuple[str, Path]) -> None:
    name, path = system
    found = json.loads(call("check", path, "--format", "json")[1])["cpus"]
    known = json.loads(call("check", IMAGES / f"{name}.core", "--format", "json")[1])["cpus"]
    for one, other in zip(found, known, strict=False):
        assert [one["verdict"], one["handled_by"]] == [other["verdict"], other["handled_by"]]
        listed = [[(f["rule"], f["severity"], f["where"]) for f in cpu["findings"]] for cpu in (one, other)]
        assert listed[0] == listed[1]


def test_protected_mode_without_paging(tmp_path: Path) -> None:
    """GRUB has neither page tables nor an IDT: its GDT is the one of 32-bit segments that LGDT has taken."""
    memory = open_image(str(IMAGES / "grub.core")).memory
    with open(path := tmp_path / "grub.raw", "wb") as out:
        for held in memory.ranges:
            if held.stop <= 1 << 20:
                out.seek(held.start)
                out.write(memory.read(held.start, len(held)))
    (found,), (known,) = dumped(path)["cpus"], dumped(IMAGES / "grub.core")["cpus"]
    assert found["gdt"] == known["gdt"] and found["tss"] == known["tss"] and found["mode"] == known["mode"]
    assert fitting("scan", call("scan", path, "--format", "json")[1])["machines"][0]["cr3"] is None
    assert "flat 32-bit segments" in output("scan", path)
    verdicts = [
        json.loads(call("check", image, "--format", "json")[1])["cpus"][0] for image in (path, IMAGES / "grub.core")
    ]
    assert [cpu["verdict"] for cpu in verdicts] == ["not-applicable"] * 2
    assert [cpu["findings"] for cpu in verdicts] == [[], []]


def test_a_small_image_of_what_was_found(system: tuple[str, Path], tmp_path: Path) -> None:
    """It is shown and judged as the dump that it was cut from, and says that the tables were found."""
    output("extract", system[1], "-o", small := tmp_path / "small.core")
    for (status, one), (other_status, other) in zip(answers(system[1]), answers(small), strict=True):
        assert status == other_status
        assert isinstance(one, dict) and isinstance(other, dict)
        assert (one["image"].pop("format"), other["image"].pop("format")) == ("raw", "elfcore")
        assert one == other


@pytest.mark.parametrize("levels", [4, 5])
def test_a_small_image_of_so_many_levels(levels: int, tmp_path: Path) -> None:
    made = Made(levels)
    kernel(made)
    memory = made.memory()
    (path := tmp_path / "memory.raw").write_bytes(memory.read(0, memory.ranges[-1].stop))
    output("extract", path, "-o", small := tmp_path / "small.core")
    assert dumped(small)["cpus"] == dumped(path)["cpus"]
    assert dumped(path)["cpus"][0]["tss"]["stacks"]


def test_a_kernel_with_four_gates(tmp_path: Path) -> None:
    """A small kernel: the IDT's limit is that of an operand of LIDT in its code."""
    core = tmp_path / "triple.core"
    core.write_bytes(lzma.decompress((IMAGES.parent / "logs/triple.core.xz").read_bytes()))
    memory = open_image(str(core)).memory
    (held,) = memory.ranges
    (path := tmp_path / "triple.raw").write_bytes(memory.read(held.start, len(held)))
    (found,) = dumped(path, "--base", hex(held.start))["cpus"]
    (known,) = dumped(core)["cpus"]
    assert {name: found[name] for name in ("gdt", "idt", "tss")} == {
        name: known[name] for name in ("gdt", "idt", "tss")
    }
    assert "triple-fault if a guard page is hit; the stack in use is guarded" in call("check", core)[1]
    # RSP0 is 0: which stack is in use, the memory does not say
    said = call("check", path, "--base", hex(held.start))[1]
    assert "triple-fault if a guard page is hit; whether the stack in use is guarded is not known" in said


@pytest.mark.parametrize("operand", [True, False])
@pytest.mark.parametrize("present", [(3, 8), (8, 14, 255), (14,)])
def test_an_idt_that_begins_with_empty_gates(present: tuple[int, ...], operand: bool) -> None:
    """In the middle of a page, zeros before it: an operand of LIDT says which vector is the first, or it is guessed."""
    made = Made()
    expected = kernel(made, gates=256, idt_at=0x30_0430)
    at = 0x10_0000 + 0x30_0430
    idt = bytearray(made.data[at])
    for vector in set(range(256)) - set(present):
        idt[16 * vector : 16 * vector + 16] = bytes(16)
    made.data[at] = bytes(idt)
    assert expected.idtr
    if operand:
        made.data[0x12_0000] = bytes(PseudoDescriptor(base=expected.idtr.base, limit=0xFFF))
    (machine,) = scan(made.memory()).machines
    ((registers, _),) = fill([Registers()], machine)
    first = expected.idtr.base + 16 * min(present)
    assert registers.idtr and registers.idtr.base == (expected.idtr.base if operand else first)
    reasons = [reason.what for reason in machine.reasons]
    assert ("idt-mapped" in reasons, "first-vector" in reasons) == (operand, not operand)


@pytest.mark.parametrize("name", ["rust.core", "rust-no-ist.core.xz"])
def test_absent_gates_with_a_type(name: str, tmp_path: Path) -> None:
    """The x86_64 crate's IDT: two gates of 256, the others zero but for the type; RSP0 is 0."""
    core = IMAGES / name
    memory, made = open_image(str(core)).memory, open_image(str(core)).machines[0]
    with open(path := tmp_path / "rust.raw", "wb") as out:
        for held in memory.ranges:
            out.seek(held.start)
            out.write(memory.read(held.start, len(held)))
        for gate in made.idt:
            if gate.p:
                out.seek(made.space.translate(gate.offset))
                out.write(b"\x90" * 4)
        out.truncate(2 << 20)
    (found,), (known,) = dumped(path)["cpus"], dumped(core)["cpus"]
    assert (found["idt"], found["tss"]) == (known["idt"], known["tss"])
    assert found["gdt"]["base"] == known["gdt"]["base"]
    verdicts = [json.loads(call("check", image, "--format", "json")[1])["cpus"][0]["verdict"] for image in (path, core)]
    assert verdicts == ["survives" if name == "rust.core" else "triple-fault"] * 2


def test_memory_with_gaps() -> None:
    """Every page held in part, and some not at all: candidates whose rest is missing are none."""
    made = Made()
    kernel(made)
    whole = made.memory()
    end = whole.ranges[-1].stop
    draw = random.Random(5)
    for _ in range(30):
        pieces = []
        for at in range(0, end, PAGE):
            first, last = sorted(draw.randrange(PAGE) for _ in range(2))
            if draw.random() < 0.9:
                first, last = draw.choice([(0, PAGE), (0, PAGE), (0, last), (first, PAGE), (first, last)])
                pieces.append((at + first, last - first, whole.read(at + first, last - first), 0))
        partial = Memory(pieces)
        for machine in scan(partial).machines:
            assert machine.root and machine.root.physical == made.cr3
        scan(partial, cr3=made.cr3)


def test_options_beside_the_search(system: tuple[str, Path]) -> None:
    """A CR3 that is given is kept, on as many CPUs as are found; the rest is searched for in its page tables."""
    name, path = system
    core = dumped(IMAGES / f"{name}.core")["cpus"]
    for cr3 in {cpu["registers"]["cr3"] for cpu in core}:
        cpus = dumped(path, "--cr3", cr3)["cpus"]
        # the page tables of a guest of Xen do not show the tables of all CPUs
        assert len(cpus) in ((1,) if name == "memtest" else (1, len(core)) if name == "xen" else (len(core),))
        for cpu in cpus:
            assert cpu["registers"]["cr3"] == cr3
            assert not any(text.startswith("CR3") for text in cpu["assumed"])
            assert cpu["idt"]["gates"]


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()
    kernel(made)
    memory = made.memory()
    found = scan(memory)
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, "x86tables.scan.vectors")
    assert best_look() is shapes and scan(memory) == found


def test_the_command(system: tuple[str, Path]) -> None:
    name, path = system
    document = fitting("scan", call("scan", path, "--format", "json")[1])
    best = document["machines"][0]
    core = dumped(IMAGES / f"{name}.core")
    roots = {int(cpu["registers"]["cr3"], 16) & ~0xFFF for cpu in core["cpus"]}
    assert int(best["cr3"], 16) in roots | {root ^ PAGE for root in roots}
    text = output("scan", path)
    assert f"score {best['score']} of 100" in text and best["cr3"] in text
    if name == "linux":
        assert int(best["user_cr3"], 16) == int(best["cr3"], 16) + PAGE
        assert "page-table isolation" in text


class Made:
    """Memory made for a search: pages by physical address, and page tables over them."""

    def __init__(self, levels: int = 4, tables: int = 0x80_0000) -> None:
        self.levels, self.tables = levels, tables
        self.data: dict[int, bytes] = {}
        self.pages: dict[int, Page] = {}
        self.cr3 = 0

    def put(self, linear: int, physical: int, content: bytes, **rights: bool) -> None:
        """Bytes at a physical address, the pages they lie in mapped at the linear one's."""
        self.data[physical] = content
        for at in range(0, (physical % PAGE + len(content) + PAGE - 1) & -PAGE, PAGE):
            here = (linear & -PAGE) + at
            self.pages.setdefault(here, Page(here, (physical & -PAGE) + at, PAGE, **rights))

    def memory(self) -> Memory:
        self.cr3, built = build(self.pages.values(), self.tables, self.levels)
        memory = Memory()
        content = bytearray(max(self.tables + len(built) * PAGE, *(at + len(b) for at, b in self.data.items())))
        for at, data in {**self.data, **built}.items():
            content[at : at + len(data)] = data
        memory.overlay(0, bytes(content))
        return memory


def kernel(
    made: Made,
    *,
    gates: int = 256,
    idt_at: int = 0x30_0000,
    gdt_at: int = 0x31_0000,
    at: int = KERNEL,
    place: int = 0x10_0000,
    read_only: bool = False,
) -> Registers:
    """A kernel's code, stacks and tables at `at`, physically from `place` on; what its registers would hold."""
    made.put(at + 0x10_0000, place, b"\x90" * PAGE, writable=False)
    made.put(at + 0x20_0000, place + 0x1_0000, bytes(4 * PAGE), executable=False)
    gdt, idt = Gdt(), Idt(gates)
    code = gdt.append(SegmentDescriptor.kernel_code())
    gdt.append(SegmentDescriptor.kernel_data())
    tss = at + 0x40_0000
    task = gdt.append(SystemDescriptor.tss(tss))
    for vector in range(gates):
        idt[vector] = Gate.interrupt(at + 0x10_0000 + vector * 8, code, ist=int(vector == 8))
    stacks = Tss(rsp0=at + 0x20_2000, ist1=at + 0x20_4000)
    made.put(at + idt_at, place + idt_at, bytes(idt), writable=not read_only, executable=False)
    made.put(at + gdt_at, place + gdt_at, bytes(gdt), executable=False)
    made.put(tss, place + 0x40_0000, bytes(stacks), executable=False)
    found = SystemDescriptor.tss(tss)
    return Registers(
        gdtr=TableRegister(at + gdt_at, len(bytes(gdt)) - 1),
        idtr=TableRegister(at + idt_at, idt.limit),
        tr=load(int(task), found),
    )


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("gates", [256, 48, 32])
@pytest.mark.parametrize("idt_at, gdt_at", [(0x30_0000, 0x31_0000), (0x30_0458, 0x31_0594), (0x30_0E08, 0x30_0D00)])
def test_a_kernel_is_found(levels: int, gates: int, idt_at: int, gdt_at: int) -> None:
    made = Made(levels)
    expected = kernel(made, gates=gates, idt_at=idt_at, gdt_at=gdt_at)
    memory = made.memory()
    (machine,) = scan(memory).machines
    assert machine.root and (machine.root.physical, machine.root.mode) == (made.cr3, f"{levels}-level")
    ((registers, names),) = fill([Registers()], machine)
    if gates < 256:  # zeros behind it: there is room for all gates
        expected = expected.replace(idtr=expected.idtr and expected.idtr.replace(limit=0xFFF))
    assert registers == expected.replace(cr3=made.cr3)
    assert names == ("cr3", "gdtr", "idtr", "tr")


def test_what_is_known_is_kept() -> None:
    made = Made()
    expected = kernel(made)
    (machine,) = scan(made.memory()).machines
    known = Registers(cr3=0x1000, rip=5, idtr=TableRegister(7, 15))
    ((registers, names),) = fill([known], machine)
    assert registers == known.replace(gdtr=expected.gdtr, tr=expected.tr) and names == ("gdtr", "tr")


def test_copies_are_not_taken() -> None:
    """The one IDT has a read-only address; a copy in freed memory is mapped with all memory, an early one has less."""
    made = Made()
    expected = kernel(made, read_only=True)
    idt = made.data[0x40_0000]
    made.put(RAM + 0x60_0000, 0x60_0000, idt, executable=False)
    made.put(KERNEL + 0x70_0000, 0x70_0000, idt[: 32 * 16], executable=False)
    (machine,) = scan(made.memory()).machines
    (cpu,) = machine.cpus
    assert cpu.idt and cpu.idt.register == expected.idtr and cpu.idt.read_only


def test_machines_are_told_apart() -> None:
    """Two kernels with page tables of their own in one memory, as of a host and its guest."""
    made, guest = Made(), Made(tables=0xF0_0000)
    expected, other = kernel(made), kernel(guest, at=KERNEL + 0x1000_0000, place=0xA0_0000, gates=48)
    memory, more = made.memory(), guest.memory()
    content = bytearray(more.read(0, more.ranges[-1].stop))
    content[: memory.ranges[-1].stop] = memory.read(0, memory.ranges[-1].stop)
    machines = scan(Memory([(0, len(content), bytes(content), 0)])).machines
    found = {machine.root and machine.root.physical: fill([Registers()], machine)[0][0] for machine in machines}
    assert found[made.cr3] == expected.replace(cr3=made.cr3)
    assert found[guest.cr3].gdtr == other.gdtr and found[guest.cr3].tr == other.tr


def test_tables_of_several_cpus_in_a_row() -> None:
    """Each CPU with an IDT of its own, one right behind the other."""
    made = Made()
    expected = kernel(made)
    idt = made.data[0x40_0000]
    made.put(KERNEL + 0x30_1000, 0x40_1000, idt, executable=False)
    candidates = [idt.physical for idt in idts_in(made.memory(), 0x40_0000, 512)]
    assert candidates == [0x40_0000, 0x40_1000]
    (machine,) = scan(made.memory()).machines
    assert machine.cpus[0].gdtr == expected.gdtr


def everywhere_itself(random: random.Random) -> bytes:
    """Pages whose entries all lead to one another."""
    return b"".join(struct.pack("<Q", at * PAGE | 0x67) * 512 for at in range(64))


def gates_of_nothing(random: random.Random) -> bytes:
    """IDTs whose handlers nothing maps, and tables that lead to themselves."""
    gates = b"".join(bytes(Gate.interrupt(KERNEL + n, 8)) for n in range(256))
    return gates * 16 + everywhere_itself(random)


@pytest.mark.parametrize(
    "content",
    [
        lambda random: bytes(1 << 20),
        lambda random: random.randbytes(1 << 20),
        lambda random: b"\x8e" * (1 << 18),
        lambda random: b"\x01\0\0\0\0\0\0\0" * (1 << 16),
        lambda random: b"\xff\xff\0\0\0\x9a\xaf\0" * (1 << 15),
        everywhere_itself,
        gates_of_nothing,
    ],
)
def test_memory_of_anything(content: Callable[[random.Random], bytes], tmp_path: Path) -> None:
    data = content(random.Random(1))
    (path := tmp_path / "memory.raw").write_bytes(data)
    status, text, err = call("scan", path)
    assert (status, err) == (1, "") and "no tables found" in text
    assert "none were found in its memory" in refused("dump", path)


def test_windows_do_not_matter(tmp_path: Path) -> None:
    """A table across the edge of what is read at once, a hole before it, and memory that begins within a page."""
    made = Made()
    expected = kernel(made, idt_at=0x2F_FFA0 - 0x10_0000 + 0x10_0000)
    memory = made.memory()
    (machine,) = scan(memory).machines
    assert machine.cpus[0].idt and machine.cpus[0].idt.register == expected.idtr
    content = memory.read(0, memory.ranges[-1].stop)
    odd = Memory([(0x234, len(content) - 0x234, content[0x234:], 0)])
    assert scan(odd).machines == (machine,)


def test_progress_on_a_terminal() -> None:
    """A bar for what takes more than a second, and nothing in a pipe."""
    steps = "import time; from x86tables.commands._arguments import progress; step = progress(14)"
    argv = [sys.executable, "-c", f"{steps}; [(time.sleep(0.1), step(1)) for _ in range(14)]"]
    assert subprocess.run(argv, capture_output=True, check=True).stderr == b""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(argv, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert b"%|" in shown and shown.endswith(b"\r")


def test_fred_has_no_idt() -> None:
    made = Made()
    kernel(made)
    found = search("memory", made.memory(), [Registers(cr4=FRED)], "nothing is known")
    assert any("uses no IDT" in remark for remark in found.remarks)
    assert not search("memory", made.memory(), [Registers(cr4=0)], "").remarks


@pytest.mark.parametrize("seed", range(40))
def test_numpy_finds_the_same(seed: int) -> None:
    """In memory where much looks a little like a table: whole ones, parts of them, bits of them changed."""
    draw = random.Random(seed)
    page = bytearray(draw.randrange(4, 12) * PAGE - draw.choice([0, 0, 8, 5]))
    for _ in range(draw.randrange(30)):
        made = draw.choice(
            [
                bytes(Gate.interrupt(draw.getrandbits(64), draw.randrange(1 << 16))) * draw.randrange(1, 40),
                bytes(SegmentDescriptor.kernel_code()) * draw.randrange(1, 5),
                struct.pack("<Q", draw.choice([0x67, 0x1234_5067, 0x63 | 1 << 63, 0x80, 0xE7, 2]))
                * draw.randrange(600),
                bytes(draw.randrange(PAGE)),
                draw.randbytes(draw.randrange(64)),
            ]
        )
        at = draw.randrange(len(page)) & -draw.choice([1, 4, 8, 16, PAGE])
        page[at : at + len(made)] = made[: len(page) - at]
    for _ in range(draw.choice([0, 3, 200])):
        page[draw.randrange(len(page))] ^= 1 << draw.randrange(8)
    one, other = shapes(bytes(page)), vectors.shapes(bytes(page))
    assert sorted(one.gates) == sorted(other.gates)
    assert (one.codes, one.roots) == (other.codes, other.roots)


def test_shapes() -> None:
    page = bytearray(2 * PAGE)
    page[0x18 : 0x18 + 64] = bytes(Gate.trap(KERNEL, 0x10, dpl=3)) * 4
    page[0x104:0x10C] = bytes(SegmentDescriptor.kernel_code())
    struct.pack_into("<Q", page, PAGE + 0xFF8, 0x1234_5067 | 1 << 63)
    found = shapes(bytes(page))
    assert found.gates == [(0x18, 4)] and found.codes == [0x104] and found.roots == [PAGE]


def test_protected_mode_has_no_tables_above_4_gib() -> None:
    """A flat segment there is not one of 32-bit code, whose operands have 32 bits."""
    flat = bytes(8) + bytes(SegmentDescriptor.kernel_code().replace(l=False, d_b=True)) + bytes(0xFF0)
    assert protected(Memory([(1 << 32, len(flat), flat, 0)])) == ()


@pytest.mark.parametrize("width", [4, 8])
def test_operands_are_all_found(width: int) -> None:
    """As a search byte by byte finds them, amid zeros and ones too, of which the upper bytes of some bases consist."""
    draw = random.Random(0)
    top = (1 << 8 * width) - 1
    near = [0x28, 0x800, 0x1000, 0x1230, 0xFFFF, 0x10020, 0x7_1000, 0x20_1230, 0x20_1238]
    for _ in range(400):
        bases = draw.sample([*near, *(top - base for base in near)], draw.randrange(1, 12))
        data = bytearray(draw.choice((b"\0", b"\xff", bytes([draw.randrange(256)]))) * 300)
        for _ in range(draw.randrange(1, 16)):
            at = draw.randrange(300 - 2 - width)
            limit = 8 * draw.randrange(1, 512) - draw.choice((1, 1, 1, 2))
            data[at : at + 2 + width] = limit.to_bytes(2, "little") + draw.choice(bases).to_bytes(width, "little")
        expected: dict[int, int] = {}
        for at in range(2, len(data) - width + 1):
            base, limit = (int.from_bytes(part, "little") for part in (data[at : at + width], data[at - 2 : at]))
            if base in bases and limit % 8 == 7:
                expected[base] = max(limit, expected.get(base, 0))
        assert operands(Memory([(0, len(data), bytes(data), 0)]), bases, width) == expected
