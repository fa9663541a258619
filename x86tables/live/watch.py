"""Wait until a running machine stops by itself: at a shutdown (a triple fault, a reset) or a panic."""

from __future__ import annotations

import time

from .qmp import Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ENDS = ("shutdown", "internal-error", "guest-panicked")
BETWEEN = 0.1  # seconds from one question to the next
# A reset stops the machine with its registers as they were, and so does a panic
ARGUMENTS = ("-no-reboot", "-no-shutdown", "-action", "panic=pause")


def watch(path: str, address: str | tuple[str, int], ended: Callable[[], bool] = lambda: False) -> str | None:
    """QEMU's word for why it stopped; None when `ended` says that there is nothing to wait for any more.

    ImageError when QEMU does not answer any more.
    """
    with Monitor(path, address) as monitor:
        while not ended():
            status = str(monitor.execute("query-status")["status"])
            if status in ENDS:
                return status
            time.sleep(BETWEEN)
    return None
