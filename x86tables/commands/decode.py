"""Show one descriptor, gate, selector or error code in words and bits.

VALUE is one of
  0x00af9b000000ffff       a number; its digits, leading zeros too, tell the width
  ff ff 00 00 00 9b af 00  bytes in memory order, with or without spaces
  0x0000ffff 0x00af9b00    words as gdb and QEMU print them (x/2wx, x/1gx), with or
                           without their ADDRESS: column, also as one pasted text
  -                        any of these on standard input

KIND is descriptor (a GDT entry: segment, system, call-gate, legacy-gate or
legacy-system by its own bits) or one of
  segment system call-gate gate legacy-gate legacy-system selector error-code
  page-fault-error pseudo-descriptor pseudo-descriptor32 tss tss32 frame
  error-frame real-mode-vector
A number shorter than its kind is widened with zeros.

With --in IMAGE an error-code is looked up in the tables of the image: the gate or
descriptor that it names on each CPU, and what is wrong with that; a page-fault-error
with --address ADDR (what CR2 held): the entries of the walk to it.
"""

from __future__ import annotations

import re
import sys

from ..errors import UsageError
from ..tables.gdt import CallGate, LegacySystemDescriptor, SegmentDescriptor, SystemDescriptor
from ..tables.idt import Gate
from ..tables.legacy import GATES, LegacyGate, RealModeVector, Tss32
from ..tables.pseudo import ErrorFrame, Frame, PseudoDescriptor, PseudoDescriptor32
from ..tables.selector import PageFaultErrorCode, Selector, SelectorErrorCode
from ..tables.tss import Tss
from ._image import add_image_arguments, chosen, image_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    from ..tables.layout import Layout

KINDS: dict[str, type[Layout]] = {
    "segment": SegmentDescriptor, "system": SystemDescriptor, "call-gate": CallGate, "gate": Gate,
    "legacy-gate": LegacyGate, "legacy-system": LegacySystemDescriptor,
    "selector": Selector, "error-code": SelectorErrorCode, "page-fault-error": PageFaultErrorCode,
    "tss": Tss, "tss32": Tss32, "frame": Frame, "error-frame": ErrorFrame,
    "pseudo-descriptor": PseudoDescriptor, "pseudo-descriptor32": PseudoDescriptor32,
    "real-mode-vector": RealModeVector,
}  # fmt: skip
TYPES64 = {0x2, 0x9, 0xB, 0xC, 0xE, 0xF}  # what S=0 may be in 64-bit mode
EITHER = "descriptor"  # a GDT entry: its own bits say which layout it has

