"""The same gate in the hands of others, each written as its own manual would have it, only as fast as it goes.

Every peer turns a whole IDT into rows of all fields and back. Where a library has no field of 64 scattered bits, it is
given the pieces and not asked to join them: a peer may do less than we do, never more. All refuse a number that does
not fit its field, except (a): dissect.cstruct drops the bits that are too many.
"""

import ctypes
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import construct as c
from dissect.cstruct import cstruct

ALL = ("reserved1", "offset", "p", "dpl", "s", "type", "reserved0", "ist", "selector")
Rows = list[tuple[Any, ...]]


class Peer(NamedTuple):
    """A way to decode and encode a table; `rows` brings its values to our form, outside of the time taken."""

    name: str
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    rows: Callable[[Any], Rows]


def joined(values: Iterable[Any], get: Callable[[Any, str], Any], pieces: dict[str, int]) -> Rows:
    """Rows in the order of our fields, from values whose offset is in `pieces` (name -> shift)."""
    return [
        tuple(
            sum(get(value, piece) << shift for piece, shift in pieces.items()) if name == "offset" else get(value, name)
            for name in ALL
        )
        for value in values
    ]


# construct: a BitStruct, most significant bit first, over the bytes in reverse

GATE = c.ByteSwapped(
    c.BitStruct(
        "reserved1" / c.BitsInteger(32),
        "high" / c.BitsInteger(48),
        "p" / c.Flag,
        "dpl" / c.BitsInteger(2),
        "s" / c.Flag,
        "type" / c.BitsInteger(4),
        "reserved0" / c.BitsInteger(5),
        "ist" / c.BitsInteger(3),
        "selector" / c.BitsInteger(16),
        "low" / c.BitsInteger(16),
    )
)
GATES = GATE[256]
bit_struct = Peer(
    "construct BitStruct", GATES.parse, GATES.build, lambda v: joined(v, c.Container.get, {"low": 0, "high": 16})
)

# construct, compiled: words, and the fields computed from them

compiled_parse = c.Struct(
    "low" / c.Int16ul,
    "selector" / c.Int16ul,
    "stack" / c.Int8ul,
    "access" / c.Int8ul,
    "middle" / c.Int16ul,
    "high" / c.Int32ul,
    "reserved1" / c.Int32ul,
    "offset" / c.Computed(c.this.high << 32 | c.this.middle << 16 | c.this.low),
    "p" / c.Computed(c.this.access & 0x80 != 0),
    "dpl" / c.Computed(c.this.access >> 5 & 3),
    "s" / c.Computed(c.this.access & 0x10 != 0),
    "type" / c.Computed(c.this.access & 15),
    "reserved0" / c.Computed(c.this.stack >> 3),
    "ist" / c.Computed(c.this.stack & 7),
)[256].compile()
compiled_build = c.Struct(
    c.Check((c.this.ist >= 0) & (c.this.ist <= 7) & (c.this.reserved0 >= 0)),
    c.Check((c.this.s <= 1) & (c.this.dpl >= 0) & (c.this.dpl <= 3) & (c.this.type >= 0) & (c.this.type <= 15)),
    "low" / c.Rebuild(c.Int16ul, c.this.offset & 0xFFFF),
    "selector" / c.Int16ul,
    "stack" / c.Rebuild(c.Int8ul, c.this.reserved0 << 3 | c.this.ist),
    "access" / c.Rebuild(c.Int8ul, c.this.p << 7 | c.this.dpl << 5 | c.this.s << 4 | c.this.type),
    "middle" / c.Rebuild(c.Int16ul, c.this.offset >> 16 & 0xFFFF),
    "high" / c.Rebuild(c.Int32ul, c.this.offset >> 32),
    "reserved1" / c.Int32ul,
)[256].compile()
compiled = Peer(
    "construct, compiled",
    compiled_parse.parse,
    compiled_build.build,
    lambda v: joined(v, c.Container.get, {"offset": 0}),
)

# dissect.cstruct: a C structure with bit-fields

C = cstruct()
C.load(
    """
    struct gate {
        uint16 low; uint16 selector;
        uint8 ist : 3; uint8 reserved0 : 5;
        uint8 type : 4; uint8 s : 1; uint8 dpl : 2; uint8 p : 1;
        uint16 middle; uint32 high; uint32 reserved1;
    };
    struct idt { gate gates[256]; };
    """
)
dissect = Peer(
    "dissect.cstruct (a)",
    lambda table: C.idt(table).gates,
    lambda gates: C.idt(gates=gates).dumps(),
    lambda gates: joined(gates, getattr, {"low": 0, "middle": 16, "high": 32}),
)

