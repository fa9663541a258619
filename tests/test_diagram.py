"""Bit diagrams: whole drawings, and that each layout's drawing is complete, plain and narrow enough."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x86tables import Gate, Layout, PageFaultErrorCode, PseudoDescriptor32, SegmentDescriptor, Selector
from x86tables.decode import KINDS
from x86tables.render.diagram import diagram

SEGMENT = r"""
 31   24 23  22 21  20 19 16 15 14 13 12 11 8 7     0
+-------+--+---+--+---+-----+--+-----+--+----+-------+
|  base |g |d_b|l |avl|limit|p | dpl |s |type|  base |
| 31:24 |  |   |  |   |19:16|  |     |  |    | 23:16 |
|  0x0  |1 | 0 |1 | 0 | 0xf |1 |  0  |1 |0xb |  0x0  | +0x4
+-------+--+---+--+---+-----+--+-----+--+----+-------+
 31                       16 15                     0
+---------------------------+------------------------+
|            base           |         limit          |
|            15:0           |          15:0          |
|            0x0            |         0xffff         | +0x0
+---------------------------+------------------------+
"""

GATE = r"""
 31                                                                0
+-------------------------------------------------------------------+
|                          reserved1 = 0x0                          | +0xc
+-------------------------------------------------------------------+
|                     offset 63:32 = 0xffffffff                     | +0x8
+-------------------------------------------------------------------+
 31                           16 15 14 13 12 11    8 7       3 2   0
+-------------------------------+--+-----+--+-------+---------+-----+
|             offset            |p | dpl |s |  type |reserved0| ist |
|             31:16             |  |     |  |       |         |     |
|             0x8100            |1 |  0  |0 |  0xe  |   0x0   |  1  | +0x4
+-------------------------------+--+-----+--+-------+---------+-----+
 31                           16 15                                0
+-------------------------------+-----------------------------------+
|            selector           |               offset              |
|                               |                15:0               |
|              0x8              |                0x0                | +0x0
+-------------------------------+-----------------------------------+
"""

SELECTOR = r"""
 15                      3 2  1 0
+-------------------------+--+---+
|          index          |ti|rpl|
|           0x6           |0 | 3 |
+-------------------------+--+---+
"""

PAGE_FAULT = r"""
  31 30          16  15 14      8  7   6  5  4   3   2  1  0
+---+--------------+---+---------+----+--+--+--+----+--+--+-+
|rmp|  reserved1   |sgx|reserved0|hlat|ss|pk|id|rsvd|us|wr|p|
| 0 |     0x0      | 0 |   0x0   | 0  |0 |0 |0 | 0  |0 |1 |0|
+---+--------------+---+---------+----+--+--+--+----+--+--+-+
"""

PSEUDO = r"""
                                 15                            0
                                +-------------------------------+
                                |      base 31:16 = 0xffff      | +0x4
                                +-------------------------------+
 31                           16 15                            0
+-------------------------------+-------------------------------+
|              base             |             limit             |
|              15:0             |                               |
|             0x1000            |              0x7f             | +0x0
+-------------------------------+-------------------------------+
"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (SegmentDescriptor.kernel_code(), SEGMENT),
        (Gate.interrupt(0xFFFF_FFFF_8100_0000, 8, ist=1), GATE),
        (Selector.from_int(0x33), SELECTOR),
        (PageFaultErrorCode.from_int(2), PAGE_FAULT),
        (PseudoDescriptor32(base=0xFFFF1000, limit=0x7F), PSEUDO),
    ],
    ids=["segment", "gate", "selector", "page-fault-error", "pseudo-descriptor32"],
)
def test_drawing(value: Layout, expected: str) -> None:
    assert diagram(value) == expected.strip("\n")


def values(drawing: str) -> list[list[int]]:
    """The numbers in the boxes, row by row, as a reader would take them."""
    rows, last = [], ""
    for line in drawing.splitlines():
        if "+-" in line and last.strip().startswith("|"):
            boxes = last.strip().split("|")[1:-1]
            rows.append([int(box.split("=")[-1], 0) for box in boxes])
        last = line
    return rows


@given(st.sampled_from(list(KINDS.values())), st.data())
def test_every_layout(layout: type[Layout], data: st.DataObject) -> None:
    """The boxes hold the whole value and nothing else, in plain characters, within 80 columns."""
    raw = data.draw(
        st.sampled_from([bytes(layout.size), b"\xff" * layout.size])
        | st.binary(min_size=layout.size, max_size=layout.size)
    )
    drawing = diagram(layout.parse(raw))
    assert drawing.isascii()
    assert max(map(len, drawing.splitlines())) <= 80
    edges: list[list[tuple[int, int]]] = []
    for base in range((layout.size - 1) // 4 * 32, -1, -32):
        parts = [(low, low + width) for field in layout.fields for _, low, width in field.parts]
        inside = [(max(low, base), min(top, base + 32)) for low, top in parts]
        edges.append(sorted(((low, top) for low, top in inside if low < top), reverse=True))
    number = 0
    for row, places in zip(values(drawing), edges, strict=True):
        for value, (low, top) in zip(row, places, strict=True):
            assert value < 1 << top - low
            number |= value << low
    assert number.to_bytes(layout.size, "little") == raw


@pytest.mark.parametrize("layout", KINDS.values(), ids=KINDS)
def test_borders_meet(layout: type[Layout]) -> None:
    """In each row of boxes the bars stand where the corners above and below them are."""
    lines = diagram(layout.parse(b"\xff" * layout.size)).splitlines()
    for above, line in pairwise(lines):
        if "|" in line:
            bars = [at for at, char in enumerate(line) if char == "|"]
            assert bars == [at for at, char in enumerate(above[: bars[-1] + 1]) if char in "+|"]
