"""Functions that keep data below RSP, by their code: what a compiler did that has recorded no options, as rustc.

Only stores to [RSP - N] tell. None are found in kernels without a red zone (62,000 functions of Linux, 4,300 of Xen); a
function may have a red zone and use it by way of RBP or an index alone, so that having found none says nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from .. import budgets
from ..elf import LOAD, X86_64, Elf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTION = 2  # type of a symbol
EXECUTABLE = "x"
# ModRM and SIB of [RSP + a displacement of 8 bits], and a negative one: the red zone has 128 bytes
_BELOW = re.compile(rb"(?=[\x44\x4c\x54\x5c\x64\x6c\x74\x7c]\x24[\x80-\xff])", re.DOTALL)


def below_rsp(elf: Elf) -> tuple[str, ...]:
    """Names of some functions that store below RSP; none where there are none, or without the package iced-x86."""
    if elf.machine != X86_64:
        return ()
    try:
        import iced_x86  # noqa: F401
    except ImportError:  # an extra
        return ()
    functions = sorted((at, size, name) for name, at, size, info, _ in elf.symbols() if info & 15 == FUNCTION and size)
    found, left = dict[str, None](), budgets.DECODED_CODE
    for start, code in _executable(elf):
        past = start
        for match in _BELOW.finditer(code):
            number = bisect_right(functions, (start + match.start(), 1 << 64, "")) - 1
            at, size, name = functions[number] if number >= 0 else (0, 0, "")
            if start + match.start() < past or not start <= at <= start + match.start() < at + size:
                continue  # judged already, or not in a function
            past = at + size
            left -= size
            if left < 0 or len(found) == budgets.NAMED_FILES:
                return tuple(found)
            if _stores(code[at - start : past - start]):
                found[name] = None
    return tuple(found)


def _executable(elf: Elf) -> Iterator[tuple[int, bytes]]:
    """Address and bytes of each segment with code."""
    for segment in elf.segments(LOAD):
        if EXECUTABLE in segment.permissions:
            yield segment.vaddr, elf.data[segment.offset : segment.offset + segment.filesz]


def _stores(code: bytes) -> bool:
    """Whether a function stores to [RSP - N]. Not a LOCK ADD of 0 there, which changes nothing and is a barrier."""
    from iced_x86 import Decoder, InstructionInfoFactory, OpAccess, Register

    used = InstructionInfoFactory()
    return any(
        instruction.memory_base == Register.RSP
        and instruction.memory_index == Register.NONE
        and instruction.memory_displacement >> 63
        and any(memory.access == OpAccess.WRITE for memory in used.info(instruction).used_memory())
        for instruction in Decoder(64, code)
    )
