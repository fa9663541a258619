"""JSON objects, each declared once: the declaration writes the object and is its JSON Schema.

    class StackJson(Document, name=one_of("RSP0", "IST1")):
        '''One stack.

        top: the end: the first push goes below it
        '''

        name: str
        top: Hex
        below: str | None
        line: str | None = LEFT_OUT

    StackJson(name="IST1", top=0x8000, below=None)  # {"name": "IST1", "top": "0x8000", "below": None}

Keys stand in the order of the declaration; a field with the default LEFT_OUT is there where it applies. A trailing `_`
keeps a key apart from a Python keyword. A line `field: text` in the docstring, and a keyword of the class with the name
of a field, say in the schema what the type does not; any other keyword says it of the object.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, TypeAlias, dataclass_transform

    Hex: TypeAlias = int  # `0x`, lower case, unpadded: addresses, registers
    Raw: TypeAlias = bytes  # bytes in memory order, as plain hex
    Natural: TypeAlias = int  # 0 and up; a plain `int` may be negative
    U2: TypeAlias = int  # so many bits
    U3: TypeAlias = int
    U4: TypeAlias = int
    U8: TypeAlias = int
    U13: TypeAlias = int
    U16: TypeAlias = int
    U20: TypeAlias = int
    U32: TypeAlias = int
    Object: TypeAlias = dict[str, Any]
else:
    Object = dict

    def dataclass_transform(**_):
        return lambda cls: cls


SCHEMA = 1  # changes when a key changes its meaning
LEFT_OUT: Any = type("LeftOut", (), {"__repr__": lambda self: "LEFT_OUT"})()
SCALARS: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "Natural": {"type": "integer", "minimum": 0},
    "Hex": {"type": "string", "pattern": "^0x(0|[1-9a-f][0-9a-f]{0,15})$"},
    "Raw": {"type": "string", "pattern": "^([0-9a-f]{2})*$"},
}


@dataclass_transform(kw_only_default=True)
class Document(Object):
    """One object. A subclass has the fields of its base first."""

    _kinds: ClassVar[dict[str, type[Document]]] = {}
    _fields: ClassVar[dict[str, str]] = {}
    _defaults: ClassVar[dict[str, Any]] = {}
    _writers: ClassVar[dict[str, tuple[str, Callable[[Any], Any] | None]] | None] = None
    _more: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        own = {name: kind for name, kind in cls.__annotations__.items() if not name.startswith("_")}
        cls._fields = cls._fields | own
        cls._defaults = cls._defaults | {name: vars(cls)[name] for name in own if name in vars(cls)}
        cls._more = cls._more | more
        cls._writers = None
        Document._kinds[cls.__name__] = cls

    if not TYPE_CHECKING:

        def __init__(self, **values):
            cls = type(self)
            if cls._writers is None:
                cls._writers = {name: (name.rstrip("_"), _writer(kind)) for name, kind in cls._fields.items()}
            for name, (key, write) in cls._writers.items():
                if name not in values and name not in cls._defaults:
                    raise TypeError(f"{cls.__name__} lacks {name}")
                value = values.pop(name) if name in values else cls._defaults[name]
                if value is not LEFT_OUT:
                    self[key] = value if write is None or value is None else write(value)
            if values:
                raise TypeError(f"{cls.__name__} has no {', '.join(values)}")

    @classmethod
    def of(cls, source: object, **values: Any) -> Self:
        """The object with fields from `values`, and those that are always there from attributes of `source`."""
        for name in cls._fields:
            if name not in values and name not in cls._defaults:
                values[name] = getattr(source, name)
        return cls(**values)

    @classmethod
    def _made(cls, value: Any) -> Any:
        """What stands in a field of this kind: an object that is there already, of any kind, or one of a source."""
        return value if isinstance(value, dict) else cls.of(value)


class Answer(Document, schema={"const": SCHEMA}):
    """A whole document."""

    schema: Natural = SCHEMA


def hexadecimal(value: int | None) -> str | None:
    """How JSON writes an address or a register: `0x`, lower case, unpadded; None for what is not known."""
    return None if value is None else f"{value:#x}"


def _writer(kind: str) -> Callable[[Any], Any] | None:
    """What writes a value of an annotated kind that is not None; None when it is written as it is."""
    items = kind.removeprefix("list[")
    first = items.removesuffix(" | None").removesuffix("]").split(" | ")[0]
    writers: dict[str, Callable[[Any], Any]] = {"Hex": hexadecimal, "Raw": bytes.hex}
    document = Document._kinds.get(first)
    write = writers.get(first) if document is None else document._made
    if write is None or items == kind:
        return write
    return lambda values: [None if value is None else write(value) for value in values]


# the schema

NOTE = (
    "Hex strings are 0x..., lower case, unpadded. `raw` is bytes in memory order as plain hex. null is: not known, or "
    "none. What is not listed as required appears where it applies. A later version may add properties; `schema` "
    "changes when one of these changes its meaning."
)


def one_of(*values: str | None) -> dict[str, Any]:
    """One of some words."""
    return {"enum": list(values)}


def schema(title: str, *kinds: type[Document]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a document that is of one of some kinds."""
    used: dict[str, dict[str, Any]] = {}
    tops = [_object(kind, used) for kind in kinds]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **(tops[0] if len(tops) == 1 else {"anyOf": tops}),
        "description": NOTE,
        "$defs": {name: used[name] for name in sorted(used)},
    }


def described(kind: type[Document]) -> tuple[str, dict[str, str]]:
    """The first line of a docstring, and what its further lines say of fields."""
    import inspect

    title, *lines = inspect.cleandoc(kind.__doc__ or "").splitlines()
    return title, dict(line.split(": ", 1) for line in lines if line)


def _object(kind: type[Document], used: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One object; the definitions that it needs go to `used`."""
    import ast

    title, texts = described(kind)
    properties = {}
    for name, annotation in kind._fields.items():
        key = name.rstrip("_")
        shape = _shape(ast.parse(annotation, mode="eval").body, used)
        properties[key] = shape | kind._more.get(name, {}) | ({"description": texts[key]} if key in texts else {})
    return {
        "type": "object",
        "description": title,
        "properties": properties,
        "required": [name.rstrip("_") for name in kind._fields if kind._defaults.get(name) is not LEFT_OUT],
        "additionalProperties": False,
        **{name: value for name, value in kind._more.items() if name not in kind._fields},
    }


def _shape(node: Any, used: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The schema of an annotation."""
    import ast

    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            first, second = _shape(left, used), _shape(right, used)
            return {"anyOf": [*first.get("anyOf", [first]), second]}
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return {"type": "array", "items": _shape(item, used)}
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])):
            return {"type": "object", "additionalProperties": _shape(item, used)}
        case ast.Constant(value=None):
            return {"type": "null"}
    name: str = node.id
    kind = Document._kinds.get(name)
    if kind is None and name not in ("Hex", "Raw"):
        bits = name[1:]
        return {"type": "integer", "minimum": 0, "maximum": (1 << int(bits)) - 1} if bits.isdigit() else SCALARS[name]
    short = name.removesuffix("Json")
    if short not in used:
        used[short] = {}  # while its own fields are looked at
        used[short] = SCALARS[name] if kind is None else _object(kind, used)
    return {"$ref": f"#/$defs/{short}"}
