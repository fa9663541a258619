"""The 64-bit TSS and its I/O permission bitmap, the latter against the CPU's rule, port by port."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x86tables import IoMap, Tss, UsageError, strategies


def test_pointers_are_where_the_manual_has_them() -> None:
    assert (Tss.size, Tss.field("iopb").offset) == (104, 0x66)
    data = bytearray(104)
    for number in range(3):
        data[4 + 8 * number : 12 + 8 * number] = (0x1000 + number).to_bytes(8, "little")
    for number in range(1, 8):
        data[0x1C + 8 * number : 0x24 + 8 * number] = (0x2000 + number).to_bytes(8, "little")
    tss = Tss.parse(data)
    assert tss.rsp == (0x1000, 0x1001, 0x1002)
    assert tss.ist == (0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006, 0x2007)
    assert (tss.ist1, tss.ist7, tss.iopb) == (0x2001, 0x2007, 0)


def allowed(segment: bytes, iopb: int, port: int) -> bool:
    """The CPU's check of a one-byte access: both bytes of a word must lie within the limit, and the bit be clear."""
    at = iopb + port // 8
    if at + 1 > len(segment) - 1:
        return False
    return not int.from_bytes(segment[at : at + 2], "little") >> port % 8 & 1


def opened(io_map: IoMap | None) -> set[int]:
    return {port for ports in (io_map.open_ports if io_map else []) for port in ports}


@settings(max_examples=30)
@given(st.binary(max_size=60), st.integers(0, 220), st.booleans())
def test_open_ports_are_those_the_cpu_lets_through(behind: bytes, iopb: int, long: bool) -> None:
    segment = bytes(Tss(iopb=iopb)) + behind + b"\xfe" * (9000 if long else 0)
    found = opened(IoMap.of(segment, iopb))
    # no port beyond what the segment holds can be open: the CPU's check need not be run on all 65536
    last = min(65536, len(segment) * 8)
    assert found == {port for port in range(last) if allowed(segment, iopb, port)}


@given(strategies.io_maps())
def test_open_ports_are_ranges_that_do_not_touch(io_map: IoMap) -> None:
    runs = io_map.open_ports
    assert all(before.stop < after.start for before, after in pairwise(runs))
    assert all(len(run) for run in runs)


@given(st.sets(st.integers(0, 0xFFFF), max_size=20))
def test_allowing_opens_just_these_ports(ports: set[int]) -> None:
    io_map = IoMap.allowing(ports)
    assert opened(io_map) == ports
    assert io_map.closed
    assert len(bytes(io_map)) == max(ports, default=-8) // 8 + 2
    segment = bytes(Tss()) + bytes(io_map)
    assert {port for port in ports if allowed(segment, 0x68, port)} == ports


@pytest.mark.parametrize("port", [-1, 0x10000])
def test_a_port_has_16_bits(port: int) -> None:
    with pytest.raises(UsageError, match=f"port {port:#x}: a port is 0"):
        IoMap.allowing([port])


@pytest.mark.parametrize(
    ("limit", "iopb", "raw"),
    [
        (0x67, 0x68, None),  # the usual way to have none
        (0x67, 0xFFFF, None),
        (0x67, 0x67, b"\x00"),  # one byte of the TSS itself: no word of it is within the limit, so no port is open
        (0x68, 0x68, b"\xaa"),
        (0x69, 0x68, b"\xaa\xaa"),
    ],
)
def test_where_a_bitmap_begins(limit: int, iopb: int, raw: bytes | None) -> None:
    segment = (bytes(Tss(iopb=0x68)) + b"\xaa\xaa")[: limit + 1]
    io_map = IoMap.of(segment, iopb)
    assert (io_map and bytes(io_map)) == raw
    if raw is not None and len(raw) == 1:
        assert opened(io_map) == set()


def test_a_base_of_zero_opens_ports_by_the_bytes_of_the_tss() -> None:
    segment = bytes(Tss(rsp0=0xFFFF_FFFF_FFFF_FF00, iopb=0))
    io_map = IoMap.of(segment, 0)
    assert io_map is not None
    assert io_map.open_ports == [range(40), range(96, 103 * 8)]
    assert not io_map.closed


def test_a_bitmap_reaches_8193_bytes_at_most() -> None:
    io_map = IoMap.of(bytes(104) + bytes(9000), 104)
    assert io_map is not None
    assert len(bytes(io_map)) == 8193
    assert io_map.open_ports == [range(65536)]
