"""Segment and system descriptors, and the table that holds them: the GDT (or an LDT)."""

from __future__ import annotations

from ..errors import NotThere, UsageError
from ..records import Record
from .layout import Layout, bits
from .selector import Selector

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self, TypeAlias

    from .layout import Buffer

    Descriptor: TypeAlias = "SegmentDescriptor | SystemDescriptor | CallGate | LegacySystemDescriptor"

LDT, TSS_AVAILABLE, TSS_BUSY, CALL_GATE = 0x2, 0x9, 0xB, 0xC
TSS16 = (0x1, 0x3)  # available and busy; protected mode only
WIDE = {LDT: "ldt", TSS_AVAILABLE: "tss-available", TSS_BUSY: "tss-busy", CALL_GATE: "call-gate"}

# The S=0 types of protected mode, of which 64-bit mode has kept few
SYSTEM_KINDS = {
    0x1: "tss16-available", 0x2: "ldt", 0x3: "tss16-busy", 0x4: "call-gate16", 0x5: "task-gate",
    0x6: "interrupt-gate16", 0x7: "trap-gate16", 0x9: "tss32-available", 0xB: "tss32-busy", 0xC: "call-gate32",
    0xE: "interrupt-gate32", 0xF: "trap-gate32",
}  # fmt: skip


def effective_limit(limit: int, g: bool) -> int:
    """The limit in bytes: with G=1 it counts 4 KiB pages, the last one whole."""
    return limit << 12 | 0xFFF if g else limit


class SegmentDescriptor(Layout, size=8, cite="SDM Vol. 3A, figure 'Segment Descriptor'"):
    """Code or data segment, 8 bytes. Base and limit of CS, DS, ES and SS are ignored in 64-bit mode."""

    base: int = bits[63:56, 39:16]
    g: bool = bits[55]
    d_b: bool = bits[54]
    l: bool = bits[53]  # noqa: E741 - the manual's letter
    avl: bool = bits[52]
    limit: int = bits[51:48, 15:0]
    p: bool = bits[47]
    dpl: int = bits[46:45]
    s: bool = bits[44]
    type: int = bits[43:40]

    @classmethod
    def kernel_code(cls) -> Self:
        """64-bit code for ring 0, marked accessed so that the CPU never has to write to the GDT."""
        return cls(base=0, limit=0xFFFFF, g=True, l=True, p=True, s=True, type=0xB)

    @classmethod
    def user_code(cls) -> Self:
        """64-bit code for ring 3."""
        return cls.kernel_code().replace(dpl=3)

    @classmethod
    def kernel_data(cls) -> Self:
        """Writable data for ring 0; good for SS. In 64-bit mode only P, S, type and DPL matter."""
        return cls(base=0, limit=0xFFFFF, g=True, d_b=True, p=True, s=True, type=0x3)

    @classmethod
    def user_data(cls) -> Self:
        """Writable data for ring 3."""
        return cls.kernel_data().replace(dpl=3)

    @classmethod
    def code32(cls, dpl: int = 0) -> Self:
        """32-bit code over 4 GiB: compatibility mode under long mode, protected mode otherwise."""
        return cls.kernel_code().replace(l=False, d_b=True, dpl=dpl)

    @property
    def code(self) -> bool:
        """Code rather than data (type bit 3)."""
        return self.type & 8 != 0

    @property
    def conforming(self) -> bool:
        """Code that runs at the caller's privilege (type bit 2 of code)."""
        return self.type & 0xC == 0xC

    @property
    def expand_down(self) -> bool:
        """Data whose valid offsets lie above the limit (type bit 2 of data)."""
        return self.type & 0xC == 0x4

    @property
    def readable(self) -> bool:
        """Data, or code that may be read (type bit 1 of code)."""
        return self.type & 8 == 0 or self.type & 2 != 0

    @property
    def writable(self) -> bool:
        """Data that may be written (type bit 1 of data)."""
        return self.type & 0xA == 0x2

    @property
    def accessed(self) -> bool:
        """Set by the CPU when the segment is loaded (type bit 0)."""
        return self.type & 1 != 0

    @property
    def effective_limit(self) -> int:
        """The limit in bytes."""
        return effective_limit(self.limit, self.g)

    @property
    def kind(self) -> str:
        """`code64`, `code32`, `code16`, `data`, or for S=0 `system`: then another layout applies."""
        if not self.s:
            return "system"
        if not self.code:
            return "data"
        return "code64" if self.l else "code32" if self.d_b else "code16"


