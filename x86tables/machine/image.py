"""Snapshot: what every reader returns: path, format, machines and symbols."""

from __future__ import annotations

from ..records import Record
from .machine import Machine
from .memory import Memory
from .registers import Registers
from .symbols import Symbols

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Snapshot(Record):
    """A file that holds one or several CPUs' tables.

    `notes` are what an ELF core says of the registers, kept byte by byte for `extract`, `extra` what our own among them
    say beside these. `remarks` are sentences for the person: what was taken for granted, or what the image cannot tell;
    `of_file` are those among them that the file alone gives rise to, whatever the options.
    """

    path: str
    format: str
    memory: Memory
    machines: tuple[Machine, ...]
    symbols: Symbols = Symbols()
    remarks: tuple[str, ...] = ()
    notes: bytes = b""
    extra: dict[str, str] = {}  # noqa: RUF012 - never changed
    of_file: tuple[str, ...] = ()


class OpenOptions(Record):
    """What the command line says of an image that the image does not say itself; None where it says nothing.

    `gdt`, `idt` and `tss` are `ADDR[,LIMIT]`, ADDR a number, a symbol, or `phys:` and one of them. `registers` stand
    for those of the image; `changes` are single registers by name. `memory` wraps the memory (to record what is read).
    `progress` is called with the number of bytes to be searched for tables, what it returns with those of each step.
    """

    format: str | None = None
    base: int | None = None
    gdt: str | None = None
    idt: str | None = None
    tss: str | None = None
    registers: tuple[Registers, ...] = ()
    changes: dict[str, int] = {}  # noqa: RUF012 - never changed
    maps: tuple[tuple[str, int], ...] = ()
    vendor: str | None = None
    maxphyaddr: int | None = None
    symbols: str | None = None
    kaslr_offset: int | None = None
    memory: Callable[[Memory], Memory] | None = None
    progress: Callable[[int], Callable[[int], object]] | None = None
