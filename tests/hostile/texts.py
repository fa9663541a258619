"""Texts of more than 10 KiB: name -> what makes it."""

BLOCK = "CPU#{}\nGDT=     0000000000000000 00000000\nIDT=     0000000000000000 00000000\n"

LARGE = {
    "many-cpus.txt": lambda: "".join(map(BLOCK.format, range(40_000))).encode(),
    "reset.log": lambda: b"CPU Reset (CPU %b)\n" % (b"9" * 50_000),
    "nested.json": lambda: b"[" * 100_000,
    # a run of its own for each piece that is read, all of them merged
    "unsorted.map": lambda: b"".join(b"%016x t name%d\n" % (n * 0x9E3779B1 % (1 << 32), n) for n in range(150_000)),
}
