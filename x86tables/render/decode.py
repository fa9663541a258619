"""One value in words and bits."""

from __future__ import annotations

from .anomalies import anomalies
from .describe import meaning
from .diagram import diagram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..machine.symbols import Symbols
    from ..tables.layout import Layout
    from .error_lookup import Named


def text(kind: str, value: Layout, found: Sequence[Named] | None, symbols: Symbols | None) -> Iterator[str]:
    """The value, its bytes, its meaning, its anomalies, the diagram, and what it names in an image."""
    number = f"0x{int(value):0{value.size * 2}x}" if value.size <= 16 else f"{value.size} bytes"
    rows = [(kind, [number]), ("bytes", [bytes(value).hex(" ")])]
    rows += [("meaning", meaning(value).split("; ")), ("anomalies", anomalies(value) or ["none"])]
    indent = max(len(kind), len("anomalies")) + 2
    for label, texts in rows:
        yield from _labelled(label, texts, indent)
    yield ""
    yield diagram(value)
    if found is not None and symbols is not None:
        from . import error_lookup

        yield from error_lookup.text(found, symbols)


def _labelled(label: str, texts: list[str], indent: int) -> Iterator[str]:
    """The texts below each other behind their label, wrapped to 80 columns; bytes 16 to a line."""
    import textwrap

    width = 48 if label == "bytes" else 80 - indent
    for text in texts:
        for line in textwrap.wrap(text, width, break_on_hyphens=False):
            yield f"{label:<{indent}}{line}"
            label = ""
