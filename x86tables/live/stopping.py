"""A machine is stopped while it is looked at, and goes on however that ends: an exception, Ctrl-C, SIGTERM, or a
connection that breaks, which is made once more to say so. Only SIGKILL leaves it stopped."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress

from ..errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from ..readers import Contents

    class Guest(Protocol):
        """A connection to a machine. `ours` is whether it runs, but for us."""

        ours: bool

        def stop(self) -> None:
            """Stop it, if it runs."""

        def contents(self) -> Contents:
            """Its registers, and its memory as it is asked for."""

        def go_on(self) -> None:
            """Let it run."""

        def close(self) -> None:
            """End the connection; once more does nothing."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP came while a machine was stopped."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def stopped(connect: Callable[[], Guest]) -> Iterator[Contents]:
    """A machine's memory and registers while it is stopped."""
    try:
        with _stopped(connect) as contents:
            yield contents
    except Terminated as ended:
        os.kill(os.getpid(), ended.number)  # it runs again: now end as the signal asks
        raise


@contextmanager
def _stopped(connect: Callable[[], Guest]) -> Iterator[Contents]:
    guest = connect()
    try:
        with _ends_are_exceptions():
            guest.stop()
            yield guest.contents()
    finally:
        try:
            if guest.ours:
                _go_on(guest, connect)
        finally:
            guest.close()


def _go_on(guest: Guest, connect: Callable[[], Guest]) -> None:
    """Let it run again, by a connection of its own where the first is gone."""
    try:
        guest.go_on()
    except BaseException as error:  # Ctrl-C once more, too
        guest.close()  # QEMU talks to one at a time
        second = connect()
        try:
            second.go_on()
        finally:
            with suppress(ImageError):
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
