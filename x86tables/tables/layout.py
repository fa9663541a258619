"""`bits[63:56, 39:16]` and the base class Layout: one declaration per structure gives value, codec and figure."""

from __future__ import annotations

import struct
from itertools import repeat
from operator import index

from ..errors import UsageError
from ..records import Values, item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, ClassVar, Self, TypeAlias, dataclass_transform

    Buffer: TypeAlias = bytes | bytearray | memoryview
else:
    from ..records import dataclass_transform

_WORDS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_FEW = 16  # values of a class, before a codec is compiled for it
_new = tuple.__new__


class Field:
    """One field of a layout: its name, its bits in the structure, its place in the value.

    `pieces` are (high, low) pairs of structure bits, the most significant piece first, as the manual numbers them.
    `parts` are (value bit, structure bit, width), the least significant part first.
    """

    __slots__ = ("default", "name", "parts", "pieces", "position", "width")

    def __init__(self, pieces: tuple[tuple[int, int], ...], default: int = 0) -> None:
        self.name = ""
        self.position = 0
        self.pieces = pieces
        self.width = sum(high - low + 1 for high, low in pieces)
        self.default = bool(default) if self.width == 1 else default
        parts, at = [], 0
        for high, low in reversed(pieces):
            parts.append((at, low, high - low + 1))
            at += high - low + 1
        self.parts = parts

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def but(self, default: int) -> Any:
        """The same bits with another value when none is given."""
        return Field(self.pieces, default)

    @property
    def maximum(self) -> int:
        """The largest value that the field holds."""
        return (1 << self.width) - 1

    @property
    def offset(self) -> int:
        """The byte of the structure where the field begins."""
        return self.parts[0][1] // 8

    def read(self, number: int) -> int:
        """The field's value in a structure read as one little-endian number."""
        value = 0
        for at, low, width in self.parts:
            value |= (number >> low & (1 << width) - 1) << at
        return value != 0 if self.width == 1 else value

    def refuse(self, value: object) -> UsageError:
        """The error for a value that the field cannot hold."""
        bits = "1 bit holds" if self.width == 1 else f"{self.width} bits hold"
        top = self.maximum if self.width <= 8 else f"{self.maximum:#x}"
        shown = f"{value:#x}" if isinstance(value, int) and self.width > 8 else repr(value)
        return UsageError(f"{self.name}={shown}: {bits} 0..{top}")


class _Bits:
    """`bits[high:low, ...]` or `bits[n]`: the bits of a field, the most significant piece first."""

    def __getitem__(self, key: int | slice | tuple[int | slice, ...]) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        return Field(tuple((k, k) if isinstance(k, int) else (k.start, k.stop) for k in keys))


