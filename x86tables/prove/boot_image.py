"""A machine as an ELF file for `qemu -kernel`, with code that loads its tables and overflows its stack."""

from __future__ import annotations

import itertools
import struct

from ..delivery.simulate import FETCHES
from ..elf import EXEC, LOAD, NOTE, ProgramHeader, header
from ..errors import NotThere
from ..machine.mappings import build, mappings
from ..machine.memory import PAGE
from ..machine.paging import Page
from ..machine.probe import Inaccessible
from ..machine.registers import LMA
from ..records import Record
from ..tables.pseudo import PseudoDescriptor
from ..tables.vectors import label
from .overflow_code import CODE, LABELS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine.machine import Machine
    from ..machine.registers import Registers

CALL = struct.Struct("<BBBI")  # call [absolute address], which is sign-extended from 32 bits
PARAMETERS = struct.Struct("<6sIH4IQQ10s10s3HQI")  # as overflow.S lists them
APART = 1 << 20  # the image's own page is so far from everything that the machine has
ROOM = 32  # MiB of RAM above the machine: firmware takes some at its end
PVH_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY


class BootImage(Record):
    """The ELF file, the RAM that it needs, and linear addresses: the endless call's, and whose handlers are where."""

    elf: bytes
    mebibytes: int
    loop: int
    handlers: dict[int, list[int]]


def boot_image(machine: Machine, registers: Registers, handler_stack: int) -> BootImage:
    """The boot image of a machine in ring 0, with these registers; its handlers use so many bytes of stack.

    NotThere when the machine is short of something, such as an IDT, or leaves no room for the image's own page.
    """
    for name in ("gdtr", "idtr", "tr", "cs", "ss", "rsp", "cr0", "cr4", "efer"):
        if getattr(registers, name) is None:
            raise NotThere(f"{name.upper()} is not known")
    pages = list(mappings(machine.space))
    own = max((known.stop for known in machine.memory.ranges), default=0) + PAGE - 1 & -PAGE
    linear = _free_page([*(range(r.linear, r.linear + r.size) for r in pages), range(own, own + PAGE)], machine)
    levels = machine.space.levels
    boot_cr3, boot_tables = build([Page(own, own, PAGE), Page(linear, own, PAGE)], own + PAGE, levels)
    cr3, tables = build([*pages, Page(linear, own, PAGE)], own + PAGE * (1 + len(boot_tables)), levels)
    handlers = _handlers(machine)
    memory = machine.memory.copy()
    for address in handlers:
        for at, byte in enumerate(CALL.pack(0xFF, 0x14, 0x25, linear + LABELS["common"])):
            memory.overlay(machine.translate(address + at, FETCHES[0]), bytes([byte]))
    page = bytearray(CODE.ljust(PAGE, b"\0"))
    struct.pack_into("<I", page, 1, own)  # the operand of the first instruction
    _fill_in(page, registers, own, linear, (boot_cr3, cr3), handler_stack)
    for address, data in (boot_tables | tables | {own: bytes(page)}).items():
        memory.overlay(address, data)
    pieces = [(known.start, memory.read(known.start, len(known))) for known in memory.ranges]
    return BootImage(elf(pieces, own), (memory.ranges[-1].stop >> 20) + ROOM, linear + LABELS["recurse"], handlers)


def _fill_in(page: bytearray, r: Registers, own: int, linear: int, roots: tuple[int, int], handler_stack: int) -> None:
    assert r.gdtr and r.idtr and r.cs and r.ss and r.tr
    PARAMETERS.pack_into(
        page, LABELS["parameters"],
        struct.pack("<HI", 15, own + LABELS["boot_gdt"]), own + LABELS["long"], 8,
        r.cr0, roots[0], r.cr4, (r.efer or 0) & ~LMA, linear + LABELS["loads"], roots[1],
        bytes(PseudoDescriptor(limit=r.gdtr.limit, base=r.gdtr.base)),
        bytes(PseudoDescriptor(limit=r.idtr.limit, base=r.idtr.base)),
        r.cs.selector, r.ss.selector, r.tr.selector, r.rsp, max(0, handler_stack // 8 - 1),
    )  # fmt: skip
    struct.pack_into("<Q", page, LABELS["common"], linear + LABELS["handler"])


def _free_page(taken: Iterable[range], machine: Machine) -> int:
    """A linear page below 2 GiB, where a 32-bit operand reaches it, far from all that is mapped or declared."""
    taken = [*taken, *(machine.declared or ())]
    for page in range(APART, 1 << 31, APART):
        if all(page >= one.stop + APART or page + PAGE + APART <= one.start for one in taken):
            return page
    raise NotThere("the boot image finds no page of its own below 2 GiB: everything there is mapped or declared")


def _handlers(machine: Machine) -> dict[int, list[int]]:
    """The handlers that can be fetched: address -> the vectors whose gates name it."""
    found: dict[int, list[int]] = {}
    for vector, gate in enumerate(machine.idt):
        if gate.p:
            try:
                for at in range(CALL.size):
                    machine.translate(gate.offset + at, FETCHES[0])
            except Inaccessible:
                continue
            found.setdefault(gate.offset, []).append(vector)
    addresses = sorted(found)
    for address, following in itertools.pairwise(addresses):
        if following - address < CALL.size:
            raise NotThere(
                f"the handlers of {label(found[address][0])} and {label(found[following][0])} lie "
                f"{following - address} bytes apart: {CALL.size} are needed for what stands in their place"
            )
    return found


def elf(pieces: list[tuple[int, bytes]], entry: int) -> bytes:
    """An ELF64 executable with these contents by physical address, and the PVH note that QEMU enters by."""
    note = struct.pack("<III4sI", 4, 4, PVH_ENTRY, b"Xen", entry)
    at = 64 + 56 * (1 + len(pieces))
    heads, contents = [ProgramHeader(NOTE, 4, at, 0, 0, len(note), len(note), 4)], [note]
    for address, data in pieces:
        at += len(contents[-1])
        heads.append(ProgramHeader(LOAD, 7, at, address, address, len(data), len(data), 1))
        contents.append(data)
    return b"".join([header(EXEC, len(heads), entry), *(head.packed() for head in heads), *contents])
