"""QEMU's CPU (TCG), for thousands of machines in one process: batch.S runs there and takes each with all registers.

AMD's VMRUN loads what no instruction could: limits and bases of a GDTR, TR and LDTR at will, ring 1, a segment's hidden
part. Handlers end in VMMCALL, at their entry and when they have used their stack, and a shutdown comes back too. So the
CPU is never reset, and everything between two exits is QEMU's own delivery of events.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import tempfile

from differential.batch_code import BASE, CODE, MAILBOX, PML4, STAGED, VMCB
from x86tables.delivery.events import SHUTDOWN
from x86tables.delivery.simulate import FETCHES
from x86tables.errors import NotThere
from x86tables.machine.memory import PAGE
from x86tables.machine.paging import READ
from x86tables.machine.probe import Inaccessible
from x86tables.machine.registers import LMA, LME, NXE, SCE
from x86tables.prove import qemu as guest
from x86tables.prove.boot_image import elf
from x86tables.prove.event_log import ENTERED, GOES_ON, NOTHING, RUNS, EventLog, Observation
from x86tables.prove.processes import exceptions_from_signals, running
from x86tables.prove.stimulus import PUSH_LOOP, Stimulus
from x86tables.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from x86tables.machine.machine import Machine
    from x86tables.machine.registers import Segment

MEBIBYTES = 32
EXIT = b"\x0f\x01\xd9"  # VMMCALL
HANDLER = EXIT + b"\x50\xe2\xfd" + EXIT  # at its entry; push rax, loop; when the stack was used
ENTRY, USED = 0, 6  # offsets of the two exits
SECONDS = 0.5  # that one step may take before an NMI ends it, and again until QEMU is taken for dead
SVME = 1 << 12
# Fields of the VMCB. Source: AMD APM Vol. 2, appendix "Layout of VMCB".
INTERCEPTS, ASID, TLB, V_INTR, EXIT_CODE, EVENT = 0x0C, 0x58, 0x5C, 0x60, 0x70, 0xA8
SEGMENTS = {"es": 0x400, "cs": 0x410, "ss": 0x420, "ds": 0x430, "fs": 0x440, "gs": 0x450, "ldtr": 0x470, "tr": 0x490}
TABLES = {"gdtr": 0x460, "idtr": 0x480}
QUADS = {
    "efer": 0x4D0, "cr4": 0x548, "cr3": 0x550, "cr0": 0x558, "rflags": 0x570, "rip": 0x578, "rsp": 0x5D8, "cr2": 0x640,
}  # fmt: skip
CPL, DR7, DR6, RAX = 0x4CB, 0x560, 0x568, 0x5F8
INTERCEPT_NMI, INTERCEPT_SHUTDOWN, INTERCEPT_VMRUN, INTERCEPT_VMMCALL = 1 << 1, 1 << 31, 1 << 0, 1 << 1
V_INTR_MASKING = 1 << 24
EXIT_NMI, EXIT_SHUTDOWN, EXIT_VMMCALL = 0x61, 0x7F, 0x81
INJECT, INJECT_NMI = 1 << 31, 2 << 8


class Prepared(Record):
    """A machine whose handlers, and the place behind its first instruction, come back by VMMCALL. `after` is the
    address of that place."""

    machine: Machine
    stimulus: Stimulus
    handler_stack: int
    after: int


def prepare(machine: Machine, stimulus: Stimulus, handler_stack: int) -> Prepared:
    """The machine made ready for Cpu.run."""
    memory = machine.memory.copy()
    for known in memory.ranges:
        for at in range(known.start, known.stop, PAGE):
            page = memory.read(at, PAGE)
            if PUSH_LOOP in page:
                memory.overlay(at, page.replace(PUSH_LOOP.ljust(len(HANDLER), b"\x90"), HANDLER))
    after = (machine.registers.rip or 0) + len(stimulus.code)
    with contextlib.suppress(Inaccessible):
        memory.overlay(machine.translate(after, FETCHES[machine.registers.cpl == 3]), EXIT)
    return Prepared(machine.replace(machine.registers, memory), stimulus, handler_stack, after)


class Cpu:
    """One QEMU process. A context manager."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(exceptions_from_signals())
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.folder = self.stack.enter_context(tempfile.TemporaryDirectory(dir=memory))
        self.memory_path = os.path.join(self.folder, "memory")
        with open(self.memory_path, "wb") as file:
            file.truncate(MEBIBYTES << 20)
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def _start(self) -> None:
        page_table = struct.pack("<512Q", *(number << 21 | 0x83 for number in range(512)))
        directories = [(PML4 + PAGE) | 3, (PML4 + 2 * PAGE) | 3]
        tables = b"".join(struct.pack("<Q", entry).ljust(PAGE, b"\0") for entry in directories) + page_table
        path = os.path.join(self.folder, "batch.elf")
        with open(path, "wb") as out:
            out.write(elf([(BASE, CODE), (PML4, tables)], BASE))
        monitor = os.path.join(self.folder, "monitor")
        command = [
            guest.program(), "-accel", "tcg", "-no-reboot", "-cpu", "max,phys-bits=40", "-m", f"{MEBIBYTES}M",
            "-object", f"memory-backend-file,id=ram,size={MEBIBYTES}M,mem-path={self.memory_path},share=on",
            "-machine", "pc,memory-backend=ram", "-nodefaults", "-display", "none", "-debugcon", "stdio",
            "-qmp", f"unix:{monitor},server=on,wait=off", "-kernel", path,
        ]  # fmt: skip
        self.process = self.stack.enter_context(running(command, stdout=subprocess.PIPE, bufsize=0))
        with open(self.memory_path, "r+b") as file:
            self.ram = self.stack.enter_context(mmap.mmap(file.fileno(), 0))
        self._answer(20)
        self.monitor = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        self.monitor.connect(monitor)
        self._command("qmp_capabilities")

    def _command(self, name: str) -> None:
        self.monitor.sendall(json.dumps({"execute": name}).encode() + b"\n")

    def _answer(self, seconds: float) -> bool:
        """Whether the hypervisor has answered in time. NotThere when QEMU has ended."""
        pipe = self.process.stdout
        assert pipe is not None
        ready, _, _ = select.select([pipe], [], [], seconds)
        if ready and not pipe.read(1):
            raise NotThere(f"QEMU ended with status {self.process.wait()}")
        return bool(ready)

    def run(self, prepared: Prepared, most: int) -> EventLog:
        """What QEMU does with a machine until a handler has used its stack, or `most` handlers were entered.

        Of what happens only handlers that are entered are observed, whose first instruction can be fetched.
        """
        machine, pushes = prepared.machine, prepared.handler_stack // 8
        count, staged = machine.registers.general.get("rcx", 0), self._stage(machine)
        self._load(machine, prepared.stimulus)
        observations: list[Observation] = []
        outcome, entered = "", -1
        while not outcome:
            code = self._go(count, staged)
            count, staged = pushes, 0
            rip = self._quad(QUADS["rip"])
            if code == EXIT_SHUTDOWN:
                outcome = SHUTDOWN
            elif code == EXIT_NMI:
                outcome = GOES_ON
            elif code != EXIT_VMMCALL:
                outcome = f"exit {code:#x}"
            elif rip == prepared.after and not observations:
                outcome = NOTHING
            elif observations and rip == entered + USED:
                outcome = RUNS
            else:
                entered = rip
                observations.append(self._entered(machine))
                if not pushes:
                    outcome = RUNS
                elif len(observations) >= most:
                    outcome = GOES_ON
                else:
                    self._put(QUADS["rip"], struct.pack("<Q", rip + len(EXIT)))
        return EventLog(tuple(observations), outcome, self._changes(machine))

    def _go(self, rcx: int, staged: int) -> int:
        """VMRUN; the exit code. An NMI ends what goes on for ever."""
        self.ram[MAILBOX + 8 : MAILBOX + 24] = struct.pack("<QQ", rcx, staged)
        # one byte by one store: memcpy writes eight bytes twice, and between both the request may have been taken
        self.ram[MAILBOX] = 1
        if not self._answer(SECONDS):
            self._command("inject-nmi")
            if not self._answer(20):
                raise NotThere("QEMU does not answer any more")
        return self._quad(EXIT_CODE)

    def _quad(self, field: int) -> int:
        return int.from_bytes(self.ram[VMCB + field : VMCB + field + 8], "little")

    def _put(self, field: int, data: bytes) -> None:
        self.ram[VMCB + field : VMCB + field + len(data)] = data

    def _stage(self, machine: Machine) -> int:
        """Contents for the pages that are not as the machine has them; how many."""
        count = 0
        for known in machine.memory.ranges:
            for at in range(known.start, known.stop, PAGE):
                data = machine.memory.read(at, PAGE)
                if self.ram[at : at + PAGE] != data:
                    self.ram[STAGED + count * PAGE : STAGED + (count + 1) * PAGE] = data
                    place = MAILBOX + 0x100 + 8 * count
                    self.ram[place : place + 8] = at.to_bytes(8, "little")
                    count += 1
        return count

    def _load(self, machine: Machine, stimulus: Stimulus) -> None:
        """The VMCB of a machine, with what comes first."""
        r = machine.registers
        self._put(0, bytes(PAGE))
        self._put(
            INTERCEPTS, struct.pack("<II", INTERCEPT_NMI | INTERCEPT_SHUTDOWN, INTERCEPT_VMRUN | INTERCEPT_VMMCALL)
        )
        self._put(ASID, struct.pack("<IB", 1, 1))
        self._put(V_INTR, struct.pack("<I", V_INTR_MASKING))
        if stimulus.kind in ("interrupt", "nmi"):
            self._put(
                EVENT, struct.pack("<I", INJECT | (INJECT_NMI | 2 if stimulus.kind == "nmi" else stimulus.vector))
            )
        for name, at in SEGMENTS.items():
            self._put(at, _segment(name, getattr(r, name)))
        for name, at in TABLES.items():
            table = getattr(r, name)
            self._put(at + 4, struct.pack("<IQ", table.limit, table.base))
        inferred = SCE | LME | LMA | (NXE if machine.nxe else 0)
        for name, at in QUADS.items():
            value = getattr(r, name) or 0
            if name == "efer":
                value = (inferred if r.efer is None else r.efer) | SVME
            self._put(at, struct.pack("<Q", value))
        self._put(CPL, bytes([r.cpl or 0]))
        self._put(DR7, struct.pack("<QQ", 0x400, 0xFFFF0FF0))
        self._put(RAX, struct.pack("<Q", r.general.get("rax", 0)))

    def _entered(self, machine: Machine) -> Observation:
        rip, rsp, rflags, cr2 = (self._quad(QUADS[name]) for name in ("rip", "rsp", "rflags", "cr2"))
        cs, ss = (int.from_bytes(self.ram[VMCB + SEGMENTS[n] : VMCB + SEGMENTS[n] + 2], "little") for n in ("cs", "ss"))
        frame = b""
        with contextlib.suppress(Inaccessible):
            for at in range(rsp, rsp + 48, 8):
                physical = machine.translate(at % (1 << 64), READ.replace(ac=True, implicit=False))
                frame += self.ram[physical : physical + 8]
        return Observation(ENTERED, 0, 0, cr2, rip, rsp, rflags, cs, ss, frame)

    def _changes(self, machine: Machine) -> dict[int, int | None]:
        """The bytes that are not as the machine had them, but for accessed and dirty bits of page tables."""
        changed: dict[int, int | None] = {}
        tables = machine.registers.cr3 or 0
        for known in machine.memory.ranges:
            for page in range(known.start, known.stop, PAGE):
                before, now = machine.memory.read(page, PAGE), self.ram[page : page + PAGE]
                if before != now:
                    for at in range(PAGE):
                        ignored = 0x60 if page >= tables and at % 8 == 0 else 0
                        if (before[at] ^ now[at]) & ~ignored:
                            changed[page + at] = now[at]
        return changed


def _segment(name: str, segment: Segment | None) -> bytes:
    """A segment register as the VMCB has it; a null LDTR with the limit that LLDT leaves."""
    if segment is None:
        return bytes(16)
    flags, limit = segment.flags or 0, segment.limit or 0
    if name == "ldtr" and segment.null:
        limit = 0
    return struct.pack("<HHIQ", segment.selector, flags >> 8 & 0xFF | flags >> 12 & 0xF00, limit, segment.base or 0)
