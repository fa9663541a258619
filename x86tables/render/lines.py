"""Lines that fit where they are shown."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


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