bits = _Bits()


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Layout(Values):
    """A fixed-size little-endian structure whose fields name every bit exactly once.

    A subclass gives its `size` in bytes, the figure of the manual it follows (`cite`), and its fields, high bit first.
    Its values are immutable, equal by class and content, and made from keywords (0 when left out) or by `parse`.
    Fields hold raw numbers; one-bit fields are bools. A value out of range raises UsageError.

    Code for a class is compiled when it has been used a few times: to compile it costs as much as to take twenty values
    apart without. A test holds both ways equal.
    """

    if TYPE_CHECKING:
        size: ClassVar[int]
        cite: ClassVar[str]
        fields: ClassVar[tuple[Field, ...]]
        _parsed: ClassVar[int]
        _built: ClassVar[int]
    else:
        __slots__ = ()

    def __init_subclass__(cls, *, size: int, cite: str = "") -> None:
        cls.size, cls.cite, cls._parsed, cls._built = size, cite, 0, 0
        fields = [f for f in vars(cls).values() if isinstance(f, Field)]
        cls.fields = tuple(sorted(fields, key=lambda f: -f.pieces[0][0]))
        pieces: list[tuple[int, int, Field]] = []
        for position, field in enumerate(cls.fields):
            field.position = position
            for high, low in field.pieces:
                if not 0 <= low <= high < size * 8:
                    raise TypeError(f"{cls.__name__}.{field.name}: bits {high}:{low} are outside of {size} bytes")
                pieces.append((low, high, field))
            setattr(cls, field.name, item(position, f"bits {field.pieces}"))
        free = 0
        for low, high, _ in sorted(pieces, key=lambda piece: piece[0]):
            if low > free:
                break
            if low < free:
                both = [name for first, last, name in pieces if first <= low <= last]
                raise TypeError(f"{cls.__name__}: bit {low} belongs to both {both[0].name} and {both[1].name}")
            free = high + 1
        if free < size * 8:
            raise TypeError(f"{cls.__name__}: bit {free} belongs to no field")

    if not TYPE_CHECKING:

        def __new__(cls, **values):
            cls.__new__ = staticmethod(_generate_new(cls))
            return cls(**values)

        def __reduce__(self):
            return _restore, (type(self), bytes(self))

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """The value of `size` bytes in memory order; UsageError when `data` is of another size."""
        cls._parsed += 1
        if cls._parsed > _FEW:
            cls.parse = _generate_parse(cls)  # type: ignore[method-assign]
            return cls.parse(data)
        if memoryview(data).nbytes != cls.size:
            raise _wrong_size(cls, data)
        number = int.from_bytes(data, "little")
        return _new(cls, [field.read(number) for field in cls.fields])  # type: ignore[type-var]

    def __bytes__(self) -> bytes:
        cls = type(self)
        cls._built += 1
        if cls._built > _FEW:
            cls.__bytes__ = _generate_bytes(cls)  # type: ignore[method-assign]
            return bytes(self)
        number = 0
        for field, value in zip(cls.fields, self, strict=True):
            for at, low, width in field.parts:
                number |= (value >> at & (1 << width) - 1) << low
        return number.to_bytes(cls.size, "little")

    @classmethod
    def from_int(cls, number: int) -> Self:
        """The value of the structure read as one little-endian number, as a debugger prints it."""
        try:
            return cls.parse(index(number).to_bytes(cls.size, "little"))
        except OverflowError:
            raise UsageError(f"{cls.__name__}: {number:#x} does not fit into {cls.size} bytes") from None

    def __index__(self) -> int:
        return int.from_bytes(bytes(self), "little")

    def __int__(self) -> int:
        return self.__index__()

    @classmethod
    def field(cls, name: str) -> Field:
        """The field called `name`."""
        return next(f for f in cls.fields if f.name == name)

    def replace(self, **changes: int) -> Self:
        """The same value with some fields changed."""
        return type(self)(**{**self.asdict(), **changes})

    def asdict(self) -> dict[str, Any]:
        """Field names and values, in the order of the declaration."""
        return dict(zip((f.name for f in self.fields), self, strict=True))

    def __repr__(self) -> str:
        shown = (
            f"{f.name}={value:#x}" if f.width > 8 else f"{f.name}={value!r}"
            for f, value in zip(self.fields, self, strict=True)
            if value != f.default
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def columns(cls, data: Buffer) -> dict[str, Sequence[Any]]:
        """A whole table, field by field: name -> one value per entry. UsageError unless `size` divides the length."""
        return dict(zip((f.name for f in cls.fields), _columns(cls, data), strict=True))

    @classmethod
    def rows(cls, data: Buffer) -> list[tuple[Any, ...]]:
        """A whole table as plain tuples in the order of `fields`: `parse_table` without the class, twice as fast."""
        return list(zip(*_columns(cls, data), strict=True))

    @classmethod
    def parse_table(cls, data: Buffer) -> list[Self]:
        """A whole table as values, as `[parse(entry) for entry in table]` would give, many times faster."""
        return list(map(_new, repeat(cls), zip(*_columns(cls, data), strict=True)))  # type: ignore[arg-type]

    @classmethod
    def build_table(cls, values: Iterable[Iterable[Any]]) -> bytes:
        """The bytes of a whole table from values, or from rows of all fields in the order of `fields`.

        Every number is checked: a row may come from anywhere. UsageError names the entry and the field.
        """
        return _build_table(cls, list(values))


def _restore(cls: type[Layout], data: bytes) -> Layout:
    """What a pickle names: `parse` itself is generated and cannot be looked up."""
    return cls.parse(data)


# One value at a time: the structure is cut into machine words, and each field is put together from them.


def _words(cls: type[Layout]) -> list[tuple[int, int]]:
    """(first byte, length) of words such that no byte boundary inside a field's piece is cut without need."""
    joined = [False] * (cls.size + 1)
    for field in cls.fields:
        for high, low in field.pieces:
            for byte in range(low // 8 + 1, high // 8 + 1):
                joined[byte] = True
    words, start = [], 0
    for end in range(1, cls.size + 1):
        if not joined[end]:
            while start < end:
                length = next(n for n in (8, 4, 2, 1) if n <= end - start)
                words.append((start, length))
                start += length
    return words


def _overlaps(words: list[tuple[int, int]], field: Field) -> Iterator[tuple[int, int, int, int]]:
    """(word, bit in the word, bit in the value, width) of every part of `field`."""
    for number, (start, length) in enumerate(words):
        for at, low, width in field.parts:
            first, last = max(low, start * 8), min(low + width, (start + length) * 8)
            if first < last:
                yield number, first - start * 8, at + first - low, last - first


def _compile(name: str, source: str, cls: type[Layout], words: Iterable[tuple[int, int]] = ()) -> Any:
    codec = struct.Struct("<" + "".join(_WORDS[length] for _, length in words))
    scope: dict[str, Any] = {
        "_new": _new, "_unpack": codec.unpack, "_pack": codec.pack, "_layout": cls, "_wrong_size": _wrong_size,
        "_error": struct.error, "_int": int, "_integer": _integer, "_fields": cls.fields,
    }  # fmt: skip
    # not by way of compile(), which makes all the classes of `ast` first: 3 ms
    exec(source, scope)  # noqa: S102 - built from the declaration alone
    return scope[name]


def _wrong_size(cls: type[Layout], data: Buffer) -> UsageError:
    return UsageError(f"{cls.__name__}: {cls.size} bytes expected, {len(data)} found")


def _generate_parse(cls: type[Layout]) -> Any:
    cut = _words(cls)
    lengths = [length for _, length in cut]
    values = []
    for field in cls.fields:
        terms = []
        for word, bit, at, width in _overlaps(cut, field):
            if field.width == 1:
                terms.append(f"(w{word} & {1 << bit}) != 0")
                continue
            term = f"w{word} >> {bit}" if bit else f"w{word}"
            if bit + width < lengths[word] * 8:
                term = f"({term} & {(1 << width) - 1})"
            terms.append(f"({term}) << {at}" if at else f"({term})")
        values.append(" | ".join(terms))
    names = "".join(f"w{number}, " for number in range(len(lengths)))
    source = (
        f"def parse(data):\n try: {names}= _unpack(data)\n except _error: raise _wrong_size(_layout, data) from None\n"
        f" return _new(_layout, ({', '.join(values)},))\n"
    )
    return staticmethod(_compile("parse", source, cls, cut))


def _generate_bytes(cls: type[Layout]) -> Any:
    cut = _words(cls)
    words: list[list[str]] = [[] for _ in cut]
    for field in cls.fields:
        for word, bit, at, width in _overlaps(cut, field):
            term = f"f{field.position} >> {at}" if at else f"f{field.position}"
            if at + width < field.width:
                term = f"({term} & {(1 << width) - 1})"
            words[word].append(f"({term}) << {bit}" if bit else f"({term})")
    names = "".join(f"f{number}, " for number in range(len(cls.fields)))
    body = ", ".join(" | ".join(terms) for terms in words)
    return _compile("bytes_", f"def bytes_(self):\n {names}= self\n return _pack({body})\n", cls, cut)


def _generate_new(cls: type[Layout]) -> Any:
    lines = [f"def new_(cls, *, {', '.join(f'{f.name}={f.default!r}' for f in cls.fields)}):"]
    for f in cls.fields:
        lines.append(f" if {f.name}.__class__ is not _int: {f.name} = _integer(_fields[{f.position}], {f.name})")
        lines.append(f" if not 0 <= {f.name} <= {f.maximum}: raise _fields[{f.position}].refuse({f.name})")
    values = ", ".join(f"{f.name} != 0" if f.width == 1 else f.name for f in cls.fields)
    lines.append(f" return _new(cls, ({values},))")
    return _compile("new_", "\n".join(lines) + "\n", cls)


def _integer(field: Field, value: Any) -> int:
    try:
        return int(index(value))
    except TypeError:
        raise field.refuse(value) from None


# Whole tables, column by column: strided slices gather each field's bytes, one `unpack` turns them into numbers.

_BYTES = bytes(range(256))
_SHIFTS: dict[tuple[int, int], bytes] = {}


def _shift(shift: int, mask: int) -> bytes:
    """The `bytes.translate` table of `(byte >> shift) & mask`."""
    key = shift, mask
    if key not in _SHIFTS:
        _SHIFTS[key] = bytes([b >> shift & mask for b in _BYTES])
    return _SHIFTS[key]


def _plan(field: Field) -> tuple[Field, int, list[tuple[int, int, int]], int]:
    """How a field's column is gathered: (field, bytes a number, [(structure byte, shift right, mask)], spare low bits).

    Each byte of the number comes from one byte of the structure. A field that lies across byte boundaries is gathered
    with its neighbours' bits and shifted afterwards.
    """
    plan = []
    for byte in range((field.width + 7) // 8):
        at, low, width = next(part for part in field.parts if part[0] + part[2] > byte * 8)
        count = min(8, field.width - byte * 8)
        first = low + byte * 8 - at
        if at > byte * 8 or byte * 8 + count > at + width or first % 8 + count > 8:
            break
        plan.append((first // 8, first % 8, (1 << count) - 1))
    else:
        return field, next(n for n in _WORDS if n >= len(plan)), plan, 0
    if len(field.pieces) > 1:
        raise TypeError(f"{field.name}: pieces that do not meet on byte boundaries are declared as several fields")
    ((high, low),) = field.pieces
    plan = [(byte, 0, 255) for byte in range(low // 8, high // 8 + 1)]
    return field, next(n for n in _WORDS if n >= len(plan)), plan, low % 8


def _plans(cls: type[Layout]) -> Any:
    """The plan of every field; made once a class."""
    plans = cls.__dict__.get("_table_plans")
    if plans is None:
        plans = cls._table_plans = [_plan(field) for field in cls.fields]  # type: ignore[attr-defined]
    return plans


def _columns(cls: type[Layout], data: Buffer) -> list[Sequence[Any]]:
    count, rest = divmod(len(data), cls.size)
    if rest:
        raise UsageError(f"{cls.__name__} table: {len(data)} bytes are not a multiple of {cls.size}")
    data, size = bytes(data), cls.size
    columns: list[Sequence[Any]] = []
    for field, length, plan, low in _plans(cls):
        parts = [
            data[byte::size] if mask == 255 else data[byte::size].translate(_shift(shift, mask))
            for byte, shift, mask in plan
        ]
        if field.width == 1:
            columns.append(struct.unpack(f"{count}?", parts[0]))
        elif length == 1:
            columns.append(parts[0])
        else:
            column = bytearray(count * length)
            for number, part in enumerate(parts):
                column[number::length] = part
            numbers = struct.unpack(f"<{count}{_WORDS[length]}", column)
            columns.append([number >> low & field.maximum for number in numbers] if low else numbers)
    return columns


def _build_table(cls: type[Layout], rows: list[Iterable[Any]]) -> bytes:
    count, size = len(rows), cls.size
    table = bytearray(count * size)
    # where fields meet: byte of the structure -> that byte of all entries as one number, shifted and ORed as a whole
    shared: dict[int, int] = {}
    try:
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(cls.fields)
        for (field, length, plan, low), column in zip(_plans(cls), columns, strict=True):
            # bytes() and pack() refuse what is no integer or does not fit the word; the spare bits are looked at here
            if length == 1:
                packed = bytes(column)
                misfit: Any = packed.translate(None, _BYTES[: field.maximum + 1])
            else:
                packed = struct.pack(f"<{count}{_WORDS[length]}", *column)
                misfit = length * 8 != field.width and max(column, default=0) > field.maximum
            if misfit:
                raise ValueError
            if low:
                packed = struct.pack(f"<{count}{_WORDS[length]}", *[value << low for value in column])
            for number, (byte, shift, mask) in enumerate(plan):
                part = packed[number::length]
                if mask == 255 and not low:
                    table[byte::size] = part
                else:
                    shared[byte] = shared.get(byte, 0) | int.from_bytes(part, "little") << shift
    except (ValueError, TypeError, struct.error):
        raise _misfit(cls, rows) from None
    for byte, number in shared.items():
        table[byte::size] = number.to_bytes(count, "little")
    return bytes(table)


def _misfit(cls: type[Layout], rows: list[Iterable[Any]]) -> UsageError:
    """The error for the first row that does not fit the layout."""
    names = [f.name for f in cls.fields]
    for number, row in enumerate(rows):
        try:
            cls(**dict(zip(names, row, strict=True)))
        except UsageError as error:
            return UsageError(f"{cls.__name__} table, entry {number}: {error}")
        except (TypeError, ValueError):
            break
    else:
        number = len(rows)
    return UsageError(
        f"{cls.__name__} table, entry {number}: a row of {len(names)} fields expected ({', '.join(names)})"
    )
