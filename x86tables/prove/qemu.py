"""A guest in QEMU, whose CPU is TCG's: started, watched until it ends, and judged by the log of its events.

The log comes through a pipe and is read as it is written: a guest that loops is stopped, whatever it
would have written.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
import time

from ..delivery.simulate import LOOPS, SURVIVES, TRIPLE_FAULT, UNKNOWN
from ..errors import NotThere, UsageError
from ..qemulog import chains
from ..qemulog.entries import Delivering, Reset, entries, lines
from ..records import Record
from ..tables.vectors import label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from ..qemulog.chains import Log, LoggedAttempt

PROGRAM, PACKAGE = "qemu-system-x86_64", "qemu-system-x86"
SECONDS = 30.0
QUIET = 2.0  # seconds without an event, a double fault's handler running: nothing more is expected
ROUNDS = 300  # the same exception at the same place so often in a row
MOST_OUTPUT = 1 << 20  # bytes of a guest's output that are kept
PF, DF = 14, 8


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
    """`QEMU 7.2.22`."""
    text = subprocess.run([program(), "--version"], capture_output=True, text=True, timeout=20).stdout
    words = text.split()
    return f"QEMU {words[3]}" if words[:3] == ["QEMU", "emulator", "version"] else "QEMU"


def watch(arguments: Sequence[str], seconds: float = SECONDS) -> Ending:
    """Run a guest, given by QEMU's arguments, and judge it.

    A triple fault ends it. UsageError when QEMU itself refuses to run, with what it says.
    """
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, os.fdopen(reader, "rb", 0) as pipe:
        command = [
            program(),
            *arguments,
            "-accel",
            "tcg",
            "-no-reboot",
            "-d",
            "int,cpu_reset",
            "-D",
            f"/dev/fd/{writer}",
        ]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, pass_fds=[writer]
            )
        finally:
            os.close(writer)
        try:
            watched = _Watched(pipe, time.monotonic() + seconds)
            watched.read_all()
            if watched.ended:
                process.wait(20)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        output.seek(0)
        errors.seek(0)
        said = errors.read(1 << 16).decode(errors="replace").strip()
        status = process.returncode if watched.ended else None
        complaint = next((line for line in reversed(said.splitlines()) if line.startswith("qemu")), "")
        if status == 1 and complaint and not watched.reader.counts:  # a guest may end with status 1 too
            raise UsageError(f"QEMU does not run this: {complaint.partition(': ')[2]}")
        return watched.ending(status, output.read(MOST_OUTPUT), said, seconds)


class _Watched:
    """Reads a log while it is written, and stops when enough is known."""

    def __init__(self, pipe: IO[bytes], deadline: float) -> None:
        self.pipe, self.deadline = pipe, deadline
        self.reader = chains.Reader()
        self.ended = False  # by itself
        self.overflows: list[Delivering] = []  # page faults of ring 0 next to its stack pointer
        self.double = False
        self.last: Reset | None = None

    def read(self, size: int) -> bytes:
        """What has been written meanwhile; nothing at the end, or when it is time to stop."""
        left = self.deadline - time.monotonic()
        if left <= 0 or self._round() is not None:
            return b""
        ready, _, _ = select.select([self.pipe], [], [], min(left, QUIET) if self.double else left)
        if not ready:
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
        verdict, reason, entered = self._judge(log, status, seconds)
        return Ending(verdict, reason, log, status, output, errors, entered, self.last)

    def _judge(self, log: Log, status: int | None, seconds: float) -> tuple[str, str, LoggedAttempt | None]:
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
        return UNKNOWN, f"no double fault and no page fault next to the stack pointer {how}: nothing is proved", None
