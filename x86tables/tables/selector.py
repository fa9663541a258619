"""Segment selectors, and the error codes that name them."""

from __future__ import annotations

from .layout import Layout, bits


class Selector(Layout, size=2, cite="SDM Vol. 3A, figure 'Segment Selector'"):
    """What a segment register holds: an index into the GDT (TI=0) or the LDT (TI=1), and a privilege level."""

    index: int = bits[15:3]
    ti: bool = bits[2]
    rpl: int = bits[1:0]

    @property
    def null(self) -> bool:
        """Whether this is a null selector: index 0 of the GDT, whatever its RPL."""
        return self.index == 0 and not self.ti


class SelectorErrorCode(Layout, size=4, cite="SDM Vol. 3A, figure 'Error Code'"):
    """The error code of #TS, #NP, #SS and #GP: which descriptor or gate the fault is about.

    With `idt` the index counts gates (index = vector), otherwise descriptors. Note that delivery faults use index*8
    in 64-bit mode too, although a gate has 16 bytes there.
    """

    reserved: int = bits[31:16]
    index: int = bits[15:3]
    ti: bool = bits[2]
    idt: bool = bits[1]
    ext: bool = bits[0]


class PageFaultErrorCode(
    Layout, size=4, cite="SDM Vol. 3A, figure 'Page-Fault Error Code'; AMD APM Vol. 2, figure 'Page-Fault Error Code'"
):
    """Why a page fault happened; RMP is AMD's, HLAT and SGX are Intel's."""

    rmp: bool = bits[31]
    reserved1: int = bits[30:16]
    sgx: bool = bits[15]
    reserved0: int = bits[14:8]
    hlat: bool = bits[7]
    ss: bool = bits[6]
    pk: bool = bits[5]
    id: bool = bits[4]
    rsvd: bool = bits[3]
    us: bool = bits[2]
    wr: bool = bits[1]
    p: bool = bits[0]
