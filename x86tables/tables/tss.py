"""The 64-bit TSS, and the I/O permission bitmap behind it."""

from __future__ import annotations

from ..errors import UsageError
from ..records import Record
from .layout import Layout, bits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from .layout import Buffer


STACKS = ("rsp0", "rsp1", "rsp2", *(f"ist{n}" for n in range(1, 8)))  # the fields of Tss that name one


class Tss(Layout, size=104, cite="SDM Vol. 3A, figure '64-Bit TSS Format'"):
    """Stack pointers for privilege changes (RSP0-2) and for gates that ask for one (IST1-7).

    A pointer names the end of its stack: the first push goes below it. 0 is no special value to the CPU. The default
    `iopb` lies beyond a limit of 0x67, which means no bitmap: ring 3 has no ports.
    """

    iopb: int = bits[831:816].but(default=0x68)
    reserved3: int = bits[815:800]
    reserved2: int = bits[799:736]
    ist7: int = bits[735:672]
    ist6: int = bits[671:608]
    ist5: int = bits[607:544]
    ist4: int = bits[543:480]
    ist3: int = bits[479:416]
    ist2: int = bits[415:352]
    ist1: int = bits[351:288]
    reserved1: int = bits[287:224]
    rsp2: int = bits[223:160]
    rsp1: int = bits[159:96]
    rsp0: int = bits[95:32]
    reserved0: int = bits[31:0]

    @property
    def rsp(self) -> tuple[int, int, int]:
        """RSP0, RSP1, RSP2."""
        return self.rsp0, self.rsp1, self.rsp2

    @property
    def ist(self) -> tuple[int, ...]:
        """IST1 .. IST7; mind that `ist[0]` is IST1."""
        return self.ist1, self.ist2, self.ist3, self.ist4, self.ist5, self.ist6, self.ist7


class IoMap(Record):
    """The I/O permission bitmap: one bit a port from port 0, 1 = refused to ring 3 beyond IOPL.

    The CPU reads two bytes for each check, and both must lie within the TSS limit: the last byte therefore opens no
    port, and the manual asks for 0xff there. Source: SDM Vol. 1, figure "I/O Permission Bit Map".
    """

    raw: bytes = b""

    @classmethod
    def of(cls, segment: Buffer, iopb: int) -> Self | None:
        """The bitmap inside a TSS segment (limit+1 bytes); None when its base lies beyond the limit."""
        return cls(bytes(segment[iopb:])[:8193]) if iopb < len(segment) else None

    @classmethod
    def allowing(cls, ports: Iterable[int]) -> Self:
        """A bitmap that opens just these ports, closed by the byte of ones."""
        denied = bytearray(b"\xff" * 8193)
        last = -1
        for port in ports:
            if not 0 <= port <= 0xFFFF:
                raise UsageError(f"port {port:#x}: a port is 0..0xffff")
            denied[port // 8] &= ~(1 << port % 8)
            last = max(last, port)
        return cls(bytes(denied[: last // 8 + 2]))

    def __bytes__(self) -> bytes:
        return self.raw

    @property
    def closed(self) -> bool:
        """Whether the last byte is 0xff, as the manual asks."""
        return self.raw.endswith(b"\xff")

    @property
    def open_ports(self) -> list[range]:
        """The ports that ring 3 may use, as ranges in ascending order."""
        runs: list[range] = []
        for byte, denied in enumerate(self.raw[:-1][:8192]):
            if denied == 0xFF:
                continue
            for bit in range(8):
                port = byte * 8 + bit
                if not denied >> bit & 1:
                    if runs and runs[-1].stop == port:
                        runs[-1] = range(runs[-1].start, port + 1)
                    else:
                        runs.append(range(port, port + 1))
        return runs
