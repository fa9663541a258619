"""One value as people write it or paste it from a debugger: its bytes, which structure they are, and its fields."""

from __future__ import annotations

import re

from . import budgets
from .errors import UsageError
from .tables.gdt import CallGate, LegacySystemDescriptor, SegmentDescriptor, SystemDescriptor
from .tables.idt import Gate
from .tables.legacy import GATES, LegacyGate, RealModeVector, Tss32
from .tables.pseudo import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32
from .tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode, Star
from .tables.tss import Tss

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .tables.layout import Layout

KINDS: dict[str, type[Layout]] = {
    "segment": SegmentDescriptor, "system": SystemDescriptor, "call-gate": CallGate, "gate": Gate,
    "legacy-gate": LegacyGate, "legacy-system": LegacySystemDescriptor,
    "selector": Selector, "error-code": SelectorErrorCode, "page-fault-error": PageFaultErrorCode,
    "tss": Tss, "tss32": Tss32, "frame": Frame, "error-frame": ErrorFrame,
    "pseudo-descriptor": PseudoDescriptor, "pseudo-descriptor32": PseudoDescriptor32,
    "real-mode-vector": RealModeVector, "star": Star,
}  # fmt: skip
TYPES64 = {0x2, 0x9, 0xB, 0xC, 0xE, 0xF}  # what S=0 may be in 64-bit mode
EITHER = "descriptor"  # a GDT entry: its own bits say which layout it has

_ADDRESS = re.compile(r"(?<!\S)(?:0x)?[0-9a-f]+(?:[ \t]*<[^\n]{1,400}?>)?:(?!\S)", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"0x[0-9a-f]+", re.IGNORECASE | re.ASCII)
_PLAIN = re.compile(r"[0-9a-f]+", re.IGNORECASE | re.ASCII)
EXAMPLE = "0x00af9b000000ffff, or bytes in memory order such as ff ff 00 00 00 9b af 00"


def decode(text: str, kind: str | None = None) -> tuple[str, Layout]:
    """The kind and the value of a text as written or pasted; UsageError says what is wrong with it."""
    if kind is not None and kind not in (EITHER, *KINDS):
        raise UsageError(f"--as {_shorten(kind)}: no such kind; one of {EITHER}, {', '.join(KINDS)}")
    data, is_number = read(text)
    if kind is None:
        kind = _guess(data, is_number)
    elif kind == EITHER:
        data = _resize(data, 8 if len(data) <= 8 else 16, is_number, kind)
        kind = _descriptor(data)
    layout = KINDS[kind]
    return kind, layout.parse(_resize(data, layout.size, is_number, kind))


def read(text: str) -> tuple[bytes, bool]:
    """Bytes in memory order, and whether they were written as one number, which may be widened."""
    if len(text) > budgets.VALUE_TEXT:
        raise UsageError(f"more than {budgets.VALUE_TEXT} characters are not a single value: write one, {EXAMPLE}")
    words = _ADDRESS.sub(" ", text).replace(",", " ").split()
    if not words:
        raise UsageError(f"nothing to decode: write a value, {EXAMPLE}")
    numbers = [word for word in words if _NUMBER.fullmatch(word)]
    if len(numbers) == len(words):
        return (_words(numbers), False) if len(words) > 1 else (_little_endian(words[0]), True)
    strange = next((word for word in words if not _PLAIN.fullmatch(word) and word not in numbers), None)
    if strange:
        raise UsageError(f"{_shorten(strange)}: neither a 0x number nor hex digits; write {EXAMPLE}")
    if numbers:
        raise UsageError(f"{_shorten(numbers[0])} is mixed with plain hex bytes: write all with 0x, or none")
    digits = "".join(words)
    if len(digits) % 2:
        raise UsageError(f"{_shorten(digits)}: {len(digits)} hex digits are not whole bytes; a number begins with 0x")
    return bytes.fromhex(digits), False


def _little_endian(word: str) -> bytes:
    digits = word[2:]
    return bytes.fromhex(digits.zfill(len(digits) + 1 & ~1))[::-1]


def _words(words: list[str]) -> bytes:
    """Debugger words of one width, each little-endian, the lowest address first."""
    widths = {len(word) - 2 for word in words}
    if len(widths) > 1 or widths.isdisjoint((2, 4, 8, 16)):
        odd = next((word for word in words if len(word) - 2 not in (2, 4, 8, 16)), words[-1])
        raise UsageError(
            f"{_shorten(odd)}: words must all have one width, 2, 4, 8 or 16 digits, as a debugger's x command "
            "prints them"
        )
    return b"".join(map(_little_endian, words))


def _resize(data: bytes, size: int, is_number: bool, kind: str) -> bytes:
    """A number in the width of its layout; bytes must have it already."""
    if is_number:
        data = data.rstrip(b"\0").ljust(size, b"\0")
    if len(data) != size:
        hint = "; a number begins with 0x" if len(data) < size else ""
        raise UsageError(f"{kind}: {_count(size)} expected, {len(data)} found{hint}")
    return data


def _guess(data: bytes, is_number: bool) -> str:
    """The kind that the size and the type bits leave; UsageError with the choice when they leave several."""
    size = len(data)
    found, widest = _count(size), size
    if is_number and size not in (2, 4, 8, 16):  # its leading zeros were left out
        found = f"a number of {found}"
        widest = next((width for width in (4, 8, 16) if width >= size), size)
    kinds = [kind for kind, layout in KINDS.items() if size <= layout.size <= widest]
    if not kinds:
        known = ", ".join(map(str, sorted({layout.size for layout in KINDS.values()})))
        raise UsageError(f"{found}: no structure has this size; known sizes are {known} bytes")
    if len(kinds) == 1 and widest == size:
        return kinds[0]
    if size in (8, 16):
        sure = _by_type(data)
        if sure:
            return sure
        s, number = _type_bits(data)
        found += f" with S={int(s)} and type {number:#x}"
        if size == 8:
            kinds.remove("segment")
            found += ", in 64-bit mode the first half of 16," if number in TYPES64 else ""
        elif s:
            found += ", perhaps two segment descriptors,"
    choice = " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
    raise UsageError(f"{found} may be several structures: say --as {choice}")


def _by_type(data: bytes) -> str:
    """The kind of 8 or 16 bytes whose S and type bits can only mean one; else nothing."""
    s, number = _type_bits(data)
    if len(data) == 8:
        # types that 64-bit mode does not have are protected mode's; the others may be half of a wide descriptor
        return _descriptor(data) if s or not any(data) or number in {0x1, 0x3, 0x4, 0x5, 0x6, 0x7} else ""
    return "" if s or number not in TYPES64 else "gate" if number in (0xE, 0xF) else _descriptor(data)


def _descriptor(data: bytes) -> str:
    """The kind of a descriptor-table entry of 8 bytes (protected mode where S=0) or 16."""
    s, number = _type_bits(data)
    if len(data) == 16:
        return "call-gate" if number == 0xC and not s else "system"
    return "segment" if s or not any(data) else "legacy-gate" if number in GATES else "legacy-system"


def _type_bits(data: bytes) -> tuple[bool, int]:
    """S and type, which lie at the same place in every descriptor and gate."""
    head = SegmentDescriptor.parse(data[:8])
    return head.s, head.type


def _count(count: int) -> str:
    return f"{count} byte{'' if count == 1 else 's'}"


def _shorten(word: str) -> str:
    return repr(word if len(word) <= 40 else f"{word[:40]}...")
