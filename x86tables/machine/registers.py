"""What one logical CPU has in its registers, and the bits of the control registers that matter here."""

from __future__ import annotations

from ..records import Record
from ..tables.gdt import SegmentDescriptor, SystemDescriptor
from ..tables.selector import Selector

PE, WP, PG = 1 << 0, 1 << 16, 1 << 31  # CR0
PSE, PAE, MCE, LA57, PCIDE = 1 << 4, 1 << 5, 1 << 6, 1 << 12, 1 << 17  # CR4
UMIP, SMEP, SMAP, CET, FRED = 1 << 11, 1 << 20, 1 << 21, 1 << 23, 1 << 32
SCE, LME, LMA, NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11  # EFER
TF, IF, NT, RF, VM, AC = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17, 1 << 18  # RFLAGS


class Segment(Record):
    """A segment register with its cached descriptor: `limit` in bytes, `flags` the descriptor's raw high dword.

    In `flags` bits 7:0 and 31:24 are base bits. None means not known.
    """

    selector: int
    base: int = 0
    limit: int = 0xFFFFFFFF
    flags: int | None = None

    @property
    def descriptor(self) -> SegmentDescriptor:
        """The cached attributes as a descriptor (all zero when they are not known)."""
        return SegmentDescriptor.from_int((self.flags or 0) << 32)

    @property
    def null(self) -> bool:
        """Whether the selector is null."""
        return Selector.from_int(self.selector).null


def load(selector: int, descriptor: SegmentDescriptor | SystemDescriptor) -> Segment:
    """A segment register after a descriptor was loaded into it."""
    flags = int.from_bytes(bytes(descriptor)[4:8], "little")
    return Segment(selector, descriptor.base, descriptor.effective_limit, flags)


def from_rights(selector: int, base: int, limit: int, rights: int) -> Segment:
    """A segment register whose attributes are access rights as a virtual machine monitor keeps them.

    Those are the descriptor's type, S, DPL and P in bits 7:0, its AVL, L, D/B and G in bits 15:12, and bit 16 for a
    segment that cannot be used (SDM Vol. 3C, table "Format of Access Rights").
    """
    descriptor = SegmentDescriptor.from_int((rights & 0xF0FF) << 40)
    if rights & 0x1_0000:
        descriptor = descriptor.replace(p=False)
    if descriptor.p:  # else its base and limit are none of a descriptor's
        pages = limit >> 12 if descriptor.g else limit
        descriptor = descriptor.replace(base=base & 0xFFFF_FFFF, limit=pages & 0xFFFFF)
    return Segment(selector, base, limit, int.from_bytes(bytes(descriptor)[4:8], "little"))


class TableRegister(Record):
    """GDTR or IDTR: a linear base, and a limit that is the size less one."""

    base: int
    limit: int


class Registers(Record):
    """What one logical CPU has in its registers; None means not known. `general` holds rax .. r15 by name."""

    rip: int | None = None
    rsp: int | None = None
    rflags: int | None = None
    cs: Segment | None = None
    ss: Segment | None = None
    ds: Segment | None = None
    es: Segment | None = None
    fs: Segment | None = None
    gs: Segment | None = None
    cr0: int | None = None
    cr2: int | None = None
    cr3: int | None = None
    cr4: int | None = None
    efer: int | None = None
    star: int | None = None
    gdtr: TableRegister | None = None
    idtr: TableRegister | None = None
    tr: Segment | None = None
    ldtr: Segment | None = None
    general: dict[str, int] = {}  # noqa: RUF012 - never changed

    @property
    def cpl(self) -> int | None:
        """The current privilege level, from the selector in CS; 3 in virtual-8086 mode, where CS is no selector."""
        if self.virtual8086:
            return 3
        return None if self.cs is None else self.cs.selector & 3

    @property
    def syscall(self) -> bool | None:
        """Whether SYSCALL is on (EFER.SCE); taken as on where EFER is not known and STAR names segments."""
        if self.efer is not None:
            return self.efer & SCE != 0
        return True if self.star else None

    @property
    def virtual8086(self) -> bool:
        """Whether RFLAGS.VM makes this virtual-8086 mode: in protected mode only, long mode has none."""
        long = (self.efer or 0) & LMA or (self.cs is not None and self.cs.descriptor.l)
        return not long and (self.cr0 or 0) & PE != 0 and (self.rflags or 0) & VM != 0
