"""The strategies: what is meaningful is so by the manual's rules, and every form reaches what it should."""

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from x86tables import (
    CallGate,
    ErrorFrame,
    Frame,
    Gate,
    Gdt,
    Idt,
    IoMap,
    Layout,
    LegacyGate,
    LegacySystemDescriptor,
    PageFaultErrorCode,
    PseudoDescriptor,
    SegmentDescriptor,
    SelectorErrorCode,
    SystemDescriptor,
    Tss,
    UsageError,
    bits,
    schemas,
    strategies,
)

each_layout = pytest.mark.parametrize("layout", strategies.LAYOUTS, ids=lambda layout: layout.__name__)
# an example will do, it need not be the smallest
SEARCH = settings(max_examples=3000, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)


def is_canonical(address: int) -> bool:
    return address >> 47 in (0, 0x1FFFF)


@each_layout
def test_reserved_bits_are_zero_in_what_is_meaningful_only(layout: type[Layout]) -> None:
    reserved = [field.name for field in layout.fields if field.name.startswith(("reserved", "zero"))]

    @settings(max_examples=30)
    @given(strategies.meaningful(layout))
    def law(value: Layout) -> None:
        assert type(value) is layout
        assert not any(value[name] for name in reserved)

    law()
    if reserved:
        find(strategies.any_bits(layout), lambda value: any(value[name] for name in reserved), settings=SEARCH)


@given(strategies.meaningful(Gate), strategies.meaningful(CallGate), strategies.meaningful(SystemDescriptor))
def test_gates_and_system_descriptors(gate: Gate, call_gate: CallGate, descriptor: SystemDescriptor) -> None:
    assert gate.kind in ("interrupt", "trap")
    assert descriptor.kind in ("ldt", "tss-available", "tss-busy")
    assert (call_gate.s, call_gate.type) == (False, 0xC)
    assert all(map(is_canonical, (gate.offset, call_gate.offset, descriptor.base)))


@given(strategies.meaningful(LegacyGate), strategies.meaningful(LegacySystemDescriptor))
def test_legacy_kinds(gate: LegacyGate, descriptor: LegacySystemDescriptor) -> None:
    assert "gate" in gate.kind
    assert descriptor.kind == "ldt" or descriptor.kind.startswith("tss")


@given(strategies.meaningful(SegmentDescriptor))
def test_segments_never_have_l_and_d(segment: SegmentDescriptor) -> None:
    assert segment.kind in ("code64", "code32", "code16", "data")
    assert not (segment.l and segment.d_b)


@given(strategies.meaningful(Tss))
def test_stack_pointers_are_canonical(tss: Tss) -> None:
    assert all(map(is_canonical, (*tss.rsp, *tss.ist)))
    assert tss.iopb >= 0x68


@given(strategies.meaningful(Frame), strategies.meaningful(ErrorFrame))
def test_frames_can_be_returned_from(frame: Frame, error_frame: ErrorFrame) -> None:
    for pushed in (frame, error_frame):
        assert is_canonical(pushed.rip)
        assert is_canonical(pushed.rsp)
        assert pushed.rflags & 0x8028 == 0
        assert pushed.rflags & 2


@given(strategies.meaningful(PageFaultErrorCode), strategies.meaningful(SelectorErrorCode))
def test_error_codes_contradict_nothing(page_fault: PageFaultErrorCode, code: SelectorErrorCode) -> None:
    assert not (page_fault.id and page_fault.wr)
    assert page_fault.p or not (page_fault.rsvd or page_fault.pk)
    assert not code.idt or (code.index < 256 and not code.ti)


@given(strategies.canonical(57), strategies.selectors())
def test_addresses_and_selectors(address: int, selector: int) -> None:
    assert address >> 56 in (0, 0xFF)
    assert 0 <= selector <= 0xFFFF


@given(strategies.any_table(max_size=100))
def test_tables_of_any_length_keep_to_the_limit(data: bytes) -> None:
    assert len(data) <= 100


@pytest.mark.parametrize("length", ["empty", "odd", "page", "more than 256 gates"])
def test_tables_of_any_length_reach_the_edges(length: str) -> None:
    wanted = {
        "empty": lambda data: not data,
        "odd": lambda data: len(data) % 8 not in (0, 1) and len(data) > 16,
        "page": lambda data: len(data) >= 4096,
        "more than 256 gates": lambda data: len(Idt.parse(data).tail) > 0 and len(Idt.parse(data)) == 256,
    }
    find(strategies.any_table(), wanted[length], settings=SEARCH)


def cut(data: bytes) -> bool:
    return any(entry.truncated for entry in Gdt.parse(data).entries())


def test_a_truncated_entry_is_found() -> None:
    find(strategies.any_table(), cut, settings=SEARCH)


@given(strategies.gdts(), strategies.idts(min_gates=32, max_gates=64), strategies.io_maps())
def test_well_formed_tables(gdt: Gdt, idt: Idt, io_map: IoMap) -> None:
    entries = list(gdt.entries())
    assert entries[0].raw == bytes(8)
    assert {entry.kind for entry in entries} <= {
        "null", "code64", "code32", "code16", "data", "ldt", "tss-available", "tss-busy", "call-gate",
    }  # fmt: skip
    assert not any(entry.truncated for entry in entries)
    assert 32 <= len(idt) <= 64
    assert io_map.closed


@pytest.mark.parametrize("kind", ["code64", "data", "ldt", "tss-available", "tss-busy", "call-gate"])
def test_a_well_formed_gdt_reaches_every_kind(kind: str) -> None:
    find(strategies.gdts(), lambda gdt: kind in {entry.kind for entry in gdt.entries()}, settings=SEARCH)


@settings(max_examples=40)
@given(strategies.blobs())
def test_blobs_hold_what_their_operands_say(blob: strategies.Blob) -> None:
    parsed = schemas.Tables(**blob.places).parse(blob.data)
    start = parsed.lgdt.base - blob.places["gdt"]
    assert start == parsed.lidt.base - blob.places["idt"]
    assert start % 4096 == 0
    tss = [entry.descriptor for entry in parsed.gdt.entries() if entry.kind == "tss-available"][-1]
    assert tss.base == start + blob.places["tss"]
    assert PseudoDescriptor.parse(blob.data[blob.places["lidt"] :][:10]).limit == parsed.idt.limit
    assert (parsed.iomap is None) == (blob.places["tss_limit"] == 0x67)


@given(st.data())
def test_a_layout_of_your_own_has_any_bits(data: st.DataObject) -> None:
    class Word(Layout, size=2):
        high: int = bits[15:8]
        low: int = bits[7:0]

    value = data.draw(strategies.any_bits(Word))
    assert value.high * 256 + value.low == int(value)
    with pytest.raises(UsageError, match="Word: no meaningful form is known"):
        strategies.meaningful(Word)


def test_every_strategy_shows_how_it_is_used() -> None:
    public = [
        strategies.any_bits, strategies.any_table, strategies.meaningful, strategies.canonical, strategies.selectors,
        strategies.descriptors, strategies.gdts, strategies.idts, strategies.io_maps, strategies.blobs,
    ]  # fmt: skip
    assert all("@given(" in (function.__doc__ or "") for function in public)
