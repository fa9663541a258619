"""What images from before long mode hold: 8-byte gates, 32-bit and 16-bit TSS, the real-mode vector table."""

from __future__ import annotations

from ..errors import NotThere
from .gdt import SYSTEM_KINDS
from .layout import Layout, bits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from .layout import Buffer

GATES = {0x4, 0x5, 0x6, 0x7, 0xC, 0xE, 0xF}
_HANDLERS = {0x6, 0x7, 0xE, 0xF}  # interrupt and trap gates


class LegacyGate(Layout, size=8, cite="SDM Vol. 3A, figures 'IDT Gate Descriptors' and 'Call-Gate Descriptor'"):
    """Interrupt, trap, task or call gate of protected mode, 16-bit or 32-bit by type."""

    offset: int = bits[63:48, 15:0]
    p: bool = bits[47]
    dpl: int = bits[46:45]
    s: bool = bits[44]
    type: int = bits[43:40]
    reserved: int = bits[39:37]
    count: int = bits[36:32]
    selector: int = bits[31:16]

    @property
    def kind(self) -> str:
        """`interrupt-gate32` and so on, `task-gate`, `absent` (all zero), or `refused` for what is not a gate."""
        if not self.s and self.type in GATES:
            return SYSTEM_KINDS[self.type]
        return "refused" if any(self) else "absent"


def holds_legacy_gates(data: bytes) -> bool:
    """Whether a table that 64-bit mode reads in gates of 16 bytes holds 8-byte gates, two in each.

    Of a gate of 16 bytes the last four are reserved; here most of the present ones have a second 8-byte gate there, for
    the same segment.
    """
    if not any(data[13::16]):
        return False
    gates = LegacyGate.parse_table(data[: len(data) & -16])
    pairs = [(one, other) for one, other in zip(gates[::2], gates[1::2], strict=True) if one.p]
    same = sum(
        other.p
        and not other.s
        and other.type in _HANDLERS
        and one.selector == other.selector
        and not other.count | other.reserved
        for one, other in pairs
    )
    return same > 1 and 2 * same > len(pairs)


class Tss32(Layout, size=104, cite="SDM Vol. 3A, figure '32-Bit Task-State Segment (TSS)'"):
    """The 32-bit TSS: the stacks of rings 0-2 and the whole state of a task."""

    iopb: int = bits[831:816].but(default=0x68)
    reserved11: int = bits[815:801]
    t: bool = bits[800]
    reserved10: int = bits[799:784]
    ldt: int = bits[783:768]
    reserved9: int = bits[767:752]
    gs: int = bits[751:736]
    reserved8: int = bits[735:720]
    fs: int = bits[719:704]
    reserved7: int = bits[703:688]
    ds: int = bits[687:672]
    reserved6: int = bits[671:656]
    ss: int = bits[655:640]
    reserved5: int = bits[639:624]
    cs: int = bits[623:608]
    reserved4: int = bits[607:592]
    es: int = bits[591:576]
    edi: int = bits[575:544]
    esi: int = bits[543:512]
    ebp: int = bits[511:480]
    esp: int = bits[479:448]
    ebx: int = bits[447:416]
    edx: int = bits[415:384]
    ecx: int = bits[383:352]
    eax: int = bits[351:320]
    eflags: int = bits[319:288]
    eip: int = bits[287:256]
    cr3: int = bits[255:224]
    reserved3: int = bits[223:208]
    ss2: int = bits[207:192]
    esp2: int = bits[191:160]
    reserved2: int = bits[159:144]
    ss1: int = bits[143:128]
    esp1: int = bits[127:96]
    reserved1: int = bits[95:80]
    ss0: int = bits[79:64]
    esp0: int = bits[63:32]
    reserved0: int = bits[31:16]
    link: int = bits[15:0]


class Tss16(Layout, size=44, cite="SDM Vol. 3A, figure '16-Bit TSS Format'"):
    """The 16-bit TSS: the stacks of rings 0-2 and the whole state of a task; no CR3 and no I/O bitmap."""

    ldt: int = bits[351:336]
    ds: int = bits[335:320]
    ss: int = bits[319:304]
    cs: int = bits[303:288]
    es: int = bits[287:272]
    di: int = bits[271:256]
    si: int = bits[255:240]
    bp: int = bits[239:224]
    sp: int = bits[223:208]
    bx: int = bits[207:192]
    dx: int = bits[191:176]
    cx: int = bits[175:160]
    ax: int = bits[159:144]
    flags: int = bits[143:128]
    ip: int = bits[127:112]
    ss2: int = bits[111:96]
    sp2: int = bits[95:80]
    ss1: int = bits[79:64]
    sp1: int = bits[63:48]
    ss0: int = bits[47:32]
    sp0: int = bits[31:16]
    link: int = bits[15:0]


class RealModeVector(Layout, size=4, cite="SDM Vol. 3A, figure 'Interrupt Vector Table in Real-Address Mode'"):
    """One far pointer of the real-mode vector table."""

    segment: int = bits[31:16]
    offset: int = bits[15:0]

    @property
    def address(self) -> int:
        """Where the handler begins: segment * 16 + offset."""
        return self.segment * 16 + self.offset


class VectorTable:
    """The real-mode interrupt vector table: 4 bytes a vector, up to 256 of them, and what is behind."""

    def __init__(self, vectors: list[RealModeVector], tail: bytes = b"") -> None:
        self.vectors, self.tail = vectors, tail

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """The table in `data`, of any length."""
        end = min(len(data) // RealModeVector.size, 256) * RealModeVector.size
        return cls(RealModeVector.parse_table(data[:end]), bytes(data[end:]))

    def __bytes__(self) -> bytes:
        return RealModeVector.build_table(self.vectors) + self.tail

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorTable) and bytes(self) == bytes(other)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, vector: int) -> RealModeVector:
        if not 0 <= vector < len(self):
            raise NotThere(f"vector {vector}: the table has {len(self)}")
        return self.vectors[vector]
