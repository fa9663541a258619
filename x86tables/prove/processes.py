"""Programs that this process starts and that end with it, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import warnings

from ..errors import NotThere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

PR_SET_PDEATHSIG = 1  # prctl(2): the signal that this process gets when its parent dies


def ender() -> Callable[[], None]:
    """What a child calls first, so that the kernel kills it when this process dies. Does nothing but on Linux."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def end_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before that
            os._exit(1)

    return end_with_parent


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program with no standard input, in a session of its own, which is killed with all that it started at the end.

    It also ends when this process is killed, by SIGKILL too where that can be had. NotThere when it cannot be run.
    """
    with exceptions_from_signals():
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that the child will not have: it needs none
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=ender(), **options
                )
            except OSError as error:
                raise NotThere(f"{command[0]} cannot be run: {error.strerror}") from None
        with process:
            try:
                yield process
            finally:
                if process.returncode is None:  # until it is waited for, its number cannot be reused
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)


class _Signalled(BaseException):
    """SIGTERM or SIGHUP on its way through the `finally` clauses."""


@contextlib.contextmanager
def exceptions_from_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave the block as an exception does, and then end this process as they would have.

    So programs are stopped and temporary files removed. A caller's own handlers stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # the second one does not interrupt what the first one has begun
        raise _Signalled(number)

    caught = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) == signal.SIG_DFL]
    received = None
    try:
        for number in caught:
            signal.signal(number, leave)
        yield
    except _Signalled as error:
        received = error.args[0]
        if received not in caught:  # that of a block around this one
            raise
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        if received in caught:
            os.kill(os.getpid(), received)
