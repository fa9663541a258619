"""Which linear memory a configuration describes: of the rest nothing is known."""

from __future__ import annotations

from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Coverage:
    """Ranges of linear memory that do not overlap; `name` is how an address outside of them is called in a sentence."""

    def __init__(self, ranges: Iterable[range], name: Callable[[int], str] = hex) -> None:
        self.ranges = sorted((known for known in ranges if known), key=lambda known: known.start)
        self.name = name
        self._starts = [known.start for known in self.ranges]

    def __contains__(self, linear: int) -> bool:
        number = bisect_right(self._starts, linear) - 1
        return number >= 0 and linear in self.ranges[number]

    def __iter__(self) -> Iterator[range]:
        return iter(self.ranges)
