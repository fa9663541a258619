"""Gates and their table, of any limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x86tables import EXCEPTIONS, Gate, Idt, NotThere, Selector, UsageError, strategies

HANDLER = 0xFFFF_FFFF_8100_1234


@given(strategies.any_table(max_size=5000))
def test_every_table_comes_back(data: bytes) -> None:
    idt = Idt.parse(data)
    assert bytes(idt) == data
    assert Idt.parse(bytes(idt)) == idt
    assert idt.limit == len(data) - 1
    assert len(idt) == min(len(data) // 16, 256)
    assert list(idt) == [Gate.parse(data[at : at + 16]) for at in range(0, len(idt) * 16, 16)]
    assert idt.tail == data[len(idt) * 16 :]


@given(strategies.any_table(), st.integers(0, 255))
def test_a_gate_is_there_if_the_limit_covers_all_of_it(data: bytes, vector: int) -> None:
    idt = Idt.parse(data)
    assert (vector in idt) == (vector * 16 + 15 <= idt.limit)
    if vector in idt:
        assert bytes(idt[vector]) == data[vector * 16 : vector * 16 + 16]
    else:
        with pytest.raises(NotThere, match=f"vector {vector}: the limit {idt.limit:#x} covers {len(idt)} gates"):
            idt[vector]


def test_a_limit_of_0xffff_covers_256_vectors_and_keeps_the_rest() -> None:
    data = bytes(Gate(ist=1)) * 4096
    idt = Idt.parse(data)
    assert (len(idt), idt.limit, len(idt.tail)) == (256, 0xFFFF, 0x10000 - 4096)
    assert bytes(idt) == data
    assert idt[255].ist == 1
    with pytest.raises(UsageError, match="a vector is 0"):
        idt[256]


@pytest.mark.parametrize(
    ("limit", "gates", "tail"), [(-1, 0, 0), (14, 0, 15), (15, 1, 0), (0x8E, 8, 15), (0x1FF, 32, 0)]
)
def test_a_table_shorter_than_the_exceptions(limit: int, gates: int, tail: int) -> None:
    idt = Idt.parse(bytes(limit + 1))
    assert (len(idt), len(idt.tail), idt.limit) == (gates, tail, limit)
    assert ("#DF" in idt) == (gates > 8)
    with pytest.raises(NotThere):
        idt[gates]


def test_the_gate_of_the_double_fault_when_only_half_of_it_is_covered() -> None:
    idt = Idt.parse(bytes(Gate(p=True)) * 9)
    assert idt["#DF"].p
    with pytest.raises(NotThere, match="vector 8: the limit 0x8e covers 8 gates"):
        Idt.parse(bytes(idt)[:-1])["#DF"]


def test_a_vector_by_number_or_by_mnemonic() -> None:
    idt = Idt()
    gate = Gate.interrupt(HANDLER, 8, ist=1)
    idt["#DF"] = gate
    assert idt[8] == idt["#DF"] == idt["#df"] == gate
    for vector in EXCEPTIONS:
        if vector.mnemonic:
            idt[vector.mnemonic] = Gate(offset=vector.number)
            assert idt[vector.number].offset == vector.number
    with pytest.raises(UsageError, match="vector '#ZZ': not a mnemonic; one of #DE, #DB, NMI"):
        idt["#ZZ"]
    with pytest.raises(UsageError, match="vector -1: a vector is 0"):
        idt[-1] = gate


@given(strategies.idts())
def test_a_well_formed_table_has_gates_or_absent_ones(idt: Idt) -> None:
    assert {gate.kind for gate in idt} <= {"interrupt", "trap", "absent"}
    assert idt.tail == b""
    again = Idt(len(idt))
    for vector, gate in enumerate(idt):
        again[vector] = gate
    assert again == idt


def test_a_frozen_table_refuses_changes() -> None:
    idt = Idt(32)
    idt[3] = Gate(dpl=3)
    idt.freeze()
    with pytest.raises(UsageError, match="is frozen: change a copy"):
        idt[3] = Gate()
    assert idt[3].dpl == 3
    assert idt == Idt.parse(bytes(idt))


@pytest.mark.parametrize("count", [-1, 257])
def test_a_table_has_at_most_256_gates(count: int) -> None:
    with pytest.raises(UsageError, match=f"count={count}: an IDT has 0"):
        Idt(count)


def test_tables_of_other_content_differ() -> None:
    assert Idt(2) == Idt.parse(bytes(32))
    assert Idt(2) != Idt(3)
    assert Idt(2) != Idt.parse(bytes(33))
    other: object = bytes(32)
    assert Idt(2) != other
    assert repr(Idt.parse(bytes(Gate(p=True)) + bytes(16))) == "Idt(2 gates, 1 present)"


@pytest.mark.parametrize(
    ("gate", "word"),
    [
        (Gate.interrupt(HANDLER, 8), 0x8E00),
        (Gate.interrupt(HANDLER, 8, ist=1), 0x8E01),
        (Gate.trap(HANDLER, 8), 0x8F00),
        (Gate.interrupt(HANDLER, 8, dpl=3), 0xEE00),
        (Gate.trap(HANDLER, Selector(index=1), ist=7, dpl=3), 0xEF07),
    ],
)
def test_constructors_make_the_published_bits(gate: Gate, word: int) -> None:
    assert bytes(gate) == b"\x34\x12\x08\x00" + word.to_bytes(2, "little") + b"\x00\x81\xff\xff\xff\xff" + bytes(4)


@pytest.mark.parametrize("type_", range(16))
def test_64_bit_mode_knows_interrupt_and_trap_gates_only(type_: int) -> None:
    kind = {0xE: "interrupt", 0xF: "trap"}.get(type_, "refused")
    assert Gate(type=type_, p=True).kind == kind
    assert Gate(type=type_, p=True, s=True).kind == "refused"
    assert Gate().kind == "absent"
