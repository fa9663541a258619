"""QEMU's monitor, asked by QMP."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from ..errors import ImageError, reason
from . import pages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from ..readers import Contents

SECONDS = 30  # that QEMU may take to answer


class Monitor:
    """A connection; its event loop runs in a thread of its own, which no signal interrupts."""

    ours = False

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
            raise ImageError(f"{path}: no QMP server answers there: {reason(error)}") from None

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def execute(self, command: str, **arguments: object) -> Any:
        """What QEMU answers; ImageError when it refuses, or does not answer any more."""
        if self._loop.is_closed():
            raise ImageError(f"{self._path}: the connection to QEMU is closed")
        try:
            return self._wait(self._client.execute(command, arguments or None))
        except Exception as error:
            raise ImageError(f"{self._path}: QEMU does not answer {command!r}: {reason(error)}") from None

    def text(self, line: str) -> str:
        """What the monitor for people prints."""
        return str(self.execute("human-monitor-command", **{"command-line": line})).replace("\r", "")

    def stop(self) -> None:
        """Stop the machine, if it runs."""
        if self.execute("query-status")["running"]:
            self.ours = True  # before, not after: it may have stopped although no answer came
            self.execute("stop")

    def go_on(self) -> None:
        """Let the machine run."""
        self.execute("cont")

    def contents(self) -> Contents:
        """Registers of all CPUs, the memory that there is, and pages of it as they are asked for."""
        return pages.contents(self._path, self.text)

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
