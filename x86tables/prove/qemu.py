"""A guest in QEMU, whose CPU is TCG's: started, watched until it ends, and judged by the log of its events.

The log comes through a pipe and is read as it is written: a guest that loops is stopped, however much it would write.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import struct
import subprocess
import tempfile
import time

from .. import budgets
from ..delivery.simulate import LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN
from ..elf import CORE, Elf, is_elf
from ..errors import NotThere, UsageError
from ..machine.files import load
from ..machine.symbols import printable
from ..qemulog import chains
from ..qemulog.entries import Delivering, Raised, Reset, entries, lines
from ..records import Record
from ..tables.vectors import label
from .processes import running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from ..qemulog.chains import Log, LoggedAttempt
    from ..qemulog.entries import Entry

PROGRAM, PACKAGE = "qemu-system-x86_64", "qemu-system-x86"
SECONDS = 30.0
QUIET = 2.0  # seconds in which nothing happens to a handler that was entered: it has run
ANSWER = 5.0  # seconds that QEMU may take to say its version, or to end when it has closed its log
ROUNDS = 300  # the same exception at the same place so often in a row
PF, DF = 14, 8
DISPLAYS = frozenset(("-display", "-nographic", "-vnc", "-spice", "-curses", "-sdl", "-gtk"))

# the first serial port is what a kernel is likely to print on, and isa-debug-exit where tests are used to find it
DEVICES = ("-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
MULTIBOOT, SEARCHED, A_OUT = 0x1BADB002, 8192, 1 << 16  # the header's magic, where it is looked for, addresses in it


class Ending(Record):
    """How a guest ended: `verdict` is `survives`, `triple-fault`, `loops`, or `unknown` without any such event.

    `status` is QEMU's exit status; None when it was stopped: it ran into the time limit, or the verdict was clear.
    `entered` is the event whose handler decided, `last` the registers' block of the last reset. `output` is what came
    from QEMU's standard output, `errors` from its standard error.
    """

    verdict: str
    reason: str
    log: Log
    status: int | None
    output: bytes
    errors: str
    entered: LoggedAttempt | None = None
    last: Reset | None = None


def program() -> str:
    """The path of QEMU; NotThere with what to install."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise NotThere(f"{PROGRAM} is not installed: apt-get install {PACKAGE}, or what your system calls it")
    return found


