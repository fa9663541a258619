"""Pictures: an address space drawn as a column, a simulation as a sequence, a structure as its bits."""

from __future__ import annotations

import textwrap

from ..records import Record
from . import diagram as boxes
from .markup import Markup, element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..tables.layout import Layout

STYLE = """
:root { color-scheme: light dark;
  --paper: #fcfbf9; --card: #ffffff; --ink: #1f2429; --muted: #5b6570; --line: #dcd9d3;
  --red: #a8281e; --red-soft: #fae6e3; --green: #1c6841; --green-soft: #e0f0e7; --amber: #7d5200; --amber-soft: #f9edd2;
  --blue: #27567f; --stack: #d6e5f2; --free: #f0efeb; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #15181c; --card: #1b1f24; --ink: #e3e6e9; --muted: #9ba5b0; --line: #343b43;
  --red: #ff9288; --red-soft: #41201e; --green: #82d1a1; --green-soft: #183324; --amber: #e8ba5c; --amber-soft: #372b10;
  --blue: #8fbbe6; --stack: #21384d; --free: #23282e; } }
svg { font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .mono { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre; }
svg .faint { fill: var(--muted); }
svg .bad { fill: var(--red); font-weight: 600; }
svg .good { fill: var(--green); font-weight: 600; }
svg rect { fill: var(--free); stroke: var(--muted); }
svg rect.used, svg rect.stack { fill: var(--stack); stroke: var(--blue); }
svg rect.free { fill: var(--card); stroke: var(--blue); }
svg rect.guard { fill: var(--green-soft); stroke: var(--green); }
svg rect.push, svg rect.failed { fill: var(--red-soft); stroke: var(--red); stroke-dasharray: 5 3; }
svg rect.over { fill: var(--red-soft); stroke: var(--red); }
svg rect.unknown { fill: var(--amber-soft); stroke: var(--amber); stroke-dasharray: 2 3; }
svg rect.card { fill: var(--card); stroke: var(--line); }
svg rect.gap { fill: none; stroke: none; }
svg path { stroke: var(--muted); fill: none; }
svg path.hatch { stroke: var(--green); opacity: .35; }
svg path.edge { stroke: var(--red); stroke-width: 4; }
"""

BOX, WIDE, LINE, MONO = 156, 366, 16, 7.3  # the column's box, the picture, a line of text, a character of 12 px


class Band(Record):
    """A part of an address space, from high to low: its kind is a class of STYLE, `edge` the address of its upper end,
    with what points to it; `notes` stand beside it. A part of many bytes is a little higher. An `edge` is
    where two parts meet without a guard between them."""

    kind: str
    words: str
    edge: str = ""
    notes: tuple[str, ...] = ()
    size: int = 0


class Picture(Record):
    """A drawing: its name, in words what it shows, its size in pixels, what is in it."""

    name: str
    said: str
    width: float
    height: float
    parts: tuple[Markup, ...]

    def markup(self, style: str | None = None, x: float | None = None, y: float | None = None) -> Markup:
        """The `svg` element; with a style of its own where it stands alone, a place where it is part of another."""
        width, height = f"{self.width:.0f}", f"{self.height:.0f}"
        inside = element("title", self.name), element("desc", self.said)
        own = None if style is None else element("style", Markup(style))
        return element(
            "svg",
            *inside,
            own,
            *self.parts,
            xmlns="http://www.w3.org/2000/svg",
            width=width,
            height=height,
            viewBox=f"0 0 {width} {height}",
            x=x,
            y=y,
            role="img",
            aria_label=self.name,
            style=None if style is None else "background: var(--paper)",
        )


def alone(pictures: Sequence[tuple[str, Picture]]) -> str:
    """Pictures with their captions below each other, as a file of its own."""
    y, parts = 8.0, list[Markup]()
    for caption, inner in pictures:
        lines = textwrap.wrap(caption, 60)
        parts += [text(12, y + 14 + number * LINE, line) for number, line in enumerate(lines)]
        y += len(lines) * LINE + 10
        parts.append(inner.markup(x=12, y=y))
        y += inner.height + 24
    names = "; ".join(caption for caption, _ in pictures)
    width = max([60 * MONO, *(inner.width for _, inner in pictures)]) + 24
    return f"{Picture(names, names, width, y, tuple(parts)).markup(STYLE)}\n"


def text(x: float, y: float, words: object, class_: str | None = None, anchor: str | None = None) -> Markup:
    """Words at a place: x is where they begin, y their base line."""
    return element("text", words, x=f"{x:.1f}", y=f"{y:.1f}", class_=class_, text_anchor=anchor)


def rect(x: float, y: float, width: float, height: float, class_: str, rx: int | None = None) -> Markup:
    """A box."""
    return element(
        "rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=f"{height:.1f}", class_=class_, rx=rx
    )