# ctypes: bit-fields of a little-endian structure; they truncate silently, so the checks are added


class CGate(ctypes.LittleEndianStructure):
    _pack_ = 1
    _fields_ = (
        ("low", ctypes.c_uint16),
        ("selector", ctypes.c_uint16),
        ("ist", ctypes.c_uint8, 3),
        ("reserved0", ctypes.c_uint8, 5),
        ("type", ctypes.c_uint8, 4),
        ("s", ctypes.c_uint8, 1),
        ("dpl", ctypes.c_uint8, 2),
        ("p", ctypes.c_uint8, 1),
        ("middle", ctypes.c_uint16),
        ("high", ctypes.c_uint32),
        ("reserved1", ctypes.c_uint32),
    )


CTable = CGate * 256


def ctypes_decode(table: bytes) -> Rows:
    return [
        (
            g.reserved1, g.high << 32 | g.middle << 16 | g.low, g.p != 0, g.dpl, g.s != 0,
            g.type, g.reserved0, g.ist, g.selector,
        )
        for g in CTable.from_buffer_copy(table)
    ]  # fmt: skip


def check(row: tuple[Any, ...]) -> None:
    """The range checks that `struct` and `ctypes` leave to their caller, as short as Python writes them."""
    reserved1, offset, p, dpl, s, type_, reserved0, ist, selector = row
    if not (
        0 <= reserved1 <= 0xFFFFFFFF and 0 <= offset <= 0xFFFFFFFFFFFFFFFF and 0 <= p <= 1 and 0 <= dpl <= 3
        and 0 <= s <= 1 and 0 <= type_ <= 15 and 0 <= reserved0 <= 31 and 0 <= ist <= 7 and 0 <= selector <= 0xFFFF
    ):  # fmt: skip
        raise ValueError(f"{row}: a field is out of range")


def ctypes_encode(rows: Rows) -> bytes:
    table = CTable()
    for gate, row in zip(table, rows, strict=True):
        check(row)
        gate.reserved1, offset, gate.p, gate.dpl, gate.s, gate.type, gate.reserved0, gate.ist, gate.selector = row
        gate.low, gate.middle, gate.high = offset & 0xFFFF, offset >> 16 & 0xFFFF, offset >> 32
    return bytes(table)


ctypes_fields = Peer("ctypes bit-fields", ctypes_decode, ctypes_encode, lambda rows: rows)

# struct: what one writes by hand when it has to be quick

RAW = struct.Struct("<HHBBHII")


class Row(NamedTuple):
    reserved1: int
    offset: int
    p: bool
    dpl: int
    s: bool
    type: int
    reserved0: int
    ist: int
    selector: int


def struct_decode(table: bytes) -> list[Row]:
    return [
        Row(
            reserved1, high << 32 | middle << 16 | low, access & 0x80 != 0, access >> 5 & 3, access & 0x10 != 0,
            access & 15, stack >> 3, stack & 7, selector,
        )
        for low, selector, stack, access, middle, high, reserved1 in RAW.iter_unpack(table)
    ]  # fmt: skip


def struct_encode(rows: list[Row]) -> bytes:
    # the checks stand in the loop: a call a row would make the peer a third slower
    table, at, pack = bytearray(len(rows) * 16), 0, RAW.pack_into
    for reserved1, offset, p, dpl, s, type_, reserved0, ist, selector in rows:
        if not (
            0 <= reserved1 <= 0xFFFFFFFF and 0 <= offset <= 0xFFFFFFFFFFFFFFFF and 0 <= p <= 1 and 0 <= dpl <= 3
            and 0 <= s <= 1 and 0 <= type_ <= 15 and 0 <= reserved0 <= 31 and 0 <= ist <= 7 and 0 <= selector <= 0xFFFF
        ):  # fmt: skip
            raise ValueError("a field is out of range")
        pack(
            table, at, offset & 0xFFFF, selector, reserved0 << 3 | ist, p << 7 | dpl << 5 | s << 4 | type_,
            offset >> 16 & 0xFFFF, offset >> 32, reserved1,
        )  # fmt: skip
        at += 16
    return bytes(table)


named_tuples = Peer("struct and NamedTuple", struct_decode, struct_encode, lambda rows: [tuple(row) for row in rows])

PEERS = (bit_struct, compiled, dissect, ctypes_fields, named_tuples)
