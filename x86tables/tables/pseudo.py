"""What LGDT and LIDT read, and the frame that the CPU pushes when it delivers an event."""

from __future__ import annotations

from .layout import Layout, bits


class PseudoDescriptor(Layout, size=10, cite="SDM Vol. 3A, figure 'Pseudo-Descriptor Formats'"):
    """Operand of LGDT and LIDT in 64-bit mode: a limit (the table's size less one) and a linear base."""

    base: int = bits[79:16]
    limit: int = bits[15:0]


class PseudoDescriptor32(Layout, size=6, cite="SDM Vol. 3A, figure 'Pseudo-Descriptor Formats'"):
    """Operand of LGDT and LIDT outside of 64-bit mode."""

    base: int = bits[47:16]
    limit: int = bits[15:0]


class Frame(Layout, size=40, cite="SDM Vol. 3A, figure 'IA-32e Mode Stack Usage After Privilege Level Change'"):
    """What delivery pushes in 64-bit mode, lowest address last in this list: always all five, SS first."""

    reserved1: int = bits[319:272]
    ss: int = bits[271:256]
    rsp: int = bits[255:192]
    rflags: int = bits[191:128]
    reserved0: int = bits[127:80]
    cs: int = bits[79:64]
    rip: int = bits[63:0]


class ErrorFrame(Layout, size=48, cite="SDM Vol. 3A, figure 'IA-32e Mode Stack Usage After Privilege Level Change'"):
    """The frame of an exception that pushes an error code, which lies below RIP."""

    reserved2: int = bits[383:336]
    ss: int = bits[335:320]
    rsp: int = bits[319:256]
    rflags: int = bits[255:192]
    reserved1: int = bits[191:144]
    cs: int = bits[143:128]
    rip: int = bits[127:64]
    reserved0: int = bits[63:32]
    error_code: int = bits[31:0]
