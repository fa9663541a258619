"""QEMU's monitor: registers of all CPUs, the memory that there is, and pages of it as they are asked for.

The machine is stopped meanwhile, and goes on however the work ends: an exception, Ctrl-C, SIGTERM, or a connection that
breaks, which is made once more to say so. Only SIGKILL leaves it stopped.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from contextlib import contextmanager, suppress

from .. import budgets
from ..errors import ImageError, NotThere
from ..machine.memory import PAGE, Memory
from ..readers import Contents, monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

    from ..machine.memory import Piece

SECONDS = 30  # that QEMU may take to answer
# `info mtree -f`: the ranges of an address space, each with its kind
_VIEW = re.compile(r'^ *AS "(?:cpu-memory-0|memory)".*$', re.MULTILINE)
_RANGE = re.compile(r"^ *([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|rom|romd)\)", re.MULTILINE)
_WORDS = re.compile(r"0x([0-9a-f]{16})")


class Monitor:
    """A connection; its event loop runs in a thread of its own, which no signal interrupts."""

    def __init__(self, path: str, address: str | tuple[str, int]) -> None:
        try:
            from qemu.qmp import QMPClient
        except ImportError:
            raise ImageError(f"{path}: a running machine needs the package qemu.qmp: pip install qemu.qmp") from None
        self._path, self._loop = path, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client: Any = QMPClient("x86tables")
        self._client.logger.disabled = True
        try:
            self._wait(self._client.connect(address))
        except Exception as error:
            self.close()
            raise ImageError(f"{path}: no QMP server answers there: {_said(error)}") from None

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def execute(self, command: str, **arguments: object) -> Any:
        """What QEMU answers; ImageError when it refuses, or does not answer any more."""
        if self._loop.is_closed():
            raise ImageError(f"{self._path}: the connection to QEMU is closed")
        try:
            return self._wait(self._client.execute(command, arguments or None))
        except Exception as error:
            raise ImageError(f"{self._path}: QEMU does not answer {command!r}: {_said(error)}") from None

    def text(self, line: str) -> str:
        """What the monitor for people prints."""
        return str(self.execute("human-monitor-command", **{"command-line": line})).replace("\r", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and the thread; once more does nothing."""
        if self._loop.is_closed():
            return
        with suppress(Exception):
            self._wait(self._client.disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


class Terminated(BaseException):
    """SIGTERM or SIGHUP came while a machine was stopped."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def stopped(path: str, address: str | tuple[str, int]) -> Iterator[Contents]:
    """A machine's memory and registers while it is stopped."""
    try:
        with _stopped(path, address) as contents:
            yield contents
    except Terminated as ended:
        os.kill(os.getpid(), ended.number)  # it runs again: now end as the signal asks
        raise


@contextmanager
def _stopped(path: str, address: str | tuple[str, int]) -> Iterator[Contents]:
    monitor = Monitor(path, address)
    ours = False
    try:
        with _ends_are_exceptions():
            if monitor.execute("query-status")["running"]:
                ours = True  # before, not after: it may have stopped although no answer came
                monitor.execute("stop")
            yield _contents(path, monitor)
    finally:
        try:
            if ours:
                _go_on(path, address, monitor)
        finally:
            monitor.close()


def _go_on(path: str, address: str | tuple[str, int], monitor: Monitor) -> None:
    """Let it run again, by a connection of its own where the first is gone."""
    try:
        monitor.execute("cont")
    except BaseException as error:  # Ctrl-C once more, too
        monitor.close()  # QEMU talks to one at a time
        second = Monitor(path, address)
        try:
            second.execute("cont")
        finally:
            second.close()
        if not isinstance(error, ImageError):
            raise


@contextmanager
def _ends_are_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP raise in the block, so that what stands around it is done; then they end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raised(number: int, frame: object) -> None:
        raise Terminated(number)

    before = {number: signal.signal(number, raised) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def dump(path: str, address: str | tuple[str, int], file: str) -> None:
    """`dump-guest-memory` into a file of QEMU's host; QEMU stops the machine for it, and lets it go on."""
    with Monitor(path, address) as monitor:
        monitor.execute("dump-guest-memory", paging=False, protocol=f"file:{file}")


def _contents(path: str, monitor_: Monitor) -> Contents:
    registers = monitor.parse(monitor_.text("info registers -a"), path)
    ranges = memory_map(monitor_.text("info mtree -f"))
    if not ranges:
        raise ImageError(f"{path}: QEMU's `info mtree -f` names no memory")
    pages = GuestPages(monitor_, max(known.stop for known in ranges))
    pieces: list[Piece] = [(known.start, len(known), pages, known.start) for known in ranges]
    text = ",".join(f"{known.start:#x}-{known.stop:#x}" for known in ranges)
    extra = {"ram": text} if len(ranges) <= budgets.RANGES else {}
    return Contents(Memory(pieces), registers, extra=extra, running=False)


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
    """Physical memory by `[start:stop]`: each page is asked for once, and kept."""

    def __init__(self, monitor: Monitor, size: int) -> None:
        self._monitor, self._size = monitor, size
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
            words = _WORDS.findall(self._monitor.text(f"xp /512gx {page:#x}"))
            if len(words) != 512:
                raise NotThere(f"QEMU does not show the memory at {page:#x}")
            self.pages[page] = b"".join(int(word, 16).to_bytes(8, "little") for word in words)
        return self.pages[page]
