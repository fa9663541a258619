"""What QEMU prints with `-d int,cpu_reset`: a stream of entries, one line or one register block each.

Source: target/i386/tcg of QEMU, seg_helper.c and excp_helper.c. Entries that are not about events (SMM, other `-d`
classes, the guest's own output) are passed over; nothing of them is kept.
"""

from __future__ import annotations

import re

from .. import budgets
from ..errors import ImageError
from ..machine.files import load, standard_input
from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, TypeAlias

    from ..machine.files import Data
    from ..machine.registers import Registers

    Entry: TypeAlias = "Raised | Serviced | Delivering | Shutdown | Reset | End"

NONE_BEFORE = 0xFFFFFFFF  # `old` when no exception was being delivered
BLOCK = 40  # lines of a register block, at most
STARTS = {bytes([letter]) for letter in b" cSTC0123456789"}  # what an entry may begin with

_DELIVERING = re.compile(
    rb"^ *(\d+): v=([0-9a-f]{2}) e=([0-9a-f]{4,8}) i=([01]) cpl=([0-3]) IP=([0-9a-f]{4}):([0-9a-f]{1,16}) pc=[0-9a-f]+ "
    rb"SP=([0-9a-f]{4}):([0-9a-f]{1,16})\b(?: CR2=([0-9a-f]{1,16})\b)?"
)
_RAISED = re.compile(rb"^check_exception old: 0x([0-9a-f]{1,8}) new 0x([0-9a-f]{1,8})\b")
_SERVICED = re.compile(rb"^Servicing (virtual )?hardware INT=0x([0-9a-f]{1,2})\b")
_RESET = re.compile(rb"^CPU Reset \(CPU (\d{1,9})\)")
_REGISTERS = re.compile(rb"^(?:[A-Z][A-Z0-9]{1,4} *=|CC[SDO]=)")


class Raised(Record):
    """`check_exception old: 0xe new 0xd`: `new` was raised while `old` was being delivered (None: nothing was)."""

    line: int
    old: int | None
    new: int


class Serviced(Record):
    """`Servicing hardware INT=0x08`: an interrupt controller's interrupt was accepted."""

    line: int
    vector: int


class Delivering(Record):
    """`v=0e e=0002 i=0 cpl=0 IP=... SP=...`: QEMU begins to deliver; `block` is the text of the registers then.

    `software` is `i`, an INT n. `cr2` is printed for page faults only.
    """

    line: int
    vector: int
    error_code: int
    software: bool
    cpl: int
    cs: int
    rip: int
    ss: int
    rsp: int
    cr2: int | None
    block: str = ""

    @property
    def registers(self) -> Registers | None:
        """The registers of the block; None when the log has none here."""
        return _registers(self.block)


class Shutdown(Record):
    """`Triple fault`."""

    line: int


class Reset(Record):
    """`CPU Reset (CPU 0)`, with the registers as they were before: at power-on two of them, without any fault."""

    line: int
    cpu: int
    block: str = ""

    @property
    def registers(self) -> Registers | None:
        """The registers of the block; None when the log has none here."""
        return _registers(self.block)


class End(Record):
    """The end of the log, which has so many lines."""

    line: int


def _registers(block: str) -> Registers | None:
    from ..readers import monitor

    try:
        return monitor.parse(block, "log")[0]
    except ImageError:
        return None


def entries(source: Iterator[bytes]) -> Iterator[Entry]:
    """The entries of a log, in order. Bounded memory: one line and one register block at a time."""
    number, pushed = 0, None
    while True:
        line = pushed if pushed is not None else next(source, None)
        number += pushed is None and line is not None
        pushed = None
        if line is None:
            yield End(number)
            return
        if line[:1] not in STARTS:
            continue
        at = number
        if match := _DELIVERING.match(line) or _RESET.match(line):
            block: list[bytes] = []
            for following in source:
                number += 1
                if len(block) == BLOCK or not _REGISTERS.match(following):
                    pushed = following
                    break
                block.append(following[: budgets.LOG_LINE])
                if match.re is _DELIVERING and following.startswith(b"EFER="):
                    break  # its last line: in a log that is being written, the next may be long in coming
            text = b"\n".join(block).decode("ascii", "replace")
            if match.re is _RESET:
                yield Reset(at, int(match[1]), text)
            else:
                _, vector, code, software, cpl, cs, rip, ss, rsp, cr2 = match.groups()
                yield Delivering(
                    at, int(vector, 16), int(code, 16), software == b"1", int(cpl), int(cs, 16), int(rip, 16),
                    int(ss, 16), int(rsp, 16), None if cr2 is None else int(cr2, 16), text,
                )  # fmt: skip
        elif match := _RAISED.match(line):
            old = int(match[1], 16)
            yield Raised(at, None if old == NONE_BEFORE else old, int(match[2], 16))
        elif match := _SERVICED.match(line):
            yield Serviced(at, int(match[2], 16))
        elif line.startswith(b"Triple fault"):
            yield Shutdown(at)


def lines(source: IO[bytes] | Data) -> Iterator[bytes]:
    """The lines of a file or stream. Of a line without end only the beginning is kept."""
    rest = b""
    assert not isinstance(source, bytes)
    while chunk := source.read(1 << 16):
        whole = (rest + chunk).split(b"\n")
        rest = whole.pop()[: budgets.LOG_LINE]
        yield from whole
    if rest:
        yield rest


def read(path: str) -> Iterator[Entry]:
    """The entries of a log file, compressed or not; `-` is standard input."""
    return entries(lines(standard_input().buffer if path == "-" else load(path)))
