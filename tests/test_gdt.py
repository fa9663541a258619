"""Descriptors and their table, of any limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x86tables import CallGate, Gdt, NotThere, SegmentDescriptor, Selector, SystemDescriptor, UsageError, strategies

CODE, DATA = SegmentDescriptor.kernel_code(), SegmentDescriptor.kernel_data()
TSS = SystemDescriptor.tss(0xFFFF_8000_1234_5678)


def kinds(gdt: Gdt) -> list[tuple[int, str, bool]]:
    return [(entry.selector, entry.kind, entry.truncated) for entry in gdt.entries()]


@given(strategies.any_table())
def test_every_table_comes_back(data: bytes) -> None:
    gdt = Gdt.parse(data)
    assert bytes(gdt) == data
    assert Gdt.parse(bytes(gdt)) == gdt
    assert gdt.limit == len(data) - 1
    assert bytes(gdt)[len(gdt) * 8 :] == gdt.tail
    # the walk leaves nothing out and reads nothing twice
    entries = list(gdt.entries())
    assert b"".join(entry.raw for entry in entries) + gdt.tail == data
    assert [entry.index for entry in entries] == [
        sum(before.slots for before in entries[:number]) for number in range(len(entries))
    ]


@given(strategies.any_table(), st.integers(0, 0xFFFF))
def test_a_selector_finds_what_the_limit_covers(data: bytes, selector: int) -> None:
    gdt = Gdt.parse(data)
    start = selector // 8 * 8
    if start + 7 > gdt.limit:
        with pytest.raises(NotThere, match=f"selector {selector:#x}: slot {selector // 8} is beyond the limit"):
            gdt[selector]
        return
    assert bytes(gdt[selector])[:8] == data[start : start + 8]
    assert gdt.slot(selector // 8) == int.from_bytes(data[start : start + 8], "little")
    assert gdt[Selector.from_int(selector)] == gdt[selector] == gdt[selector ^ 7]
    entry = gdt.covering(selector)
    assert entry.selector <= start < entry.selector + len(entry.raw)
    assert entry in gdt.entries()


@given(strategies.gdts())
def test_a_well_formed_table_decodes_to_what_went_in(gdt: Gdt) -> None:
    again = Gdt()
    for entry in list(gdt.entries())[1:]:
        assert int(again.append(entry.descriptor)) & ~3 == entry.selector
    assert again == gdt


def test_append_returns_the_selector_to_load() -> None:
    gdt = Gdt()
    assert [int(gdt.append(descriptor)) for descriptor in (CODE, DATA, TSS)] == [0x08, 0x10, 0x18]
    assert gdt.append(SegmentDescriptor.user_data()) == Selector(index=5, rpl=3)
    # of a system descriptor the DPL says nothing about the selector
    assert gdt.append(SystemDescriptor.ldt(0, 7).replace(dpl=3)) == Selector(index=6)
    assert gdt.limit == 0x3F
    assert [entry.kind for entry in gdt.entries()] == ["null", "code64", "data", "tss-available", "data", "ldt"]


def test_a_new_table_is_the_null_slot() -> None:
    assert bytes(Gdt()) == bytes(8)
    assert kinds(Gdt()) == [(0, "null", False)]


@pytest.mark.parametrize(("limit", "slots", "tail"), [(-1, 0, 0), (0, 0, 1), (6, 0, 7), (7, 1, 0), (0x13, 2, 4)])
def test_a_table_cut_in_the_middle_of_an_entry(limit: int, slots: int, tail: int) -> None:
    data = (bytes(8) + bytes(CODE) + bytes(DATA))[: limit + 1]
    gdt = Gdt.parse(data)
    assert (len(gdt), len(gdt.tail), gdt.limit) == (slots, tail, limit)
    assert len(list(gdt.entries())) == slots
    assert bytes(gdt) == data
    with pytest.raises(NotThere):
        gdt[slots * 8]


@pytest.mark.parametrize("more", range(8))
def test_a_wide_descriptor_whose_second_half_is_past_the_limit(more: int) -> None:
    data = bytes(8) + bytes(TSS)[: 8 + more]
    gdt = Gdt.parse(data)
    null, entry = gdt.entries()
    assert (entry.kind, entry.truncated, entry.slots) == ("tss-available", True, 1)
    assert entry.raw == bytes(TSS)[:8]
    assert isinstance(entry.descriptor, SystemDescriptor)
    assert entry.descriptor.base & 0xFFFF_FFFF == 0x1234_5678
    assert gdt[8] == entry.descriptor
    assert bytes(gdt) == data
    assert not null.truncated


def test_a_null_descriptor_that_is_not_zero() -> None:
    data = bytes(TSS) + bytes(CODE)
    gdt = Gdt.parse(data)
    # the CPU never reads slot 0, so it is one slot whatever its bytes say, and the next begins behind it
    assert [entry.index for entry in gdt.entries()] == [0, 1, 2]
    first = next(gdt.entries())
    assert (first.kind, first.raw) == ("null", bytes(TSS)[:8])
    assert bytes(gdt) == data


def test_a_selector_into_the_upper_half_of_a_tss() -> None:
    gdt = Gdt()
    gdt.append(CODE)
    gdt.append(TSS)
    # the upper half of a canonical base reads as some descriptor: the CPU has no idea
    upper = gdt[0x18]
    assert bytes(upper)[:8] == bytes(TSS)[8:]
    assert gdt.covering(0x18) == gdt.covering(0x10)
    assert gdt.covering(0x18).selector == 0x10
    assert gdt.covering(0x0B).kind == "code64"


def test_system_types_that_64_bit_mode_lacks_are_one_slot_and_refused() -> None:
    for kind in sorted({*range(16)} - {0x2, 0x9, 0xB, 0xC}):
        gdt = Gdt.parse(bytes(8) + bytes(SegmentDescriptor(type=kind, p=True)) + bytes(CODE))
        assert kinds(gdt) == [(0, "null", False), (8, "refused", False), (0x10, "code64", False)]


def test_protected_mode_has_system_descriptors_of_one_slot() -> None:
    gdt = Gdt.parse(bytes(8) + bytes(SegmentDescriptor(type=9, p=True, base=0x1000)) * 2)
    assert kinds(gdt) == [(0, "null", False), (8, "tss-available", False)]
    narrow = list(gdt.entries(wide=False))
    assert [(entry.selector, entry.kind) for entry in narrow] == [
        (0, "null"), (8, "tss32-available"), (0x10, "tss32-available"),
    ]  # fmt: skip


def test_put_a_descriptor_over_another() -> None:
    gdt = Gdt.parse(bytes(32))
    gdt[0x0B] = CODE
    gdt[0x10] = TSS
    assert (gdt[8], gdt[0x10]) == (CODE, TSS)
    with pytest.raises(UsageError, match="selector 0x18: 16 bytes reach beyond the limit 0x1f"):
        gdt[0x18] = TSS
    with pytest.raises(NotThere, match="selector 0x20: slot 4 is beyond the limit 0x1f"):
        gdt[0x20] = CODE


@pytest.mark.parametrize("selector", [-1, -8, -9])
def test_a_negative_selector_is_beyond_every_limit(selector: int) -> None:
    with pytest.raises(NotThere):
        Gdt.parse(bytes(32))[selector]


def test_a_full_table() -> None:
    gdt = Gdt.parse(bytes(8190 * 8))
    assert gdt.append(TSS) == Selector(index=8190)
    assert gdt.limit == 0xFFFF
    with pytest.raises(UsageError, match="the table has 8192 of the 8192 slots that a limit covers: no room for 1"):
        gdt.append(CODE)
    last = Gdt.parse(bytes(8191 * 8))
    with pytest.raises(UsageError, match="8191 of the 8192 slots that a limit covers: no room for 2 more"):
        last.append(TSS)
    assert last.append(CODE) == Selector(index=8191)


def test_nothing_goes_behind_a_tail() -> None:
    gdt = Gdt.parse(bytes(11))
    with pytest.raises(UsageError, match="the table ends with 3 bytes that are no slot"):
        gdt.append(CODE)
    assert len(bytes(gdt)) == 11


def test_a_frozen_table_refuses_changes() -> None:
    gdt = Gdt.parse(bytes(16)).freeze()
    with pytest.raises(UsageError, match="is frozen: change a copy"):
        gdt.append(CODE)
    with pytest.raises(UsageError, match="is frozen: change a copy"):
        gdt[8] = CODE
    assert gdt == Gdt.parse(bytes(16))
    copy = Gdt.parse(bytes(gdt))
    copy[8] = CODE
    assert copy != gdt


def test_a_parsed_table_does_not_share_its_bytes() -> None:
    data = bytearray(16)
    gdt = Gdt.parse(data)
    data[8:] = bytes(CODE)
    assert bytes(gdt) == bytes(16)


@pytest.mark.parametrize(
    ("descriptor", "number"),
    [
        (SegmentDescriptor.kernel_code(), 0x00AF_9B00_0000_FFFF),
        (SegmentDescriptor.user_code(), 0x00AF_FB00_0000_FFFF),
        (SegmentDescriptor.kernel_data(), 0x00CF_9300_0000_FFFF),
        (SegmentDescriptor.user_data(), 0x00CF_F300_0000_FFFF),
        (SegmentDescriptor.code32(), 0x00CF_9B00_0000_FFFF),
        (SegmentDescriptor.code32(dpl=3), 0x00CF_FB00_0000_FFFF),
        (SystemDescriptor.tss(0x24739C), 0x0000_8924_739C_0067),
        (TSS, 0xFFFF_8000 << 64 | 0x1200_8934_5678_0067),
        (SystemDescriptor.ldt(0x1000, 0xF), 0x0000_8200_1000_000F),
        (CallGate.to(0xFFFF_FFFF_8100_0000, 8, dpl=3), 0xFFFF_FFFF << 64 | 0x8100_EC00_0008_0000),
    ],
)
def test_constructors_make_the_published_bits(
    descriptor: SegmentDescriptor | SystemDescriptor | CallGate, number: int
) -> None:
    assert f"{int(descriptor):#x}" == f"{number:#x}"


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        (0x0, "readable"), (0x1, "readable accessed"), (0x2, "readable writable"),
        (0x3, "readable writable accessed"), (0x4, "expand_down readable"), (0x5, "expand_down readable accessed"),
        (0x6, "expand_down readable writable"), (0x7, "expand_down readable writable accessed"), (0x8, "code"),
        (0x9, "code accessed"), (0xA, "code readable"), (0xB, "code readable accessed"), (0xC, "code conforming"),
        (0xD, "code conforming accessed"), (0xE, "code conforming readable"),
        (0xF, "code conforming readable accessed"),
    ],
)  # fmt: skip
def test_type_bits_as_in_the_table_code_and_data_segment_types(type_: int, words: str) -> None:
    segment = SegmentDescriptor(s=True, type=type_)
    every = ("code", "conforming", "expand_down", "readable", "writable", "accessed")
    assert " ".join(word for word in every if getattr(segment, word)) == words


@pytest.mark.parametrize(
    ("segment", "kind"),
    [
        (SegmentDescriptor(s=True, type=8, l=True), "code64"),
        (SegmentDescriptor(s=True, type=8, d_b=True), "code32"),
        (SegmentDescriptor(s=True, type=8), "code16"),
        (SegmentDescriptor(s=True, type=2, l=True), "data"),
        (SegmentDescriptor(s=False, type=8), "system"),
    ],
)
def test_kind_of_a_segment(segment: SegmentDescriptor, kind: str) -> None:
    assert segment.kind == kind


@pytest.mark.parametrize(
    ("limit", "g", "effective"),
    [(0, False, 0), (0, True, 0xFFF), (0xFFFFF, False, 0xFFFFF), (0xFFFFF, True, 2**32 - 1)],
)
def test_granularity(limit: int, g: bool, effective: int) -> None:
    assert SegmentDescriptor(limit=limit, g=g).effective_limit == effective
    assert SystemDescriptor(limit=limit, g=g).effective_limit == effective


@given(st.binary(max_size=400), st.lists(st.integers(0, 420), min_size=1, max_size=6), st.booleans())
def test_entries_within_ranges(data: bytes, edges: list[int], wide: bool) -> None:
    """The same as those of the whole walk that begin in one of the ranges."""
    edges = sorted(set(edges))
    parts = [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    gdt = Gdt.parse(data)
    every = [entry for entry in gdt.entries(wide=wide) if any(entry.selector in part for part in parts)]
    assert list(gdt.entries(wide=wide, within=parts)) == every
