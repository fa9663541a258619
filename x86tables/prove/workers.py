"""Many pieces of work in forked children: whatever one of them does to its process, the caller survives."""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import traceback
import warnings

from ..errors import NotThere
from ..records import Record
from .processes import ender

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import IO, Any, TypeVar

    T = TypeVar("T")

SECONDS = 20  # that one piece may take


class Crashed(Record):
    """A piece of work that ended its process, by a signal or an exception."""

    why: str

    def __str__(self) -> str:
        return f"the emulator's process ended: {self.why}"


def run(
    prepare: Callable[[], Callable[[T], Any]],
    items: Sequence[T],
    workers: int = 1,
    size: int = 200,
    seconds: int | None = None,
) -> Iterator[tuple[T, Any]]:
    """(item, result) for all `items`, as they come; Crashed for one that took its process with it.

    `prepare` is called once in each child and gives the function to be called with each item; a child does `size`.
    An item may take so many seconds, SECONDS by default. NotThere when `prepare` fails. Children end with the caller,
    or when it stops asking for results.
    """
    queue = [list(items[first : first + size]) for first in range(0, len(items), size)]
    queue.reverse()
    children: list[_Child] = []
    with selectors.DefaultSelector() as selector:
        try:
            while queue or children:
                while queue and len(children) < workers:
                    children.append(_start(prepare, queue.pop(), SECONDS if seconds is None else seconds))
                    selector.register(children[-1].pipe, selectors.EVENT_READ, children[-1])
                for key, _ in selector.select():
                    child: _Child = key.data
                    if data := os.read(child.pipe, 1 << 16):
                        yield from child.results(data)
                        continue
                    selector.unregister(child.pipe)
                    children.remove(child)
                    why = child.end()
                    if not child.ready:
                        raise NotThere(f"the emulator does not start: {why}")
                    if child.left and why:
                        yield child.left.pop(0), Crashed(why)
                    if child.left:
                        queue.append(child.left)
        finally:
            for child in children:
                os.kill(child.process, signal.SIGKILL)
                child.end()


class _Child:
    def __init__(self, process: int, pipe: int, items: list[Any], seconds: int) -> None:
        self.process, self.pipe, self.left, self.data = process, pipe, items, b""
        self.seconds = seconds
        self.ready = False

    def results(self, data: bytes) -> Iterator[tuple[Any, Any]]:
        """The results that are complete by now, each behind its length. NotThere when `prepare` has failed.

        The first message says that: a sentence, or None.
        """
        self.data += data
        while len(self.data) >= 4:
            end = 4 + int.from_bytes(self.data[:4], "little")
            if len(self.data) < end:
                return
            result, self.data = pickle.loads(self.data[4:end]), self.data[end:]
            if self.ready:
                yield self.left.pop(0), result
            elif result is not None:
                raise NotThere(result)
            self.ready = True

    def end(self) -> str:
        """Wait for the end; what was the reason, "" if it ended by itself."""
        os.close(self.pipe)
        _, status = os.waitpid(self.process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGALRM:
            return f"no result within {self.seconds} seconds"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}" if code else ""


def _start(prepare: Callable[[], Callable[[Any], Any]], items: list[Any], seconds: int) -> _Child:
    read, write = os.pipe()
    end_with_parent = ender()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that the child will not have: it needs none, and leaves by _exit
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        os.close(read)
        end_with_parent()
        _work(prepare, items, write, seconds)
    os.close(write)
    return _Child(process, read, items, seconds)


def _work(prepare: Callable[[], Callable[[Any], Any]], items: list[Any], pipe: int, seconds: int) -> None:
    """A child's life; it never returns, and reports only through the pipe."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
        with os.fdopen(pipe, "wb") as out:
            _report(out, prepare, items, seconds)
        status = 0
    finally:
        os._exit(status)


def _report(out: IO[bytes], prepare: Callable[[], Callable[[Any], Any]], items: list[Any], seconds: int) -> None:
    try:
        work = prepare()
    except Exception as error:
        known = isinstance(error, NotThere)
        return _send(out, str(error) if known else f"the emulator does not start: {_described(error)}")
    _send(out, None)
    for item in items:
        signal.alarm(seconds)
        try:
            _send(out, work(item))
        except Exception as error:  # what it has left behind is not known: the rest is for another process
            return _send(out, Crashed(_described(error)))
    return None


def _send(out: IO[bytes], message: object) -> None:
    data = pickle.dumps(message)
    out.write(len(data).to_bytes(4, "little") + data)
    out.flush()


def _described(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}, line {place.lineno})"
