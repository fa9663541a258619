"""Lines that fit where they are shown."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def width() -> int:
    """60 to 100 columns, as COLUMNS says or the terminal has them; 100 elsewhere."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and len(columns) < 6:
        count = int(columns)
    else:
        count = os.get_terminal_size().columns if sys.stdout.isatty() else 0
    return max(60, min(100, count or 100))


def wrap(line: str, indent: str) -> Iterator[str]:
    """The line broken at spaces so that what is seen of it stays within the width."""
    columns = width()
    indent = indent[: columns // 2]
    while (cut := _cut(line, len(indent) + 1, columns)) > 0:
        yield line[:cut].rstrip()
        line = indent + line[cut + 1 :]
    yield line.rstrip()


def _cut(line: str, least: int, columns: int) -> int:
    """Where to break a line, not before `least`; -1 where it fits or has no space. Colours take no column."""
    places = list(range(len(line)))
    if "\x1b" in line:
        import re

        for escape in reversed(list(re.finditer(_COLOUR, line))):
            del places[escape.start() : escape.end()]
    if len(places) <= columns:
        return -1
    return next((places[at] for at in range(columns, least - 1, -1) if line[places[at]] == " "), -1)


_COLOUR = r"\x1b\[(?:0|1;3[1-3])m"  # what `coloured` writes
RED, YELLOW, GREEN = "31", "33", "32"
COLOURS = {"survives": GREEN, "triple-fault": RED, "loops": RED, "unknown": YELLOW, "error": RED, "warning": YELLOW}


def colours() -> bool:
    """Whether colours are wanted: NO_COLOR, then FORCE_COLOR decide, else a terminal that has them."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def coloured(word: str, colour: str | None = None) -> str:
    """The word in a colour, its own (COLOURS) if none is given, where colours are wanted."""
    colour = colour or COLOURS.get(word)
    return f"\x1b[1;{colour}m{word}\x1b[0m" if colour and colours() else word


def output(lines: Iterable[str]) -> None:
    """Print lines in one go: of escapes only our colours, nothing that the name of a file may hold."""
    shown = (part for line in map(_shown, lines) for part in wrap(line, " " * (len(line) - len(line.lstrip()) + 4)))
    sys.stdout.write("\n".join(shown) + "\n")


def _shown(line: str) -> str:
    if line.isprintable():
        return line
    import re

    from ..machine.symbols import printable

    parts = re.split(f"({_COLOUR})", line)
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(parts))
