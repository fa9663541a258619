"""Large and nasty inputs, made in a temporary folder: seconds of CPU time and the most memory that each command takes.

python -m benchmarks.scale            # all of them, against their targets
python -m benchmarks.scale core,log   # those whose names contain one of these
"""

import lzma
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from x86tables import Gate, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.elf import CORE, LOAD, NOTE, ProgramHeader, header, section_zero
from x86tables.machine.mappings import build
from x86tables.machine.paging import NX, PS, RW, P, Page
from x86tables.machine.registers import LA57, PAE, Registers, Segment, TableRegister
from x86tables.readers import elfcore

ROOT = Path(__file__).parent.parent
PAGE, MIB, GIB = 0x1000, 1 << 20, 1 << 30
SECONDS, MEMORY = 10, 300 * MIB
DIRECT = 0xFFFF_8000_0000_0000  # the first GiB of physical memory, in one page
STACKS = 0xFFFF_9000_0000_0000
# Where things are in physical memory
TABLES, IDT, CODE, GDTS, TASKS, FRAMES = MIB, 16 * MIB, 17 * MIB, 32 * MIB, 160 * MIB, 192 * MIB
END = 320 * MIB
Machine: TypeAlias = tuple[dict[int, bytes], list[Registers]]


def core(path: Path, pieces: dict[int, bytes], registers: list[Registers], loads: list[tuple[int, int]]) -> None:
    """A core with these CPUs, whose memory is zero but for the pieces; `loads` are its segments, (address, size)."""
    notes = b"".join(map(elfcore.state_note, registers))
    segments = len(loads) + 1
    extra = section_zero(segments)
    start = 64 + 56 * segments + len(extra)
    place = first = start + len(notes) + PAGE - 1 & -PAGE
    with open(path, "wb") as out:
        out.write(header(CORE, segments))
        out.write(ProgramHeader(NOTE, 0, start, 0, 0, len(notes), len(notes)).packed())
        offsets = []
        for address, size in loads:
            out.write(ProgramHeader(LOAD, 0, place, address, address, size, size).packed())
            offsets.append((address, address + size, place))
            place += size
        out.write(extra + notes)
        at = 0
        for address, content in sorted(pieces.items()):
            while not offsets[at][0] <= address < offsets[at][1]:
                at += 1
            out.seek(offsets[at][2] + address - offsets[at][0])
            out.write(content)
        out.truncate(max(place, first))


def machine(
    cpus: int, slots: int = 0, own_idt: bool = False, executable: bool = True, stack: int = 4 * PAGE
) -> Machine:
    """Pieces of memory and registers of so many CPUs; each with a GDT of its own when it has `slots`.

    Each has a stack of `stack` bytes with a guard page below it, and one of a page for #DF.
    """
    room = stack + 3 * PAGE
    pages: list[Page] = []
    pieces: dict[int, bytes] = {}
    registers: list[Registers] = []
    for cpu in range(cpus):
        frames = FRAMES + cpu * 5 * PAGE if stack == 4 * PAGE else FRAMES
        pages.append(Page(STACKS + cpu * room, frames, PAGE))
        if stack == 4 * PAGE:
            pages.append(Page(STACKS + cpu * room + 2 * PAGE, frames + PAGE, stack))
        else:  # one page, over and over
            pages += [Page(STACKS + 2 * PAGE + at, frames + PAGE, PAGE) for at in range(0, stack, PAGE)]
    cr3, tables = build(pages, TABLES)
    root = bytearray(tables[cr3])
    direct = TABLES + len(tables) * PAGE
    struct.pack_into("<Q", root, 256 * 8, direct | P | RW)
    tables[cr3] = bytes(root)
    tables[direct] = struct.pack("<512Q", P | RW | PS | (0 if executable else NX), *[0] * 511)
    pieces |= tables
    idt = Gate.build_table([Gate.interrupt(DIRECT + CODE + v * 16, 8, ist=int(v == 8)) for v in range(256)])
    base = b"".join(bytes(each) for each in (
        SegmentDescriptor(), SegmentDescriptor.kernel_code(), SegmentDescriptor.kernel_data(),
        SegmentDescriptor.user_data(), SegmentDescriptor.user_code(), SegmentDescriptor(),
    ))  # fmt: skip
    filler = b"".join(bytes(SegmentDescriptor.user_data().replace(base=n)) for n in range(max(0, slots - 8)))
    shared = b"" if slots else base
    for cpu in range(cpus):
        task = DIRECT + TASKS + cpu * PAGE
        bottom = STACKS + cpu * room
        descriptor = bytes(SystemDescriptor.tss(task).replace(type=0xB))
        if slots:
            at, selector, size = GDTS + cpu * 0x10000, 6 * 8, slots * 8
            pieces[at] = base + descriptor + filler
        else:
            at, selector, size = GDTS, len(shared), 0
            shared += descriptor
        pieces[TASKS + cpu * PAGE] = bytes(Tss(rsp0=bottom + 2 * PAGE + stack, ist1=bottom + PAGE))
        place = IDT
        if own_idt:
            place = GDTS + 64 * MIB + cpu * PAGE
            pieces[place] = idt
        registers.append(Registers(
            rip=DIRECT + CODE, rsp=bottom + 2 * PAGE + stack - 0x100, rflags=2, cr0=0x8005_0033, cr2=0, cr3=cr3,
            cr4=PAE, cs=Segment(8, 0, 0xFFFF_FFFF, 0x00AF_9B00), ss=Segment(16, 0, 0xFFFF_FFFF, 0x00CF_9300),
            gdtr=TableRegister(DIRECT + at, size - 1), idtr=TableRegister(DIRECT + place, 0xFFF),
            tr=Segment(selector, task, 0x67, 0x8B00), ldtr=Segment(0, 0, 0xFFFF),
        ))  # fmt: skip
    if not slots:
        pieces[GDTS] = shared
        registers = [r.replace(gdtr=TableRegister(DIRECT + GDTS, len(shared) - 1)) for r in registers]
    pieces[IDT] = idt
    return pieces, registers


