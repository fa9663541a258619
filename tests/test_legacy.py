"""What images from before long mode hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x86tables import LegacyGate, LegacySystemDescriptor, NotThere, RealModeVector, Tss32, VectorTable, strategies


@given(strategies.any_table())
def test_every_vector_table_comes_back(data: bytes) -> None:
    table = VectorTable.parse(data)
    assert bytes(table) == data
    assert len(table) == min(len(data) // 4, 256)
    assert VectorTable.parse(bytes(table)) == table
    for vector in range(len(table)):
        assert bytes(table[vector]) == data[vector * 4 : vector * 4 + 4]
    with pytest.raises(NotThere, match=f"vector {len(table)}: the table has {len(table)}"):
        table[len(table)]


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_a_far_pointer_is_segment_times_16_and_offset(segment: int, offset: int) -> None:
    vector = RealModeVector.parse(offset.to_bytes(2, "little") + segment.to_bytes(2, "little"))
    assert vector.address == segment * 16 + offset


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (0x4, "call-gate16"), (0x5, "task-gate"), (0x6, "interrupt-gate16"), (0x7, "trap-gate16"),
        (0xC, "call-gate32"), (0xE, "interrupt-gate32"), (0xF, "trap-gate32"), (0x0, "refused"), (0x9, "refused"),
    ],
)  # fmt: skip
def test_gates_by_type(type_: int, kind: str) -> None:
    assert LegacyGate(type=type_, p=True).kind == kind
    assert LegacyGate(type=type_, p=True, s=True).kind == "refused"
    assert LegacyGate().kind == "absent"


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (0x1, "tss16-available"), (0x2, "ldt"), (0x3, "tss16-busy"), (0x9, "tss32-available"), (0xB, "tss32-busy"),
        (0x0, "refused"), (0x8, "refused"), (0xA, "refused"), (0xD, "refused"),
    ],
)  # fmt: skip
def test_system_descriptors_by_type(type_: int, kind: str) -> None:
    assert LegacySystemDescriptor(type=type_, p=True).kind == kind


def test_granularity() -> None:
    assert LegacySystemDescriptor(limit=0x67).effective_limit == 0x67
    assert LegacySystemDescriptor(limit=1, g=True).effective_limit == 0x1FFF


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("link", 0), ("esp0", 4), ("ss0", 8), ("esp2", 20), ("cr3", 28), ("eip", 32), ("eflags", 36), ("eax", 40),
        ("esp", 56), ("edi", 68), ("es", 72), ("cs", 76), ("gs", 92), ("ldt", 96), ("t", 100), ("iopb", 102),
    ],
)  # fmt: skip
def test_offsets_in_the_32_bit_tss(name: str, offset: int) -> None:
    assert Tss32.field(name).offset == offset
    assert Tss32.size == 104
