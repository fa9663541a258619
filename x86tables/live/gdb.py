"""A gdb stub, asked by gdb's remote protocol; QEMU's passes lines on to its monitor, and shows physical memory.

Described in gdb's manual, appendix "GDB Remote Serial Protocol", and QEMU's, "GDB usage".
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress

from .. import budgets
from ..errors import ImageError, reason
from ..machine.memory import PAGE, Memory
from ..machine.probe import Absent
from ..machine.registers import Registers, Segment
from ..readers import Contents
from . import pages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SECONDS = 10  # that a stub may take to answer
_LEAST = 128  # bytes of memory that any stub shows at once
# `g` of a 64-bit CPU: bytes of each; QEMU's and gdb's amd64 description begins so
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_FIRST = dict.fromkeys((*_GENERAL, "rip"), 8) | dict.fromkeys(("rflags", "cs", "ss", "ds", "es", "fs", "gs"), 4)
_PACKET = re.compile(rb"\$([^#$]*)#([0-9a-fA-F]{2})")
_STOPPED = re.compile(rb"[STWX][0-9a-f]{2}")
_STAYS = ("paused (", "inmigrate")  # a machine that no debugger stopped, and cannot run: prelaunch, shutdown, ...


class Stub:
    """A connection. QEMU stops the machine when it is made, and lets it run when a debugger says that it leaves."""

    ours = False

    def __init__(self, path: str, address: str | tuple[str, int]) -> None:
        self._path, self._address = path, address
        self._socket: socket.socket | None = None
        self._data, self._at_once, self._physical = b"", _LEAST, False
        self._awaits = False  # an answer, or the rest of one

    def _connect(self) -> None:
        self._data = b""
        try:
            if isinstance(self._address, str):
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(SECONDS)
                self._socket.connect(self._address)
            else:
                self._socket = socket.create_connection(self._address, SECONDS)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # many short packets
        except OSError as error:
            self.ours = False
            raise ImageError(f"{self._path}: no gdb stub answers there: {reason(error)}") from None
        supported = self.ask(b"qSupported")
        if found := re.search(rb"PacketSize=([0-9a-fA-F]{1,8})", supported):
            self._at_once = min(max(_LEAST, int(found[1], 16) // 2 - 8 & -_LEAST), PAGE)

    def stop(self) -> None:
        """Connect, which stops it. One that was not running for a reason of its own stays so."""
        self.ours = True  # before, not after: it stops whatever becomes of the answer
        self._connect()
        status = self.monitor("info status") or ""
        if any(word in status for word in _STAYS):
            self.ours = False

    def go_on(self) -> None:
        """Leave it, which lets it run."""
        if self._awaits:
            raise ImageError(f"{self._path}: the stub was left in the middle of an answer")
        if self._socket is None:
            self._connect()
        if self._physical:
            self.ask(b"Qqemu.PhyMemMode:0")
        # QEMU stops again at any byte that it does not wait for, an acknowledgement too many among them. It wants a
        # process where another debugger has once said that it knows of several.
        if self.ask(b"D", acknowledged=False) != b"OK" and self.ask(b"D;1", acknowledged=False) != b"OK":
            raise ImageError(f"{self._path}: the stub does not let the machine run: continue it by its monitor")

    def close(self) -> None:
        """End the connection; once more does nothing."""
        self._awaits = False
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None

    def ask(self, packet: bytes, acknowledged: bool = True) -> bytes:
        """The answer to one packet; b"" where the stub does not know it. ImageError when there is none."""
        self._awaits = True
        try:
            self._connection.sendall(b"$%s#%02x" % (packet, sum(packet) & 0xFF))
        except OSError as error:
            raise self._silent(error) from None
        return self._answer(acknowledged)

    def _answer(self, acknowledged: bool = True) -> bytes:
        try:
            answer = self._packet(acknowledged)
            while _STOPPED.match(answer):  # not asked for: QEMU says so when it stops for us
                answer = self._packet(acknowledged)
        except OSError as error:
            raise self._silent(error) from None
        self._awaits = answer[:1] == b"O" and answer != b"OK"
        return answer

    def _packet(self, acknowledged: bool) -> bytes:
        """The next packet."""
        while (found := _PACKET.search(self._data)) is None:
            if len(self._data) > budgets.PACKET:
                raise ImageError(f"{self._path}: more than {budgets.PACKET:#x} bytes that are no packet of gdb's")
            data = self._connection.recv(1 << 16)
            if not data:
                raise OSError("the connection ended")
            self._data += data
        self._data = self._data[found.end() :]
        if sum(found[1]) & 0xFF != int(found[2], 16):
            raise ImageError(f"{self._path}: a packet of the stub's is damaged: its checksum is {found[2].decode()}")
        if acknowledged:
            self._connection.sendall(b"+")
        return re.sub(rb"}(.)", lambda escaped: bytes([escaped[1][0] ^ 0x20]), found[1], flags=re.DOTALL)

    @property
    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise ImageError(f"{self._path}: the connection to the stub is closed")
        return self._socket

    def _silent(self, error: OSError) -> ImageError:
        return ImageError(f"{self._path}: the stub does not answer: {reason(error)}")

    def monitor(self, line: str) -> str | None:
        """What the monitor behind the stub prints; None where there is none."""
        said, answer = b"", self.ask(b"qRcmd," + line.encode().hex().encode())
        while self._awaits and len(said) <= budgets.PACKET:
            said += _bytes(answer[1:])
            answer = self._answer()
        return said.decode("utf-8", "replace").replace("\r", "") if answer == b"OK" else None

    def contents(self) -> Contents:
        """By the monitor all registers and physical memory; else the registers and linear memory that stubs show."""
        self._physical = self.ask(b"Qqemu.PhyMemMode:1") == b"OK"
        if self._physical and (self.monitor("info registers") or "").strip():
            return pages.contents(self._path, lambda line: self.monitor(line) or "", self.page)
        if self._physical:
            self.ask(b"Qqemu.PhyMemMode:0")
        size = 1 << 64
        return Contents(
            Memory([(0, size, pages.GuestPages(self.page, size), 0)]),
            tuple(self._registers(thread) for thread in self._threads()),
            remarks=(
                "this stub shows linear memory only, and says nothing of GDTR, IDTR and TR: give --gdt, --idt and "
                "--tss; what the page tables allow is not known",
            ),
            running=False,
        )

    def page(self, address: int) -> bytes:
        """A page of memory; Absent where the stub shows none."""
        parts = []
        for at in range(address, address + PAGE, self._at_once):
            content = _bytes(self.ask(b"m%x,%x" % (at, self._at_once)))
            if len(content) != self._at_once:
                raise Absent(at)
            parts.append(content)
        return b"".join(parts)

    def _threads(self) -> list[bytes]:
        """The names of the threads, each of them a CPU."""
        found, answer = list[bytes](), self.ask(b"qfThreadInfo")
        while answer[:1] == b"m" and len(found) <= budgets.CPUS:
            found += answer[1:].split(b",")
            answer = self.ask(b"qsThreadInfo")
        return found[: budgets.CPUS] or [b"0"]

    def _registers(self, thread: bytes) -> Registers:
        """What a stub says of one CPU: no descriptors, no GDTR, IDTR, TR. Not CR3: its tables are out of reach."""
        self.ask(b"Hg" + thread)
        data, at = _bytes(self.ask(b"g").replace(b"x", b"0")), 0
        if len(data) < sum(_FIRST.values()):
            raise ImageError(
                f"{self._path}: {len(data)} bytes of registers: {sum(_FIRST.values())} of a 64-bit CPU expected"
            )
        values: dict[str, Any] = {}
        for name, size in _FIRST.items():
            values[name] = int.from_bytes(data[at : at + size], "little")
            at += size
        general = {name: values.pop(name) for name in _GENERAL}
        segments: dict[str, Any] = {
            name: Segment(values.pop(name) & 0xFFFF) for name in ("cs", "ss", "ds", "es", "fs", "gs")
        }
        return Registers(**values, rsp=general["rsp"], **segments, general=general)


def _bytes(text: bytes) -> bytes:
    """Bytes from their hex digits; b"" for anything else, as an error (E14)."""
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return b""