def whole(path: Path, **options: Any) -> None:
    pieces, registers = machine(**options)
    core(path, pieces, registers, [(0, END)])


def segments(path: Path, count: int = 100_000) -> None:
    """A core in which every other page is a segment of its own, beside those that matter."""
    pieces, registers = machine(1)
    loads = [(0, END)] + [(GIB + 2 * n * PAGE, PAGE) for n in range(count - 1)]
    core(path, pieces, registers, loads)


def one_page(path: Path) -> None:
    """5-level tables, one of each level, in which every entry leads on to the next and in the end to one page."""
    pieces, registers = machine(1)
    first = TABLES
    pieces = {at: content for at, content in pieces.items() if at >= IDT}
    for level in range(5):
        pieces[first + level * PAGE] = struct.pack("<Q", first + (level + 1) * PAGE | P | RW) * 512
    page = first + 5 * PAGE
    gates = [Gate.interrupt(0x100, 8, ist=int(v == 8)) for v in range(256)]
    pieces[page] = bytes(8) + bytes(SegmentDescriptor.kernel_code()) + Gate.build_table(gates)[16:]
    registers = [r.replace(
        cr3=first, cr4=PAE | LA57, gdtr=TableRegister(0, 15), idtr=TableRegister(0, 0xFFF), rip=0x100,
        tr=Segment(8, 0x800, 0x67, 0x8B00),
    ) for r in registers]  # fmt: skip
    core(path, pieces, registers, [(0, END)])


def names(path: Path) -> None:
    """A System.map of 200 MB."""
    with open(path, "w") as out:
        for n in range(200):
            out.writelines(f"{(n * 25_000 + m) * 16 + (15 << 60):016x} t a_function_{m:08}\n" for m in range(25_000))


def log(path: Path) -> None:
    """A log of 1 GiB: interrupts without end."""
    text = lzma.decompress((ROOT / "tests/logs/timer.log.xz").read_bytes())
    block = text * (MIB // len(text))
    with open(path, "wb") as out:
        while out.tell() < GIB:
            out.write(block)


def configuration(path: Path, cpus: int = 1000) -> None:
    """A declaration of so many CPUs, each with four interrupt stacks of its own."""
    text = (ROOT / "examples/two_cpus.toml").read_text()
    head, cpu, _, tail = text.replace("[[cpu]]", "\0[[cpu]]").replace("[idt]", "\0[idt]").split("\0")
    path.write_text(head + "".join(cpu.replace("_0", f"_{n}") for n in range(cpus)) + tail)


class Case(NamedTuple):
    """A file, what makes it, and the commands that read it."""

    name: str
    make: Callable[[Path], None]
    commands: tuple[str, ...]


CASES = (
    Case("cpus-8192-slots.core", lambda p: whole(p, cpus=1024, slots=8192), ("dump {}", "check {}")),
    Case(
        "cpus.core",
        lambda p: whole(p, cpus=1024),
        ("dump {}", "check {}", "dump {} --format json", "check {} --format json"),
    ),
    Case(
        "cpus-idts.core", lambda p: whole(p, cpus=1024, own_idt=True), ("dump {}", "check {}", "dump {} --format json")
    ),
    Case("segments.core", segments, ("dump {}", "check {}")),
    Case("loops.core", lambda p: whole(p, cpus=1, executable=False), ("check {}", "check {} --scenario all")),
    Case("one-page.core", one_page, ("dump {}", "check {}", "check {} --scenario all")),
    Case(
        "stack.core",
        lambda p: whole(p, cpus=1, executable=False, stack=GIB),
        ("dump {}", "check {}", "check {} --scenario all"),
    ),
    Case("System.map", names, (f"dump {ROOT}/tests/images/linux.core --symbols {{}}",)),
    Case("cpus.toml", configuration, ("check {}", "check {} --format json")),
    Case("qemu.log", log, ("log {}",)),
)


def spent(argv: list[str], folder: str) -> tuple[float, int, int]:
    """Seconds of CPU time, the most bytes resident, and the exit status of a command."""
    with open(os.devnull, "w") as nowhere:
        child = subprocess.Popen([sys.executable, *argv], cwd=folder, stdout=nowhere)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, child.returncode


def main() -> None:
    wanted = sys.argv[1].split(",") if len(sys.argv) > 1 else [""]
    for case in CASES:
        if not any(part in case.name for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            case.make(Path(folder) / case.name)
            size = (Path(folder) / case.name).stat().st_size
            for command in case.commands:
                seconds, memory, status = spent(["-m", "x86tables", *command.format(case.name).split()], folder)
                met = "met" if seconds <= SECONDS and memory <= MEMORY and status in (0, 1) else "MISSED"
                shown = command.replace(f"{ROOT}/tests/images/", "").format("FILE")
                used = f"{seconds:>6.2f} s {memory / MIB:>6.0f} MiB"
                print(f"{case.name:22} {size / MIB:>6.0f} MiB  {shown:32} {used}  exit {status}  {met}", flush=True)


if __name__ == "__main__":
    main()