class SystemDescriptor(Layout, size=16, cite="SDM Vol. 3A, figure 'Format of TSS and LDT Descriptors in 64-bit Mode'"):
    """LDT or TSS descriptor of 64-bit mode, two slots wide."""

    reserved2: int = bits[127:109]
    zero: int = bits[108:104]
    reserved1: int = bits[103:96]
    base: int = bits[95:56, 39:16]
    g: bool = bits[55]
    reserved0: int = bits[54:53]
    avl: bool = bits[52]
    limit: int = bits[51:48, 15:0]
    p: bool = bits[47]
    dpl: int = bits[46:45]
    s: bool = bits[44]
    type: int = bits[43:40]

    @classmethod
    def tss(cls, base: int, limit: int = 0x67) -> Self:
        """An available TSS for LTR, which marks it busy. The limit is the size less one, I/O bitmap included."""
        return cls(base=base, limit=limit, p=True, type=TSS_AVAILABLE)

    @classmethod
    def ldt(cls, base: int, limit: int) -> Self:
        """An LDT for LLDT. The limit is the size less one."""
        return cls(base=base, limit=limit, p=True, type=LDT)

    @property
    def effective_limit(self) -> int:
        """The limit in bytes."""
        return effective_limit(self.limit, self.g)

    @property
    def kind(self) -> str:
        """`ldt`, `tss-available`, `tss-busy`, or `refused` for a type that 64-bit mode does not have."""
        return WIDE.get(self.type, "refused") if not self.s else "segment"


class LegacySystemDescriptor(Layout, size=8, cite="SDM Vol. 3A, figure 'TSS Descriptor'"):
    """LDT or TSS descriptor of protected mode, one slot."""

    base: int = bits[63:56, 39:16]
    g: bool = bits[55]
    reserved: int = bits[54:53]
    avl: bool = bits[52]
    limit: int = bits[51:48, 15:0]
    p: bool = bits[47]
    dpl: int = bits[46:45]
    s: bool = bits[44]
    type: int = bits[43:40]

    @property
    def effective_limit(self) -> int:
        """The limit in bytes."""
        return effective_limit(self.limit, self.g)

    @property
    def kind(self) -> str:
        """`tss32-busy`, `ldt` and so on, or `refused` for a reserved type."""
        return SYSTEM_KINDS.get(self.type, "refused")


class CallGate(Layout, size=16, cite="SDM Vol. 3A, figure 'Call-Gate Descriptor in IA-32e Mode'"):
    """Call gate of 64-bit mode, two slots wide."""

    reserved2: int = bits[127:109]
    zero: int = bits[108:104]
    reserved1: int = bits[103:96]
    offset: int = bits[95:48, 15:0]
    p: bool = bits[47]
    dpl: int = bits[46:45]
    s: bool = bits[44]
    type: int = bits[43:40]
    reserved0: int = bits[39:32]
    selector: int = bits[31:16]

    @classmethod
    def to(cls, handler: int, selector: int | Selector, *, dpl: int = 0) -> Self:
        """A present call gate to `selector:handler` that rings up to `dpl` may call."""
        return cls(offset=handler, selector=int(selector), dpl=dpl, p=True, type=CALL_GATE)

    @property
    def kind(self) -> str:
        """Always `call-gate`."""
        return "call-gate"


class Entry(Record):
    """One descriptor of a walk over a table: where it stands, its value, its bytes, and whether it is cut short.

    `kind` is a descriptor's own kind, `null` for slot 0 and empty slots, or `refused` for a type that the mode lacks.
    """

    index: int
    kind: str
    descriptor: Descriptor
    raw: bytes
    truncated: bool = False

    @property
    def selector(self) -> int:
        """The selector that names it, with RPL 0."""
        return self.index * 8

    @property
    def slots(self) -> int:
        """How many 8-byte slots it takes."""
        return len(self.raw) // 8


_EMPTY = bytes(8)


