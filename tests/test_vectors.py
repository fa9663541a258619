"""The exceptions, against the tables of both manuals."""

import pytest

from x86tables import EXCEPTIONS, UsageError, Vector
from x86tables.tables.vectors import BENIGN, CONTRIBUTORY, DOUBLE_FAULT, PAGE_FAULT, label, number


def test_the_32_rows_are_in_order() -> None:
    assert [vector.number for vector in EXCEPTIONS] == list(range(32))
    assert " ".join(vector.mnemonic for vector in EXCEPTIONS if vector.mnemonic) == (
        "#DE #DB NMI #BP #OF #BR #UD #NM #DF #TS #NP #SS #GP #PF #MF #AC #MC #XM #VE #CP #HV #VC #SX"
    )


def test_vectors_that_push_an_error_code() -> None:
    assert [vector.number for vector in EXCEPTIONS if vector.error_code] == [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]


def test_double_fault_classes_of_intel() -> None:
    # Interrupt and Exception Classes
    assert {v.number for v in EXCEPTIONS if v.intel == CONTRIBUTORY} == {0, 10, 11, 12, 13, 21}
    assert {v.number for v in EXCEPTIONS if v.intel == PAGE_FAULT} == {14, 20}
    assert {v.number for v in EXCEPTIONS if v.intel == DOUBLE_FAULT} == {8}


def test_double_fault_classes_of_amd_agree_on_what_both_have() -> None:
    both = {*range(20), 21}
    assert all(v.amd == v.intel for v in EXCEPTIONS if v.number in both)
    assert EXCEPTIONS[20].amd == BENIGN  # AMD has no virtualization exception


@pytest.mark.parametrize("row", EXCEPTIONS, ids=lambda row: str(row.number))
def test_a_vector_by_its_mnemonic(row: Vector) -> None:
    assert number(row.number) == row.number
    assert label(row.number) == (row.mnemonic or str(row.number))
    if row.mnemonic:
        assert number(row.mnemonic) == number(row.mnemonic.lower()) == row.number


def test_labels_of_interrupts() -> None:
    assert [label(32), label(0x80), label(255)] == ["0x20", "0x80", "0xff"]


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (256, "vector 256: a vector is 0..255"),
        (-1, "vector -1: a vector is 0..255"),
        ("DF", "vector 'DF': not a mnemonic; one of #DE, #DB, NMI, "),
        ("", "vector '': not a mnemonic; one of #DE, "),
    ],
)
def test_what_is_no_vector_is_refused(vector: int | str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        number(vector)
    assert str(caught.value).startswith(message)
