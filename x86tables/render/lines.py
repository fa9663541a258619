"""Lines that fit where they are shown."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def width() -> int:
    """80 to 100 columns, as the terminal has them; 100 elsewhere."""
    return max(80, min(100, os.get_terminal_size().columns)) if sys.stdout.isatty() else 100


def wrap(line: str, indent: str) -> Iterator[str]:
    """The line broken at spaces so that it stays within the width."""
    columns = width()
    while len(line) > columns and (cut := line.rfind(" ", len(indent) + 1, columns + 1)) > len(indent):
        yield line[:cut].rstrip()
        line = indent + line[cut + 1 :]
    yield line.rstrip()


COLOURS = {"survives": "32", "triple-fault": "31", "loops": "31", "unknown": "33", "error": "31", "warning": "33"}


def coloured(word: str) -> str:
    """The word, in its colour where standard output is a terminal."""
    if word in COLOURS and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[1;{COLOURS[word]}m{word}\x1b[0m"
    return word


def output(lines: Iterable[str]) -> None:
    """Print lines in one go: of escapes only our colours, nothing that the name of a file may hold."""
    sys.stdout.write("\n".join(map(_shown, lines)) + "\n")


def _shown(line: str) -> str:
    if line.isprintable():
        return line
    import re

    from ..machine.symbols import printable

    parts = re.split(r"(\x1b\[(?:0|1;3[1-3])m)", line)  # what `coloured` writes
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(parts))
