"""The registers of one logical CPU."""

from __future__ import annotations

from ...documents import Document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...documents import U2, U16, U32, Hex, Natural


class SegmentJson(Document):
    """A segment register with what it caches.

    limit: in bytes, as cached
    flags: the descriptor's raw high dword; bits 7:0 and 31:24 are base bits
    """

    selector: U16
    base: Hex
    limit: Natural
    flags: Hex | None


class TableRegisterJson(Document):
    """GDTR or IDTR."""

    base: Hex
    limit: U32


class RegistersJson(Document):
    """Registers by name; null is: not known."""

    rip: Hex | None
    rsp: Hex | None
    rflags: Hex | None
    cs: SegmentJson | None
    ss: SegmentJson | None
    ds: SegmentJson | None
    es: SegmentJson | None
    fs: SegmentJson | None
    gs: SegmentJson | None
    cr0: Hex | None
    cr2: Hex | None
    cr3: Hex | None
    cr4: Hex | None
    efer: Hex | None
    star: Hex | None
    gdtr: TableRegisterJson | None
    idtr: TableRegisterJson | None
    tr: SegmentJson | None
    ldtr: SegmentJson | None
    cpl: U2 | None
