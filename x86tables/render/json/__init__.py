"""What `--format json` prints: one module per command, with the declarations of its objects."""

from __future__ import annotations

from ...documents import Document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    Known: TypeAlias = "dict[int, tuple[object, str]]"

MANY, KEPT = 64, 8  # parts of an object whose text is kept; so many such texts are


class ImageJson(Document):
    """What every command says of the image."""

    path: str
    format: str
    remarks: list[str]


def output(document: object, indent: int = 1) -> None:
    """Print a document."""
    print(encode(document, indent))


def encode(value: object, indent: int = 1, level: int = 0, known: Known | None = None) -> str:
    """What `json.dumps(value, indent=indent)` makes, `level` levels further in, in a third of its time.

    The encoder in C does not indent. A list or an object without others inside needs no more than another separator.
    `known` has the text of large objects by identity: CPUs share tables.
    """
    from json import dumps

    if not value or not isinstance(value, dict | list | tuple):
        return dumps(value)
    if known is not None and (text := known.get(id(value), (None, ""))[1]):
        return text
    items = value.values() if isinstance(value, dict) else value
    outer = "\n" + " " * (indent * level)
    inner = outer + " " * indent
    if not any(isinstance(item, dict | list | tuple) for item in items):
        text = dumps(value, separators=("," + inner, ": "))
        return f"{text[0]}{inner}{text[1:-1]}{outer}{text[-1]}"
    parts = [encode(item, indent, level + 1, known) for item in items]
    if isinstance(value, dict):
        parts = [f"{dumps(key)}: {part}" for key, part in zip(value, parts, strict=True)]
    text = inner + ("," + inner).join(parts) + outer
    text = f"{{{text}}}" if isinstance(value, dict) else f"[{text}]"
    if known is not None and len(parts) >= MANY:
        if len(known) == KEPT:
            known.clear()
        known[id(value)] = value, text  # which keeps it alive, and its identity
    return text


def stream(
    document: Document, key: str, objects: Iterable[Document], rest: Callable[[], dict[str, object]] = dict
) -> Iterator[str]:
    """The pieces of a document with a long list, its `key`: each object is made and written before the next.

    `rest` is what follows the list, asked for when all have been made.
    """
    from json import dumps

    names = list(document)
    head = {name: document[name] for name in names[: names.index(key)]} | {key: []}
    yield encode(head).removesuffix("[]\n}")
    lead, known = "[", dict[int, tuple[object, str]]()
    for each in objects:
        yield f"{lead}\n  {encode(each, 1, 2, known)}"
        lead = ","
    yield "[]" if lead == "[" else "\n ]"
    for name, value in rest().items():
        yield f",\n {dumps(name)}: {encode(value, 1, 1)}"
    yield "\n}\n"
