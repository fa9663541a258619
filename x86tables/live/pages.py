"""The memory of a machine that is stopped: which there is, and pages of it as they are asked for."""

from __future__ import annotations

import re
from functools import partial

from .. import budgets
from ..errors import ImageError, NotThere
from ..machine.memory import PAGE, Memory
from ..readers import Contents, monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..machine.memory import Piece

# `info mtree -f`: the ranges of an address space, each with its kind
_VIEW = re.compile(r'^ *AS "(?:cpu-memory-0|memory)".*$', re.MULTILINE)
_WORDS = re.compile(r"0x([0-9a-f]{16})")
_RANGE = re.compile(r"^ *([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|rom|romd)\)", re.MULTILINE)


def contents(path: str, text: Callable[[str], str], read: Callable[[int], bytes] | None = None) -> Contents:
    """What QEMU's monitor says of a machine: `text` asks it, `read` gives a physical page faster."""
    registers = monitor.parse(text("info registers -a"), path)
    ranges = memory_map(text("info mtree -f"))
    if not ranges:
        raise ImageError(f"{path}: QEMU's `info mtree -f` names no memory")
    pages = GuestPages(read or partial(_shown, text), max(known.stop for known in ranges))
    pieces: list[Piece] = [(known.start, len(known), pages, known.start) for known in ranges]
    said = ",".join(f"{known.start:#x}-{known.stop:#x}" for known in ranges)
    extra = {"ram": said} if len(ranges) <= budgets.RANGES else {}
    return Contents(Memory(pieces), registers, extra=extra, running=False)


def _shown(text: Callable[[str], str], address: int) -> bytes:
    """A page of physical memory as the monitor shows it."""
    words = _WORDS.findall(text(f"xp /512gx {address:#x}"))
    if len(words) != 512:
        raise NotThere(f"QEMU does not show the memory at {address:#x}")
    return b"".join(int(word, 16).to_bytes(8, "little") for word in words)


def memory_map(text: str) -> list[range]:
    """The ranges of RAM and ROM that the CPUs see, whole pages of them, from `info mtree -f`."""
    views = text.split("FlatView #")
    view = next((view for view in views if _VIEW.search(view)), "")
    found: list[range] = []
    for first, last, _ in _RANGE.findall(view):
        start, stop = int(first, 16) + PAGE - 1 & -PAGE, int(last, 16) + 1 & -PAGE
        if found and found[-1].stop == start:
            found[-1] = range(found[-1].start, stop)
        elif start < stop:
            found.append(range(start, stop))
    return found


class GuestPages:
    """Memory by `[start:stop]`: each page is asked for once, and kept."""

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self.pages: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        first, last = start & -PAGE, stop + PAGE - 1 & -PAGE
        content = b"".join(self._page(page) for page in range(first, last, PAGE))
        return content[start - first : stop - first]

    def _page(self, page: int) -> bytes:
        if page not in self.pages:
            self.pages[page] = self._read(page)
        return self.pages[page]
