"""The laws of a layout, for every layout; and what a declaration refuses."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x86tables import Gate, Layout, SegmentDescriptor, Selector, Tss, UsageError, bits, strategies
from x86tables.tables.layout import _generate_bytes, _generate_parse

each_layout = pytest.mark.parametrize("layout", strategies.LAYOUTS, ids=lambda layout: layout.__name__)


def patterns(size: int) -> list[bytes]:
    """All zeros, all ones, and a single one at every bit."""
    walking = [(1 << bit).to_bytes(size, "little") for bit in range(size * 8)]
    return [bytes(size), b"\xff" * size, *walking]


@each_layout
def test_every_bit_pattern_comes_back(layout: type[Layout]) -> None:
    for data in patterns(layout.size):
        assert bytes(layout.parse(data)) == data


@each_layout
def test_all_bytes_and_all_values_round_trip(layout: type[Layout]) -> None:
    @given(st.binary(min_size=layout.size, max_size=layout.size))
    def law(data: bytes) -> None:
        value = layout.parse(data)
        assert bytes(value) == data
        assert layout.parse(bytes(value)) == value
        assert layout(**value.asdict()) == value
        assert layout.from_int(int(value)) == value

    law()


@each_layout
def test_each_field_holds_just_its_own_bits(layout: type[Layout]) -> None:
    for field in layout.fields:
        full = layout(**{other.name: 0 for other in layout.fields} | {field.name: field.maximum})
        mask = sum((1 << high + 1) - (1 << low) for high, low in field.pieces)
        assert int(full) == mask, field.name
        assert layout.parse(bytes(full))[field.name] == field.maximum


@each_layout
def test_a_whole_table_is_its_entries_one_at_a_time(layout: type[Layout]) -> None:
    @settings(max_examples=30)
    @given(st.integers(0, 5), st.data())
    def law(count: int, data: st.DataObject) -> None:
        table = data.draw(st.binary(min_size=count * layout.size, max_size=count * layout.size))
        values = [layout.parse(table[at : at + layout.size]) for at in range(0, len(table), layout.size)]
        parsed = layout.parse_table(table)
        assert parsed == values
        assert all(type(value) is layout for value in parsed)
        assert layout.rows(table) == [tuple(value) for value in values]
        columns = layout.columns(table)
        assert list(columns) == [field.name for field in layout.fields]
        assert {name: list(column) for name, column in columns.items()} == {
            field.name: [value[field.name] for value in values] for field in layout.fields
        }
        assert layout.build_table(values) == layout.build_table(layout.rows(table)) == table

    law()


@each_layout
def test_walking_ones_through_a_table(layout: type[Layout]) -> None:
    table = b"".join(patterns(layout.size))
    assert layout.parse_table(table) == [layout.parse(data) for data in patterns(layout.size)]
    assert layout.build_table(layout.parse_table(table)) == table


@each_layout
def test_one_bit_fields_are_bools(layout: type[Layout]) -> None:
    flags = [field for field in layout.fields if field.width == 1]
    value = layout.parse(b"\xff" * layout.size)
    assert all(value[field.name] is True for field in flags)
    built = layout(**{field.name: 1 for field in flags})
    assert all(built[field.name] is True for field in flags)
    assert all(layout.parse_table(bytes(layout.size))[0][field.name] is False for field in flags)


@each_layout
def test_a_copy_and_a_pickle_are_equal(layout: type[Layout]) -> None:
    value = layout.parse(bytes(number % 251 for number in range(layout.size)))
    for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert twin == value
        assert type(twin) is layout


@each_layout
def test_every_layout_says_what_it_is_and_where_from(layout: type[Layout]) -> None:
    assert layout.__doc__
    assert "figure" in layout.cite


@pytest.mark.parametrize(
    ("layout", "fields", "message"),
    [
        (Gate, {"dpl": 4}, "dpl=4: 2 bits hold 0..3"),
        (Gate, {"dpl": -1}, "dpl=-1: 2 bits hold 0..3"),
        (Gate, {"p": 2}, "p=2: 1 bit holds 0..1"),
        (Gate, {"ist": 8}, "ist=8: 3 bits hold 0..7"),
        (Gate, {"offset": 1 << 64}, "offset=0x10000000000000000: 64 bits hold 0..0xffffffffffffffff"),
        (SegmentDescriptor, {"limit": 0x100000}, "limit=0x100000: 20 bits hold 0..0xfffff"),
        (SegmentDescriptor, {"dpl": 1.0}, "dpl=1.0: 2 bits hold 0..3"),
        (SegmentDescriptor, {"dpl": "3"}, "dpl='3': 2 bits hold 0..3"),
        (SegmentDescriptor, {"base": None}, "base=None: 32 bits hold 0..0xffffffff"),
    ],
)
def test_a_number_that_does_not_fit_is_refused(layout: type[Layout], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        layout(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [0, 15, 17])
def test_bytes_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(UsageError) as caught:
        Gate.parse(bytes(size))
    assert str(caught.value) == f"Gate: 16 bytes expected, {size} found"


def test_numbers_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match="Selector: 0x10000 does not fit into 2 bytes"):
        Selector.from_int(0x10000)
    with pytest.raises(UsageError, match="Selector: -0x1 does not fit into 2 bytes"):
        Selector.from_int(-1)


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match="Gate table: 17 bytes are not a multiple of 16"):
        Gate.parse_table(bytes(17))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1, 0, 4), "rpl=4: 2 bits hold 0..3"),
        ((1, 2, 0), "ti=2: 1 bit holds 0..1"),
        ((0x2000, 0, 0), "index=0x2000: 13 bits hold 0..0x1fff"),
        ((-1, 0, 0), "index=-0x1: 13 bits hold 0..0x1fff"),
        ((0, 0, "x"), "rpl='x': 2 bits hold 0..3"),
        ((0, 0), "a row of 3 fields expected (index, ti, rpl)"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Selector.build_table([Selector(index=1), row])
    assert str(caught.value) == f"Selector table, entry 1: {message}"


@given(
    st.sampled_from([Gate, Selector, SegmentDescriptor]), st.lists(st.integers(-5, 1 << 65), min_size=10, max_size=10)
)
def test_a_table_refuses_just_what_a_value_refuses(layout: type[Layout], numbers: list[int]) -> None:
    row = numbers[: len(layout.fields)]
    try:
        expected = bytes(layout(**{field.name: number for field, number in zip(layout.fields, row, strict=True)}))
    except UsageError:
        with pytest.raises(UsageError, match="table, entry 0: "):
            layout.build_table([row])
    else:
        assert layout.build_table([row]) == expected


def test_a_declaration_tiles_its_structure() -> None:
    with pytest.raises(TypeError, match="Gap: bit 4 belongs to no field"):

        class Gap(Layout, size=1):
            high: int = bits[7:5]
            low: int = bits[3:0]

    with pytest.raises(TypeError, match="Overlap: bit 4 belongs to both high and low"):

        class Overlap(Layout, size=1):
            high: int = bits[7:4]
            low: int = bits[4:0]

    with pytest.raises(TypeError, match=r"Outside\.all: bits 8:0 are outside of 1 bytes"):

        class Outside(Layout, size=1):
            all: int = bits[8:0]

    with pytest.raises(TypeError, match=r"Backwards\.all: bits 0:7 are outside"):

        class Backwards(Layout, size=1):
            all: int = bits[0:7]


def test_pieces_that_do_not_meet_on_byte_boundaries_are_several_fields() -> None:
    class Odd(Layout, size=2):
        cut: int = bits[15:13, 2:0]
        rest: int = bits[12:3]

    assert bytes(Odd(cut=0o76)) == b"\x06\xe0"
    with pytest.raises(TypeError, match="cut: pieces that do not meet on byte boundaries"):
        Odd.parse_table(bytes(4))


def test_a_layout_of_your_own() -> None:
    class Page(Layout, size=8, cite="SDM Vol. 3A, figure 'Formats of Paging-Structure Entries'"):
        xd: bool = bits[63]
        ignored: int = bits[62:52]
        address: int = bits[51:12]
        flags: int = bits[11:0]

    value = Page(address=0x12345, flags=3, xd=True)
    assert int(value) == 0x8000_0000_1234_5003
    assert Page.parse_table(bytes(value) * 3) == [value] * 3
    assert Page.build_table([value, value]) == bytes(value) * 2


def test_equal_means_the_same_class_and_content() -> None:
    one, same, other = Gate(offset=5), Gate(offset=5), Gate(offset=6)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other}) == 2
    plain: object = tuple(Selector(index=1))
    assert Selector(index=1) != plain

    class Twin(Layout, size=2):
        index: int = bits[15:3]
        ti: bool = bits[2]
        rpl: int = bits[1:0]

    selector: Layout = Selector(index=1)
    assert Twin(index=1) != selector
    assert len({Twin(index=1), Selector(index=1)}) == 2


def test_values_do_not_change() -> None:
    gate = Gate(offset=5)
    with pytest.raises(AttributeError):
        gate.offset = 6  # type: ignore[misc]
    with pytest.raises(AttributeError):
        gate.another = 6  # type: ignore[attr-defined]
    assert gate.replace(offset=6) == Gate(offset=6)
    assert gate == Gate(offset=5)
    with pytest.raises(UsageError):
        gate.replace(ist=9)
    with pytest.raises(TypeError):
        gate.replace(nonsense=9)


def test_a_value_reads_like_a_container() -> None:
    gate = Gate(offset=0x1234, ist=3)
    assert gate["offset"] == gate.offset == 0x1234
    assert gate.asdict()["ist"] == 3
    with pytest.raises(AttributeError):
        gate["nonsense"]


def test_defaults_are_zero_but_for_the_io_map_base() -> None:
    assert bytes(Gate()) == bytes(16)
    assert Tss().iopb == 0x68
    assert bytes(Tss()) == bytes(102) + b"\x68\0"
    assert Tss(iopb=0).iopb == 0
    assert Tss.field("iopb").offset == 0x66
    assert [Tss.field(name).offset for name in ("rsp0", "ist1", "ist7")] == [4, 0x24, 0x54]


def test_repr_shows_what_is_not_default() -> None:
    assert repr(Gate(offset=0x1234, p=True, ist=1)) == "Gate(offset=0x1234, p=True, ist=1)"
    assert repr(Tss()) == "Tss()"
    assert repr(Tss(iopb=0)) == "Tss(iopb=0x0)"


def test_bytearray_and_memoryview_are_as_good_as_bytes() -> None:
    data = bytes(range(32))
    for same in (bytearray(data), memoryview(data), memoryview(b"x" + data)[1:]):
        assert Gate.parse_table(same) == Gate.parse_table(data)
        assert Gate.parse(same[:16]) == Gate.parse(data[:16])


@each_layout
def test_few_values_are_taken_apart_as_many_are(layout: type[Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a codec is compiled, and by it: the same values, of the same types, and the same bytes."""
    for data in patterns(layout.size):
        monkeypatch.setattr(layout, "_parsed", 0)
        monkeypatch.setattr(layout, "_built", 0)
        plain, compiled = Layout.parse.__func__(layout, data), _generate_parse(layout).__func__(data)  # type: ignore[attr-defined]
        assert list(map(repr, plain)) == list(map(repr, compiled))
        assert Layout.__bytes__(plain) == _generate_bytes(layout)(plain) == data


def test_nothing_is_generated_until_it_is_used_often() -> None:
    script = """
import builtins, sys
run, names = builtins.exec, []
def watch(code, *args):
    if isinstance(code, str):
        names.append(code.partition(":")[0])
    return run(code, *args)
builtins.exec = watch
import x86tables
x86tables.Gate
assert names == [], names
for n in range(16):
    x86tables.Gate.parse(bytes(16))
assert names == [], names
for n in range(16):
    x86tables.Gate.parse(bytes(16))
assert names == ["def parse(data)"], names
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
