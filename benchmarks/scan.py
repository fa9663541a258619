"""The search for tables: against NumPy's OR of the same memory, and against volatility3's scanner with the same shape.

`python -m benchmarks.scan [IMAGE]` compares on a raw dump, else on an image of 1 GiB made for it: a kernel among pages
of programs, of libraries, of text, of random bytes, and of zeros.
"""

import os
import random
import sys
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
from volatility3.framework import contexts
from volatility3.framework.layers import physical
from volatility3.framework.layers.scanners import RegExScanner

from benchmarks.duels import duel, line
from benchmarks.readers import resident
from x86tables import Gate, Gdt, SegmentDescriptor, SystemDescriptor, Tss
from x86tables.machine.files import load
from x86tables.machine.mappings import build
from x86tables.machine.memory import Memory
from x86tables.machine.paging import Page
from x86tables.scan import scan, shapes, vectors
from x86tables.scan.candidates import WINDOW, candidates

GIB, MIB, PAGE = 1 << 30, 1 << 20, 0x1000
KERNEL, ROUNDS = 0xFFFF_FFFF_8000_0000, 5
# Four gates in a row, as `shapes` asks for: present, S=0, type 0xE or 0xF, IST, reserved bits, TI clear
GATE = rb"..[\x00-\x03\x08-\x0b\x10-\x13\x18-\x1b\x20-\xff].[\x00-\x07][\x8e\x8f\xae\xaf\xce\xcf\xee\xef]......"
PATTERN = rb"(?:" + GATE + rb"\x00{4}){%d}" % shapes.RUN


def kernel(at: int = 0x123_4000) -> tuple[int, dict[int, bytes]]:
    """The tables of a kernel, its code and stacks, by physical address; and its CR3."""
    gdt = Gdt()
    code = gdt.append(SegmentDescriptor.kernel_code())
    gdt.append(SystemDescriptor.tss(KERNEL + 0x3000))
    gates = b"".join(bytes(Gate.interrupt(KERNEL + 16 * n, code, ist=int(n == 8))) for n in range(256))
    content = {
        at: b"\x90" * PAGE,
        at + PAGE: gates,
        at + 2 * PAGE: bytes(gdt),
        at + 3 * PAGE: bytes(Tss(rsp0=KERNEL + 0x5000, ist1=KERNEL + 0x6000)),
        at + 4 * PAGE: bytes(2 * PAGE),
    }
    cr3, tables = build([Page(KERNEL, at, 6 * PAGE)], at + 0x10_0000)
    return cr3, content | tables


def make(path: Path, size: int = GIB) -> None:
    """A raw dump; a third of it a hole."""
    draw = random.Random(3)
    files = [Path(sys.executable).resolve(), Path(os.__file__), *sorted(Path(np.__file__).parent.rglob("*.so"))[:20]]
    real = b"".join(file.read_bytes() for file in files)
    real = real[: len(real) & -PAGE]
    with open(path, "wb") as out:
        for start in range(0, size, MIB):
            kind = draw.random()
            if kind < 0.33:
                continue
            out.seek(start)
            if kind < 0.4:
                out.write(draw.randbytes(MIB))
            elif kind < 0.5:
                out.write((b"".join(n.to_bytes(8, "little") for n in range(0, 512, 3)) + bytes(PAGE)) * 150)
            else:
                first = draw.randrange(max(1, len(real) - MIB)) & -PAGE
                out.write(real[first : first + MIB])
        for address, content in kernel()[1].items():
            out.seek(address)
            out.write(content)
        out.truncate(size)


def compare(path: Path) -> None:
    """The rates, each with the file read as it goes; all of it is in the system's cache."""
    data = load(str(path))
    memory = Memory([(0, len(data), data, 0)])
    count = memory.written

    def each(look: object) -> int:
        for _, content in memory.windows(WINDOW):
            look(content)  # type: ignore[operator]
        return count

    def words(content: bytes) -> "vectors.Words":
        return np.frombuffer(content, "<u8", len(content) // 8)

    def ors(content: bytes) -> None:
        np.bitwise_or.reduce(words(content))

    def gates(content: bytes) -> None:
        vectors.gates(content, words(content))

    by_numpy = candidates(memory, vectors.shapes)
    assert by_numpy == candidates(memory, shapes.shapes)
    print(f"{path.name}: {count / MIB:.0f} MiB that are no hole; times are of one pass, ratios of rates\n")
    for what, look, target in (("IDTs", gates, 0.5), ("all shapes", vectors.shapes, 1 / 3)):
        taken = duel(ROUNDS, lambda look=look: each(look), lambda: each(ors))  # type: ignore[misc]
        line("search", what, "NumPy's OR", taken, target)
    start = process_time()
    known = theirs(path)  # once: it takes half a minute
    line("search", "IDTs", "RegExScanner", [duel(1, lambda: each(gates))[0], process_time() - start], 5)
    assert {at for at, count in by_numpy.gates if count < 2 * shapes.RUN} <= set(known) and known
    taken = duel(1, lambda: each(vectors.shapes), lambda: each(shapes.shapes))
    line("search", "all shapes", "without NumPy", taken)
    taken = duel(1, lambda: scan(memory), lambda: each(ors))
    line("search", "scan, to the end", "NumPy's OR", taken)


def theirs(path: Path) -> list[int]:
    """volatility3's scanner over the same file."""
    context = contexts.Context()
    context.config["file.location"] = path.resolve().as_uri()
    layer = physical.FileLayer(context, "file", "file")
    context.add_layer(layer)
    return list(layer.scan(context, RegExScanner(PATTERN)))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        if len(sys.argv) > 1:
            path = Path(sys.argv[1])
        else:
            make(path := Path(name) / "memory.raw")
            (machine,) = scan(Memory([(0, GIB, load(str(path)), 0)])).machines
            assert machine.root and machine.root.physical == kernel()[0]
        compare(path)
        with open(big := Path(name) / "sparse.raw", "wb") as out:
            out.truncate(16 * GIB)
            for address, content in kernel(15 * GIB)[1].items():
                out.seek(address)
                out.write(content)
        peak = resident(Path(sys.executable), "scan", str(big)) / MIB
        print(f"scan of 16 GiB, sparse: {peak:.1f} MiB resident; at most 150: {'met' if peak <= 150 else 'MISSED'}")
        peak = resident(Path(sys.executable), "scan", str(path)) / MIB
        print(f"scan of {path.name}: {peak:.1f} MiB resident; at most 150: {'met' if peak <= 150 else 'MISSED'}")


if __name__ == "__main__":
    main()
