"""The page around a report: its head and style, and the blocks that reports share."""

from __future__ import annotations

import os

from ..markup import Markup, element, escape, join
from ..svg import STYLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ...machine.image import Snapshot
    from ...tables.layout import Layout

SCROLLS = "scroll"  # the class of blocks that may be wider than a phone, and scroll by themselves


def page(title: str, blocks: Iterable[Markup]) -> Iterator[str]:
    """The pieces of a whole page."""
    with open(os.path.join(os.path.dirname(__file__), "style.css"), encoding="ascii") as file:
        style = Markup(STYLE + file.read())
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    yield f'<!DOCTYPE html>\n<html lang="en">\n{element("head", head)}\n<body>\n<main>\n'
    for block in blocks:
        yield f"{block}\n"
    yield "</main>\n</body>\n</html>\n"


def about(image: Snapshot) -> Markup:
    """The image's name and format, and what is to be said of it."""
    count = len(image.machines)
    line = f"{image.path}: {image.format}, {count} CPU{'s' if count != 1 else ''}"
    return join(paragraph(line, "about"), *(paragraph(f"note: {remark}", "about") for remark in image.remarks))


def paragraph(text: object, class_: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", text, class_=class_)


def badge(word: str) -> Markup:
    """A verdict or a severity, with the colour that is its own."""
    return element("strong", word, class_=f"badge {word}")


def code(text: object) -> Markup:
    """An address, a name, bytes. A long name may be broken after an underscore."""
    return element("code", Markup(escape(text).replace("_", "_<wbr>")))


def pairs(rows: Iterable[tuple[str, object]]) -> Markup:
    """Names and what they stand for, as a list."""
    return element("dl", *(join(element("dt", name), element("dd", said)) for name, said in rows))


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table whose first column names its rows; it scrolls by itself where it is too wide."""
    head = element("tr", *(element("th", name, scope="col") for name in heads))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    inner = (element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", element("table", *inner), class_=SCROLLS, tabindex=0, role="region", aria_label=caption)


def opens(summary: object, *inside: object, class_: str | None = None) -> Markup:
    """What is shown when it is asked for; on paper too, unless it is of the class `more`."""
    return element("details", element("summary", summary), *inside, class_=class_)


def bits(summary: object, value: Layout) -> Markup:
    """A bit diagram that opens."""
    from ..svg import diagram

    return opens(summary, element("div", diagram(value).markup(), class_=SCROLLS), class_="more")
