"""Hostile memory without registers, for the search for tables: LARGE are made when they are tested."""

from x86tables import Gate, Gdt, SegmentDescriptor, SystemDescriptor, Tss

PAGE, KERNEL = 0x1000, 0xFFFF_FFFF_8000_0000


def table(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values).ljust(PAGE, b"\0")


def gates_of_nothing() -> bytes:
    """A hundred IDTs, each with handlers of its own that nothing maps, and page tables that all name one another."""
    idts = b"".join(
        bytes(Gate.interrupt(KERNEL + number * 0x10_0000 + vector * PAGE, 8))
        for number in range(100)
        for vector in range(256)
    )
    return idts + b"".join(table(*[at * PAGE | 0x67] * 512) for at in range(100, 600))


def one_page_everywhere() -> bytes:
    """Page tables of which every entry leads to the one page that has IDT, GDT, TSS and code: 2^36 aliases of it."""
    gdt = Gdt()
    code = gdt.append(SegmentDescriptor.kernel_code())
    gdt.append(SystemDescriptor.tss(KERNEL + 0x400))
    gates = b"".join(bytes(Gate.interrupt(KERNEL + 0xF00 + vector, code)) for vector in range(32))
    page = gates.ljust(0x300, b"\0") + bytes(gdt).ljust(0x100, b"\0") + bytes(Tss(rsp0=KERNEL + 0xF00))
    levels = [table(*[PAGE * (level + 2) | 3] * 512) for level in range(4)]
    return bytes(PAGE) + b"".join(levels) + page.ljust(PAGE, b"\x90")


def roots_of_roots() -> bytes:
    """An IDT, and a thousand pages each of which may be its page tables, or those below."""
    gates = b"".join(bytes(Gate.interrupt(0xFFFF_8000_0000_0000 + vector * PAGE, 8)) for vector in range(256))
    return gates + b"".join(table(*[(number * 7 % 1000 + 1) * PAGE | 0x23] * 512) for number in range(1000))


LARGE = {
    "gates-of-nothing.raw": gates_of_nothing,
    "one-page-everywhere.raw": one_page_everywhere,
    "roots-of-roots.raw": roots_of_roots,
}
