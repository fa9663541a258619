"""The tables as `construct` objects, to embed in anyone's own Struct: the only module that imports construct.

`schemas.Gate.parse(data)` gives an x86tables Gate, which reads like a Container (`gate.ist`, `gate["ist"]`);
`schemas.Gate.build` takes one, or a dict, or a Container. Lengths are numbers or context lambdas, and errors are
construct's own, with their path:

    image = Struct(
        "lidt" / schemas.Lidt,
        "idt" / schemas.Idt(limit=this.lidt.limit),
        "stacks" / Array(7, Int64ul),
    )

Beware of two constructs: GreedyRange and Select take every error for the end of the data.
"""

# construct has no types: what comes from it is Any
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from construct import (
    Adapter,
    Bytes,
    Computed,
    Construct,
    Default,
    FixedSized,
    IntegerError,
    MappingError,
    Pointer,
    Struct,
    Subconstruct,
    Tell,
    stream_read,
    stream_write,
    this,
)

from .errors import UsageError
from .tables import gdt, idt, legacy, pseudo, selector, tss
from .tables.layout import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "CallGate",
    "ErrorFrame",
    "Frame",
    "Gate",
    "Gdt",
    "Idt",
    "LegacyGate",
    "LegacySystemDescriptor",
    "Lgdt",
    "Lidt",
    "Of",
    "PageFaultErrorCode",
    "PseudoDescriptor",
    "PseudoDescriptor32",
    "RealModeVector",
    "SegmentDescriptor",
    "Selector",
    "SelectorErrorCode",
    "Star",
    "SystemDescriptor",
    "Tables",
    "Tss",
    "Tss32",
    "TssSegment",
    "VectorTable",
]


class Of(Construct):
    """A layout as a Construct of fixed size; `Of(MyLayout)` does the same for a layout of your own.

    Building takes a value of the layout, or a mapping of fields to numbers, where a field that is left out takes its
    default and names that begin with `_` (such as construct's `_io`) are passed over. A number that does not fit its
    field is an IntegerError; anything else that is no such value is a MappingError.
    """

    def __init__(self, layout: type[Layout]) -> None:
        super().__init__()
        self.layout = layout

    def __repr__(self) -> str:
        return f"<schemas.{self.layout.__name__}>"

    def _parse(self, stream: Any, context: Any, path: str) -> Layout:
        return self.layout.parse(stream_read(stream, self.layout.size, path))

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Layout:
        value = _value(self.layout, obj, path)
        stream_write(stream, bytes(value), self.layout.size, path)
        return value

    def _sizeof(self, context: Any, path: str) -> int:
        return self.layout.size


def _value(layout: type[Layout], obj: Any, path: str) -> Layout:
    """`obj` as a value of `layout`."""
    if isinstance(obj, layout):
        return obj
    if layout is Layout:  # a mapping does not say of which
        raise MappingError(f"a descriptor expected, found {obj!r}", path=path)
    if not hasattr(obj, "keys"):
        raise MappingError(f"{layout.__name__}: a value or a mapping of its fields expected, found {obj!r}", path=path)
    known = {field.name for field in layout.fields}
    unknown = [name for name in obj if name not in known and not str(name).startswith("_")]
    if unknown:
        raise MappingError(f"{layout.__name__} has no field {unknown[0]!r}", path=path)
    try:
        return layout(**{name: obj[name] for name in obj if name in known})
    except UsageError as error:
        raise IntegerError(f"{layout.__name__}: {error}", path=path) from None


SegmentDescriptor = Of(gdt.SegmentDescriptor)
SystemDescriptor = Of(gdt.SystemDescriptor)
CallGate = Of(gdt.CallGate)
Gate = Of(idt.Gate)
Tss = Of(tss.Tss)
Selector = Of(selector.Selector)
SelectorErrorCode = Of(selector.SelectorErrorCode)
Star = Of(selector.Star)
PageFaultErrorCode = Of(selector.PageFaultErrorCode)
PseudoDescriptor = Lgdt = Lidt = Of(pseudo.PseudoDescriptor)
PseudoDescriptor32 = Of(pseudo.PseudoDescriptor32)
Frame = Of(pseudo.Frame)
ErrorFrame = Of(pseudo.ErrorFrame)
LegacyGate = Of(legacy.LegacyGate)
LegacySystemDescriptor = Of(gdt.LegacySystemDescriptor)
Tss32 = Of(legacy.Tss32)
RealModeVector = Of(legacy.RealModeVector)


# What follows is composed of construct's own classes. Subconstruct and Adapter are called by `compile()`, not
# translated, so that lengths may be any function of the context there as well.


def _plus(length: Any, more: int) -> Any:
    """A number or a context lambda, and `more`."""
    return (lambda context: length(context) + more) if callable(length) else length + more


def _times(count: Any, size: int) -> Any:
    return (lambda context: count(context) * size) if callable(count) else count * size


def _outside(length: Any) -> Any:
    """A length as a function of the context around one of the Structs made here: that is the one users mean."""
    return lambda context: length(context._) if callable(length) else length


