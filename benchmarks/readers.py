"""A core of 4 GiB, made on the spot, in our hands and in volatility3's: translations, and the listing of all mappings.

Both start each cold round with nothing remembered and may remember in it what they like; in warm rounds they have met
every address before. `python -m benchmarks.readers CORE` compares on a core of QEMU's.
"""

import random
import re
import struct
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path

from volatility3.framework import contexts
from volatility3.framework.layers import elf, intel, physical

from benchmarks.duels import duel, line
from x86tables import Gate, Gdt, Idt, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.machine.batch import translate_all
from x86tables.machine.mappings import build, mappings
from x86tables.machine.paging import AddressSpace, Page
from x86tables.machine.registers import Registers, Segment, TableRegister
from x86tables.readers import elfcore, open_image

GIB, PAGE = 1 << 30, 0x1000
TABLES, START, OWN = 0x100_0000, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_8000_0000
SAMPLE, ROUNDS = 1000, 30


def make(path: Path) -> None:
    """A sparse core of 4 GiB: tables at OWN, 2 GiB in large pages at START, 40,000 user pages in stretches of 1000."""
    draw = random.Random(4)
    pages = [Page(OWN, 0x10_0000, 3 * PAGE)]
    for stretch in range(40):
        linear, frames = (stretch + 1) * 0x12_3456_7000, draw.sample(range(GIB >> 12), 1000)
        pages += [Page(linear + n * PAGE, frame * PAGE, PAGE, user=True) for n, frame in enumerate(frames)]
    cr3, tables = build(pages, TABLES)
    end = TABLES + len(tables) * PAGE
    root = bytearray(tables[cr3])
    struct.pack_into("<Q", root, (START >> 39 & 511) * 8, end | 3)
    tables[cr3] = bytes(root)
    tables[end] = struct.pack("<512Q", *(end + PAGE * (n + 1) | 3 if n < 2 else 0 for n in range(512)))
    for n in range(2):
        tables[end + PAGE * (n + 1)] = struct.pack("<512Q", *(n << 30 | m << 21 | 0x83 for m in range(512)))
    gdt, idt = Gdt(), Idt()
    code = gdt.append(SegmentDescriptor.kernel_code())
    task = gdt.append(SystemDescriptor.tss(OWN + 2 * PAGE))
    for vector in range(256):
        idt[vector] = Gate.interrupt(OWN + vector * 16, code, ist=int(vector == 8))
    tss = Tss(rsp0=OWN + 0xF00, ist1=OWN + 2 * PAGE)
    registers = Registers(
        rip=OWN, rsp=OWN + 0xF00, rflags=2, cr0=0x8005_0033, cr2=0, cr3=cr3, cr4=0x6F0,
        cs=Segment(int(code), 0, 0xFFFF_FFFF, 0x00AF_9B00), gdtr=TableRegister(OWN, len(bytes(gdt)) - 1),
        idtr=TableRegister(OWN + PAGE, 0xFFF), tr=Segment(int(task), OWN + 2 * PAGE, 0x67, 0x8B00),
    )  # fmt: skip
    notes = elfcore.state_note(registers)
    with open(path, "wb") as out:
        out.write(b"\x7fELF\2\1\1".ljust(16, b"\0"))
        out.write(struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0))
        out.write(struct.pack("<IIQQQQQQ", 4, 0, 64 + 112, 0, 0, len(notes), len(notes), 0))
        out.write(struct.pack("<IIQQQQQQ", 1, 0, PAGE, 0, 0, 4 * GIB, 4 * GIB, 0))
        out.write(notes)
        for address, content in {0x10_0000: bytes(gdt), 0x10_1000: bytes(idt), 0x10_2000: bytes(tss), **tables}.items():
            out.seek(PAGE + address)
            out.write(content)
        out.truncate(PAGE + 4 * GIB)


