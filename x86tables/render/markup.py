"""Elements of HTML and SVG: whatever is not markup already is escaped."""

from __future__ import annotations

import html

from ..machine.symbols import printable

VOID = ("meta", "br")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Text as markup, in ASCII whatever is in it; what would not be seen is an escape, as on a terminal."""
    if isinstance(text, Markup):
        return text
    plain = html.escape(printable(str(text)), quote=True)
    return Markup(plain.encode("ascii", "xmlcharrefreplace").decode())


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """`<tag name="value">children</tag>`: `class_` is class, other underscores are hyphens; None is left out."""
    names = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Markup(f"<{tag}{names}>")
    return Markup(f"<{tag}{names}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """What stands one after the other; None is left out."""
    return Markup("".join(escape(child) for child in children if child is not None))
