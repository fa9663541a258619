"""Selectors and error codes: what they name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x86tables import PageFaultErrorCode, Selector, SelectorErrorCode


@given(st.integers(0, 0xFFFF))
def test_selector_is_index_table_and_privilege(number: int) -> None:
    selector = Selector.from_int(number)
    assert (selector.index, selector.ti, selector.rpl) == (number // 8, bool(number & 4), number % 4)
    assert int(selector) == number
    assert selector.null == (number in (0, 1, 2, 3))


def test_a_selector_is_a_number_where_one_is_wanted() -> None:
    assert f"{int(Selector(index=4, rpl=3)):#x}" == "0x23"
    assert ["a", "b"][Selector.from_int(1)] == "b"


@pytest.mark.parametrize("vector", [0, 8, 13, 128, 255])
def test_error_code_of_a_gate_is_the_vector_times_eight(vector: int) -> None:
    code = SelectorErrorCode.from_int(vector * 8 + 2)
    assert (code.index, code.idt, code.ti, code.ext) == (vector, True, False, False)


@given(st.integers(0, 0xFFFF), st.booleans())
def test_error_code_of_a_selector_drops_its_rpl(selector: int, external: bool) -> None:
    code = SelectorErrorCode.from_int(selector & 0xFFFC | external)
    named = Selector.from_int(selector)
    assert (code.index, code.ti, code.idt, code.ext) == (named.index, named.ti, False, external)


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0, "p"), (1, "wr"), (2, "us"), (3, "rsvd"), (4, "id"), (5, "pk"), (6, "ss"), (7, "hlat"), (15, "sgx"),
        (31, "rmp"),
    ],
)  # fmt: skip
def test_page_fault_error_code_bits(bit: int, name: str) -> None:
    code = PageFaultErrorCode.from_int(1 << bit)
    assert [field for field, value in code.asdict().items() if value] == [name]