def version() -> str:
    """`QEMU 7.2.22`. NotThere when it does not answer."""
    with running([path := program(), "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            output, _ = process.communicate(timeout=ANSWER)
        except subprocess.TimeoutExpired:
            raise NotThere(f"{path} --version does not answer within {ANSWER:g} seconds") from None
    words = output.decode(errors="replace").split()
    return f"QEMU {printable(words[3])}" if words[:3] == ["QEMU", "emulator", "version"] and words[3:] else "QEMU"


def kernel(path: str, append: str | None = None) -> list[str]:
    """QEMU's arguments for a user's own kernel. UsageError for one that QEMU refuses, with what to do."""
    data = load(path)
    if not is_elf(data) or (elf := Elf(path, data)).type == CORE:
        raise UsageError(
            f"{path}: --on qemu takes a configuration (*.toml) or a linked ELF kernel; --on bochs a memory dump"
        )
    if elf.bits == 64 and _multiboot(data[:SEARCHED]):
        raise UsageError(
            f"{path}: QEMU refuses an ELF64 file with a multiboot1 header: run a copy as ELF32, "
            "`objcopy -O elf32-i386 KERNEL COPY`"
        )
    return ["-kernel", path, *(["-append", append] if append is not None else []), *DEVICES]


def _multiboot(data: bytes) -> bool:
    """Whether the beginning of a file has a multiboot1 header that relies on the ELF header for addresses."""
    for at in range(0, len(data) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, at)
        if magic == MULTIBOOT and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return not flags & A_OUT
    return False


def watch(arguments: Sequence[str], seconds: float = SECONDS) -> Ending:
    """Run a guest, given by QEMU's arguments, and judge it.

    A triple fault ends it. UsageError when QEMU itself refuses to run, with what it says.
    """
    command = [program(), *arguments]
    if DISPLAYS.isdisjoint(argument.replace("--", "-", 1) for argument in arguments):
        command += ["-display", "none"]  # where there is no screen, QEMU's own choice fails
    reader, writer = os.pipe()
    command += ["-accel", "tcg", "-no-reboot", "-d", "int,cpu_reset", "-D", f"/dev/fd/{writer}"]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, os.fdopen(reader, "rb", 0) as pipe:
        with (
            os.fdopen(writer, "wb", 0) as log,
            running(command, stdout=output, stderr=errors, pass_fds=[writer]) as process,
        ):
            log.close()
            watched = _Watched(pipe, time.monotonic() + seconds)
            watched.read_all()
            if watched.ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(ANSWER)
            status = process.poll() if watched.ended else None
        output.seek(0)
        errors.seek(0)
        said = errors.read(1 << 16).decode(errors="replace").strip()
        complaint = next((line for line in reversed(said.splitlines()) if line.startswith("qemu")), "")
        if status == 1 and complaint and not watched.reader.counts:  # a guest may end with status 1 too
            raise UsageError(f"QEMU does not run this: {complaint.partition(': ')[2]}")
        return watched.ending(status, output.read(budgets.OUTPUT), said, seconds)


class _Watched:
    """Reads a log while it is written, and stops when enough is known."""

    def __init__(self, pipe: IO[bytes], deadline: float) -> None:
        self.pipe, self.deadline = pipe, deadline
        self.reader = chains.Reader()
        self.ended = False  # by itself
        self.overflows: list[Delivering] = []  # page faults of ring 0 next to its stack pointer
        self.double = False  # whether a double fault was delivered
        self.quiet: float | None = None  # since when nothing has happened to the handler that decides
        self.last: Reset | None = None

    def read(self, size: int) -> bytes:
        """What has been written meanwhile; nothing at the end, or when it is time to stop."""
        end = self.deadline if self.quiet is None else min(self.deadline, self.quiet + QUIET)
        left = end - time.monotonic()
        if left <= 0 or self._round() is not None or not select.select([self.pipe], [], [], left)[0]:
            return b""
        data = self.pipe.read(size)
        self.ended = not data
        return data

    def read_all(self) -> None:
        """Take every entry."""
        for entry in entries(lines(self)):  # type: ignore[arg-type]
            self.reader.take(entry)
            if isinstance(entry, Reset):
                self.last = entry
            elif isinstance(entry, Delivering):
                self.double = self.double or (entry.vector == DF and not entry.software)
                near = entry.cr2 is not None and abs(entry.rsp - entry.cr2) <= chains.NEAR
                if entry.vector == PF and entry.cpl == 0 and near and len(self.overflows) < ROUNDS:
                    self.overflows.append(entry)
            # a page fault's handler may return to a kernel that goes on, and is interrupted; a double fault's does not
            if bool(self.overflows) if not self.double else _is_exception(entry):
                self.quiet = time.monotonic()

    def _round(self) -> Delivering | None:
        """The event that comes again and again, once that is certain: by itself, or as the beginning of a chain."""
        going = self.reader.repeated
        if going is not None and going.times >= ROUNDS:
            return going.event
        # an interrupt that comes again is no loop
        often = (chain.attempts[0] for chain in self.reader.chains.values() if chain.times >= ROUNDS)
        return next((first.event for first in often if first.origin != chains.INTERRUPT), None)

    def ending(self, status: int | None, output: bytes, errors: str, seconds: float) -> Ending:
        log = self.reader.log()
        verdict, reason, entered = self._judge(log, status, errors, seconds)
        return Ending(verdict, reason, log, status, output, errors, entered, self.last)

    def _judge(
        self, log: Log, status: int | None, errors: str, seconds: float
    ) -> tuple[str, str, LoggedAttempt | None]:
        if log.outcome == TRIPLE_FAULT:
            chain = next(c for c in log.chains if c.outcome == chains.SHUTDOWN and not c.deliberate)
            end = chain.attempts[-1]
            # QEMU does not log the CR2 of a page fault that ends in a shutdown
            why = f": {end.failure.why}" if end.failure and (end.failure.fault, end.failure.cr2) != (PF, None) else ""
            first = f" after {label(chain.first.vector)} at {chain.first.rip:#x}" if len(chain.attempts) > 1 else ""
            return TRIPLE_FAULT, f"{label(end.event.vector)}{first} cannot be delivered{why}", None
        if event := self._round():
            return LOOPS, f"{label(event.vector)} at {event.rip:#x} again and again", None
        for chain in log.chains:
            end = chain.attempts[-1]
            if chain.outcome == chains.ENTERED and end.event.vector == DF and end.origin == chains.EXCEPTION:
                first = label(chain.first.vector)
                return SURVIVES, f"the #DF handler is entered after {first} at {chain.first.rip:#x}", end
        failed = {attempt.event.line for chain in log.chains for attempt in chain.attempts if attempt.failure}
        for event in self.overflows:
            if event.line not in failed:
                reason = f"the #PF handler is entered for {event.cr2:#x}, next to RSP {event.rsp:#x}"
                return SURVIVES, reason, chains.LoggedAttempt(event, chains.EXCEPTION)
        how = f"within {seconds:g} seconds" if status is None else f"before QEMU ended with status {status}"
        if status is None and self.ended:
            how = "before QEMU closed its log, without ending"
        reason = f"neither a double fault nor a page fault next to the stack pointer {how}: nothing is proved"
        if status and errors:
            reason += f"; QEMU said: {printable(errors.splitlines()[-1])}"
        return UNKNOWN, reason, None


def _is_exception(entry: Entry) -> bool:
    """Whether an exception was raised or a double fault is delivered: no interrupt, nor INT n."""
    return isinstance(entry, Raised) or (isinstance(entry, Delivering) and entry.vector == DF and not entry.software)
