"""Hypothesis strategies: any bits that a table can hold, or only meaningful ones.

Every layout has two forms, `any_bits(Gate)` and `meaningful(Gate)`; so have tables: `any_table()` is bytes of any
length, `gdts()`, `idts()` and `blobs()` are well-formed.

    from hypothesis import given
    from x86tables import Gate, strategies

    @given(strategies.meaningful(Gate))
    def test_my_kernel_decodes_it(gate):
        assert my_kernel.decode(bytes(gate)).handler == gate.offset
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import strategies as st

from .errors import UsageError
from .machine.machine import Machine
from .records import Record
from .tables.gdt import (
    CALL_GATE,
    LDT,
    SYSTEM_KINDS,
    TSS_AVAILABLE,
    TSS_BUSY,
    CallGate,
    Gdt,
    LegacySystemDescriptor,
    SegmentDescriptor,
    SystemDescriptor,
)
from .tables.idt import INTERRUPT, TRAP, Gate, Idt
from .tables.layout import Layout
from .tables.legacy import GATES, LegacyGate, RealModeVector, Tss32
from .tables.pseudo import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32
from .tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode, Star
from .tables.tss import IoMap, Tss

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy

    from differential.machines import Case

__all__ = [
    "Blob",
    "any_bits",
    "any_table",
    "blobs",
    "canonical",
    "cases",
    "descriptors",
    "gdts",
    "idts",
    "io_maps",
    "machines",
    "meaningful",
    "selectors",
]

L = TypeVar("L", bound=Layout)


def any_bits(layout: type[L]) -> SearchStrategy[L]:
    """Every value that the layout's bytes can have, reserved bits and refused types included.

    @given(any_bits(Gate))
    def test_round_trip(gate):
        assert Gate.parse(bytes(gate)) == gate
    """
    return st.binary(min_size=layout.size, max_size=layout.size).map(layout.parse)


def any_table(max_size: int = 4200) -> SearchStrategy[bytes]:
    """The bytes of a GDT, an IDT or a TSS segment, of any length: cut in the middle of an entry, empty, too long.

    @given(any_table())
    def test_nothing_is_lost(data):
        assert bytes(Gdt.parse(data)) == data
    """
    # many small pieces find little: repeat one, so that a long table costs few choices
    pieces = st.lists(st.binary(max_size=48), max_size=8).map(b"".join)
    return st.builds(lambda piece, times: (piece * times)[:max_size], pieces, st.sampled_from([1, 1, 1, 2, 16, 257]))


def meaningful(layout: type[L]) -> SearchStrategy[L]:
    """Only values that the processor takes in 64-bit mode (legacy layouts: in theirs): reserved bits are zero.

    @given(meaningful(SystemDescriptor))
    def test_kind(descriptor):
        assert descriptor.kind in ("ldt", "tss-available", "tss-busy")
    """
    if layout not in _MEANINGFUL:
        raise UsageError(f"{layout.__name__}: no meaningful form is known; any_bits has every value of it")
    return _MEANINGFUL[layout]().map(lambda fields: layout(**fields))


def _fields(layout: type[Layout], **strategies: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    """Fields with a strategy of their own as given, reserved ones zero, the rest of any value."""
    chosen = dict(strategies)
    for field in layout.fields:
        if field.name not in chosen and not field.name.startswith(("reserved", "zero")):
            chosen[field.name] = st.booleans() if field.width == 1 else st.integers(0, field.maximum)
    return st.fixed_dictionaries(chosen)


def canonical(bits: int = 48) -> SearchStrategy[int]:
    """Canonical addresses of 48 or 57 bits: the bits above are copies of the highest.

    @given(canonical())
    def test_sign(address):
        assert address >> 47 in (0, 0x1ffff)
    """
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1).map(lambda address: address & 0xFFFF_FFFF_FFFF_FFFF)


def selectors() -> SearchStrategy[int]:
    """Selectors as loaded, null ones included.

    @given(selectors())
    def test_index(selector):
        assert Selector.from_int(selector).index == selector >> 3
    """
    return st.integers(0, 0x1F).map(lambda index: index << 3) | st.integers(0, 0xFFFF)


_NO, _YES = st.just(False), st.just(True)


def _segment() -> SearchStrategy[dict[str, Any]]:
    def settle(fields: dict[str, Any]) -> dict[str, Any]:
        code64 = fields["l"] and fields["type"] & 8
        return {**fields, "l": bool(code64), "d_b": fields["d_b"] and not code64}  # L and D together are refused

    return _fields(SegmentDescriptor, s=_YES).map(settle)


def _page_fault() -> SearchStrategy[dict[str, Any]]:
    def settle(fields: dict[str, Any]) -> dict[str, Any]:
        if fields["rsvd"] or fields["pk"]:
            fields = {**fields, "p": True}  # both are found in a present entry
        return {**fields, "wr": fields["wr"] and not fields["id"]}  # a fetch writes nothing

    return _fields(PageFaultErrorCode).map(settle)


def _frame(layout: type[Layout]) -> SearchStrategy[dict[str, Any]]:
    # RFLAGS: bit 1 is always set, bits 3, 5, 15 and 22 up are reserved
    rflags = st.integers(0, 0x3FFFFF).map(lambda flags: flags & ~0x8028 | 2)
    return _fields(layout, rip=canonical(), rsp=canonical(), cs=selectors(), ss=selectors(), rflags=rflags)


_POINTERS = ("rsp0", "rsp1", "rsp2", "ist1", "ist2", "ist3", "ist4", "ist5", "ist6", "ist7")

_MEANINGFUL: dict[type[Layout], Callable[[], SearchStrategy[dict[str, Any]]]] = {
    SegmentDescriptor: _segment,
    SystemDescriptor: lambda: _fields(
        SystemDescriptor, s=_NO, base=canonical(), type=st.sampled_from([LDT, TSS_AVAILABLE, TSS_BUSY])
    ),
    CallGate: lambda: _fields(CallGate, s=_NO, offset=canonical(), selector=selectors(), type=st.just(CALL_GATE)),
    Gate: lambda: _fields(
        Gate, s=_NO, offset=canonical(), selector=selectors(), type=st.sampled_from([INTERRUPT, TRAP])
    ),
    Tss: lambda: _fields(Tss, iopb=st.just(0x68) | st.integers(0x68, 0xFFFF), **dict.fromkeys(_POINTERS, canonical())),
    Selector: lambda: _fields(Selector),
    # an index that counts gates is a vector, and has no TI
    SelectorErrorCode: lambda: (
        _fields(SelectorErrorCode, idt=_NO) | _fields(SelectorErrorCode, idt=_YES, ti=_NO, index=st.integers(0, 255))
    ),
    PageFaultErrorCode: _page_fault,
    Star: lambda: _fields(
        Star, user=st.integers(1, 0x1FFD).map(lambda n: n << 3 | 3), kernel=st.integers(1, 0x1FFE).map(lambda n: n << 3)
    ),
    PseudoDescriptor: lambda: _fields(PseudoDescriptor, base=canonical()),
    PseudoDescriptor32: lambda: _fields(PseudoDescriptor32),
    Frame: lambda: _frame(Frame),
    ErrorFrame: lambda: _frame(ErrorFrame),
    LegacyGate: lambda: _fields(LegacyGate, s=_NO, type=st.sampled_from(sorted(GATES))),
    LegacySystemDescriptor: lambda: _fields(
        LegacySystemDescriptor, s=_NO, type=st.sampled_from(sorted(SYSTEM_KINDS.keys() - GATES))
    ),
    Tss32: lambda: _fields(Tss32, iopb=st.just(0x68) | st.integers(0x68, 0xFFFF)),
    RealModeVector: lambda: _fields(RealModeVector),
}

LAYOUTS: tuple[type[Layout], ...] = tuple(_MEANINGFUL)
"""Every layout of the library."""


def descriptors() -> SearchStrategy[SegmentDescriptor | SystemDescriptor | CallGate]:
    """What may stand in a GDT in 64-bit mode: segments, and system descriptors of two slots.

    @given(descriptors())
    def test_size(descriptor):
        assert len(bytes(descriptor)) in (8, 16)
    """
    return st.one_of(meaningful(SegmentDescriptor), meaningful(SystemDescriptor), meaningful(CallGate))


def gdts(max_descriptors: int = 12) -> SearchStrategy[Gdt]:
    """Well-formed GDTs: the null slot, then whole descriptors.

    @given(gdts())
    def test_walk(gdt):
        assert not any(entry.truncated for entry in gdt.entries())
    """

    def fill(chosen: list[Any]) -> Gdt:
        gdt = Gdt()
        for descriptor in chosen:
            gdt.append(descriptor)
        return gdt

    return st.lists(descriptors(), max_size=max_descriptors).map(fill)


def idts(min_gates: int = 0, max_gates: int = 256) -> SearchStrategy[Idt]:
    """Well-formed IDTs: some vectors have a gate, the others are absent.

    @given(idts(min_gates=32))
    def test_exceptions(idt):
        assert idt["#DF"].kind in ("interrupt", "trap", "absent")
    """

    def fill(count: int, gates: dict[int, Gate]) -> Idt:
        idt = Idt(count)
        for vector, gate in gates.items():
            if vector < count:
                idt[vector] = gate
        return idt

    # the usual sizes are as likely as all others together
    counts = st.sampled_from([n for n in (0, 1, 32, 256) if min_gates <= n <= max_gates] or [max_gates])
    vectors = st.integers(0, 31) | st.integers(0, 255)
    gates = st.dictionaries(vectors, meaningful(Gate), max_size=8)
    return st.builds(fill, counts | st.integers(min_gates, max_gates), gates)


def io_maps() -> SearchStrategy[IoMap]:
    """I/O permission bitmaps that open a few ports and are closed by the byte of ones.

    @given(io_maps())
    def test_closed(io_map):
        assert io_map.closed and bytes(io_map)[-1] == 0xff
    """
    return st.sets(st.integers(0, 0x3FF) | st.integers(0, 0xFFFF), max_size=12).map(IoMap.allowing)


class Blob(Record):
    """A whole set of tables in one piece: its bytes, and what `schemas.Tables(**places)` needs to read it."""

    data: bytes
    places: dict[str, int]


@st.composite
def blobs(draw: st.DrawFn) -> Blob:
    """An LGDT operand, a GDT with a descriptor of the TSS, the TSS, an LIDT operand and an IDT, in any order.

    @given(blobs())
    def test_boot_image(blob):
        assert schemas.Tables(**blob.places).parse(blob.data).gdt.limit > 0
    """
    base = draw(st.integers(1, 1 << 30)) << 12  # where the blob is loaded, so that operands and descriptors can say so
    io_map = draw(st.none() | io_maps())
    behind = b"" if io_map is None else bytes(io_map)
    tss = draw(meaningful(Tss)).replace(iopb=0xFFFF if io_map is None else Tss.size)
    gdt, idt = draw(gdts()), draw(idts())
    # a limit of -1, a table without a byte, is none that LIDT can load
    idt = idt if len(idt) else Idt(1)
    sizes = {
        "lgdt": PseudoDescriptor.size,
        "gdt": len(bytes(gdt)) + SystemDescriptor.size,
        "tss": Tss.size + len(behind),
        "lidt": PseudoDescriptor.size,
        "idt": len(bytes(idt)),
    }
    places, end = {}, 0
    for name in draw(st.permutations(sorted(sizes))):
        places[name] = end = end + draw(st.integers(0, 3)) * 8
        end += sizes[name]
    gdt.append(SystemDescriptor.tss(base + places["tss"], sizes["tss"] - 1))
    data = bytearray(draw(st.sampled_from([b"\0", b"\xcc", b"\xff"])) * end)
    for name, part in {
        "lgdt": bytes(PseudoDescriptor(base=base + places["gdt"], limit=gdt.limit)),
        "gdt": bytes(gdt),
        "tss": bytes(tss) + behind,
        "lidt": bytes(PseudoDescriptor(base=base + places["idt"], limit=idt.limit)),
        "idt": bytes(idt),
    }.items():
        data[places[name] : places[name] + len(part)] = part
    return Blob(bytes(data), {"size": end, **places, "tss_limit": sizes["tss"] - 1})


def cases() -> SearchStrategy[Case]:
    """A CPU in long mode with a few mistakes, and what happens to it: the cases of the proof on Bochs.

    @given(cases())
    def test_a_push_is_no_reset(case):
        assert deliver(case.machine, Event.nmi()).outcome in ("delivered", "shutdown")
    """
    from differential.machines import draw  # not in the wheel

    return st.randoms(use_true_random=False).map(draw)


def machines() -> SearchStrategy[Machine]:
    """A CPU in long mode with all its tables and memory, and a few mistakes in them.

    @given(machines())
    def test_my_checker_takes_anything(machine):
        my_checker(machine)
    """
    return cases().map(lambda case: case.machine)
