"""The bit diagram as the manual draws it: 31..0 in a row, the highest dword first, made from `Layout.fields` alone."""

from __future__ import annotations

from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..tables.layout import Field, Layout

WIDTH = 80


class Cell(Record):
    """The bits `high`..`low` of one row: a field or the part of one that lies there."""

    high: int
    low: int
    name: str
    part: str
    value: str

    def texts(self) -> tuple[str, str, str]:
        """What stands in the box, line by line."""
        return self.name, self.part, self.value

    def needs(self) -> int:
        """The characters between the borders that its texts and its bit numbers take."""
        numbers = f"{self.high} {self.low}" if self.high > self.low else f"{self.high}"
        return max(map(len, (*self.texts(), numbers)))


def diagram(value: Layout) -> str:
    """The structure in boxes, plain ASCII within 80 columns: bit numbers above, names and values inside.

    A field that is scattered or longer than a dword says which of its own bits a box holds (`31:24`). At the right end
    of a row stands its byte offset, when there are several.
    """
    rows, columns = grid(value)
    lines: list[str] = []
    bottom, above = "", [0]
    for number, row in enumerate(rows):
        edges = [cell.high for cell in row]
        margin = " " * sum(columns[row[0].high + 1 :]) if len(rows) > 1 else ""
        border = margin + "+" + "+".join("-" * _inner(columns, cell) for cell in row) + "+"
        if edges != above:
            lines += [bottom, margin + _numbers(columns, row)]
        offset = f" +{(len(rows) - number - 1) * 4:#x}" if len(rows) > 1 else ""
        lines += [border, *_boxes(columns, row, margin, offset)]
        bottom, above = border, edges
    return "\n".join(line.rstrip() for line in [*lines[1:], bottom])


def grid(value: Layout) -> tuple[list[list[Cell]], list[int]]:
    """The rows of cells, the highest dword first, and the width in characters of each of their 32 columns."""
    rows = [_row(value, base) for base in range(value.size * 8 - 1 & ~31, -1, -32)]
    return rows, _columns([cell for row in rows for cell in row])


def _row(value: Layout, base: int) -> list[Cell]:
    """The cells of the dword whose lowest bit is `base`, high bit first."""
    cells = [cell for field in value.fields for cell in _cells(field, getattr(value, field.name), base)]
    return sorted(cells, key=lambda cell: -cell.high)


def _cells(field: Field, number: int, base: int) -> Iterator[Cell]:
    for at, start, width in field.parts:
        low, high = max(start, base), min(start + width, base + 32) - 1
        if low <= high:
            at += low - start
            held = number >> at & (1 << high - low + 1) - 1
            whole = high - low + 1 == field.width
            part = "" if whole else f"{at + high - low}:{at}"
            yield Cell(high - base, low - base, field.name, part, f"{held:#x}" if high - low > 2 else str(held))


def _columns(cells: list[Cell]) -> list[int]:
    """The width of each bit's column, its left border included, such that every cell holds its texts.

    Two characters a bit draw the boxes to scale; where the names then take too much room, one character does.
    """
    for scale in (2, 1):
        columns = [scale] * 32
        for cell in sorted(cells, key=lambda cell: cell.high - cell.low):
            span = range(cell.low, cell.high + 1)
            while _inner(columns, cell) < cell.needs():
                narrowest = min(span, key=columns.__getitem__)
                columns[narrowest] += 1
        if sum(columns) + 1 <= WIDTH - 6:
            break
    return columns


def _inner(columns: list[int], cell: Cell) -> int:
    return sum(columns[cell.low : cell.high + 1]) - 1


def _numbers(columns: list[int], row: list[Cell]) -> str:
    """The line of bit numbers: the ends of each cell, or the one bit in its middle."""
    line = ""
    for cell in row:
        room = _inner(columns, cell)
        if cell.high == cell.low:
            line += " " + str(cell.high).center(room)
        else:
            line += f" {cell.high}" + str(cell.low).rjust(room - len(str(cell.high)))
    return line


def _boxes(columns: list[int], row: list[Cell], margin: str, offset: str) -> list[str]:
    """The lines between two borders: names, the parts of scattered fields, values; one line for a row of one cell."""
    if len(row) == 1:
        text = " ".join(filter(None, (row[0].name, row[0].part, "=", row[0].value)))
        return [f"{margin}|{text.center(_inner(columns, row[0]))}|{offset}"]
    lines = [texts for texts in zip(*(cell.texts() for cell in row), strict=True) if any(texts)]
    boxes = [
        margin + "|" + "|".join(t.center(_inner(columns, cell)) for t, cell in zip(texts, row, strict=True)) + "|"
        for texts in lines
    ]
    boxes[-1] += offset
    return boxes