def theirs(path: Path, cr3: int) -> intel.Intel32e:
    """volatility3's layers over the same file."""
    context = contexts.Context()
    context.config["file.location"] = path.resolve().as_uri()
    context.add_layer(physical.FileLayer(context, "file", "file"))
    context.config["elf.base_layer"] = "file"
    context.add_layer(elf.Elf64Layer(context, "elf", "elf"))
    context.config["linear.memory_layer"] = "elf"
    context.config["linear.page_map_offset"] = cr3
    layer = intel.Intel32e(context, "linear", "linear")
    context.add_layer(layer)
    return layer


def pages(layer: intel.Intel32e) -> dict[int, int]:
    """Every 4 KiB of linear memory that volatility3 lists, with its physical address."""
    found = {}
    for start, size, place, _, _ in layer.mapping(0, layer.maximum_address + 1, ignore_errors=True):
        for at in range(0, size, PAGE):
            found[layer.canonicalize(start + at)] = place + at
    return found


def compare(path: Path) -> None:
    """Translations and listings of one core, the same answers first, then the times."""
    machine = open_image(str(path)).machines[0]
    space, layer = machine.space, theirs(path, machine.space.paging.root)

    def fresh() -> AddressSpace:
        return AddressSpace(machine.memory, space.paging)

    def forget() -> intel.Intel32e:
        layer._translate_entry.cache_clear()
        layer._get_valid_table.cache_clear()
        return layer

    listed = pages(layer)
    ours = {p.linear + at: p.physical + at for p in mappings(space) for at in range(0, p.size, PAGE)}
    # they leave out what the image does not hold, and tables whose entries are all the same
    assert all(ours[linear] == place for linear, place in listed.items())
    small = [linear for linear in listed if space.page(linear).size == PAGE]
    for what, addresses in (("any page", list(listed)), ("4 KiB pages", small)):
        sample = random.Random(1).sample(addresses, min(SAMPLE, len(addresses)))
        low = [layer.decanonicalize(linear) for linear in sample]
        assert [space.translate(linear) for linear in sample] == [layer.translate(linear)[0] for linear in low]

        def cold(sample: list[int] = sample) -> list[int]:
            return [*map(fresh().translate, sample)]

        def warm(sample: list[int] = sample) -> list[int]:
            return [*map(space.translate, sample)]

        def each(translate: Callable[[int], object], low: list[int] = low) -> list[object]:
            return [*map(translate, low)]

        for state, mine in (("cold", cold), ("warm", warm)):
            ready = forget if state == "cold" else lambda: layer
            turn = duel(ROUNDS, mine, lambda ready=ready: each(ready().translate))  # type: ignore[misc]
            line(f"{state}, {len(sample)}", what, "volatility3", turn, 10)
            turn = duel(ROUNDS, mine, lambda ready=ready: each(ready()._translate))  # type: ignore[misc]
            line(f"{state}, {len(sample)}", what, "vol3 _translate (b)", turn)
    turn = duel(5, lambda: list(mappings(fresh())), lambda: list(forget().mapping(0, layer.maximum_address + 1, True)))
    line("mappings", f"{len(ours)} x 4 KiB", f"volatility3: {len(listed)}", turn, 35)
    many = random.Random(2).sample(list(listed), min(100_000, len(listed)))
    batch, low = array("Q", many), [layer.decanonicalize(linear) for linear in many]
    assert list(translate_all(fresh(), batch)) == [listed[linear] for linear in many]
    turn = duel(3, lambda: translate_all(fresh(), batch), lambda: [layer.translate(linear) for linear in low])
    line(f"{len(many)} at once", "any page", "volatility3, warm", turn, 100)


def resident(python: Path, *argv: str) -> int:
    """The most memory that a command kept resident, in bytes, files that it mapped included."""
    code = (
        "import sys; from x86tables.commands import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    )
    done = subprocess.run([str(python), "-c", code, *argv], check=True, capture_output=True, text=True)
    return int(re.findall(r"^ *VmHWM:\s+(\d+) kB", done.stdout, re.MULTILINE)[-1]) * 1024


def main() -> None:
    if len(sys.argv) > 1:
        compare(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        make(core := Path(name) / "big.core")
        compare(core)


if __name__ == "__main__":
    main()