def column(name: str, bands: Sequence[Band]) -> Picture:
    """An address space, the highest address at the top."""
    parts: list[Markup] = []
    y = 12.0
    for band in bands:
        if band.kind == "edge":
            parts.append(element("path", d=f"M0 {y:.1f}h{BOX + 1}", class_="edge"))
            continue
        inside = textwrap.wrap(band.words, 22)
        notes = [line for note in band.notes for line in textwrap.wrap(note, 25)]
        height = max(len(inside) * LINE + 12, len(notes) * LINE + (32 if band.edge else 24) if notes else 34)
        height = max(height, 6 * band.size.bit_length() - 30)
        parts.append(rect(0.5, y, BOX, height, band.kind))
        if band.kind == "guard":
            parts.append(element("path", d=_hatch(0.5, y, BOX, height), class_="hatch"))
        first = y + height / 2 - (len(inside) - 1) * LINE / 2 + 4
        parts += [
            text(BOX / 2, first + number * LINE, line, "bad" if band.kind in ("push", "over") else None, "middle")
            for number, line in enumerate(inside)
        ]
        if band.edge:
            parts.append(element("path", d=f"M{BOX + 1} {y:.1f}h9"))
            parts.append(text(BOX + 14, y + 4, band.edge, "mono"))
        first = y + (height - (len(notes) - 1) * LINE) / 2 + (6 if band.edge else 4)
        parts += [text(BOX + 14, first + number * LINE, line, "faint") for number, line in enumerate(notes)]
        y += height
    said = "From high addresses to low: " + "; ".join(
        ", ".join(filter(None, (band.edge, band.words, *band.notes))) for band in bands if band.words
    )
    return Picture(name, said, WIDE, y + 12, tuple(parts))


def _hatch(x: float, y: float, width: float, height: float) -> str:
    """Slanted lines across a box."""
    lines = []
    for at in range(-int(height), int(width), 10):
        left, right = max(at, 0), min(at + height, width)
        if left < right:
            lines.append(
                f"M{x + left:.0f} {y + height - (left - at):.0f}L{x + right:.0f} {y + height - (right - at):.0f}"
            )
    return "".join(lines)


def sequence(name: str, cards: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]) -> Picture:
    """Events one after the other: (class of the card, heading, its lines with a class each)."""
    width, parts, said = 100 * MONO + 24, list[Markup](), list[str]()
    y = 4.0
    for number, (kind, heading, lines) in enumerate(cards):
        shown = [(row, class_) for words, class_ in lines for row in _rows(words)]
        heads = textwrap.wrap(heading, 110) or [""]
        height = 10 + (len(heads) + len(shown)) * LINE + (8 if shown else 4)
        if number:
            parts.append(element("path", d=f"M24 {y:.0f}v14m-4 -5l4 5l4 -5"))
            y += 16
        parts.append(rect(0.5, y, width - 1, height, kind, 5))
        for row, words in enumerate(heads):
            parts.append(text(12, y + 19 + row * LINE, words, {"failed": "bad", "guard": "good"}.get(kind)))
        for row, (words, class_) in enumerate(shown, len(heads) - 1):
            parts.append(text(12, y + 40 + row * LINE, words, f"mono {class_}".strip()))
        said.append(f"{heading}: {'; '.join(words for words, _ in lines)}" if lines else heading)
        y += height
    return Picture(name, ". ".join(said), width, y + 4, tuple(parts))


def _rows(words: str) -> list[str]:
    """A line of at most 98 characters, what follows below its third column."""
    return textwrap.wrap(words, 98, subsequent_indent=" " * 36, drop_whitespace=True, break_on_hyphens=False) or [""]


def diagram(value: Layout) -> Picture:
    """The bits of a structure, 31 to 0 in a row, the highest dword first."""
    rows, columns = boxes.grid(value)
    left = [sum(columns[bit + 1 :]) * MONO for bit in range(32)]  # the left edge of a bit's column
    width = sum(columns) * MONO
    parts: list[Markup] = []
    said: list[str] = []
    for number, row in enumerate(rows):
        y = 16 + number * 76
        for cell in row:
            x, right = left[cell.high], left[cell.low] + columns[cell.low] * MONO
            ends = [(cell.high, x + 3, None), (cell.low, right - 3, "end")]
            if cell.high == cell.low:
                ends = [(cell.high, (x + right) / 2, "middle")]
            parts += [text(at, y - 3, bit, "mono faint", anchor) for bit, at, anchor in ends]
            parts.append(rect(x + 0.5, y, right - x, 52, "card"))
            middle = (x + right) / 2
            for line, words in enumerate(cell.texts()):
                parts.append(text(middle, y + 15 + 16 * line, words, "mono faint" if line < 2 else "mono", "middle"))
            said.append(f"{cell.name} {cell.part}".strip() + f" {cell.value}")
        parts.append(text(width + 6, y + 30, f"+{(len(rows) - number - 1) * 4:#x}", "mono faint"))
    name = type(value).__name__
    return Picture(f"{name}, bit by bit", ", ".join(said), width + 50, 16 + len(rows) * 76, tuple(parts))
