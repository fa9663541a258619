"""Image: what every reader returns: path, format, machines and symbols."""

from __future__ import annotations

from .machine import Machine, Registers
from .memory import Memory
from .records import Record
from .symbols import Symbols

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Image(Record):
    """A file that holds one or several CPUs' tables.

    `notes` are what an ELF core says of the registers, kept byte by byte for `extract`. `remarks` are sentences for the
    person: what was taken for granted, or what the image cannot tell.
    """

    path: str
    format: str
    memory: Memory
    machines: tuple[Machine, ...]
    symbols: Symbols = Symbols()
    remarks: tuple[str, ...] = ()
    notes: bytes = b""


class Options(Record):
    """What the command line says of an image that the image does not say itself; None where it says nothing.

    `registers` replace those of the image, register by register. Tables are (address, limit or None); with `physical`
    their addresses are physical although a CR3 is known.
    """

    format: str | None = None
    base: int | None = None
    gdt: tuple[int, int | None] | None = None
    idt: tuple[int, int | None] | None = None
    tss: tuple[int, int | None] | None = None
    registers: tuple[Registers, ...] = ()
    changes: dict[str, int] = {}  # noqa: RUF012 - never changed
    maps: tuple[tuple[str, int], ...] = ()
    vendor: str | None = None
    maxphyaddr: int | None = None
    symbols: str | None = None
    kaslr_offset: int | None = None
    memory: Callable[[Memory], Memory] | None = None