class _Table(Adapter):
    """A table over so many bytes, by its own whole-table codec; builds from a list of entries too."""

    table: Any
    entry: Any

    def __init__(self, size: Any) -> None:
        super().__init__(Bytes(size))

    def _decode(self, obj: bytes, context: Any, path: str) -> Any:
        return self.table.parse(obj)

    def _encode(self, obj: Any, context: Any, path: str) -> bytes:
        if isinstance(obj, self.table):
            return bytes(obj)
        if not isinstance(obj, list | tuple) or isinstance(obj, Layout):
            name = self.table.__name__
            raise MappingError(f"a value of type {name} or a list of its entries expected, found {obj!r}", path=path)
        return b"".join(bytes(_value(self.entry, entry, f"{path} -> {number}")) for number, entry in enumerate(obj))


class IdtConstruct(_Table):
    """An IDT of `count` gates, or of `limit` + 1 bytes: parses to x86tables.Idt.

    Builds from one, or from a list of gates (values or mappings).
    """

    table, entry = idt.Idt, idt.Gate

    def __init__(self, count: Any = 256, *, limit: Any = None) -> None:
        super().__init__(_times(count, idt.Gate.size) if limit is None else _plus(limit, 1))


class GdtConstruct(_Table):
    """A GDT or an LDT of `size` bytes, or of `limit` + 1: parses to x86tables.Gdt.

    Builds from one, or from a list of descriptors, the null descriptor first. These are values: a mapping would not
    say which layout it is of.
    """

    table, entry = gdt.Gdt, Layout

    def __init__(self, size: Any = None, *, limit: Any = None) -> None:
        if (size is None) == (limit is None):
            raise UsageError("schemas.Gdt takes either a size in bytes or a limit")
        super().__init__(size if limit is None else _plus(limit, 1))


class VectorTableConstruct(_Table):
    """The real-mode vector table of `count` far pointers: parses to x86tables.VectorTable.

    Builds from one, or from a list of RealModeVector (values or mappings).
    """

    table, entry = legacy.VectorTable, legacy.RealModeVector

    def __init__(self, count: Any = 256) -> None:
        super().__init__(_times(count, legacy.RealModeVector.size))


# The public names, like those of the layouts: a table of tables/ and its construct face are called the same
Idt = IdtConstruct
Gdt = GdtConstruct
VectorTable = VectorTableConstruct


class _Behind(Adapter):
    """The bytes that a TSS limit covers behind the 104; builds from an IoMap too."""

    def __init__(self, limit: Any) -> None:
        super().__init__(Bytes(_plus(limit, 1 - tss.Tss.size)))

    def _decode(self, obj: bytes, context: Any, path: str) -> bytes:
        return obj

    def _encode(self, obj: Any, context: Any, path: str) -> Any:
        return bytes(obj) if isinstance(obj, tss.IoMap) else obj


def _io_map(context: Any) -> tss.IoMap | None:
    """The I/O permission bitmap of a TSS whose parts have just been parsed or built."""
    return tss.IoMap.of(bytes(context.tss) + bytes(context.behind), context.tss.iopb)


class TssSegment(Subconstruct):
    """All that a TSS limit covers, from 0x67 up: `tss`, the bytes `behind` it, and the `iomap` that lies in them.

    `iomap` follows from the others and is None without a bitmap. To build one, give `behind` the IoMap:
    `TssSegment(limit).build({"tss": {"iopb": 0x68}, "behind": IoMap.allowing([0x3f8])})`.
    """

    def __init__(self, limit: Any = 0x67) -> None:
        behind = Default(_Behind(_outside(limit)), b"")
        super().__init__(Struct("tss" / Tss, "behind" / behind, "iomap" / Computed(_io_map)))


class TablesConstruct(Subconstruct):
    """A blob of `size` bytes that holds all the tables, at offsets from where it begins itself.

    At `lgdt` and `lidt` are the operands, whose limits give the sizes of `gdt` and `idt`; `tss`, `behind` and `iomap`
    are as in TssSegment. `raw` is the whole blob: what lies between the tables is built from it, and is zero when it
    is not given.
    """

    def __init__(self, size: Any, *, lgdt: Any, gdt: Any, tss: Any, lidt: Any, idt: Any, tss_limit: Any = 0x67) -> None:
        def at(offset: Any, subcon: Any) -> Any:
            # FixedSized counts from the start of the outer stream when it parses, from its own when it builds
            outside = _outside(offset)
            return Pointer(lambda context: context._start + outside(context), subcon)

        whole = _outside(size)
        inside = Struct(
            "_start" / Tell,
            "raw" / Default(Bytes(whole), lambda context: bytes(whole(context))),
            "lgdt" / at(lgdt, Lgdt),
            "gdt" / at(gdt, Gdt(limit=this.lgdt.limit)),
            "tss" / at(tss, Tss),
            "behind" / at(_plus(tss, Tss.sizeof()), Default(_Behind(_outside(tss_limit)), b"")),
            "iomap" / Computed(_io_map),
            "lidt" / at(lidt, Lidt),
            "idt" / at(idt, Idt(limit=this.lidt.limit)),
        )
        super().__init__(FixedSized(size, inside))


Tables = TablesConstruct
