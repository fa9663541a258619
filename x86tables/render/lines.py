"""Lines that fit where they are shown."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


LEAST = 60


def width() -> int:
    """60 to 100 columns, as COLUMNS says or the terminal has them; 100 elsewhere."""
    return max(LEAST, min(100, _columns() or 100))


def _columns() -> int:
    """The columns of what is printed to; 0 where they are not known, as in a pipe."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and len(columns) < 6:
        return int(columns)
    return os.get_terminal_size().columns if sys.stdout.isatty() else 0


def wrap(line: str, indent: str) -> Iterator[str]:
    """The line broken at spaces so that what is seen of it stays within the width: colours take no column."""
    if len(line) <= LEAST:
        yield line.rstrip()
        return
    columns = width()
    indent = indent[: columns // 2]
    plain, marks = _uncoloured(line) if "\x1b" in line else (line, [])
    start, lead = 0, ""
    while (stop := start + columns - len(lead)) < len(plain):
        cut = plain.rfind(" ", start + (1 if lead else len(indent) + 1), stop + 1)
        if cut < 0:
            break
        yield lead + _coloured_again(plain, marks, start, cut).rstrip()
        start, lead = cut + 1, indent
    yield lead + _coloured_again(plain, marks, start, len(plain)).rstrip()


def paragraphs(text: str) -> Iterator[tuple[str, bool]]:
    """The paragraphs of a docstring, and of each whether it stays as it is: a line of it is indented."""
    for part in text.strip().split("\n\n"):
        yield part, "\n  " in f"\n{part}"


def _uncoloured(line: str) -> tuple[str, list[tuple[int, str]]]:
    """The line without what `coloured` writes, and each of that with its place."""
    import re

    plain, marks = "", []
    for part in re.split(f"({_COLOUR})", line):
        if part.startswith("\x1b["):
            marks.append((len(plain), part))
        else:
            plain += part
    return plain, marks


def _coloured_again(plain: str, marks: list[tuple[int, str]], start: int, stop: int) -> str:
    """A part of the line with its colours."""
    text, at = "", start
    for place, mark in marks:
        if start <= place <= stop:
            text, at = text + plain[at:place] + mark, place
    return text + plain[at:stop]


MANY = 10_000  # lines that wait to be printed: all of an ordinary answer, so that an error comes before any of it
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
    """Print lines, MANY at once: of escapes only our colours, nothing that the name of a file may hold.

    What is too long for the screen is broken; in a pipe, a line with a long name stays whole.
    """
    most, waiting = width() if _columns() else sys.maxsize, list[str]()
    for line in map(_shown, lines):
        if len(line) <= most:
            waiting.append(line.rstrip())
        else:
            waiting += wrap(line, " " * (len(line) - len(line.lstrip()) + 4))
        if len(waiting) > MANY:
            sys.stdout.write("\n".join(waiting) + "\n")
            waiting.clear()
    sys.stdout.write("".join(f"{line}\n" for line in waiting))


def _shown(line: str) -> str:
    if line.isprintable():
        return line
    import re

    from ..machine.symbols import printable

    parts = re.split(f"({_COLOUR})", line)
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(parts))
