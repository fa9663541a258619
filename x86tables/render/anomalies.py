"""What is unusual about a value: short facts for people, not rules; `checks` judges."""

from __future__ import annotations

from ..tables.gdt import (
    TSS16,
    TSS_AVAILABLE,
    TSS_BUSY,
    WIDE,
    CallGate,
    LegacySystemDescriptor,
    SegmentDescriptor,
    SystemDescriptor,
)
from ..tables.idt import INTERRUPT, TRAP, Gate
from ..tables.legacy import GATES, LegacyGate, Tss16, Tss32
from ..tables.pseudo import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32
from ..tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode, Star
from ..tables.tss import Tss
from .describe import TYPES32, TYPES64, not_gate, protected, size, type32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ..tables.layout import Layout

# The least limit of a protected-mode TSS, by type
LEAST = dict.fromkeys(TSS16, Tss16.size - 1) | dict.fromkeys((TSS_AVAILABLE, TSS_BUSY), Tss32.size - 1)


def anomalies(value: Layout) -> list[str]:
    """What is unusual about a value, one short fact each; none for an empty descriptor or gate."""
    if hasattr(value, "dpl") and not any(bytes(value)):
        return []
    return [*_ANOMALIES.get(type(value), _nothing)(value), *_reserved(value)]


def _nothing(value: Layout) -> Iterable[str]:
    return ()


def _reserved(value: Layout) -> Iterator[str]:
    for field in value.fields:
        found = getattr(value, field.name)
        if found and field.name.rstrip("0123456789") in ("reserved", "zero"):
            ((high, low),) = field.pieces
            place = f"bits {high}:{low}" if high > low else f"bit {high}"
            yield f"{field.name} ({place}) is {int(found):#x}, expected 0"


def _address(name: str, address: int) -> Iterator[str]:
    from ..machine.paging import canonical

    if not canonical(address, 5):
        yield f"{name} {address:#x} is not canonical"
    elif not canonical(address):
        yield f"{name} {address:#x} is canonical with 5-level paging only"


def _absent(value: Any) -> Iterator[str]:
    if not value.p:
        yield "not present, but not all zero"


def _target(value: Gate | CallGate) -> Iterator[str]:
    """Where a 64-bit gate leads."""
    chosen = Selector.from_int(value.selector)
    if chosen.null:
        yield "null selector: using the gate raises #GP"
    elif chosen.ti:
        yield "the handler's segment is in the LDT"
    if not chosen.null and chosen.rpl:
        yield f"the selector's RPL is {chosen.rpl}; the CPU ignores it"
    if not value.offset:
        yield "the handler is at address 0"
    yield from _address("offset", value.offset)


def _segment(value: SegmentDescriptor) -> Iterator[str]:
    if not value.s:
        yield "S=0: a system descriptor or a gate, not code or data"
        return
    if value.code and value.l and value.d_b:
        yield "L and D both set: loading it into CS raises #GP in 64-bit mode"
    if not value.code and value.l:
        yield "L set in a data segment, where it is reserved"
    if value.code and value.l and value.base:
        yield f"base {value.base:#x} has no effect on 64-bit code"
    yield from _absent(value)


def _system(value: SystemDescriptor) -> Iterator[str]:
    if value.s:
        yield "S=1: a code or data descriptor, which takes 8 bytes"
    elif value.type not in WIDE:
        yield f"type {value.type:#x} ({protected(value.type)}): 64-bit mode refuses it"
    elif value.type == 0xC:
        yield "type 0xc is a call gate: its base and limit are an offset and a selector"
    else:
        yield from _tss_limit(value, Tss.size - 1 if value.type != 0x2 else 0)
        if value.p and not value.base:
            yield "the base is 0"
        yield from _address("base", value.base)
    yield from _absent(value)


def _tss_limit(value: SystemDescriptor | LegacySystemDescriptor, least: int) -> Iterator[str]:
    if least and value.g:
        yield f"G set on a TSS: it would have {size(value.effective_limit + 1)}"
    if value.effective_limit < least:
        yield f"limit {value.effective_limit:#x}: this TSS needs at least {least:#x}"


def _call_gate(value: CallGate) -> Iterator[str]:
    if value.s or value.type != 0xC:
        yield not_gate(value.s, value.type, "call gate")
    else:
        yield from _target(value)
    yield from _absent(value)


def _gate(value: Gate) -> Iterator[str]:
    if value.s:
        yield "S=1 in a gate: the CPU answers with #GP"
    elif value.type not in (INTERRUPT, TRAP):
        found = TYPES64.get(value.type) or protected(value.type)
        yield f"type {value.type:#x} ({found}): 64-bit mode refuses it with #GP"
    else:
        if value.type == TRAP and value.ist:
            yield f"trap gate on IST{value.ist}: interrupts stay on, and a second entry overwrites the first"
        yield from _target(value)
    yield from _absent(value)


