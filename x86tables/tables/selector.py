"""Segment selectors, the error codes that name them, and the register that SYSCALL and SYSRET take them from."""

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


class Star(Layout, size=8, cite="SDM Vol. 3A, figure 'MSRs Used by SYSCALL and SYSRET'"):
    """IA32_STAR: the selectors that SYSCALL and SYSRET load without reading the GDT.

    The properties give them as 64-bit code sees them loaded, after SYSRET with the RPL 3 that Intel sets; AMD leaves
    the RPL of SS as it is here (APM Vol. 3, SYSRET). Sums are of 16 bits.
    """

    user: int = bits[63:48]
    kernel: int = bits[47:32]
    eip: int = bits[31:0]

    @property
    def syscall_cs(self) -> int:
        """CS after SYSCALL: its RPL is cleared."""
        return self.kernel & 0xFFFC

    @property
    def syscall_ss(self) -> int:
        """SS after SYSCALL: the RPL stays."""
        return self.kernel + 8 & 0xFFFF

    @property
    def sysret_cs(self) -> int:
        """CS after SYSRET to 64-bit code."""
        return self.user + 16 & 0xFFFF | 3

    @property
    def sysret_ss(self) -> int:
        """SS after SYSRET."""
        return self.user + 8 & 0xFFFF | 3


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
