"""Operands of LGDT and LIDT, and the frame that delivery pushes."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from x86tables import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32

U16, U64 = st.integers(0, 0xFFFF), st.integers(0, 2**64 - 1)


@given(U16, U64)
def test_operands_are_limit_then_base(limit: int, base: int) -> None:
    assert bytes(PseudoDescriptor(limit=limit, base=base)) == struct.pack("<HQ", limit, base)
    assert bytes(PseudoDescriptor32(limit=limit, base=base >> 32)) == struct.pack("<HI", limit, base >> 32)


@given(U64, U16, U64, U64, U16, st.integers(0, 2**32 - 1))
def test_frames_are_quadwords_from_the_lowest_address(
    rip: int, cs: int, rflags: int, rsp: int, ss: int, code: int
) -> None:
    pushed = struct.pack("<QQQQQ", rip, cs, rflags, rsp, ss)
    frame = Frame.parse(pushed)
    assert (frame.rip, frame.cs, frame.rflags, frame.rsp, frame.ss) == (rip, cs, rflags, rsp, ss)
    assert bytes(frame) == pushed
    with_code = ErrorFrame.parse(struct.pack("<Q", code) + pushed)
    assert with_code.error_code == code
    assert {name: with_code[name] for name in ("rip", "cs", "rflags", "rsp", "ss")} == {
        name: frame[name] for name in ("rip", "cs", "rflags", "rsp", "ss")
    }


def test_what_the_cpu_leaves_in_the_upper_part_of_a_selector_slot_is_kept() -> None:
    pushed = struct.pack("<QQQQQ", 0, 0xDEAD_BEEF_CAFE_0010, 2, 0, 0)
    assert Frame.parse(pushed).cs == 0x10
    assert Frame.parse(pushed).reserved0 == 0xDEAD_BEEF_CAFE
    assert bytes(Frame.parse(pushed)) == pushed