def _legacy_gate(value: LegacyGate) -> Iterator[str]:
    if value.s or value.type not in GATES:
        yield "S=1 in a gate" if value.s else f"type {value.type:#x} ({type32(value.type)}) is not a gate"
    elif value.type == 0x5:
        if value.offset:
            yield f"a task gate has no offset, yet these bits are {value.offset:#x}"
    elif value.type < 8 and value.offset >> 16:
        yield f"a 16-bit gate has a 16-bit offset, yet the high half is {value.offset >> 16:#x}"
    if value.count and value.type not in (0x4, 0xC):
        yield f"bits 36:32 are {value.count:#x}, but only a call gate counts parameters"
    if Selector.from_int(value.selector).null:
        yield "null selector: using the gate raises a fault"
    yield from _absent(value)


def _legacy_system(value: LegacySystemDescriptor) -> Iterator[str]:
    if value.s:
        yield "S=1: a code or data descriptor"
    elif value.type in GATES:
        yield f"type {value.type:#x} is a gate: its base and limit are an offset and a selector"
    elif value.type not in TYPES32:
        yield f"type {value.type:#x} is reserved"
    else:
        yield from _tss_limit(value, LEAST.get(value.type, 0))
    yield from _absent(value)


def _selector(value: Selector) -> Iterator[str]:
    if value.null and value.rpl:
        yield f"RPL {value.rpl} in a null selector"


def _star(value: Star) -> Iterator[str]:
    if not value.syscall_cs:
        yield "SYSCALL would load CS with a null selector"
    if rpl := value.kernel & 3:
        yield f"kernel {value.kernel:#x} has RPL {rpl}, expected 0: SS keeps it"
    if (rpl := value.user & 3) != 3:
        yield f"user {value.user:#x} has RPL {rpl}, expected 3: with AMD, SS keeps it"


def _selector_error(value: SelectorErrorCode) -> Iterator[str]:
    if value.idt and value.index > 255:
        yield f"vector {value.index}: an IDT ends at 255"
    if value.idt and value.ti:
        yield "IDT and TI both set"


def _page_fault(value: PageFaultErrorCode) -> Iterator[str]:
    if value.id and value.wr:
        yield "an instruction fetch that writes"
    for name in ("rsvd", "pk"):
        if getattr(value, name) and not value.p:
            yield f"{name} without p: the CPU sets both"


def _pseudo(value: PseudoDescriptor | PseudoDescriptor32) -> Iterator[str]:
    if (value.limit + 1) % 8:
        yield f"limit {value.limit:#x}: the size, {value.limit + 1}, is not a multiple of 8"
    if not value.base:
        yield "the base is 0"
    yield from _address("base", value.base)


def _tss(value: Tss) -> Iterator[str]:
    seen: dict[int, str] = {}
    stacks = [(f"rsp{n}", top) for n, top in enumerate(value.rsp)]
    for name, top in stacks + [(f"ist{n}", top) for n, top in enumerate(value.ist, 1)]:
        yield from _address(name, top)
        if top % 16:
            yield f"{name} {top:#x} is not 16-byte aligned: delivery aligns it down"
        if top and top in seen:
            yield f"{name} is the stack of {seen[top]}"
        seen.setdefault(top, name)
    yield from _io_map(value.iopb)


def _io_map(iopb: int) -> Iterator[str]:
    if iopb < 0x68:
        yield f"iopb {iopb:#x} lies inside of the TSS: its own bytes count as I/O bitmap"


def _frame(value: Frame | ErrorFrame) -> Iterator[str]:
    yield from _address("rip", value.rip)
    yield from _address("rsp", value.rsp)
    if not value.rflags & 2:
        yield "bit 1 of rflags is 0: the CPU always pushes 1"
    if value.cs & ~3 == 0:
        yield "cs is a null selector"
    if value.ss & 3 != value.cs & 3:
        yield f"the RPL of ss is {value.ss & 3}, that of cs {value.cs & 3}"


_ANOMALIES: dict[type, Callable[[Any], Iterable[str]]] = {
    SegmentDescriptor: _segment, SystemDescriptor: _system, CallGate: _call_gate, Gate: _gate,
    LegacyGate: _legacy_gate, LegacySystemDescriptor: _legacy_system,
    Selector: _selector, SelectorErrorCode: _selector_error, PageFaultErrorCode: _page_fault,
    PseudoDescriptor: _pseudo, PseudoDescriptor32: _pseudo, Star: _star,
    Tss: _tss, Tss32: lambda value: _io_map(value.iopb), Frame: _frame, ErrorFrame: _frame,
}  # fmt: skip