_ADDRESS = re.compile(r"(?<!\S)(?:0x)?[0-9a-f]+(?:[ \t]*<[^\n]{1,400}?>)?:(?!\S)", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"0x[0-9a-f]+", re.IGNORECASE | re.ASCII)
_PLAIN = re.compile(r"[0-9a-f]+", re.IGNORECASE | re.ASCII)
_LONGEST = 1 << 16  # characters; the largest structure is 104 bytes
_SHOWN_AS = "0x00af9b000000ffff, or bytes in memory order such as ff ff 00 00 00 9b af 00"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `decode` takes."""
    parser.add_argument("value", nargs="+", metavar="VALUE", help="what to decode")
    parser.add_argument("--as", dest="kind", metavar="KIND", help="what it is, where that is not clear")
    parser.add_argument("--address", metavar="ADDR", help="the address of a page-fault-error, as CR2 has it")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="for people or for programs")
    add_image_arguments(parser, option="--in")


def run(args: argparse.Namespace) -> int:
    """Decode one value and print it."""
    text = _standard_input() if args.value == ["-"] else " ".join(args.value)
    kind, value = decode(text, args.kind)
    found = None
    if args.image is not None:
        found = pointed_at(args, kind, value)
    elif args.address is not None:
        raise UsageError("--address is looked up in an image: give --in IMAGE")
    if args.format == "json":
        print(as_json(kind, value, found))
        return 0
    print(as_text(kind, value))
    if found is not None:
        from ..render import pointed

        print("\n".join(pointed.text(found)))
    return 0


def pointed_at(args: argparse.Namespace, kind: str, value: Layout) -> list[dict[str, Any]]:
    """What an error code means in an image, CPU by CPU."""
    from ..readers import address
    from ..render import pointed

    if not isinstance(value, SelectorErrorCode | PageFaultErrorCode):
        raise UsageError(f"--in: only --as error-code and --as page-fault-error are looked up in an image, no {kind}")
    if isinstance(value, PageFaultErrorCode) == (args.address is None):
        wants = "--address ADDR (CR2)" if args.address is None else "no --address"
        raise UsageError(f"--as {kind} --in takes {wants}")
    image = image_from(args)
    machines = chosen(image, args)
    if isinstance(value, SelectorErrorCode):
        return pointed.selector_error(image, machines, value)
    return pointed.page_fault(machines, value, address(args.address, image.symbols))


def decode(text: str, kind: str | None = None) -> tuple[str, Layout]:
    """The kind and the value of what somebody wrote or pasted; UsageError says what is wrong with it."""
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
    if len(text) > _LONGEST:
        raise UsageError(f"more than {_LONGEST} characters are no single value: write one, {_SHOWN_AS}")
    words = _ADDRESS.sub(" ", text).replace(",", " ").split()
    if not words:
        raise UsageError(f"nothing to decode: write a value, {_SHOWN_AS}")
    numbers = [word for word in words if _NUMBER.fullmatch(word)]
    if len(numbers) == len(words):
        return (_words(numbers), False) if len(words) > 1 else (_little_endian(words[0]), True)
    strange = next((word for word in words if not _PLAIN.fullmatch(word) and word not in numbers), None)
    if strange:
        raise UsageError(f"{_shorten(strange)}: neither a 0x number nor hex digits; write {_SHOWN_AS}")
    if numbers:
        raise UsageError(f"{_shorten(numbers[0])} stands among plain hex bytes: write all with 0x, or none")
    digits = "".join(words)
    if len(digits) % 2:
        raise UsageError(f"{_shorten(digits)}: {len(digits)} hex digits are no whole bytes; a number begins with 0x")
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
            f"{_shorten(odd)}: several words are all of one width, 2, 4, 8 or 16 digits, as a debugger's x command "
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
        raise UsageError(f"{found}: no structure has this size; there are {known} bytes")
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
    raise UsageError(f"{found} may be several things: say --as {choice}")


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


def as_text(kind: str, value: Layout) -> str:
    """The value, its bytes, its meaning, what is odd, and the diagram."""
    from ..render.anomalies import oddities
    from ..render.describe import meaning
    from ..render.diagram import diagram

    number = f"0x{int(value):0{value.size * 2}x}" if value.size <= 16 else f"{value.size} bytes"
    rows = [(kind, [number]), ("bytes", [bytes(value).hex(" ")])]
    rows += [("meaning", meaning(value).split("; ")), ("odd", oddities(value) or ["nothing"])]
    indent = max(len(kind), len("meaning")) + 2
    lines = [line for label, texts in rows for line in _labelled(label, texts, indent)]
    return "\n".join([*lines, "", diagram(value)])


def _labelled(label: str, texts: list[str], indent: int) -> Iterator[str]:
    """The texts below each other behind their label, wrapped to 80 columns; bytes 16 to a line."""
    import textwrap

    width = 48 if label == "bytes" else 80 - indent
    for text in texts:
        for line in textwrap.wrap(text, width, break_on_hyphens=False):
            yield f"{label:<{indent}}{line}"
            label = ""


def as_json(kind: str, value: Layout, found: list[dict[str, Any]] | None = None) -> str:
    """One object: `schema`, `kind` (as `--as` takes it), `raw`, `fields`, `meaning`, `odd`, and what is `in_image`."""
    import json

    from ..render.anomalies import oddities
    from ..render.describe import meaning

    told: dict[str, Any] = {
        "raw": bytes(value).hex(),
        "fields": fields(value),
        "meaning": meaning(value),
        "odd": oddities(value),
    }
    if found is not None:
        told["in_image"] = found
    return json.dumps({"schema": 1, "kind": kind, **told}, indent=2)


def fields(value: Layout) -> dict[str, Any]:
    """Each field by name: hex strings for bases, offsets and all of 32 bits or more, else numbers and booleans."""
    return {
        field.name: f"{number:#x}" if field.width >= 32 or field.name in ("base", "offset") else number
        for field, number in zip(value.fields, value, strict=True)
    }


def _standard_input() -> str:
    try:
        return sys.stdin.read(_LONGEST + 1)
    except UnicodeDecodeError:
        raise UsageError(f"standard input is not text: write {_SHOWN_AS}") from None


def _count(count: int) -> str:
    return f"{count} byte{'' if count == 1 else 's'}"


def _shorten(word: str) -> str:
    return repr(word if len(word) <= 40 else f"{word[:40]}...")
