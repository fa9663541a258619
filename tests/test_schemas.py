"""The construct face: equal to independent declarations, at home in anyone's Struct, construct's own errors."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import construct
import pytest
from construct import Array, Bytes, Const, Container, Int8ul, Int16ul, Int64ul, Optional, Padded, Struct, Switch, this
from declarations import DECLARATIONS, FIELDS, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from x86tables import (
    Gate,
    Gdt,
    Idt,
    IoMap,
    Layout,
    PseudoDescriptor,
    RealModeVector,
    SegmentDescriptor,
    SystemDescriptor,
    Tss,
    VectorTable,
    bits,
    schemas,
    strategies,
)

each_layout = pytest.mark.parametrize("layout", strategies.LAYOUTS, ids=lambda layout: layout.__name__)


def error(action: Callable[[], object]) -> tuple[str, str]:
    """The class and the text of the error that construct raises."""
    with pytest.raises(construct.ConstructError) as caught:
        action()
    assert caught.value.path is not None
    return type(caught.value).__name__, str(caught.value)


def agree(layout: type[Layout], data: bytes) -> None:
    """Our schema and the declaration of tests/declarations.py read and write the same."""
    name = layout.__name__
    schema, declaration = getattr(schemas, name), DECLARATIONS[name]
    value = schema.parse(data)
    assert value == layout.parse(data)
    assert value.asdict() == whole(name, data)
    assert schema.build(value) == declaration.build(declaration.parse(data)) == data


@each_layout
def test_equal_to_an_independent_declaration(layout: type[Layout]) -> None:
    @settings(max_examples=50)
    @given(strategies.any_bits(layout), strategies.meaningful(layout))
    def law(any_value: Layout, meaningful: Layout) -> None:
        agree(layout, bytes(any_value))
        agree(layout, bytes(meaningful))

    law()


@each_layout
def test_equal_to_an_independent_declaration_bit_by_bit(layout: type[Layout]) -> None:
    agree(layout, bytes(layout.size))
    agree(layout, b"\xff" * layout.size)
    # the declarations of the two TSSs take a millisecond for each
    for bit in range(0, layout.size * 8, 1 if layout.size < 100 else 7):
        agree(layout, (1 << bit).to_bytes(layout.size, "little"))


@each_layout
def test_size_and_name(layout: type[Layout]) -> None:
    schema = getattr(schemas, layout.__name__)
    assert schema.sizeof() == DECLARATIONS[layout.__name__].sizeof() == layout.size
    assert repr(schema) == f"<schemas.{layout.__name__}>"


def test_every_layout_is_declared_twice_and_exported() -> None:
    assert {layout.__name__ for layout in strategies.LAYOUTS} == set(FIELDS) <= set(schemas.__all__)
    assert schemas.Lgdt is schemas.Lidt is schemas.PseudoDescriptor


@pytest.mark.parametrize("form", [lambda gate: gate, Gate.asdict, lambda gate: Container(gate.asdict(), _io=BytesIO())])
def test_builds_from_a_value_a_dict_or_a_container(form: Callable[[Gate], Any]) -> None:
    gate = Gate.interrupt(0xFFFF_FFFF_8100_0000, 8, ist=1)
    assert schemas.Gate.build(form(gate)) == bytes(gate)


def test_fields_left_out_have_their_defaults() -> None:
    assert schemas.Gate.build({}) == bytes(16)
    assert schemas.Tss.build({"rsp0": 1}) == bytes(Tss(rsp0=1))


def test_fixed_schemas_in_a_struct() -> None:
    image = Struct(
        "magic" / Const(b"BOOT"),
        "gates" / schemas.Gate[2],
        "kind" / Int8ul,
        "entry" / Switch(this.kind, {0: schemas.SegmentDescriptor, 1: schemas.SystemDescriptor}, default=Bytes(1)),
        "frame" / Padded(64, schemas.Frame),
        "selector" / Optional(schemas.Selector),
    )
    tss = SystemDescriptor.tss(0x1000)
    data = b"BOOT" + bytes(32) + b"\x01" + bytes(tss) + bytes(64)
    parsed = image.parse(data)
    assert parsed.entry == tss
    assert parsed.entry.base == parsed["entry"]["base"] == 0x1000
    assert parsed.gates == [Gate(), Gate()]
    assert parsed.selector is None
    assert image.build(parsed) == data
    assert image.build({**parsed, "entry": {"base": 0x1000, "limit": 0x67, "p": 1, "type": 9}}) == data


def test_values_are_read_by_later_lambdas() -> None:
    image = Struct(
        "lidt" / schemas.Lidt,
        "idt" / schemas.Idt(limit=this.lidt.limit),
        "stack" / Bytes(lambda context: context.idt["#DE"].ist * 2),
    )
    data = bytes(PseudoDescriptor(limit=0x1F)) + bytes(Gate(ist=3)) + bytes(16) + b"abcdef"
    parsed = image.parse(data)
    assert parsed.idt[0].ist == 3
    assert parsed.stack == b"abcdef"
    assert image.build(parsed) == data
    assert image.build({"lidt": {"limit": 0x1F}, "idt": parsed.idt, "stack": b"abcdef"}) == data


@given(strategies.any_table(), st.integers(0, 40))
def test_idt_by_limit_and_by_count(data: bytes, count: int) -> None:
    by_limit = Struct("limit" / Int16ul, "idt" / schemas.Idt(limit=this.limit - 1))
    parsed = by_limit.parse(len(data).to_bytes(2, "little") + data)
    assert parsed.idt == Idt.parse(data)
    assert by_limit.build(parsed)[2:] == data
    by_count = Struct("count" / Int8ul, "idt" / schemas.Idt(this.count), "rest" / Bytes(3))
    table = bytes(Idt(count))
    assert by_count.parse(bytes([count]) + table + b"end") == Container(count=count, idt=Idt(count), rest=b"end")
    assert schemas.Idt(count).sizeof() == count * 16


@given(strategies.any_table())
def test_gdt_by_limit_and_by_size(data: bytes) -> None:
    for schema in (schemas.Gdt(len(data)), schemas.Gdt(limit=len(data) - 1), schemas.Gdt(lambda context: len(data))):
        assert schema.parse(data + b"more") == Gdt.parse(data)
        assert schema.build(Gdt.parse(data)) == data
        assert schema.sizeof() == len(data)


@given(strategies.gdts(), strategies.idts(max_gates=40))
def test_tables_build_from_lists(gdt: Gdt, idt: Idt) -> None:
    descriptors = [entry.descriptor for entry in gdt.entries()]
    assert schemas.Gdt(limit=gdt.limit).build(descriptors) == bytes(gdt)
    assert schemas.Idt(len(idt)).build(list(idt)) == bytes(idt)
    assert schemas.Idt(len(idt)).build([gate.asdict() for gate in idt]) == bytes(idt)


def test_idt_is_the_array_of_gates() -> None:
    data = b"".join(bytes(Gate(offset=vector << 40, ist=vector % 8)) for vector in range(256))
    assert list(schemas.Idt().parse(data)) == list(Array(256, schemas.Gate).parse(data))


def test_real_mode_vectors() -> None:
    parsed = schemas.VectorTable(2).parse(b"\1\0\2\0\3\0\4\0tail")
    assert isinstance(parsed, VectorTable)
    assert parsed.vectors == [RealModeVector(offset=1, segment=2), RealModeVector(offset=3, segment=4)]
    assert schemas.VectorTable(2).build(parsed.vectors) == schemas.VectorTable(2).build(parsed) == b"\1\0\2\0\3\0\4\0"
    assert schemas.VectorTable().sizeof() == 1024


@given(strategies.any_bits(Tss), st.binary(max_size=300))
def test_tss_with_whatever_its_limit_covers(tss: Tss, behind: bytes) -> None:
    limit = 103 + len(behind)
    parsed = schemas.TssSegment(limit).parse(bytes(tss) + behind)
    assert (parsed.tss, parsed.behind) == (tss, behind)
    assert parsed.iomap == IoMap.of(bytes(tss) + behind, tss.iopb)
    assert schemas.TssSegment(limit).build(parsed) == bytes(tss) + behind
    assert schemas.TssSegment(limit).sizeof() == limit + 1


def test_tss_with_an_io_map() -> None:
    io_map = IoMap.allowing([0x3F8])
    image = Struct("limit" / Int16ul, "segment" / schemas.TssSegment(this.limit))
    data = image.build({"limit": 103 + len(bytes(io_map)), "segment": {"tss": {"rsp0": 5}, "behind": io_map}})
    assert data[2:] == bytes(Tss(rsp0=5)) + bytes(io_map)
    assert image.parse(data).segment.iomap == io_map
    assert schemas.TssSegment().build({"tss": {}}) == bytes(Tss())
    assert schemas.TssSegment().parse(bytes(Tss())).iomap is None


@settings(max_examples=40)
@given(strategies.blobs(), st.binary(max_size=9))
def test_tables_blob(blob: strategies.Blob, before: bytes) -> None:
    tables = schemas.Tables(**blob.places)
    parsed = tables.parse(blob.data)
    assert tables.build(parsed) == blob.data
    assert tables.sizeof() == len(blob.data)
    assert parsed.lgdt.limit == parsed.gdt.limit
    descriptor = next(entry.descriptor for entry in parsed.gdt.entries() if entry.index == len(parsed.gdt) - 2)
    assert descriptor.limit == blob.places["tss_limit"]
    assert descriptor.base - parsed.lgdt.base == blob.places["tss"] - blob.places["gdt"]
    # the offsets count from the blob, wherever it lies
    image = Struct("before" / Bytes(len(before)), "tables" / tables, "after" / Bytes(3))
    inside = image.parse(before + blob.data + b"end")
    assert [inside.tables[name] for name in ("gdt", "tss", "idt")] == [parsed.gdt, parsed.tss, parsed.idt]
    assert image.build(inside) == before + blob.data + b"end"


def test_tables_blob_from_values() -> None:
    gdt, idt = Gdt(), Idt(32)
    gdt.append(SegmentDescriptor.kernel_code())
    gdt.append(SystemDescriptor.tss(0x1040))
    idt["#DF"] = Gate.interrupt(0x8000, 8, ist=1)
    tables = schemas.Tables(0x400, lgdt=0, gdt=0x10, tss=0x40, lidt=0xB0, idt=0xC0)
    data = tables.build(
        {
            "lgdt": {"base": 0x1010, "limit": gdt.limit},
            "gdt": gdt,
            "tss": {"ist1": 0x9000},
            "lidt": {"base": 0x10C0, "limit": idt.limit},
            "idt": idt,
        }
    )
    expected = bytearray(0x400)
    expected[0:10] = bytes(PseudoDescriptor(base=0x1010, limit=gdt.limit))
    expected[0x10:0x30] = bytes(gdt)
    expected[0x40:0xA8] = bytes(Tss(ist1=0x9000))
    expected[0xB0:0xBA] = bytes(PseudoDescriptor(base=0x10C0, limit=idt.limit))
    expected[0xC0:0x2C0] = bytes(idt)
    assert data == bytes(expected)
    moved = tables.parse(data)
    moved.tss = moved.tss.replace(ist1=0xA000)
    assert tables.parse(tables.build(moved)).tss.ist1 == 0xA000


def test_places_may_be_context_lambdas() -> None:
    image = Struct(
        "at" / Int8ul,
        "size" / Int16ul,
        "tables" / schemas.Tables(this.size, lgdt=0, gdt=this.at, tss=16, lidt=120, idt=lambda context: 130),
    )
    data = bytearray(3 + 256)
    data[:3] = b"\x98\x00\x01"  # the GDT at 152
    data[3:13] = bytes(PseudoDescriptor(limit=7))
    data[123:133] = bytes(PseudoDescriptor(limit=0xF))
    data[155:163] = bytes(SegmentDescriptor.kernel_code())
    parsed = image.parse(bytes(data))
    assert parsed.tables.gdt[0] == SegmentDescriptor.kernel_code()
    assert image.build(parsed) == bytes(data)


def test_a_compiled_struct_does_the_same() -> None:
    image = Struct(
        "count" / Int8ul,
        "lidt" / schemas.Lidt,
        "gate" / schemas.Gate,
        "selectors" / Array(this.count, schemas.Selector),
        "idt" / schemas.Idt(limit=this.lidt.limit),
        "gdt" / schemas.Gdt(this.count * 8),
        "segment" / schemas.TssSegment(lambda context: 103 + context.count),
        "tables" / schemas.Tables(300, lgdt=0, gdt=10, tss=20, lidt=130, idt=140),
        "entry" / Int64ul,
    )
    data = b"\2" + bytes(PseudoDescriptor(base=5, limit=0x1F)) + bytes(range(174)) + bytes(308)
    parsed, compiled = image.parse(data), image.compile()
    assert compiled.parse(data) == parsed
    assert compiled.build(parsed) == image.build(parsed) == data


EXPECTED, FOUND = "Error in path (parsing)", "stream read less than specified amount, expected"


@pytest.mark.parametrize(
    ("action", "kind", "text"),
    [
        (lambda: schemas.Gate.parse(b"abc"), "StreamError", f"{EXPECTED}\n{FOUND} 16, found 3"),
        (
            lambda: Struct("idt" / schemas.Idt(2)).parse(b"abc"),
            "StreamError",
            f"{EXPECTED} -> idt\n{FOUND} 32, found 3",
        ),
        (
            lambda: Struct("boot" / Struct("gates" / Array(2, "gate" / schemas.Gate))).parse(bytes(20)),
            "StreamError",
            f"{EXPECTED} -> boot -> gates -> gate\n{FOUND} 16, found 4",
        ),
        (
            lambda: schemas.TssSegment(0x5B).parse(bytes(0x5C)),
            "StreamError",
            f"{EXPECTED} -> tss\n{FOUND} 104, found 92",
        ),
        (
            lambda: Struct("gate" / schemas.Gate).build({"gate": {"dpl": 4}}),
            "IntegerError",
            "Error in path (building) -> gate\nGate: dpl=4: 2 bits hold 0..3",
        ),
        (
            lambda: schemas.Gate.build({"itsp": 1}),
            "MappingError",
            "Error in path (building)\nGate has no field 'itsp'",
        ),
        (
            lambda: schemas.Gate.build(SegmentDescriptor()),
            "MappingError",
            "Error in path (building)\nGate: a value or a mapping of its fields expected, found SegmentDescriptor()",
        ),
        (
            lambda: Struct("idt" / schemas.Idt(2)).build({"idt": [{}, {"ist": 8}]}),
            "IntegerError",
            "Error in path (building) -> idt -> 1\nGate: ist=8: 3 bits hold 0..7",
        ),
        (
            lambda: schemas.Idt(2).build([{}]),
            "StreamError",
            "Error in path (building)\nbytes object of wrong length, expected 32, found 16",
        ),
        (
            lambda: schemas.Idt(2).build(Gate()),
            "MappingError",
            "Error in path (building)\na value of type Idt or a list of its entries expected, found Gate()",
        ),
        (
            lambda: schemas.Gdt(16).build(bytes(16)),
            "MappingError",
            f"Error in path (building)\na value of type Gdt or a list of its entries expected, found {bytes(16)!r}",
        ),
        (
            lambda: schemas.Gdt(8).build([{}]),
            "MappingError",
            "Error in path (building) -> 0\na descriptor expected, found {}",
        ),
        (
            lambda: schemas.Tables(90, lgdt=0, gdt=10, tss=20, lidt=30, idt=40).parse(bytes(90)),
            "StreamError",
            f"{EXPECTED} -> tss\n{FOUND} 104, found 70",
        ),
    ],
)
def test_errors_are_constructs_own_and_say_where(action: Callable[[], object], kind: str, text: str) -> None:
    assert error(action) == (kind, text)


def test_sizeof_without_its_context_is_a_sizeof_error() -> None:
    assert error(lambda: schemas.Idt(this.count).sizeof())[0] == "SizeofError"
    assert error(lambda: schemas.TssSegment(this.limit).sizeof())[0] == "SizeofError"
    assert schemas.Idt(this.count).sizeof(count=3) == 48


def test_a_gdt_takes_either_a_size_or_a_limit() -> None:
    for sizes in ({}, {"size": 8, "limit": 7}):
        with pytest.raises(ValueError, match="either a size in bytes or a limit"):
            schemas.Gdt(**sizes)


def test_a_layout_of_your_own_is_a_schema_too() -> None:
    class Pair(Layout, size=2):
        high: int = bits[15:8]
        low: int = bits[7:0]

    pairs = Array(2, schemas.Of(Pair))
    assert pairs.parse(b"\1\2\3\4") == [Pair(low=1, high=2), Pair(low=3, high=4)]
    assert pairs.build([Pair(low=1), {"high": 4}]) == b"\1\0\0\4"
