"""Two implementations of one thing, timed in turns within one run; and the line of the table about them."""

import gc
from collections.abc import Callable
from statistics import median
from time import process_time

SLICE = 0.004


def duel(rounds: int, *works: Callable[[], object], clock: Callable[[], float] = process_time) -> list[float]:
    """Seconds of this process that each work takes: medians over rounds in which they take turns."""

    def spent(work: Callable[[], object], times: int) -> float:
        start = clock()
        for _ in range(times):
            work()
        return (clock() - start) / times

    for work in works:
        work()  # what is made on first use is no part of the comparison
    times = [max(1, round(SLICE / spent(work, 1))) for work in works]
    gc.collect()
    gc.disable()
    try:
        taken = [[spent(work, count) for work, count in zip(works, times, strict=True)] for _ in range(rounds)]
    finally:
        gc.enable()
    return [median(column) for column in zip(*taken, strict=True)]


def line(
    work: str, ours: str, peer: str, seconds: list[float], target: float | None = None, at_most: bool = False
) -> None:
    mine, theirs = seconds
    ratio = mine / theirs if at_most else theirs / mine
    wanted = f"{'<=' if at_most else '>='} {target:g}" if target else ""
    met = "" if not target else "met" if (ratio <= target if at_most else ratio >= target) else "MISSED"
    print(f"{work:<12} {ours:<19} {peer:<22} {mine * 1e6:>9.1f} {theirs * 1e6:>9.1f} {ratio:>7.1f}  {wanted:<7} {met}")
