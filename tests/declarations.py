"""Every structure once more, in construct's own words and straight from the manual's figures: what schemas is held to.

Each is a big-endian bit listing turned around by ByteSwapped, high bit first. A field that the structure cuts into
pieces is declared piece by piece, `base_2`, `base_1`, the most significant first; `join` puts the pieces together.
"""

from collections.abc import Mapping
from typing import Any

from construct import BitsInteger, BitStruct, ByteSwapped, Flag

Declaration = Any  # construct has no types


def declare(*fields: tuple[str, int]) -> Declaration:
    """(name, width) from the high bit down."""
    return ByteSwapped(BitStruct(*(name / (Flag if width == 1 else BitsInteger(width)) for name, width in fields)))


def join(pieces: Mapping[str, Any], widths: Mapping[str, int]) -> dict[str, int]:
    """Whole fields from a parsed Container: `base_2`, `base_1` become `base`."""
    whole: dict[str, int] = {}
    for name, value in pieces.items():
        field = name.rpartition("_")[0] if name[-1].isdigit() and name[-2] == "_" else name
        if not name.startswith("_io"):
            whole[field] = whole.get(field, 0) << widths[name] | value if field in whole else value
    return whole


_ACCESS = (("p", 1), ("dpl", 2), ("s", 1), ("type", 4))
_DESCRIPTOR_LOW = (*_ACCESS, ("base_1", 24), ("limit_1", 16))
_REGISTERS = ("edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax", "eflags", "eip", "cr3")

FIELDS: dict[str, tuple[tuple[str, int], ...]] = {
    # Segment Descriptor
    "SegmentDescriptor": (
        ("base_2", 8), ("g", 1), ("d_b", 1), ("l", 1), ("avl", 1), ("limit_2", 4), *_DESCRIPTOR_LOW,
    ),
    # Format of TSS and LDT Descriptors in 64-bit Mode: dwords 3 and 2 on top of the legacy format
    "SystemDescriptor": (
        ("reserved2", 19), ("zero", 5), ("reserved1", 8), ("base_3", 32),
        ("base_2", 8), ("g", 1), ("reserved0", 2), ("avl", 1), ("limit_2", 4), *_DESCRIPTOR_LOW,
    ),
    # Call-Gate Descriptor in IA-32e Mode
    "CallGate": (
        ("reserved2", 19), ("zero", 5), ("reserved1", 8), ("offset_3", 32),
        ("offset_2", 16), *_ACCESS, ("reserved0", 8), ("selector", 16), ("offset_1", 16),
    ),
    # 64-Bit IDT Gate Descriptors
    "Gate": (
        ("reserved1", 32), ("offset_3", 32),
        ("offset_2", 16), *_ACCESS, ("reserved0", 5), ("ist", 3), ("selector", 16), ("offset_1", 16),
    ),
    # 64-Bit TSS Format, from offset 100 down to 0
    "Tss": (
        ("iopb", 16), ("reserved3", 16), ("reserved2", 64),
        ("ist7", 64), ("ist6", 64), ("ist5", 64), ("ist4", 64), ("ist3", 64), ("ist2", 64), ("ist1", 64),
        ("reserved1", 64), ("rsp2", 64), ("rsp1", 64), ("rsp0", 64), ("reserved0", 32),
    ),
    "Selector": (("index", 13), ("ti", 1), ("rpl", 2)),
    "Star": (("user", 16), ("kernel", 16), ("eip", 32)),
    "SelectorErrorCode": (("reserved", 16), ("index", 13), ("ti", 1), ("idt", 1), ("ext", 1)),
    "PageFaultErrorCode": (
        ("rmp", 1), ("reserved1", 15), ("sgx", 1), ("reserved0", 7), ("hlat", 1), ("ss", 1), ("pk", 1), ("id", 1),
        ("rsvd", 1), ("us", 1), ("wr", 1), ("p", 1),
    ),
    "PseudoDescriptor": (("base", 64), ("limit", 16)),
    "PseudoDescriptor32": (("base", 32), ("limit", 16)),
    # IA-32e Mode Stack Usage After Privilege Level Change
    "Frame": (("reserved1", 48), ("ss", 16), ("rsp", 64), ("rflags", 64), ("reserved0", 48), ("cs", 16), ("rip", 64)),
    "ErrorFrame": (
        ("reserved2", 48), ("ss", 16), ("rsp", 64), ("rflags", 64), ("reserved1", 48), ("cs", 16), ("rip", 64),
        ("reserved0", 32), ("error_code", 32),
    ),
    # IDT Gate Descriptors and Call-Gate Descriptor of protected mode
    "LegacyGate": (
        ("offset_2", 16), *_ACCESS, ("reserved", 3), ("count", 5), ("selector", 16), ("offset_1", 16),
    ),
    # TSS Descriptor of protected mode
    "LegacySystemDescriptor": (
        ("base_2", 8), ("g", 1), ("reserved", 2), ("avl", 1), ("limit_2", 4), *_DESCRIPTOR_LOW,
    ),
    # 32-Bit Task-State Segment, from offset 100 down to 0
    "Tss32": (
        ("iopb", 16), ("reserved11", 15), ("t", 1), ("reserved10", 16), ("ldt", 16),
        ("reserved9", 16), ("gs", 16), ("reserved8", 16), ("fs", 16), ("reserved7", 16), ("ds", 16),
        ("reserved6", 16), ("ss", 16), ("reserved5", 16), ("cs", 16), ("reserved4", 16), ("es", 16),
        *((name, 32) for name in _REGISTERS),
        ("reserved3", 16), ("ss2", 16), ("esp2", 32), ("reserved2", 16), ("ss1", 16), ("esp1", 32),
        ("reserved1", 16), ("ss0", 16), ("esp0", 32), ("reserved0", 16), ("link", 16),
    ),
    "RealModeVector": (("segment", 16), ("offset", 16)),
}  # fmt: skip

DECLARATIONS: dict[str, Declaration] = {name: declare(*fields) for name, fields in FIELDS.items()}


def whole(name: str, data: bytes) -> dict[str, int]:
    """The fields of structure `name` as its declaration here reads them from `data`."""
    return join(DECLARATIONS[name].parse(data), dict(FIELDS[name]))