class Gdt:
    """A descriptor table: 8-byte slots and a tail of 0 to 7 bytes. It starts with the null slot.

    `gdt[selector]` looks up as the CPU does, at any slot; `entries()` walks for people. Mutable until `freeze()`.
    """

    def __init__(self, data: Buffer = bytes(8)) -> None:
        self._data: bytearray | bytes = bytes(data)  # a bytearray from the first change on
        self._frozen = False

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """The table in `data`, of any length: whatever is in it comes back from `bytes()`."""
        return cls(data)

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gdt) and self._data == other._data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} slots{f' and {len(self.tail)} bytes' if self.tail else ''})"

    def __len__(self) -> int:
        return len(self._data) // 8

    @property
    def limit(self) -> int:
        """What LGDT takes: the size less one (-1 for a table without a byte)."""
        return len(self._data) - 1

    @property
    def tail(self) -> bytes:
        """The bytes behind the last whole slot."""
        return bytes(self._data[len(self) * 8 :])

    def freeze(self) -> Self:
        """Refuse changes from now on."""
        self._data = bytes(self._data)
        self._frozen = True
        return self

    def append(self, descriptor: Descriptor) -> Selector:
        """Add a descriptor behind the last one; the Selector for it, its RPL that of the segment's DPL."""
        data = bytes(descriptor)
        selector = self._start(len(self), len(data) // 8)
        self._change()[len(self._data) :] = data
        return selector.replace(rpl=descriptor.dpl if descriptor.s else 0)

    def _start(self, slot: int, slots: int) -> Selector:
        if self.tail:
            raise UsageError(f"the table ends with {len(self.tail)} bytes that are no slot: nothing goes behind them")
        if slot + slots > 8192:
            raise UsageError(f"the table has {slot} of the 8192 slots that a limit covers: no room for {slots} more")
        return Selector(index=slot)

    def _change(self) -> bytearray:
        if self._frozen:
            raise UsageError("this table belongs to a Machine and is frozen: change a copy of it")
        if not isinstance(self._data, bytearray):
            self._data = bytearray(self._data)
        return self._data

    def _slot(self, selector: int) -> int:
        """The byte offset of a selector's slot, as the CPU checks it against the limit."""
        offset = int(selector) & ~7
        if not 0 <= offset <= self.limit - 7:
            raise NotThere(f"selector {int(selector):#x}: slot {offset // 8} is beyond the limit {self.limit:#x}")
        return offset

    def __getitem__(self, selector: int | Selector) -> Descriptor:
        """The descriptor that `selector` names (RPL and TI ignored); NotThere beyond the limit.

        A system descriptor whose second half is beyond the limit is taken with zeros there, which is what `truncated`
        says in `entries()`; the CPU refuses to load it.
        """
        return self._decode(self._slot(int(selector)))[0]

    def __setitem__(self, selector: int | Selector, descriptor: Descriptor) -> None:
        """Put a descriptor over the slot or slots that `selector` names."""
        start, data = self._slot(int(selector)), bytes(descriptor)
        if start + len(data) > len(self._data):
            raise UsageError(f"selector {int(selector):#x}: {len(data)} bytes reach beyond the limit {self.limit:#x}")
        self._change()[start : start + len(data)] = data

    def slot(self, index: int) -> int:
        """The 8 bytes of a slot as one number."""
        start = self._slot(index * 8)
        return int.from_bytes(self._data[start : start + 8], "little")

    def _decode(self, start: int) -> tuple[Descriptor, bytes, bool]:
        raw = bytes(self._data[start : start + 8])
        segment = SegmentDescriptor.parse(raw)
        if segment.s or segment.type not in WIDE:
            return segment, raw, False
        wide = bytes(self._data[start : start + 16])
        truncated = len(wide) < 16
        layout = CallGate if segment.type == CALL_GATE else SystemDescriptor
        return layout.parse(wide.ljust(16, b"\0")[:16]), raw if truncated else wide, truncated

    def entries(self, *, wide: bool = True, within: Iterable[range] | None = None) -> Iterator[Entry]:
        """Every descriptor in order, or those that begin in one of these ranges of bytes; the tail is not among them.

        System descriptors are 16 bytes wide as long mode has them, or all 8 bytes with `wide=False` as protected mode.
        """
        size = len(self._data) & -8
        for part in (range(size),) if within is None else within:
            start = part.start + 7 & -8
            if wide and 0 < start < size and (entry := self.covering(start)).selector < start:
                start = entry.selector + len(entry.raw)
            while start < min(part.stop, size):
                entry = self._entry(start, wide)
                yield entry
                start += len(entry.raw)

    def _entry(self, start: int, wide: bool) -> Entry:
        raw = bytes(self._data[start : start + 8])
        if start == 0 or raw == _EMPTY:
            return Entry(start // 8, "null", SegmentDescriptor.parse(raw), raw)
        descriptor, raw, truncated = self._decode(start) if wide else self._narrow(start)
        kind = "refused" if descriptor.kind == "system" else descriptor.kind
        return Entry(start // 8, kind, descriptor, raw, truncated)

    def _narrow(self, start: int) -> tuple[Descriptor, bytes, bool]:
        raw = bytes(self._data[start : start + 8])
        segment = SegmentDescriptor.parse(raw)
        return segment if segment.s else LegacySystemDescriptor.parse(raw), raw, False

    def covering(self, selector: int | Selector) -> Entry:
        """The entry of the walk whose slots hold the one that `selector` names: another when it is an upper half."""
        start = self._slot(int(selector))
        first = start
        while first > 8 and self._data[first - 3] & 0x1F in WIDE:  # S and type of the slot before
            first -= 8
        # an entry begins at `first`, behind a slot that is no wide one's lower half; from there on they go by pairs
        return self._entry(start - (start - first) % 16, True)
